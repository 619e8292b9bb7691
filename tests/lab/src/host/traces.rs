//! What a host leaves for those who look for a fault.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use super::Host;
use crate::Result;
use crate::error::During;
use crate::wait::PATIENCE;

impl Host {
    /// The socket of its serial console.
    pub fn console_socket(&self) -> PathBuf {
        self.machine.console_socket()
    }

    /// The last lines of its console.
    pub fn console_tail(&self, lines: usize) -> String {
        let log = fs::read(&self.machine.console_log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Copies `/var/log` and the kernel's log into the run's directory.
    pub fn collect_logs(&self) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let line = [
            "sh",
            "-c",
            "dmesg > /var/log/dmesg; ps w > /var/log/ps; tar -C /var/log -c .",
        ];
        let output = self.exec_with(&line, &[], PATIENCE / 4)?;
        let directory = self.directory.join("logs");
        fs::create_dir_all(&directory).during("create", &directory)?;
        let mut tar = std::process::Command::new("tar");
        tar.arg("-x")
            .arg("-C")
            .arg(&directory)
            .stdin(Stdio::piped())
            .stderr(Stdio::null());
        let mut tar = tar.spawn().during("run", "tar")?;
        if let Some(mut stdin) = tar.stdin.take() {
            stdin.write_all(&output.stdout).during("write to", "tar")?;
        }
        tar.wait().during("wait for", "tar").map(drop)
    }
}
