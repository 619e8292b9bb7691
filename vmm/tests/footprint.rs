//! What a running guest costs its host besides its memory.

mod little;

use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use little::{ECHO, cannot_run_guests, command, kernel, out};

const LIMIT: Duration = Duration::from_mins(1);

/// KiB of the program's code and constants that the process has mapped, and how much there is.
fn program_kib(pid: u32) -> (u64, u64) {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let (mut resident, mut all, mut is_program) = (0, 0, false);
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let kib = || words[1].parse::<u64>().unwrap();
        match words[0] {
            "Size:" if is_program => all += kib(),
            "Rss:" if is_program => resident += kib(),
            _ if words[0].contains('-') => {
                let is_ours = Path::new(words.last().unwrap()).ends_with("vmm");
                is_program = is_ours && (words[1] == "r-xp" || words[1] == "r--p");
            }
            _ => {}
        }
    }
    (resident, all)
}

#[test]
fn what_only_the_start_took_is_given_back() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = [&out(0x3f8, b'G')[..], &ECHO].concat();
    std::fs::write(dir.path().join("echo"), kernel(&program)).unwrap();
    let mut vmm = command(dir.path(), &["run", "--kernel", "echo", "--memory", "16"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // The guest runs.
    let mut console = vmm.stdout.take().unwrap();
    console.read_exact(&mut [0]).unwrap();
    let started = Instant::now();
    loop {
        let (resident, all) = program_kib(vmm.id());
        if all > 0 && resident < all / 4 {
            break;
        }
        assert!(started.elapsed() < LIMIT, "{resident} KiB of {all} stay");
        std::thread::sleep(Duration::from_millis(20));
    }
    vmm.kill().unwrap();
    vmm.wait().unwrap();
}
