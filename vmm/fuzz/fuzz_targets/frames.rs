//! Throws streams at what the target of a migration reads from its source: as they come, and cut
//! into frames whose checksums are right, so that what lies behind the checksums is met too.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use vmm::machine::{Draft, MachineState};
use vmm::memory::{self, GuestMemory};
use vmm::migration::pages;
use vmm::migration::wire::{self, Accept, Hello, Kind, Ready, Running, StateFrame, Token};
use vmm_core::compat::missing_features;
use vmm_core::spec::Spec;

const KINDS: [Kind; 15] = [
    Kind::Hello,
    Kind::Accept,
    Kind::Refuse,
    Kind::Round,
    Kind::RoundDone,
    Kind::State,
    Kind::Ready,
    Kind::Commit,
    Kind::Running,
    Kind::Abort,
    Kind::Draft,
    Kind::Join,
    Kind::Pages,
    Kind::Zero,
    Kind::End,
];
const MEMORY_MIB: u64 = 16;

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| memory::map(MEMORY_MIB, false).expect("16 MiB can be mapped"));

fuzz_target!(|bytes: &[u8]| {
    read_all(bytes);
    read_all(&framed(bytes));
});

/// Frames with right checksums: kind, length of the payload, payload; again and again.
fn framed(mut bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::new();
    while let [kind, length, low, rest @ ..] = bytes {
        let length = (usize::from(*length) << 8 | usize::from(*low)).min(rest.len());
        let (payload, after) = rest.split_at(length);
        let kind = KINDS[usize::from(*kind) % KINDS.len()];
        stream.extend(wire::control(kind, 1, payload));
        bytes = after;
    }
    stream
}

fn read_all(mut stream: &[u8]) {
    while let Ok((header, payload)) = wire::receive(&mut stream) {
        match header.kind {
            Kind::Hello => hello(&payload),
            Kind::Accept => drop(wire::decode::<Accept>(&payload)),
            Kind::Ready => drop(wire::decode::<Ready>(&payload)),
            Kind::Running => drop(wire::decode::<Running>(&payload)),
            Kind::Join => drop(wire::decode::<Token>(&payload)),
            Kind::Commit => drop(wire::decode::<u64>(&payload)),
            Kind::Round | Kind::RoundDone => drop(wire::decode::<u32>(&payload)),
            Kind::Refuse | Kind::Abort => drop(wire::decode::<String>(&payload)),
            Kind::Draft => draft(&payload),
            Kind::State => state(&payload),
            Kind::Pages => drop(pages::places(&MEMORY, &payload)),
            Kind::Zero => drop(pages::clear(&MEMORY, &payload)),
            Kind::End => {}
        }
    }
}

fn hello(payload: &[u8]) {
    let Ok(hello) = wire::decode::<Hello>(payload) else {
        return;
    };
    missing_features(&hello.cpuid, &[]);
    if let Ok(spec) = toml::from_str::<Spec>(&hello.spec) {
        drop(spec.validate());
    }
}

fn draft(payload: &[u8]) {
    if let Ok(bytes) = wire::decode::<Vec<u8>>(payload) {
        drop(vmm::codec::decode::<Draft>(&bytes));
    }
}

fn state(payload: &[u8]) {
    if let Ok(frame) = wire::decode::<StateFrame>(payload)
        && let Ok(state) = vmm::codec::decode::<MachineState>(&frame.machine)
    {
        drop(state.check(1));
    }
}
