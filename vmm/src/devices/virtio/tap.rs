//! A tap interface of the host: where a network device's frames come from and go to.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the virtio header in front of every frame (virtio 1.2 §5.1.6).
pub const HEADER_BYTES: usize = 12;
/// Longest packet, header included: 64 KiB of segmentation offload and link headers.
pub const MAX_PACKET_BYTES: usize = HEADER_BYTES + 65_535 + 18;

const HEADER_BYTES_INT: libc::c_int = 12;
const TUN: &str = "/dev/net/tun";
const MAX_IOVECS: usize = 1024;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is not one an interface can have.
    #[error("{0:?} is not the name of a network interface; one has 1 to 15 characters")]
    BadName(String),
    /// No such interface.
    #[error(
        "tap {0} does not exist; create it with `ip tuntap add dev {0} mode tap user $USER vnet_hdr`"
    )]
    Absent(String),
    /// Somebody else has it open.
    #[error("tap {0} is in use by another process; stop that, or name another tap")]
    Busy(String),
    /// It belongs to another user.
    #[error("no permission to use tap {0}; recreate it with `user $USER`, or hand it in as fd=N")]
    Permission(String),
    /// The module or device node is missing.
    #[error("cannot open {TUN}; load the `tun` module and give this user access")]
    NoTun(#[source] io::Error),
    /// An interface of another kind.
    #[error(
        "{0} is not a tap with a virtio header (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR); make one with \
         `ip tuntap add dev NAME mode tap user $USER vnet_hdr`"
    )]
    WrongKind(String),
    /// Anything else.
    #[error("cannot {act} tap {name}")]
    Io {
        /// The failed act.
        act: &'static str,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Offloads that the guest takes upon itself for frames it receives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Partial checksums.
    pub checksum: bool,
    /// TCP segments larger than the MTU over IPv4.
    pub tso4: bool,
    /// The same over IPv6.
    pub tso6: bool,
    /// The same with congestion notification.
    pub ecn: bool,
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    file: File,
    name: String,
    takes_ioctls: bool,
}

impl Tap {
    /// Open the existing tap `name`. Works for an ordinary user who owns it.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let request = InterfaceRequest::new(name)?;
        let c_name = CString::new(name).map_err(|_| TapError::BadName(name.into()))?;
        // SAFETY: a valid string that outlives the call. Opening an absent name would make it.
        if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(TapError::Absent(name.into()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN)
            .map_err(TapError::NoTun)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        // A tap made for several queues only takes openers who say so.
        let attached = request
            .attach(&file, flags)
            .or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => request.attach(&file, flags | libc::IFF_MULTI_QUEUE),
                _ => Err(error),
            });
        attached.map_err(|source| match source.raw_os_error() {
            Some(libc::EBUSY) => TapError::Busy(name.into()),
            Some(libc::EPERM | libc::EACCES) => TapError::Permission(name.into()),
            Some(libc::EINVAL) => TapError::WrongKind(name.into()),
            _ => TapError::Io {
                act: "attach to",
                name: name.into(),
                source,
            },
        })?;
        Self::ready(file, name.into())
    }

    /// Use a tap that somebody with the right to do so has opened for us.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, TapError> {
        let name = format!("fd={}", descriptor.as_raw_fd());
        let file = File::from(descriptor);
        let flags = interface_flags(&file).map_err(|_| TapError::WrongKind(name.clone()))?;
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::WrongKind(name));
        }
        rustix::io::ioctl_fionbio(&file, true).map_err(|error| TapError::Io {
            act: "set up",
            name: name.clone(),
            source: error.into(),
        })?;
        Self::ready(file, name)
    }

    fn ready(file: File, name: String) -> Result<Self, TapError> {
        let size = HEADER_BYTES_INT;
        // SAFETY: the kernel reads one int through the pointer.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) };
        if result < 0 {
            let source = io::Error::last_os_error();
            return Err(TapError::Io {
                act: "set the header size of",
                name,
                source,
            });
        }
        Ok(Self {
            file,
            name,
            takes_ioctls: true,
        })
    }

    /// A packet socket in place of a tap.
    #[cfg(test)]
    pub(crate) fn fake(descriptor: OwnedFd) -> Self {
        Self {
            file: File::from(descriptor),
            name: "fake".into(),
            takes_ioctls: false,
        }
    }

    /// A second handle to the same queue.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            name: self.name.clone(),
            takes_ioctls: self.takes_ioctls,
        })
    }

    /// Its name, or `fd=N`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Readable when a frame is waiting.
    pub fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Tell the kernel which offloads the guest can take.
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if !self.takes_ioctls {
            return Ok(());
        }
        let mut flags = 0;
        if offloads.checksum {
            flags |= libc::TUN_F_CSUM;
            flags |= if offloads.tso4 { libc::TUN_F_TSO4 } else { 0 };
            flags |= if offloads.tso6 { libc::TUN_F_TSO6 } else { 0 };
            let segments = offloads.tso4 || offloads.tso6;
            flags |= if offloads.ecn && segments {
                libc::TUN_F_TSO_ECN
            } else {
                0
            };
        }
        let flags = libc::c_ulong::from(flags);
        // SAFETY: the argument is a plain number.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Receive one packet, header first. `WouldBlock` when there is none.
    pub fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(packet)
    }

    /// Send one packet whose pieces, header first, lie in `pieces` (at most 1024 of them).
    ///
    /// # Safety
    /// Every piece must describe memory that stays mapped for the length of the call.
    pub unsafe fn send(&self, pieces: &[libc::iovec]) -> io::Result<usize> {
        let count =
            libc::c_int::try_from(pieces.len().min(MAX_IOVECS)).map_err(io::Error::other)?;
        // SAFETY: the caller vouches for the memory; `count` entries are there.
        let sent = unsafe { libc::writev(self.file.as_raw_fd(), pieces.as_ptr(), count) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }
}

/// `struct ifreq` with a name, for the two ioctls used here.
struct InterfaceRequest([libc::c_char; libc::IFNAMSIZ]);

impl InterfaceRequest {
    fn new(name: &str) -> Result<Self, TapError> {
        let bad = || TapError::BadName(name.into());
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || !name.bytes().all(plain) {
            return Err(bad());
        }
        let mut raw = [0; libc::IFNAMSIZ];
        for (to, from) in raw.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::try_from(from).map_err(|_| bad())?;
        }
        Ok(Self(raw))
    }

    fn attach(&self, file: &File, flags: libc::c_int) -> io::Result<()> {
        // SAFETY: all-zero bytes are a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.0;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the kernel reads and writes one `ifreq` through the pointer.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

fn interface_flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one `ifreq` through the pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: TUNGETIFF filled the flags member of the union.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_created() {
        for name in ["", "a/b", "tap%d", "a-name-that-is-too-long", "ta p", "x:1"] {
            assert!(
                matches!(Tap::open(name), Err(TapError::BadName(_))),
                "{name:?}"
            );
        }
        assert!(matches!(
            Tap::open("no-such-tap0"),
            Err(TapError::Absent(_))
        ));
        let file = tempfile::tempfile().unwrap();
        assert!(matches!(
            Tap::from_fd(file.into()),
            Err(TapError::WrongKind(_))
        ));
    }

    /// Ends a thread's rights: only it becomes that user, unlike by setresuid(2)'s wrapper.
    fn become_user(user: u32) {
        // SAFETY: no memory is involved.
        let answer = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
        assert_eq!(answer, 0);
    }

    /// In namespaces of its own: a device node that all may open, two taps, and no other right than
    /// that to the first.
    #[test]
    fn an_ordinary_user_has_the_tap_that_is_its_own_and_no_other() {
        const OWNER: u32 = 1000;
        let prepare = format!(
            "mount --make-rprivate / && mount -t tmpfs none /dev/net && \
             mknod -m 666 {TUN} c 10 200 && \
             ip tuntap add dev own mode tap user {OWNER} vnet_hdr && \
             ip tuntap add dev foreign mode tap user {} vnet_hdr",
            OWNER + 1
        );
        let result = std::thread::spawn(move || {
            // SAFETY: only this thread moves into the new namespaces.
            if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } != 0 {
                return None;
            }
            let prepared = std::process::Command::new("sh")
                .args(["-c", &prepare])
                .status();
            if !prepared.is_ok_and(|status| status.success()) {
                return None;
            }
            become_user(OWNER);
            Tap::open("own").unwrap();
            let refused = Tap::open("foreign").unwrap_err();
            assert!(matches!(refused, TapError::Permission(_)), "{refused}");
            assert!(refused.to_string().contains("`user $USER`"), "{refused}");
            Some(())
        })
        .join()
        .unwrap();
        if result.is_none() {
            ground::skip("no right to make taps of an ordinary user in namespaces");
        }
    }

    #[test]
    fn a_real_tap_takes_offloads_and_frames() {
        // In a network namespace of its own, which needs the right to make one.
        let result = std::thread::spawn(|| {
            // SAFETY: only this thread moves into the new namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return None;
            }
            let made = std::process::Command::new("ip")
                .args(["tuntap", "add", "dev", "gwtest0", "mode", "tap", "vnet_hdr"])
                .status();
            if !made.is_ok_and(|status| status.success()) {
                return None;
            }
            let tap = Tap::open("gwtest0").unwrap();
            assert!(matches!(Tap::open("gwtest0"), Err(TapError::Busy(_))));
            assert!(matches!(Tap::open("lo"), Err(TapError::WrongKind(_))));
            for bits in 0..16u8 {
                let bit = |at: u8| bits >> at & 1 == 1;
                tap.set_offloads(Offloads {
                    checksum: bit(0),
                    tso4: bit(1),
                    tso6: bit(2),
                    ecn: bit(3),
                })
                .unwrap();
            }
            let mut packet = [0; 100];
            let empty = tap.receive(&mut packet).unwrap_err();
            assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
            let handed_in = tap.file.try_clone().unwrap();
            Tap::from_fd(handed_in.into()).unwrap();
            Some(())
        })
        .join()
        .unwrap();
        if result.is_none() {
            ground::skip("no right to make a network namespace with a tap in it");
        }
    }
}
