//! Opening files for reading without being handed a delegation.
//!
//! An NFSv4 server may hand a client that opens a file for reading a *delegation*: the promise
//! to ask it back before anybody changes, replaces or removes that file (RFC 8881 §10.4). When
//! the client's host is dead, asking takes until its NFSv4 lease has run out, 90 s by default,
//! and whoever takes over its guests would wait that long for each file that it had read.
//! The Linux client tells the server that it wants no delegation (`OPEN4_SHARE_ACCESS_WANT_NO_DELEG`,
//! §18.16.3) when a file is opened with `O_DIRECT`. The flag is taken off once the file is open.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, fcntl_getfl, fcntl_setfl, openat};
use rustix::io::Errno;

/// Opens a file for reading; no other host will ever have to wait for us to be done with it.
pub fn open(path: &Path) -> io::Result<File> {
    open_by(|more| {
        openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::CLOEXEC | more,
            Mode::empty(),
        )
        .map(File::from)
    })
    .map_err(io::Error::from)
}

/// The text in the file at `path`.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// As [`open`], for those who open files in a way of their own: `open_with` is told the flag to
/// add. File systems without direct I/O are asked again without it; they are local ones.
pub(crate) fn open_by(open_with: impl Fn(OFlags) -> Result<File, Errno>) -> Result<File, Errno> {
    match open_with(OFlags::DIRECT) {
        Ok(file) => {
            fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::DIRECT)?;
            Ok(file)
        }
        Err(Errno::INVAL) => open_with(OFlags::empty()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_opened_reads_like_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "seventeen bytes..").unwrap();
        assert_eq!(read_to_string(&path).unwrap(), "seventeen bytes..");
        let flags = fcntl_getfl(open(&path).unwrap()).unwrap();
        assert!(!flags.contains(OFlags::DIRECT), "{flags:?}");
        let missing = open(&dir.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
