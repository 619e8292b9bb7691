//! Page faults that this process handles itself: userfaultfd(2), ioctl_userfaultfd(2).

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::FromRawFd;
use std::sync::OnceLock;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

// linux/userfaultfd.h
const KIND: u32 = 0xaa;
const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;
const MESSAGE_BYTES: usize = 32;
const ADDRESS_AT: usize = 16;
/// Faults that are read at a time.
const MESSAGES: usize = 16;

#[repr(C)]
#[derive(Default)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
#[derive(Default)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

ioctl_io_nr!(USERFAULTFD_IOC_NEW, KIND, 0x00);
ioctl_iowr_nr!(UFFDIO_API, KIND, 0x3f, Handshake);
ioctl_iowr_nr!(UFFDIO_REGISTER, KIND, 0x00, Register);
ioctl_ior_nr!(UFFDIO_UNREGISTER, KIND, 0x01, Range);
ioctl_ior_nr!(UFFDIO_WAKE, KIND, 0x02, Range);

/// The process's page faults.
#[derive(Debug)]
pub struct Faults(File);

/// Open them, once. Before /dev/kvm: a process that is killed closes its files in the order of
/// their numbers, and a virtual machine that goes while a fault of its own waits never comes to
/// an end.
pub fn prepare() -> &'static io::Result<Faults> {
    static FAULTS: OnceLock<io::Result<Faults>> = OnceLock::new();
    FAULTS.get_or_init(Faults::open)
}

impl Faults {
    fn open() -> io::Result<Self> {
        // Without UFFD_USER_MODE_ONLY: KVM and system calls touch guest memory, too.
        // SAFETY: makes a descriptor, or fails.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) } as i32;
        let fd = if fd >= 0 { fd } else { from_device()? };
        // SAFETY: the descriptor was made just now and is nobody else's.
        let faults = Self(unsafe { File::from_raw_fd(fd) });
        let mut hello = Handshake {
            api: API,
            ..Handshake::default()
        };
        // SAFETY: the structure is what the request reads and writes.
        check(unsafe { ioctl_with_mut_ref(&faults.0, UFFDIO_API(), &mut hello) })?;
        Ok(faults)
    }

    /// Let whoever touches these bytes while they do not exist wait until they are woken.
    pub fn watch(&self, start: usize, len: usize) -> io::Result<()> {
        let mut register = Register {
            range: range(start, len),
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: the structure is what the request reads and writes; it changes no memory.
        check(unsafe { ioctl_with_mut_ref(&self.0, UFFDIO_REGISTER(), &mut register) })
    }

    /// No more.
    pub fn unwatch(&self, start: usize, len: usize) -> io::Result<()> {
        // SAFETY: the structure is what the request reads; it changes no memory.
        check(unsafe { ioctl_with_ref(&self.0, UFFDIO_UNREGISTER(), &range(start, len)) })
    }

    /// Let those who wait for these bytes look again.
    pub fn wake(&self, start: usize, len: usize) {
        // SAFETY: the structure is what the request reads. It fails for wrong ranges only.
        unsafe { ioctl_with_ref(&self.0, UFFDIO_WAKE(), &range(start, len)) };
    }

    /// Tell `missed` the address of every fault, for as long as the process lives.
    pub fn attend(&self, missed: impl Fn(usize)) {
        let mut messages = [0; MESSAGE_BYTES * MESSAGES];
        loop {
            // It fails when a signal comes, and when a fault was settled meanwhile.
            let bytes = (&self.0).read(&mut messages).unwrap_or_default();
            for message in messages[..bytes].chunks_exact(MESSAGE_BYTES) {
                let address = message[ADDRESS_AT..].first_chunk();
                if let (EVENT_PAGEFAULT, Some(address)) = (message[0], address) {
                    missed(u64::from_ne_bytes(*address) as usize);
                }
            }
        }
    }
}

/// What is root's alone otherwise, whoever may open this file may have, too (Linux 6.1).
fn from_device() -> io::Result<i32> {
    let refused = io::Error::last_os_error();
    let mut device = OpenOptions::new();
    let device = device.read(true).write(true).open("/dev/userfaultfd");
    let device = device.map_err(|_| refused)?;
    // SAFETY: makes a descriptor, or fails; the argument is its flags.
    let fd = unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), libc::O_CLOEXEC as u64) };
    check(fd).map(|()| fd)
}

fn range(start: usize, len: usize) -> Range {
    Range {
        start: start as u64,
        len: len as u64,
    }
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer >= 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
