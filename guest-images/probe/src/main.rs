//! `probe image PATH` writes the probe guest to a file, for any VMM that boots PVH kernels;
//! `probe show PATH` reads the report of a running one from the file that backs its memory.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::ExitCode;

use probe::abi::{REPORT_BYTES, REPORT_GPA};
use probe::report::Report;

const USAGE: &str = "usage: probe image PATH    write the probe guest to PATH
       probe show PATH     show the report in the memory file PATH (/proc/PID/fd/N, /dev/shm/...)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["image", path] => std::fs::write(path, probe::IMAGE)
            .map_err(|error| format!("cannot write {path}: {error}").into()),
        ["show", path] => show(path),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show(path: &str) -> Result<(), Box<dyn Error>> {
    let mut bytes = vec![0; REPORT_BYTES];
    File::open(path)
        .and_then(|file| file.read_exact_at(&mut bytes, REPORT_GPA))
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    println!("{:#?}", Report::decode(&bytes)?);
    Ok(())
}
