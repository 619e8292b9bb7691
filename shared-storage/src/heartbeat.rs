//! A host's heartbeat file: one block, rewritten in place past every cache.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use storage_core::observer::Sight;
use storage_core::record::{HEARTBEAT_BYTES, HeartbeatRecord, RecordError};

use crate::error::StoreError;

/// A buffer that direct I/O accepts on every device.
#[repr(align(4096))]
struct Block([u8; HEARTBEAT_BYTES]);

/// Whether the file system has direct I/O; without it, opening anew before each read makes
/// a network client ask its server (close-to-open).
fn open(path: &Path, options: &mut OpenOptions, flags: i32) -> io::Result<File> {
    match options.custom_flags(flags | libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(flags).open(path)
        }
        other => other,
    }
}

/// Reads a heartbeat from the storage itself.
pub fn read(path: &Path) -> Result<HeartbeatRecord, StoreError> {
    let (record, _) = read_with_checksum(path)?;
    record.map_err(|source| StoreError::Record {
        path: path.into(),
        source,
    })
}

/// Reads what lies there, for those who watch whether it changes.
pub fn sight(path: &Path) -> Result<Sight, StoreError> {
    let (record, checksum) = read_with_checksum(path)?;
    Ok(record.map_or(Sight::Damaged(checksum), Sight::Beat))
}

type Found = (Result<HeartbeatRecord, RecordError>, u32);

fn read_with_checksum(path: &Path) -> Result<Found, StoreError> {
    let mut block = Block([0; HEARTBEAT_BYTES]);
    let file =
        open(path, OpenOptions::new().read(true), 0).map_err(StoreError::io("open", path))?;
    // A short file gives fewer bytes, which the record's length then tells.
    let have = file
        .read_at(&mut block.0, 0)
        .map_err(StoreError::io("read", path))?;
    let bytes = &block.0[..have];
    Ok((HeartbeatRecord::decode(bytes), crc32c::crc32c(bytes)))
}

/// Writes one host's heartbeat.
#[derive(Debug)]
pub struct HeartbeatWriter {
    path: PathBuf,
    file: Option<File>,
}

impl HeartbeatWriter {
    /// A writer of the file at `path`, which is made on the first write.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Returns once the storage has the record.
    pub fn write(&mut self, record: &HeartbeatRecord) -> Result<(), StoreError> {
        let mut block = Block([0; HEARTBEAT_BYTES]);
        block.0.copy_from_slice(&record.encode());
        let path = self.path.clone();
        let written = self.file().and_then(|file| {
            file.write_all_at(&block.0, 0)
                .map_err(StoreError::io("write", path))
        });
        if written.is_err() {
            // The next attempt opens it anew, in case it was replaced or the handle is stale.
            self.file = None;
        }
        written
    }

    fn file(&mut self) -> Result<&File, StoreError> {
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false);
            let file = open(&self.path, &mut options, libc::O_DSYNC)
                .map_err(StoreError::io("open", &self.path))?;
            self.file = Some(file);
        }
        self.file
            .as_ref()
            .ok_or_else(|| StoreError::Missing(self.path.clone()))
    }
}

#[cfg(test)]
mod tests {
    use storage_core::record::Incarnation;

    use super::*;

    #[test]
    fn the_last_record_written_is_the_one_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heartbeat");
        let mut writer = HeartbeatWriter::new(path.clone());
        for counter in 1..4 {
            let record = HeartbeatRecord {
                host: "a".into(),
                incarnation: Incarnation([3; 16]),
                counter,
                sent_us: 5,
                term: 1,
                flags: 0,
                writer_pid: 7,
            };
            writer.write(&record).unwrap();
            assert_eq!(read(&path).unwrap(), record);
        }
        assert_eq!(
            std::fs::metadata(&path).unwrap().len(),
            HEARTBEAT_BYTES as u64
        );
        std::fs::write(&path, "short").unwrap();
        let error = read(&path).unwrap_err().to_string();
        assert!(error.contains("cut short"), "{error}");
    }
}
