//! A test that cannot run here says so where it is seen.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{Result, Write, stderr};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Names the file that gets a line for each test that was skipped; `make test` sets it, and counts
/// at its end.
pub const RECORD: &str = "GODWIT_SKIPPED";

/// The running test is skipped, for this reason.
pub fn skip(why: impl Display) {
    let thread = thread::current();
    skip_one(thread.name().unwrap_or("a test"), why);
}

/// What has this name is skipped, for this reason.
pub fn skip_one(name: &str, why: impl Display) {
    // A test that asks again for each case of a property is one test.
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let line = format!("{name}: {why}\n");
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    if !said.insert(line.clone()) {
        return;
    }
    // Past `eprintln`, whose words the test harness keeps to itself when the test passes.
    let _ = stderr().write_all(format!("SKIPPED {line}").as_bytes());
    if let Some(path) = env::var_os(RECORD) {
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let recorded: Result<()> = file.and_then(|mut file| file.write_all(line.as_bytes()));
        recorded.expect("the record of skipped tests can be written");
    }
}
