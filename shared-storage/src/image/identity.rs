//! Whether two hosts mean the same image by the same name.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::error::ImageError;
use super::lock;

/// What an image looks like from every host that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// Bytes that the guest sees.
    pub bytes: u64,
    /// The file's number on its file system, which a file server tells all its clients alike;
    /// none for a block device.
    pub inode: Option<u64>,
}

impl Disk {
    /// What the image looks like from here.
    pub fn identity(&self) -> Result<ImageIdentity, ImageError> {
        let metadata = self.top().file().metadata();
        let metadata = metadata.map_err(|error| self.fail("look at", error))?;
        let inode = (!metadata.file_type().is_block_device()).then(|| metadata.ino());
        Ok(ImageIdentity {
            bytes: self.bytes(),
            inode,
        })
    }

    /// Check, before this deferred disk is acquired, that its image is the one that another
    /// process (on any host) has open as `theirs`: it looks the same, and their lock is on it.
    pub fn check_is(&self, theirs: &ImageIdentity) -> Result<(), ImageError> {
        let ours = self.identity()?;
        let why = if ours.bytes != theirs.bytes {
            format!("it has {} bytes instead of {}", ours.bytes, theirs.bytes)
        } else if ours.inode != theirs.inode {
            "it is another file".to_owned()
        // A block device's lock is known to its own host only.
        } else if ours.inode.is_some()
            && !lock::is_taken(self.top().file()).map_err(|error| self.fail("look at", error))?
        {
            "nobody has it open".to_owned()
        } else {
            return Ok(());
        };
        let path = self.path().to_owned();
        Err(ImageError::NotTheSame { path, why })
    }

    fn fail(&self, act: &'static str, error: io::Error) -> ImageError {
        ImageError::from_io(act, self.path(), error)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{DiskOptions, Format, create};
    use super::*;

    #[test]
    fn an_image_is_told_from_its_copy_and_from_one_that_nobody_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let copy = dir.path().join("copy");
        for format in [Format::Raw, Format::Qcow2] {
            for path in [&path, &copy] {
                create(None, path, format, 1 << 20).unwrap();
            }
            let deferred = |path| {
                let options = DiskOptions {
                    deferred: true,
                    ..DiskOptions::new(path, format)
                };
                Disk::open(options).unwrap()
            };
            let source = Disk::open(DiskOptions::new(&path, format)).unwrap();
            let identity = source.identity().unwrap();
            deferred(&path).check_is(&identity).unwrap();
            let error = deferred(&copy).check_is(&identity).unwrap_err();
            assert!(error.to_string().contains("another file"), "{error}");
            let other = ImageIdentity {
                bytes: 2 << 20,
                ..identity
            };
            deferred(&path).check_is(&other).unwrap_err();
            drop(source);
            let error = deferred(&path).check_is(&identity).unwrap_err();
            assert!(error.to_string().contains("nobody"), "{error}");
            for path in [&path, &copy] {
                std::fs::remove_file(path).unwrap();
            }
        }
    }
}
