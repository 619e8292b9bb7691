//! What a host is: found out by itself, so that nobody has to configure it.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use cluster_core::model::Resources;
use serde::{Deserialize, Serialize};

/// Memory that the host keeps for its kernel, the agent and page cache, in MiB ...
const HOST_MEMORY_MIB: u64 = 128;
/// ... plus this share of what it has, in per cent: page tables and network buffers grow with it.
const HOST_MEMORY_PERCENT: u64 = 5;

/// Name, address and capacity of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host's name: its kernel host name up to the first dot.
    pub name: String,
    /// Address at which other hosts reach it.
    pub address: IpAddr,
    /// What guests may use: the machine less what the host itself needs.
    pub capacity: Resources,
}

impl HostFacts {
    /// Look at this machine.
    ///
    /// `toward` is an address on the network that the cluster uses (a peer, the storage
    /// server); the local address that routes there becomes the host's. Without one, the
    /// address of the default route is taken, and loopback when there is none.
    pub fn discover(toward: Option<IpAddr>) -> io::Result<Self> {
        let memory_mib = meminfo_mib(&fs::read_to_string("/proc/meminfo")?, "MemTotal:")
            .ok_or_else(|| invalid("/proc/meminfo has no MemTotal"))?;
        let cores = std::thread::available_parallelism()?.get() as u64;
        Ok(Self {
            name: short_host_name()?,
            address: local_address(toward),
            capacity: Resources {
                mcpu: cores * 1000,
                memory_mib: guest_memory_mib(memory_mib),
            },
        })
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn guest_memory_mib(machine_mib: u64) -> u64 {
    let own = HOST_MEMORY_MIB + machine_mib * HOST_MEMORY_PERCENT / 100;
    machine_mib.saturating_sub(own)
}

fn short_host_name() -> io::Result<String> {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy();
    let short = full.split('.').next().unwrap_or_default();
    if short.is_empty() || short == "(none)" || short == "localhost" {
        return Err(invalid(
            "this host has no name of its own; set one with hostnamectl, or pass --name",
        ));
    }
    Ok(short.to_owned())
}

/// The kernel chooses the source address of a datagram when it is connected; none is sent.
fn local_address(toward: Option<IpAddr>) -> IpAddr {
    // A documentation address (RFC 5737): any that takes the default route will do.
    let toward = toward.unwrap_or(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let any: IpAddr = match toward {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    UdpSocket::bind((any, 0))
        .and_then(|socket| {
            socket.connect((toward, 9))?;
            socket.local_addr()
        })
        .map_or(Ipv4Addr::LOCALHOST.into(), |local| local.ip())
}

/// An amount of /proc/meminfo by its name with the colon.
pub(crate) fn meminfo_mib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = HostFacts::discover(Some(Ipv4Addr::LOCALHOST.into())).unwrap();
        assert_eq!(facts.address, IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(facts.capacity.mcpu >= 1000);
    }

    #[test]
    fn the_host_keeps_memory_for_itself() {
        assert_eq!(
            meminfo_mib("MemTotal:  1048576 kB\n", "MemTotal:"),
            Some(1024)
        );
        assert_eq!(guest_memory_mib(1024), 1024 - 128 - 51);
        assert_eq!(guest_memory_mib(64), 0);
    }
}
