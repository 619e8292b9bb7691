//! An agent of a cluster of one host, in a directory of its own.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cluster_agent::api::views::ClusterView;
use cluster_agent::http::client::{Client, Endpoint};
use hyper::Method;
use tempfile::TempDir;

const CALL_LIMIT: Duration = Duration::from_secs(30);
/// An agent leads within this, on the busiest machine.
const LEAD_LIMIT: Duration = Duration::from_mins(2);
const POLL: Duration = Duration::from_millis(100);

/// A running agent; ends with its value.
pub struct Agent {
    child: Option<Child>,
    environment: Vec<String>,
    dir: TempDir,
    pub port: u16,
    bridge: String,
    /// The datastore is a file system of its own.
    small: bool,
}

impl Agent {
    /// Start one, unless this process may not make bridges.
    pub fn start(environment: &[(&str, &str)]) -> Option<Self> {
        Self::prepare(environment, false)
    }

    /// Start one whose datastore has room for a few megabytes.
    pub fn start_on_a_small_datastore() -> Option<Self> {
        Self::prepare(&[], true)
    }

    fn prepare(environment: &[(&str, &str)], small: bool) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            ground::skip("only root can make the bridge that an agent needs");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
            .arg(&store);
        if small && !mount.status().is_ok_and(|status| status.success()) {
            ground::skip("this process may not mount a file system");
            return None;
        }
        let port = free_port();
        let bridge = format!("gwt{port}");
        let environment = environment.iter();
        let environment = environment.map(|(name, value)| (*name).to_owned() + "=" + value);
        let mut agent = Self {
            child: None,
            environment: environment.collect(),
            dir,
            port,
            bridge,
            small,
        };
        agent.spawn();
        Some(agent)
    }

    fn spawn(&mut self) {
        let log = self.dir().join("log");
        let log = OpenOptions::new().append(true).create(true).open(log);
        let environment = self
            .environment
            .iter()
            .filter_map(|one| one.split_once('='));
        let child = Command::new(env!("CARGO_BIN_EXE_cluster-agent"))
            .env_remove("GODWIT_LOG")
            .envs(environment)
            .args(["--name", "a", "--address", "127.0.0.1"])
            .args(["--bridge", &self.bridge])
            .args(["--port", &self.port.to_string()])
            .arg("--datastore")
            .arg(self.dir().join("store"))
            .arg("--run-dir")
            .arg(self.dir().join("run"))
            .stderr(log.unwrap())
            .stdin(Stdio::null())
            .spawn();
        self.child = Some(child.unwrap());
    }

    /// End it and start it again.
    pub fn restart(&mut self) {
        self.stop();
        self.spawn();
    }

    /// Where things can be put beside it.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    pub fn socket(&self) -> PathBuf {
        self.dir().join("run/agent.sock")
    }

    /// Calls over the local socket.
    pub fn local(&self) -> Client {
        Client::new(Endpoint::Unix(self.socket()), CALL_LIMIT)
    }

    /// Wait until it leads its cluster.
    pub async fn leads(&self) {
        let give_up = Instant::now() + LEAD_LIMIT;
        let client = self.local();
        loop {
            let view = client.call::<ClusterView>(Method::GET, "/v1/cluster", None::<&()>);
            if view.await.is_ok_and(|view| view.leader.is_some()) {
                return;
            }
            assert!(Instant::now() < give_up, "does not lead:\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir().join("log")).unwrap_or_default()
    }

    /// Ask it to end, and see it end well.
    pub fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}:\n{}", self.log());
    }

    /// The operator's command, on the local socket.
    pub fn godwit(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_godwit"))
            .env("GODWIT_SOCKET", self.socket())
            .args(arguments)
            .output()
            .unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = Command::new("ip")
            .args(["link", "delete", &self.bridge])
            .status();
        if self.small {
            let store = self.dir().join("store");
            let _ = Command::new("umount").arg("--lazy").arg(store).status();
        }
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
