//! `vmm check`.

use std::io::{self, Write};

use crate::check::{Grade, examine};

/// Print what was found; an error where no guest can run.
pub fn main() -> Result<(), String> {
    let findings = examine();
    let mut out = io::stdout().lock();
    for finding in &findings {
        let mark = match finding.grade {
            Grade::Good => "ok  ",
            Grade::Poor => "poor",
            Grade::Bad => "BAD ",
        };
        // A reader that has seen enough is no failure.
        let _ = writeln!(out, "{mark}  {}", finding.text);
    }
    if findings.iter().any(|finding| finding.grade == Grade::Bad) {
        return Err("no guest can run on this host as it is; see above".to_owned());
    }
    Ok(())
}
