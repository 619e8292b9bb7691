//! How an agent is told what little it cannot find out.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::Parser;
use shared_storage::DEFAULT_RUN_DIR;

/// Port on which agents answer each other and remote operators.
pub const PORT: u16 = 7440;

/// One host of a Godwit cluster. Pointing it at the datastore is the whole set-up: the first
/// host creates the cluster, the others join.
#[derive(Debug, Clone, Parser)]
#[command(name = "cluster-agent", version)]
pub struct Config {
    /// Directory that all hosts share (NFS, CephFS, GFS2, OCFS2), or any local one for a
    /// cluster of one host.
    #[arg(long, env = "GODWIT_DATASTORE")]
    pub datastore: PathBuf,
    /// Name of this host [default: its host name up to the first dot].
    #[arg(long, env = "GODWIT_NAME")]
    pub name: Option<String>,
    /// Address at which other hosts reach this one [default: that of the default route].
    #[arg(long, env = "GODWIT_ADDRESS")]
    pub address: Option<IpAddr>,
    /// Port for other agents and remote operators.
    #[arg(long, env = "GODWIT_PORT", default_value_t = PORT)]
    pub port: u16,
    /// Directory for sockets and what must not outlive a boot.
    #[arg(long, env = "GODWIT_RUN_DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Bridge that guests are attached to; created when it is not there.
    #[arg(long, env = "GODWIT_BRIDGE", default_value = "br0")]
    pub bridge: String,
    /// The VMM to run guests with [default: vmm beside this program].
    #[arg(long, env = "GODWIT_VMM")]
    pub vmm: Option<PathBuf>,
    /// Name of the cluster, if this host creates it.
    #[arg(long, env = "GODWIT_CLUSTER_NAME", default_value = "godwit")]
    pub cluster_name: String,
}

impl Config {
    /// The same wherever it is looked at from: guests' VMMs run in directories of their own.
    pub fn absolute(mut self) -> std::io::Result<Self> {
        self.datastore = std::path::absolute(&self.datastore)?;
        self.run_dir = std::path::absolute(&self.run_dir)?;
        // A bare name is looked for in $PATH.
        if let Some(vmm) = self.vmm.take_if(|vmm| vmm.components().count() > 1) {
            self.vmm = Some(std::path::absolute(vmm)?);
        }
        Ok(self)
    }

    /// Socket of the local API.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Where this host's certificate lies.
    pub fn identity_dir(&self) -> PathBuf {
        self.run_dir.join("identity")
    }

    /// Where members reach this host, given its address.
    pub fn member_address(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.port)
    }

    /// The VMM's program.
    pub fn vmm_program(&self) -> PathBuf {
        let beside_us = || Some(std::env::current_exe().ok()?.parent()?.join("vmm"));
        self.vmm
            .clone()
            .or_else(|| beside_us().filter(|path| path.exists()))
            .unwrap_or_else(|| PathBuf::from("vmm"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn paths_mean_the_same_from_everywhere() {
        let told = [
            "cluster-agent",
            "--datastore",
            "store",
            "--vmm",
            "bin/vmm",
            "--run-dir",
            "/r",
        ];
        let config = Config::parse_from(told).absolute().unwrap();
        let here = std::env::current_dir().unwrap();
        assert_eq!(config.datastore, here.join("store"));
        assert_eq!(config.vmm, Some(here.join("bin/vmm")));
        assert_eq!(config.run_dir, Path::new("/r"));
        let named = ["cluster-agent", "--datastore", "/s", "--vmm", "vmm"];
        let config = Config::parse_from(named).absolute().unwrap();
        assert_eq!(config.vmm_program(), Path::new("vmm"));
    }
}
