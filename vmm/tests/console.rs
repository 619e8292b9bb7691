//! The console as people meet it: a terminal, a socket.

mod little;

use std::fs::File;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use little::{ECHO, cannot_run_guests, command, kernel, out, vmm};

const LIMIT: Duration = Duration::from_mins(1);
/// Control and ].
const ESCAPE: &[u8] = b"\x1d";
const CONTROL_C: u8 = 3;

/// A guest that says G and then echoes; `doors` are its settings.
fn echo_guest(dir: &Path, doors: &[&str]) -> std::process::Command {
    let program = [&out(0x3f8, b'G')[..], &ECHO].concat();
    std::fs::write(dir.join("echo"), kernel(&program)).unwrap();
    let guest = ["run", "--kernel", "echo", "--memory", "16"];
    command(dir, &[&guest[..], doors].concat())
}

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn code(child: &mut Child) -> Option<i32> {
    let status = wait("the end of the vmm", || child.try_wait().unwrap());
    status.code()
}

/// A terminal: the end that a person has, and the end that a program has.
fn terminal() -> (File, OwnedFd) {
    let (mut ours, mut theirs) = (-1, -1);
    // SAFETY: writes two descriptors; the other pointers may be null (openpty(3)).
    let made = unsafe {
        libc::openpty(
            &raw mut ours,
            &raw mut theirs,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(made, 0);
    // SAFETY: both were just made and belong to nobody else.
    unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) }
}

/// Whether the terminal hands over lines and makes signals of keys.
fn is_cooked(terminal: &impl AsRawFd) -> bool {
    let mut settings = MaybeUninit::uninit();
    // SAFETY: tcgetattr fills the structure, or says that it does not.
    let settings = unsafe {
        assert_eq!(
            libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()),
            0
        );
        settings.assume_init()
    };
    settings.c_lflag & (libc::ICANON | libc::ISIG | libc::ECHO) != 0
}

#[test]
fn a_terminal_is_the_guests_until_the_escape() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut person, theirs) = terminal();
    assert!(is_cooked(&person));
    let stream = || Stdio::from(theirs.try_clone().unwrap());
    let mut vmm = echo_guest(dir.path(), &[])
        .stdin(stream())
        .stdout(stream())
        .spawn()
        .unwrap();
    let mut said = [0];
    person.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"G");
    assert!(!is_cooked(&person), "every key is the guest's");
    // Even the one that would end a program.
    for key in [b'a', CONTROL_C, b'z'] {
        person.write_all(&[key]).unwrap();
        person.read_exact(&mut said).unwrap();
        assert_eq!(said, [key]);
    }
    person.write_all(ESCAPE).unwrap();
    assert_eq!(code(&mut vmm), Some(0));
    assert!(is_cooked(&person), "the terminal is as it was");
}

#[test]
fn the_terminal_is_as_it_was_after_a_refusal_and_a_signal() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut person, theirs) = terminal();
    let refused = command(dir.path(), &["run", "--kernel", "absent"])
        .stdin(theirs.try_clone().unwrap())
        .output()
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(is_cooked(&person));
    let mut vmm = echo_guest(dir.path(), &[])
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .spawn()
        .unwrap();
    person.read_exact(&mut [0]).unwrap();
    // SAFETY: kill takes no pointers; the child is ours and has not been waited for.
    let sent = unsafe { libc::kill(vmm.id().cast_signed(), libc::SIGTERM) };
    assert_eq!(sent, 0);
    assert_eq!(code(&mut vmm), Some(0));
    assert!(is_cooked(&person));
}

#[test]
fn a_socket_serves_one_client_after_another() {
    if cannot_run_guests() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name| dir.path().join(name);
    let doors = ["--console", "socket=console", "--api-socket", "api"];
    let mut guest = echo_guest(dir.path(), &doors).spawn().unwrap();
    let mut kept = Vec::from(b"G");
    for key in *b"ab" {
        let mut client = wait("the console", || UnixStream::connect(path("console")).ok());
        client.set_read_timeout(Some(LIMIT)).unwrap();
        // What was said before comes first.
        let mut said = vec![0; kept.len()];
        client.read_exact(&mut said).unwrap();
        assert_eq!(said, kept);
        client.write_all(&[key]).unwrap();
        let mut said = [0];
        client.read_exact(&mut said).unwrap();
        assert_eq!(said, [key]);
        kept.push(key);
    }
    several_see_and_type(&path("console"), &kept);
    let done = vmm(dir.path(), &["ctl", "--api-socket", "api", "power-off"]);
    assert!(done.status.success());
    assert_eq!(code(&mut guest), Some(0));
    assert!(!path("console").exists() && !path("api").exists());
}

/// Eight at once see what each types, a ninth is told that there are eight; who leaves makes room.
fn several_see_and_type(socket: &Path, kept: &[u8]) {
    let connect = || {
        let client = UnixStream::connect(socket).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client
    };
    let mut clients: Vec<_> = (0..8).map(|_| connect()).collect();
    for client in &mut clients {
        let mut said = vec![0; kept.len()];
        client.read_exact(&mut said).unwrap();
        assert_eq!(said, kept);
    }
    let mut refusal = String::new();
    connect().read_to_string(&mut refusal).unwrap();
    assert!(refusal.contains("8 viewers already"), "{refusal}");
    for typing in 0..clients.len() {
        clients[typing].write_all(b"x").unwrap();
        for client in &mut clients {
            let mut said = [0];
            client.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"x");
        }
    }
    drop(clients.remove(3));
    wait("the place of the one that left", || {
        let mut said = [0];
        connect().read_exact(&mut said).unwrap();
        (said == kept[..1]).then_some(())
    });
}
