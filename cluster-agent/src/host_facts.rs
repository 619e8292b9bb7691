//! What a host is: found out by itself, so that nobody has to configure it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

use cluster_core::model::Resources;
use serde::{Deserialize, Serialize};

/// Memory that the host keeps for its kernel, the agent and page cache, in MiB ...
const HOST_MEMORY_MIB: u64 = 128;
/// ... plus this share of what it has, in per cent: page tables and network buffers grow with it.
const HOST_MEMORY_PERCENT: u64 = 5;

/// Name, address, capacity and processor features of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host's name: its kernel host name up to the first dot.
    pub name: String,
    /// Address at which other hosts reach it.
    pub address: IpAddr,
    /// What guests may use: the machine less what the host itself needs.
    pub capacity: Resources,
    /// Processor features as the kernel names them.
    pub cpu_features: BTreeSet<String>,
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
            cpu_features: cpu_features(&fs::read_to_string("/proc/cpuinfo")?),
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

/// Features that every processor of this host has.
fn cpu_features(cpuinfo: &str) -> BTreeSet<String> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .map(|(_, flags)| flags.split_whitespace().map(str::to_owned).collect())
        .reduce(|all: BTreeSet<String>, these| &all & &these)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = HostFacts::discover(Some(Ipv4Addr::LOCALHOST.into())).unwrap();
        assert_eq!(facts.address, IpAddr::from(Ipv4Addr::LOCALHOST));
        assert!(facts.capacity.mcpu >= 1000);
        assert!(facts.cpu_features.contains("sse2"));
    }

    #[test]
    fn features_are_what_all_processors_share() {
        let cpuinfo = "processor : 0\nflags : fpu sse2 avx\n\nprocessor : 1\nflags : fpu sse2\n";
        let shared = cpu_features(cpuinfo);
        assert_eq!(shared.into_iter().collect::<Vec<_>>(), ["fpu", "sse2"]);
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
