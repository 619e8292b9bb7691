//! A program in a host whose standard streams are a guest's serial console, and the shell that is
//! reached through it.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use crate::agent::{Event, Running};
use crate::{LabError, PATIENCE, Result};

/// How much of the console an error shows.
const SHOWN_BYTES: usize = 2000;

/// A VMM with its console; it is killed with this value.
#[derive(Debug)]
pub struct Shell {
    vmm: Running,
    limit: Duration,
    console: RefCell<String>,
    /// How much of the console [`Shell::expect`] has passed.
    passed: Cell<usize>,
    code: Cell<Option<i32>>,
    commands: Cell<u32>,
}

impl Shell {
    /// The console of `vmm`; whatever is waited for may take `limit`.
    pub fn new(vmm: Running, limit: Duration) -> Self {
        Self {
            vmm,
            limit,
            console: RefCell::default(),
            passed: Cell::new(0),
            code: Cell::new(None),
            commands: Cell::new(0),
        }
    }

    /// Waits for `text`, after all that was waited for before; gives what stood before it.
    pub fn expect(&self, text: &str) -> Result<String> {
        let deadline = Instant::now() + self.limit;
        loop {
            let found = self.console.borrow()[self.passed.get()..].find(text);
            if let Some(at) = found {
                let from = self.passed.get();
                self.passed.set(from + at + text.len());
                return Ok(self.console.borrow()[from..from + at].to_owned());
            }
            self.is_there()?;
            if !self.look(deadline) {
                return Err(self.too_late(&format!("{text:?} on the console")));
            }
        }
    }

    /// Types a line.
    pub fn send(&self, line: &str) -> Result<()> {
        let input = self.vmm.input();
        input.write(format!("{line}\n").as_bytes(), PATIENCE)
    }

    /// Runs a shell line that must succeed; gives what it printed.
    pub fn run(&self, line: &str) -> Result<String> {
        let number = self.commands.replace(self.commands.get() + 1);
        // The quotes keep the echo of the line from looking like its end.
        self.send(&format!("{line}; echo \"en\"\"d{number}=$?.\""))?;
        let said = self.expect(&format!("end{number}="))?;
        let code = self.expect(".")?;
        // The echo of the line itself comes first.
        let said = said.split_once("$?.\"").map_or("", |(_, rest)| rest).trim();
        if code != "0" {
            return Err(format!("`{line}` in the guest ended with {code}: {said}").into());
        }
        Ok(said.replace('\r', ""))
    }

    /// Takes what there is to tell, waiting for it until `deadline`; says whether there was
    /// something.
    pub fn look(&self, deadline: Instant) -> bool {
        match self.vmm.next(deadline) {
            Some(Event::Output(bytes) | Event::Error(bytes)) => {
                let text = String::from_utf8_lossy(&bytes);
                self.console.borrow_mut().push_str(&text);
            }
            Some(Event::Ended(ended)) => self.code.set(Some(ended.code())),
            None => return false,
        }
        true
    }

    /// An error once the VMM has ended, as far as anybody has looked.
    pub fn is_there(&self) -> Result<()> {
        match self.code.get() {
            Some(code) => Err(format!("vmm ended with {code}: {}", self.tail()).into()),
            None => Ok(()),
        }
    }

    /// Waits for the end of the VMM; gives the exit code.
    pub fn ends(&self) -> Result<i32> {
        let deadline = Instant::now() + self.limit;
        while self.code.get().is_none() && Instant::now() < deadline && self.look(deadline) {}
        let code = self.code.get();
        code.ok_or_else(|| self.too_late("the end of the guest"))
    }

    /// Kills the VMM, as a crash would end it.
    pub fn kill(&self) -> Result<()> {
        self.vmm.input().kill();
        self.ends().map(drop)
    }

    fn too_late(&self, what: &str) -> LabError {
        LabError::TooLate {
            what: format!("{what} (the console ends {:?})", self.tail()),
            limit: self.limit,
        }
    }

    fn tail(&self) -> String {
        let console = self.console.borrow();
        let mut from = console.len().saturating_sub(SHOWN_BYTES);
        while !console.is_char_boundary(from) {
            from += 1;
        }
        console[from..].to_owned()
    }
}
