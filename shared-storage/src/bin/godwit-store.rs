//! `godwit-store`: look at a datastore, its guests and its leases.

use std::process::ExitCode;

fn main() -> ExitCode {
    shared_storage::cli::main()
}
