//! Guests that do anything to every device of a real machine: at worst they end their own VMM, which
//! says so in words.

mod little;

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use little::{cannot_run_guests, command, kernel, out, store};
use shared_storage::image::{self, Format};
use vmm::layout::{
    ECAM, KEYBOARD_PORT, PANIC_PORT, PCI_WINDOW, POWER_PORT, RAM_GAP_START, SERIAL_PORT,
};

const MEMORY_BYTES: u32 = 16 << 20;
const DISK_BYTES: u64 = 64 << 10;
/// A raw disk, a qcow2 disk, a read-only disk, the entropy device: slots 1 to 4.
const DEVICES: u32 = 4;
const BAR_BYTES: u32 = 0x8000;
const BUFFERS: u32 = 0x80_0000;
const RINGS: u32 = 0x90_0000;
const ENTRIES: u16 = 16;
/// A guest that has not ended by itself is ended after this time.
const PATIENCE: Duration = Duration::from_millis(300);
const LIMIT: Duration = Duration::from_mins(1);

/// What an instruction of the guest does.
#[derive(Debug, Clone)]
enum Act {
    Store(u32, Width, u32),
    Load(u32, Width),
    Out(u16, Width, u32),
    In(u16, Width),
    /// A string of so many bytes goes to a port.
    Outs(u16, u16),
}

#[derive(Debug, Clone, Copy)]
enum Width {
    Byte,
    Word,
    Long,
}
use Width::{Byte, Long, Word};

impl Act {
    /// 32-bit code (Intel SDM vol. 2).
    fn code(&self) -> Vec<u8> {
        const WORDS: u8 = 0x66;
        match *self {
            Self::Store(at, width, value) => {
                let bytes = match width {
                    Byte => 1,
                    Word => 2,
                    Long => 4,
                };
                store(at, &value.to_le_bytes()[..bytes])
            }
            Self::Load(at, width) => match width {
                Byte => [&[0xa0][..], &at.to_le_bytes()].concat(),
                Word => [&[WORDS, 0xa1][..], &at.to_le_bytes()].concat(),
                Long => [&[0xa1][..], &at.to_le_bytes()].concat(),
            },
            Self::Out(port, width, value) => {
                let value = [&[0xb8][..], &value.to_le_bytes()].concat();
                let write: &[u8] = match width {
                    Byte => &[0xee],
                    Word => &[WORDS, 0xef],
                    Long => &[0xef],
                };
                [&to_port(port)[..], &value, write].concat()
            }
            Self::In(port, width) => {
                let read: &[u8] = match width {
                    Byte => &[0xec],
                    Word => &[WORDS, 0xed],
                    Long => &[0xed],
                };
                [&to_port(port)[..], read].concat()
            }
            Self::Outs(port, bytes) => {
                let from = [&[0xbe][..], &BUFFERS.to_le_bytes()].concat();
                let count = [&[0xb9][..], &u32::from(bytes).to_le_bytes()].concat();
                [&to_port(port)[..], &from, &count, &[0xf3, 0x6e]].concat()
            }
        }
    }
}

/// Code that names the port for the instructions after it.
fn to_port(port: u16) -> [u8; 4] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high]
}

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![Just(Byte), Just(Word), Just(Long)]
}

fn bar(device: u32) -> u32 {
    PCI_WINDOW.base + device * BAR_BYTES
}

/// Registers, mostly; memory and nowhere, sometimes.
fn address() -> impl Strategy<Value = u32> {
    let registers = (
        0..DEVICES,
        prop_oneof![
            4 => 0..60u32,
            1 => Just(0x1000),
            1 => 0x2000..0x2040u32,
            2 => 0x3000..0x3010u32,
            2 => 0x4000..0x4040u32,
            1 => 0..BAR_BYTES,
        ],
    );
    let configuration = (0..=DEVICES + 1, 0..256u32);
    prop_oneof![
        6 => registers.prop_map(|(device, offset)| bar(device) + offset),
        3 => configuration.prop_map(|(slot, at)| ECAM as u32 + (slot << 15) + at),
        2 => (0..0x2_0000u32).prop_map(|at| RINGS + at),
        1 => RAM_GAP_START as u32..u32::MAX,
        1 => MEMORY_BYTES - 8..MEMORY_BYTES + 8,
    ]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        3 => SERIAL_PORT..SERIAL_PORT + 8,
        3 => 0xcf8..=0xcffu16,
        1 => POWER_PORT..POWER_PORT + 2,
        1 => prop::sample::select(vec![PANIC_PORT, KEYBOARD_PORT, POWER_PORT + 2]),
        1 => any::<u16>(),
    ]
}

fn value() -> impl Strategy<Value = u32> {
    prop_oneof![3 => 0..16u32, 1 => any::<u32>(), 1 => Just(u32::MAX)]
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (address(), width(), value()).prop_map(|(at, width, value)| Act::Store(at, width, value)),
        3 => (address(), width()).prop_map(|(at, width)| Act::Load(at, width)),
        2 => (port(), width(), value()).prop_map(|(port, width, value)| Act::Out(port, width, value)),
        1 => (port(), width()).prop_map(|(port, width)| Act::In(port, width)),
        1 => (port(), 0..64u16).prop_map(|(port, bytes)| Act::Outs(port, bytes)),
    ]
}

/// A descriptor: address, bytes, flags, next.
type Descriptor = (u32, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let at = prop_oneof![
        6 => (0..64u32).prop_map(|at| BUFFERS + 16 * at),
        1 => (0..32u32).prop_map(|back| MEMORY_BYTES - back),
        1 => Just(RINGS),
        1 => any::<u32>(),
    ];
    let bytes = prop_oneof![
        4 => prop::sample::select(vec![0u32, 1, 16, 17, 20, 512, 4096]),
        1 => any::<u32>(),
    ];
    let flags = prop_oneof![8 => 0..4u16, 1 => 4..8u16, 1 => any::<u16>()];
    (
        at,
        bytes,
        flags,
        prop_oneof![8 => 0..ENTRIES, 1 => any::<u16>()],
    )
}

/// What an honest driver would put there: a header, a buffer, a status byte.
fn honest(n: u16) -> Descriptor {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    let at = BUFFERS + 16 * u32::from(n);
    match n % 3 {
        0 => (at, 16, NEXT, n + 1),
        1 => (at + 0x2000, 512, NEXT | WRITE, n + 1),
        _ => (at + 0x6000, 1, WRITE, 0),
    }
}

/// The queue that a device is brought up with: descriptors, heads, index. Half of it is honest, so
/// that devices get far before they stumble.
type Ring = (Vec<Descriptor>, Vec<u16>, u16);

fn ring() -> impl Strategy<Value = Ring> {
    let entries = usize::from(ENTRIES);
    let head = prop_oneof![40 => 0..ENTRIES, 1 => any::<u16>()];
    (
        prop::collection::vec(prop::option::weighted(0.3, descriptor()), entries),
        prop::collection::vec(prop::option::of(head), entries),
        prop_oneof![8 => 0..=ENTRIES, 1 => any::<u16>()],
    )
        .prop_map(|(descriptors, heads, index)| {
            let descriptors = (0..).zip(descriptors);
            let heads = (0..).zip(heads);
            (
                descriptors
                    .map(|(n, hostile)| hostile.unwrap_or_else(|| honest(n)))
                    .collect(),
                heads
                    .map(|(n, hostile)| hostile.unwrap_or(3 * n % (ENTRIES - 1)))
                    .collect(),
                index,
            )
        })
}

/// Bring `device` up as a driver would, but for what lies in its queue.
fn bring_up(device: u32, (descriptors, heads, index): &Ring) -> Vec<Act> {
    let base = RINGS + device * 0x4000;
    let (available, used) = (base + 0x1000, base + 0x2000);
    let mut acts = Vec::new();
    for (n, (at, bytes, flags, next)) in (0..).zip(descriptors) {
        let place = base + 16 * n;
        let rest = u32::from(*flags) | u32::from(*next) << 16;
        let words = [*at, 0, *bytes, rest];
        acts.extend(
            (0..)
                .zip(words)
                .map(|(word, value)| Act::Store(place + 4 * word, Long, value)),
        );
    }
    for (n, head) in (0..).zip(heads) {
        acts.push(Act::Store(available + 4 + 2 * n, Word, (*head).into()));
    }
    acts.push(Act::Store(available + 2, Word, (*index).into()));
    let register = |offset: u32, width, value| Act::Store(bar(device) + offset, width, value);
    // Virtio 1.2 §3.1.1, §4.1.4.3; VIRTIO_F_VERSION_1 and nothing else.
    acts.extend([
        register(20, Byte, 3),
        register(8, Long, 1),
        register(12, Long, 1),
        register(20, Byte, 11),
        register(24, Word, ENTRIES.into()),
        register(32, Long, base),
        register(40, Long, available),
        register(48, Long, used),
        register(28, Word, 1),
        register(20, Byte, 15),
        register(0x3000, Word, 0),
    ]);
    acts
}

/// Requests that a disk understands, for the descriptors to point at.
fn requests(kinds: &[(u32, u32)]) -> Vec<Act> {
    let request = |(n, (kind, sector)): (u32, &(u32, u32))| {
        let at = BUFFERS + 16 * n;
        [
            Act::Store(at, Long, *kind),
            Act::Store(at + 8, Long, *sector),
        ]
    };
    (0..).zip(kinds).flat_map(request).collect()
}

fn program() -> impl Strategy<Value = Vec<Act>> {
    let kind =
        prop_oneof![4 => prop::sample::select(vec![0u32, 1, 4, 8, 11, 13]), 1 => any::<u32>()];
    let sector = prop_oneof![4 => 0..140u32, 1 => any::<u32>()];
    (
        prop::collection::vec((kind, sector), 64),
        prop::collection::vec(ring(), DEVICES as usize),
        prop::collection::vec(act(), 0..200),
    )
        .prop_map(|(kinds, rings, acts)| {
            let up = (0..)
                .zip(&rings)
                .flat_map(|(device, ring)| bring_up(device, ring));
            requests(&kinds).into_iter().chain(up).chain(acts).collect()
        })
}

/// Its exit code; it is told to end where it goes on.
fn end_of(vmm: &mut Child) -> Option<i32> {
    let started = Instant::now();
    let mut told = false;
    loop {
        if let Some(status) = vmm.try_wait().unwrap() {
            return status.code();
        }
        if !told && started.elapsed() > PATIENCE {
            told = true;
            // SAFETY: kill takes no pointers; the child is ours and has not been waited for.
            unsafe { libc::kill(vmm.id().cast_signed(), libc::SIGTERM) };
        }
        assert!(
            started.elapsed() < LIMIT,
            "it neither ends nor can be ended"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run(dir: &Path, program: &[Act]) -> Option<i32> {
    let code: Vec<u8> = program.iter().flat_map(Act::code).collect();
    let code = [code, out(POWER_PORT, 0x34), vec![0xf4]].concat();
    std::fs::write(dir.join("kernel"), kernel(&code)).unwrap();
    let disks = [
        "path=raw",
        "path=qcow2,format=qcow2",
        "path=fixed,readonly=on",
    ];
    let mut arguments = vec![
        "run",
        "--kernel",
        "kernel",
        "--memory",
        "16",
        "--console",
        "off",
    ];
    arguments.extend(disks.iter().flat_map(|disk| ["--disk", *disk]));
    let mut vmm = command(dir, &arguments)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    end_of(&mut vmm)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_hostile_guest_ends_its_own_vmm_at_worst(program in program()) {
        if cannot_run_guests() {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("raw"), vec![1; DISK_BYTES as usize]).unwrap();
        std::fs::write(path("fixed"), vec![2; DISK_BYTES as usize]).unwrap();
        image::create(None, &path("qcow2"), Format::Qcow2, DISK_BYTES).unwrap();
        let code = run(dir.path(), &program);
        // Off, not to be run any further, panicked, crashed: never ended by a signal.
        prop_assert!(matches!(code, Some(0 | 1 | 10 | 11)), "{:?}", code);
        prop_assert_eq!(std::fs::metadata(path("raw")).unwrap().len(), DISK_BYTES);
        prop_assert_eq!(std::fs::read(path("fixed")).unwrap(), vec![2; DISK_BYTES as usize]);
    }
}
