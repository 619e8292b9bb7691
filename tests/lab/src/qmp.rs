//! QEMU's control socket: one command, one answer; events in between are passed over.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::During;
use crate::wait::{PATIENCE, eventually};
use crate::{LabError, Result};

/// A connection to one QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens; `alive` ends the waiting when QEMU has ended.
    pub fn connect(path: &Path, mut alive: impl FnMut() -> Result<()>) -> Result<Self> {
        let stream = eventually("QEMU opening its control socket", || match alive() {
            Ok(()) => UnixStream::connect(path).ok().map(Ok),
            Err(error) => Some(Err(error)),
        })??;
        stream
            .set_read_timeout(Some(PATIENCE))
            .during("set up", path)?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        qmp.read_message("the greeting")?;
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs one command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let refused = |message: String| LabError::Qmp {
            command: command.into(),
            message,
        };
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.stream
            .get_mut()
            .write_all(line.as_bytes())
            .map_err(|error| refused(error.to_string()))?;
        loop {
            let mut message = self.read_message(command)?;
            if let Some(error) = message.get("error") {
                return Err(refused(
                    error["desc"].as_str().unwrap_or("no reason given").into(),
                ));
            }
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn read_message(&mut self, command: &str) -> Result<Value> {
        let refused = |message: String| LabError::Qmp {
            command: command.into(),
            message,
        };
        let mut line = String::new();
        match self.stream.read_line(&mut line) {
            Ok(0) => Err(refused("QEMU has ended".into())),
            Ok(_) => serde_json::from_str(&line).map_err(|error| refused(error.to_string())),
            Err(error) => Err(refused(error.to_string())),
        }
    }

    /// Waits for a migration (here: to or from a template) to complete.
    pub fn migration_completed(&mut self) -> Result<()> {
        eventually("a template's state to be saved or loaded", || {
            match self.execute("query-migrate", &json!({})) {
                Ok(state) => match state["status"].as_str() {
                    Some("completed") => Some(Ok(())),
                    Some("failed" | "cancelled") => Some(Err(LabError::Qmp {
                        command: "migrate".into(),
                        message: state["error-desc"].as_str().unwrap_or("see its log").into(),
                    })),
                    _ => None,
                },
                Err(error) => Some(Err(error)),
            }
        })?
    }
}
