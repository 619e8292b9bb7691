//! Errors in words.

use std::error::Error;
use std::io;

/// An error and its causes on one line.
pub fn one_line(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some errors name their cause themselves.
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// What the operating system said of a file, and what helps.
pub fn with_remedy(error: &io::Error) -> String {
    let remedy = match error.kind() {
        io::ErrorKind::NotFound => "check the path",
        io::ErrorKind::PermissionDenied => "give this user the right to it",
        io::ErrorKind::IsADirectory => "name a file in it",
        _ => return error.to_string(),
    };
    format!("{error}; {remedy}")
}
