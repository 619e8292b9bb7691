//! Where userfaultfd may not be used, no page is taken away from the guest. The only test of this
//! file: what its process may not do it may never again.

mod moving;
mod written_only;

use std::io;

use moving::{boot_probe, migrate, verify_all_pages};
use vmm::check::{Grade, examine};
use written_only::{MEMORY_MIB, SETTINGS, only_what_is_written_is_told};

/// From now on nobody in this thread, nor in those that it starts, may have a userfaultfd: what
/// containers and hardened hosts do.
fn forbid_userfaultfd() -> io::Result<()> {
    // linux/seccomp.h: the number of the call, and the low half of its second argument.
    const CALL: u32 = 0;
    const SECOND: u32 = 24;
    // linux/userfaultfd.h, of /dev/userfaultfd.
    const USERFAULTFD_IOC_NEW: u32 = 0xaa00;
    let line = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut lines = [
        line(load, 0, 0, CALL),
        line(equal, 3, 0, libc::SYS_userfaultfd as u32),
        line(equal, 0, 3, libc::SYS_ioctl as u32),
        line(load, 0, 0, SECOND),
        line(equal, 0, 1, USERFAULTFD_IOC_NEW),
        line(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        line(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: lines.len() as u16,
        filter: lines.as_mut_ptr(),
    };
    // SAFETY: the first call has no pointers; the second reads the filter, which outlives it.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) != 0
    };
    if refused {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn without_userfaultfd_what_is_written_is_told_and_guests_move() {
    if let Err(error) = forbid_userfaultfd() {
        return ground::skip(format_args!(
            "a process without userfaultfd: no seccomp here: {error}"
        ));
    }
    let findings = examine();
    let about = |text: &str| text.contains("not what they read");
    let finding = findings.iter().find(|finding| about(&finding.text));
    let finding = finding.expect("vmm check says what is missing");
    assert_eq!(finding.grade, Grade::Poor);
    assert!(finding.text.contains("run as root"), "{finding:?}");

    let dir = tempfile::tempdir().unwrap();
    let Some(guest) = boot_probe(dir.path(), SETTINGS, 1, MEMORY_MIB) else {
        return;
    };
    only_what_is_written_is_told(&guest, "without userfaultfd");
    let moved = migrate(&guest, |wish| wish.goal.accept_longer = true).unwrap();
    assert!(moved.summary.verified);
    guest.end();
    only_what_is_written_is_told(&moved.guest, "without userfaultfd, moved");
    verify_all_pages(&moved.guest);
}
