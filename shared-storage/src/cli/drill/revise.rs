//! Several hosts that change one spec, and one that reads it meanwhile: no change is lost, and
//! whoever reads finds a whole revision, never an older one than before.

use std::process::ExitCode;

use toml::{Table, Value};

use super::super::CliError;
use super::say;
use crate::error::StoreError;
use crate::guest_dir::GuestDir;

/// Counts in the spec, under the host's name.
pub(super) fn revise(guest: &GuestDir, times: u64, host: &str) -> Result<ExitCode, CliError> {
    let (mut done, mut outrun) = (0, 0);
    while done < times {
        let read = guest.spec::<Table>()?;
        let mut spec = read.spec;
        spec.insert(host.into(), Value::Integer((done + 1).cast_signed()));
        match guest.update_spec(read.revision, &spec) {
            Ok(revision) => {
                done += 1;
                say(&format!("made revision {revision}"));
            }
            Err(StoreError::Changed { .. }) => outrun += 1,
            Err(error) => return Err(error.into()),
        }
    }
    say(&format!("made {done} revisions, was outrun {outrun} times"));
    Ok(ExitCode::SUCCESS)
}

/// Reads until there is revision `until`.
pub(super) fn follow(guest: &GuestDir, until: u64) -> Result<ExitCode, CliError> {
    let (mut last, mut reads) = (0, 0_u64);
    while last < until {
        let revision = guest.spec::<Table>()?.revision;
        if revision < last {
            let why = format!("revision {last} gave way to {revision}");
            return Err(CliError::Said(why));
        }
        last = revision;
        reads += 1;
    }
    say(&format!("read {reads} times up to revision {last}"));
    Ok(ExitCode::SUCCESS)
}
