//! The serial line: whole short lines, since each byte costs an exit or two.

use core::fmt::{self, Write};

use crate::ring0;

/// A line or message under construction; what does not fit is cut off.
pub struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    /// What has been written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let len = text.len().min(self.bytes.len() - self.len);
        self.bytes[self.len..self.len + len].copy_from_slice(&text.as_bytes()[..len]);
        self.len += len;
        Ok(())
    }
}

/// Formats a line; the caller adds the end of line.
pub fn format(text: fmt::Arguments<'_>) -> Line {
    let mut line = Line {
        bytes: [0; 256],
        len: 0,
    };
    // A line never refuses text.
    let _ = line.write_fmt(text);
    line
}

/// Prints, as one piece.
pub fn print(text: fmt::Arguments<'_>) {
    ring0::write_serial(format(text).as_bytes());
}
