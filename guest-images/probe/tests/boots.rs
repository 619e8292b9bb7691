//! The probe itself, booted by QEMU: it runs, and it finds what is wrong with memory.

use std::fs::{File, OpenOptions};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use probe::abi::{COMMAND_END, COMMAND_REST, FILL_START_GPA, Header, REPORT_BYTES, REPORT_GPA};
use probe::config::{Config, RATE_MAX};
use probe::report::{BadKind, Report, State};

const LIMIT: Duration = Duration::from_mins(1);
/// Does something to a guest's memory from outside.
type Harm = fn(&Guest);

const PAGE_BYTES: usize = 4096;

/// A probe under QEMU, its memory in a file.
struct Guest {
    qemu: Child,
    memory: File,
    dir: PathBuf,
}

impl Guest {
    /// `None` (said loudly) where there is no QEMU.
    fn boot(name: &str, config: Config) -> Option<Guest> {
        let dir =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let (image, ram) = (dir.join("probe.elf"), dir.join("ram"));
        std::fs::write(&image, probe::IMAGE).expect("the image can be written");
        let backend = format!(
            "memory-backend-file,id=m,size=64M,share=on,mem-path={}",
            ram.display()
        );
        let spawned = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,memory-backend=m,x-option-roms=off",
                "-m",
                "64M",
                "-object",
                &backend,
            ])
            .args([
                "-accel",
                "kvm",
                "-accel",
                "tcg",
                "-cpu",
                "max,-arch-capabilities",
            ])
            .args([
                "-smp",
                &config.cpus.to_string(),
                "-append",
                &config.to_string(),
            ])
            .args([
                "-no-reboot",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-serial",
                "null",
                "-kernel",
            ])
            .arg(&image)
            .stdin(Stdio::null())
            .spawn();
        let qemu = match spawned {
            Ok(qemu) => qemu,
            Err(error) => {
                ground::skip(format_args!(
                    "qemu-system-x86_64 cannot be started ({error})"
                ));
                return None;
            }
        };
        let started = Instant::now();
        let memory = loop {
            match OpenOptions::new().read(true).write(true).open(&ram) {
                Ok(file) => break file,
                Err(_) => assert!(started.elapsed() < LIMIT, "QEMU makes no memory file"),
            }
            std::thread::yield_now();
        };
        Some(Guest { qemu, memory, dir })
    }

    /// The first report that satisfies the condition.
    fn wait(&mut self, what: &str, condition: impl Fn(&Report) -> bool) -> Report {
        let (started, mut bytes) = (Instant::now(), vec![0; REPORT_BYTES]);
        loop {
            let read = self.memory.read_exact_at(&mut bytes, REPORT_GPA);
            let report = read.is_ok().then(|| Report::decode(&bytes).ok()).flatten();
            if let Some(report) = &report {
                assert!(!matches!(report.state, State::Failed(_)), "{report:#?}");
                if condition(report) {
                    return report.clone();
                }
            }
            assert_eq!(self.qemu.try_wait().expect("waited"), None, "QEMU ended");
            assert!(
                started.elapsed() < LIMIT,
                "waited in vain for: {what}; {report:#?}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn page(&self, gpa: u64) -> Vec<u8> {
        let mut page = vec![0; PAGE_BYTES];
        self.memory.read_exact_at(&mut page, gpa).expect("read");
        page
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // Both fail only where there is nothing left to end or remove.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn two_vcpus_keep_memory_dirty_and_find_it_right() {
    let config = Config {
        cpus: 2,
        fill_mib: 16,
        hot_mib: 4,
        rate_mib_s: 64,
        sweep_mib_s: RATE_MAX,
        tick_us: 1000,
        ..Config::default()
    };
    let Some(mut guest) = Guest::boot("two", config) else {
        return;
    };
    let report = guest.wait("two sweeps", |r| {
        r.sweeps() >= 2 && r.written_pages() > 2048
    });
    assert!(report.is_running());
    assert_eq!(report.bad_pages(), 0, "{report:#?}");
    assert_eq!((report.fill_pages, report.hot_pages), (4096, 1024));
    assert_eq!(report.vcpus.len(), 2);
    let later = guest.wait("timer interrupts", |r| {
        r.vcpus
            .iter()
            .zip(&report.vcpus)
            .all(|(now, then)| now.ticks > then.ticks + 1)
    });
    for vcpu in &later.vcpus {
        assert_eq!(vcpu.clock_backwards, 0, "{later:#?}");
    }
}

#[test]
fn a_lost_a_stale_and_a_damaged_page_are_told_apart() {
    let hot = Config {
        fill_mib: 4,
        hot_mib: 1,
        rate_mib_s: 16,
        ..Config::default()
    };
    let still = Config {
        fill_mib: 4,
        sweep_mib_s: RATE_MAX,
        ..Config::default()
    };
    let cases: [(&str, Config, BadKind, Harm); 3] = [
        ("lost", still, BadKind::Lost, |guest| {
            let page = FILL_START_GPA + 7 * PAGE_BYTES as u64;
            guest
                .memory
                .write_all_at(&[0; PAGE_BYTES], page)
                .expect("written");
        }),
        ("damaged", still, BadKind::Damaged, |guest| {
            guest
                .memory
                .write_all_at(&[1], FILL_START_GPA + 4095)
                .expect("written");
        }),
        ("stale", hot, BadKind::Stale, |guest| {
            let old = guest.page(FILL_START_GPA);
            let started = Instant::now();
            while guest.page(FILL_START_GPA) == old {
                assert!(started.elapsed() < LIMIT, "the hot page does not change");
                std::thread::sleep(Duration::from_millis(1));
            }
            guest
                .memory
                .write_all_at(&old, FILL_START_GPA)
                .expect("written");
        }),
    ];
    for (name, config, kind, harm) in cases {
        let Some(mut guest) = Guest::boot(name, config) else {
            return;
        };
        let before = guest.wait("work", |r| {
            r.is_running() && r.vcpus[0].verified_pages > 1024
        });
        assert_eq!(before.bad_pages(), 0, "{name}: {before:#?}");
        harm(&guest);
        let report = guest.wait(name, |r| {
            r.bad_pages() > 0 && r.vcpus[0].first_bad.is_some()
        });
        assert_eq!(
            report.vcpus[0].first_bad.map(|bad| bad.kind),
            Some(kind),
            "{report:#?}"
        );
    }
}

#[test]
fn it_rests_and_ends_on_command() {
    let config = Config {
        hot_mib: 1,
        ..Config::default()
    };
    let Some(mut guest) = Guest::boot("command", config) else {
        return;
    };
    guest.wait("running", |report| report.written_pages() > 0);
    let command = REPORT_GPA + offset_of!(Header, command) as u64;
    guest
        .memory
        .write_all_at(&COMMAND_REST.to_le_bytes(), command)
        .expect("written");
    let turns = guest.wait("any", |_| true).vcpus[0].turns;
    let resting = guest.wait("a rest", |r| r.vcpus[0].turns > turns + 10);
    let later = guest.wait("turns at rest", |r| {
        r.vcpus[0].turns > resting.vcpus[0].turns + 1000
    });
    assert_eq!(later.written_pages(), resting.written_pages());
    guest
        .memory
        .write_all_at(&COMMAND_END.to_le_bytes(), command)
        .expect("written");
    assert!(
        guest.qemu.wait().expect("waited").success(),
        "-no-reboot ends QEMU with 0"
    );
}
