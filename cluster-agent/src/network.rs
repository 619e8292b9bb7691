//! The host side of a guest's network: taps, and the bridge they hang on.
//!
//! A tap is named after its guest and card, exists while the guest may run here and is
//! persistent, so that the VMM opens it by name without privileges of its own.

use std::ffi::c_char;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};

/// Kernel limit on the length of an interface name, without the closing zero.
const INTERFACE_NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// Why the network of a guest could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {act} {interface}: {source}{}", remedy(source))]
pub struct NetworkError {
    act: &'static str,
    interface: String,
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (the agent needs CAP_NET_ADMIN; run it as root)",
        Some(libc::ENOENT) => " (is the kernel module tun loaded? try: modprobe tun)",
        Some(libc::ENOPKG) => " (is the kernel module bridge loaded? try: modprobe bridge)",
        _ => "",
    }
}

/// The bridge that guests of this host are attached to.
#[derive(Debug, Clone)]
pub struct Bridge {
    name: String,
}

impl Bridge {
    /// Find the bridge `name`, or create it and bring it up.
    ///
    /// A bridge made here has no uplink: guests of this host reach each other and the host.
    /// Enslave the host's network card to give them the rest of the world.
    pub fn open_or_create(name: &str) -> Result<Self, NetworkError> {
        let fail = |act| fail(act, name);
        check_name(name).map_err(fail("name the bridge"))?;
        if !exists(name) {
            let control = control_socket().map_err(fail("create the bridge"))?;
            let argument = interface_name(name);
            // SAFETY: SIOCBRADDBR reads a zero-terminated name of at most IFNAMSIZ bytes.
            let answer =
                unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDBR, argument.as_ptr()) };
            check(answer).map_err(fail("create the bridge"))?;
        }
        bring_up(name).map_err(fail("bring up the bridge"))?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Create the persistent tap `tap` (or find it), attach it to the bridge, bring it up.
    pub fn attach_tap(&self, tap: &str) -> Result<(), NetworkError> {
        let fail = |act| fail(act, tap);
        check_name(tap).map_err(fail("name the tap"))?;
        create_tap(tap).map_err(fail("create the tap"))?;
        self.enslave(tap)
            .map_err(fail("attach to the bridge the tap"))?;
        bring_up(tap).map_err(fail("bring up the tap"))
    }

    fn enslave(&self, tap: &str) -> io::Result<()> {
        let control = control_socket()?;
        let mut request = request(&self.name);
        request.ifr_ifru.ifru_ifindex = index_of(&control, tap)?;
        // SAFETY: SIOCBRADDIF reads one ifreq, which lives through the call.
        let answer = unsafe { libc::ioctl(control.as_raw_fd(), SIOCBRADDIF, &raw const request) };
        match check(answer) {
            // Already on a bridge: found again after a restart of the agent.
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
            other => other,
        }
    }
}

/// Remove the persistent tap `tap`. One that is not there is no error.
pub fn remove_tap(tap: &str) -> Result<(), NetworkError> {
    if !exists(tap) {
        return Ok(());
    }
    let remove = || -> io::Result<()> {
        let tun = attach(tap)?;
        // SAFETY: TUNSETPERSIST takes an integer, no memory is shared.
        check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 0) })
    };
    remove().map_err(fail("remove the tap", tap))
}

/// The tap name for network card `card` of `guest`: readable where it fits the kernel's
/// fifteen bytes, and unlike any other guest's by a checksum.
pub fn tap_name(guest: &str, card: usize) -> String {
    let readable: String = guest
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .take(5)
        .collect();
    let name = format!(
        "gw{card:x}{readable}-{:06x}",
        crc32c::crc32c(guest.as_bytes()) >> 8
    );
    debug_assert!(name.len() <= INTERFACE_NAME_MAX || card > 0xf);
    name
}

fn fail<'a>(act: &'static str, interface: &'a str) -> impl Fn(io::Error) -> NetworkError + 'a {
    move |source| NetworkError {
        act,
        interface: interface.to_owned(),
        source,
    }
}

fn exists(interface: &str) -> bool {
    control_socket()
        .and_then(|control| index_of(&control, interface))
        .is_ok()
}

fn check_name(name: &str) -> io::Result<()> {
    let fits = !name.is_empty() && name.len() <= INTERFACE_NAME_MAX;
    let plain = name
        .bytes()
        .all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
    if fits && plain && name != "." && name != ".." {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!(
            "an interface name has 1 to {INTERFACE_NAME_MAX} printable characters without / and :"
        ),
    ))
}

// linux/sockios.h; the libc crate does not have them.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

fn control_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

fn interface_name(name: &str) -> [c_char; libc::IFNAMSIZ] {
    let mut bytes = [0; libc::IFNAMSIZ];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(INTERFACE_NAME_MAX)) {
        *to = from.cast_signed();
    }
    bytes
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: ifreq is plain old data for which all zeroes is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name = interface_name(name);
    request
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn index_of(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let mut request = request(name);
    // SAFETY: SIOCGIFINDEX reads and fills one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request) })?;
    // SAFETY: SIOCGIFINDEX has just filled this member of the union.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

fn bring_up(name: &str) -> io::Result<()> {
    let control = control_socket()?;
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS reads and fills one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short };
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
}

/// Open the tap device `name`, creating it when it does not exist.
fn attach(name: &str) -> io::Result<File> {
    let tun = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = request(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and fills one ifreq, which lives through the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}

fn create_tap(name: &str) -> io::Result<()> {
    if exists(name) {
        return Ok(());
    }
    let tun = attach(name)?;
    // SAFETY: TUNSETPERSIST takes an integer, no memory is shared.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETPERSIST, 1) })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn tap_names_fit_the_kernel_and_differ() {
        let long = "a-guest-with-quite-a-long-name";
        let names = [
            tap_name("web1", 0),
            tap_name("web1", 1),
            tap_name("web2", 0),
            tap_name(long, 0),
            tap_name(&format!("{long}2"), 0),
            tap_name("", 0),
        ];
        for (n, name) in names.iter().enumerate() {
            check_name(name).unwrap();
            assert!(!names[..n].contains(name), "{name} twice");
        }
    }

    #[test]
    fn bad_names_are_refused_before_the_kernel_sees_them() {
        for name in ["", "a/b", "a:b", "sixteen-letters-", "."] {
            assert!(Bridge::open_or_create(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_tap_comes_and_goes_on_its_bridge() {
        if !in_private_network() {
            ground::skip("taps and bridges need root and /dev/net/tun");
            return;
        }
        let bridge = match Bridge::open_or_create("gwtest0") {
            Ok(bridge) => bridge,
            Err(error) => {
                ground::skip(format_args!("no bridge on this kernel: {error}"));
                return;
            }
        };
        bridge.attach_tap("gwtap0").unwrap();
        bridge.attach_tap("gwtap0").unwrap();
        assert!(exists("gwtap0"));
        remove_tap("gwtap0").unwrap();
        assert!(!exists("gwtap0"));
        remove_tap("gwtap0").unwrap();
    }

    /// Move this test's thread into a network namespace of its own.
    fn in_private_network() -> bool {
        // SAFETY: unshare of the network namespace touches no memory of ours.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
        unshared && Path::new("/dev/net/tun").exists()
    }
}
