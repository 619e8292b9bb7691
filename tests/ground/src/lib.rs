//! What tests and benchmarks stand on: file systems of their own, small enough to fill, able to
//! stand still like a storage that does not answer, able to clone files; and [`skip`] for a test
//! that this machine gives no ground to.
//!
//! Only root may mount them. Whoever cannot is told why, and skips what needs them.

mod skip;

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use skip::{RECORD, skip, skip_one};
use tempfile::TempDir;

/// What a file system that lies in a file is made by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Everywhere at hand; does not clone files.
    Ext4,
    /// Clones files; its tools are Debian's xfsprogs.
    Xfs,
}

impl Kind {
    fn maker(self) -> &'static str {
        match self {
            Self::Ext4 => "mkfs.ext4",
            Self::Xfs => "mkfs.xfs",
        }
    }

    /// The least that its tools take, and some.
    fn bytes(self) -> u64 {
        match self {
            Self::Ext4 => 64 << 20,
            Self::Xfs => 400 << 20,
        }
    }
}

/// A mounted file system. Dropped, it is gone with all that it held.
#[derive(Debug)]
pub struct Ground {
    dir: TempDir,
}

impl Ground {
    /// One in memory, with room for so many bytes.
    pub fn in_memory(bytes: u64) -> Result<Self, String> {
        let ground = Self::begin()?;
        let size = format!("size={bytes}");
        ground.mount(&["-t", "tmpfs", "-o", &size, "tmpfs"])?;
        Ok(ground)
    }

    /// One in a file.
    pub fn in_file(kind: Kind) -> Result<Self, String> {
        let ground = Self::begin()?;
        let image = ground.dir.path().join("image");
        let file = fs::File::create(&image);
        let made = file.and_then(|file| file.set_len(kind.bytes()));
        made.map_err(|error| failed("make a file for a file system", error))?;
        command(Command::new(kind.maker()).arg("-q").arg(&image))?;
        let image = image.to_string_lossy().into_owned();
        ground.mount(&["-o", "loop", &image])?;
        Ok(ground)
    }

    fn begin() -> Result<Self, String> {
        let dir = TempDir::new().map_err(|error| failed("make a directory", error))?;
        let ground = Self { dir };
        let root = ground.root();
        fs::create_dir(&root).map_err(|error| failed("make a directory", error))?;
        Ok(ground)
    }

    /// Where it is mounted.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// A directory that is not on it and goes when it goes.
    pub fn beside(&self) -> &Path {
        self.dir.path()
    }

    /// Mounts again what is mounted, with other options (`ro`).
    pub fn remount(&self, options: &str) -> Result<(), String> {
        self.mount(&["-o", &format!("remount,{options}")])
    }

    /// Writes until not one byte more fits; gives the file that takes the room.
    pub fn fill(&self) -> PathBuf {
        let path = self.root().join("ballast");
        let mut bytes = vec![0u8; 1 << 20];
        if let Ok(mut file) = fs::File::create(&path) {
            while !bytes.is_empty() {
                if file.write_all(&bytes).is_err() {
                    bytes.truncate(bytes.len() / 2);
                }
            }
        }
        path
    }

    /// From now on whoever writes waits.
    pub fn freeze(&self) -> Result<(), String> {
        command(Command::new("fsfreeze").arg("-f").arg(self.root()))
    }

    /// Everybody goes on.
    pub fn thaw(&self) -> Result<(), String> {
        command(Command::new("fsfreeze").arg("-u").arg(self.root()))
    }

    fn mount(&self, arguments: &[&str]) -> Result<(), String> {
        command(Command::new("mount").args(arguments).arg(self.root()))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        // One that is frozen cannot be let go of; one that is not refuses to thaw.
        let _ = self.thaw();
        let _ = command(Command::new("umount").arg("-l").arg(self.root()));
    }
}

fn failed(act: &str, why: impl Display) -> String {
    format!("cannot {act}: {why}")
}

fn command(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| failed(&format!("run {program}"), error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(failed(&format!("do it: {program}"), said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_file_system_of_its_own_that_fills_up_and_goes() {
        let ground = match Ground::in_memory(1 << 20) {
            Ok(ground) => ground,
            Err(why) => return skip(why),
        };
        let root = ground.root();
        let ballast = ground.fill();
        fs::write(root.join("more"), [1; 4096]).unwrap_err();
        fs::remove_file(ballast).unwrap();
        fs::write(root.join("more"), [1; 4096]).unwrap();
        drop(ground);
        assert!(!root.exists());
    }
}
