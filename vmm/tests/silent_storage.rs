//! A guest whose disk does not answer: whoever asks about it, or wants its end, is answered.

mod little;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ground::{Ground, Kind};
use serde::de::DeserializeOwned;
use vmm::cli::ctl::request;
use vmm::layout::PCI_WINDOW;
use vmm_core::control::{Counters, Info};
use vmm_core::lifecycle::{Ending, State};

use little::{cannot_run_guests, command, kernel, store};

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);
const DISK_BYTES: usize = 64 << 10;
/// Where the guest keeps its queue and its request.
const RING: u32 = 0x20_0000;
const REQUEST: u32 = 0x30_0000;

/// Code that writes the first sector of the first disk, and waits for ever.
fn writer() -> Vec<u8> {
    const NEXT: u32 = 1;
    const WRITE: u32 = 2;
    let long = |at: u32, value: u32| store(at, &value.to_le_bytes());
    let mut code = Vec::new();
    // Virtio 1.2 §5.2.6: a header that says "write", a sector, a byte for the status.
    code.extend(long(REQUEST, 1));
    let descriptors = [
        [REQUEST, 0, 16, NEXT | 1 << 16],
        [REQUEST + 0x1000, 0, 512, NEXT | 2 << 16],
        [REQUEST + 0x2000, 0, 1, WRITE],
    ];
    for (word, value) in (0..).zip(descriptors.as_flattened()) {
        code.extend(long(RING + 4 * word, *value));
    }
    // One request is available.
    code.extend(store(RING + 0x1002, &[1, 0]));
    // Virtio 1.2 §3.1.1, §4.1.4.3; VIRTIO_F_VERSION_1 and nothing else.
    let register = |offset: u32, value: &[u8]| store(PCI_WINDOW.base + offset, value);
    code.extend(register(20, &[3]));
    code.extend(register(8, &[1, 0, 0, 0]));
    code.extend(register(12, &[1, 0, 0, 0]));
    code.extend(register(20, &[11]));
    code.extend(register(24, &[16, 0]));
    code.extend(register(32, &RING.to_le_bytes()));
    code.extend(register(40, &(RING + 0x1000).to_le_bytes()));
    code.extend(register(48, &(RING + 0x2000).to_le_bytes()));
    code.extend(register(28, &[1, 0]));
    code.extend(register(20, &[15]));
    code.extend(register(0x3000, &[0, 0]));
    // jmp to itself
    code.extend([0xeb, 0xfe]);
    code
}

/// A process that is gone when this is.
struct Vmm(Child);

impl Drop for Vmm {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ask<T: DeserializeOwned>(socket: &Path, path: &str) -> Result<T, String> {
    let body = request(socket, "GET", path, None)?.body()?;
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < give_up, "waited in vain for {what}");
        thread::sleep(POLL);
    }
}

#[test]
fn a_guest_whose_disk_does_not_answer_can_be_asked_about_and_ended() {
    if cannot_run_guests() {
        return;
    }
    let ground = match Ground::in_file(Kind::Ext4) {
        Ok(ground) => ground,
        Err(why) => return ground::skip(why),
    };
    let disk = ground.root().join("disk");
    fs::write(&disk, vec![1; DISK_BYTES]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("kernel"), kernel(&writer())).unwrap();
    let socket = dir.path().join("api.sock");
    ground.freeze().unwrap();
    let mut run = command(dir.path(), &["run", "--kernel", "kernel", "--memory", "16"]);
    run.args(["--console", "off", "--api-socket", "api.sock", "--disk"]);
    run.arg(format!("path={}", disk.display()));
    let mut vmm = Vmm(run.stderr(Stdio::piped()).spawn().unwrap());
    let said = BufReader::new(vmm.0.stderr.take().unwrap()).lines();

    let writes =
        || ask::<Counters>(&socket, "/v1/counters").map(|counters| counters.disks[0].writes);
    until("the write", || writes() == Ok(1));
    thread::spawn({
        let socket = socket.clone();
        // Answered when nothing is under way any more: not in this test.
        move || request(&socket, "PUT", "/v1/pause", None).map(drop)
    });
    let state = || ask::<Info>(&socket, "/v1/info").map(|info| info.state);
    until("its standing still", || state() == Ok(State::Paused));
    assert_eq!(writes(), Ok(1));

    request(&socket, "PUT", "/v1/power-off", None).unwrap();
    let last = said
        .map_while(Result::ok)
        .find(|line| line.starts_with("vmm: "));
    let last = last.expect("it says why it ends");
    assert!(last.contains("its storage has not answered"), "{last}");
    // The kernel lets go of the process when it can write again.
    ground.thaw().unwrap();
    let code = vmm.0.wait().unwrap().code();
    assert_eq!(code, Some(i32::from(Ending::Failed.code())));
}
