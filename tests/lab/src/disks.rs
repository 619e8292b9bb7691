//! The hosts' disks, made as files on this machine without mounting anything.

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::artefacts::{build_directory, stage_programs};
use crate::error::During;
use crate::machine::{DATA_DISK_BYTES, TOOLS_DISK_BYTES};
use crate::process::run_tool;

/// What the storage host keeps the datastore on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileSystem {
    /// With reflinks: a server-side clone of a disk is instant. Files it starts with must be
    /// smaller than 2 GiB.
    #[default]
    Xfs,
    /// Without.
    Ext4,
}

/// Makes the read-only disk with our programs and `extra` files (each under its own name).
pub fn tools(programs: &Path, extra: &[PathBuf], disk: &Path) -> Result<()> {
    let stage = stage_beside(disk)?;
    stage_programs(programs, stage.path())?;
    for file in extra {
        let name = file
            .file_name()
            .ok_or_else(|| format!("{} has no file name", file.display()))?;
        fs::copy(file, stage.path().join(name)).during("copy", file)?;
    }
    make_ext4(disk, TOOLS_DISK_BYTES, stage.path())
}

/// Makes the storage host's disk; `content`, if any, becomes the datastore's.
pub fn storage(file_system: FileSystem, content: Option<&Path>, disk: &Path) -> Result<()> {
    match file_system {
        FileSystem::Xfs => make_xfs(disk, content),
        FileSystem::Ext4 => {
            let stage = stage_beside(disk)?;
            stage_datastore(content, &stage.path().join("vmstore"))?;
            make_ext4(disk, DATA_DISK_BYTES, stage.path())
        }
    }
}

fn stage_beside(disk: &Path) -> Result<tempfile::TempDir> {
    tempfile::tempdir_in(disk.parent().unwrap_or(Path::new("."))).during("create", disk)
}

fn stage_datastore(content: Option<&Path>, datastore: &Path) -> Result<()> {
    let Some(content) = content else {
        return fs::create_dir(datastore).during("create", datastore);
    };
    // Hard links where possible: the content may be gigabytes.
    let copy = "cp -al -- \"$1\" \"$2\" 2>/dev/null || { rm -rf \"$2\"; cp -a --sparse=always -- \"$1\" \"$2\"; }";
    run_tool(
        Command::new("sh")
            .args(["-c", copy, "sh"])
            .arg(content)
            .arg(datastore),
    )
    .map(drop)
}

/// Makes a sparse file of zeroes.
pub fn blank(disk: &Path, bytes: u64) -> Result<()> {
    let file = fs::File::create(disk).during("create", disk)?;
    file.set_len(bytes).during("extend", disk)
}

/// The bytes of a qcow2 image with nothing in it.
pub fn empty_qcow2(bytes: u64) -> Result<Vec<u8>> {
    let image = tempfile::NamedTempFile::new().during("create", "an image")?;
    run_tool(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(image.path())
            .arg(bytes.to_string()),
    )?;
    fs::read(image.path()).during("read", image.path())
}

fn make_ext4(disk: &Path, bytes: u64, content: &Path) -> Result<()> {
    blank(disk, bytes)?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("mke2fs");
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command.args(["-q", "-F", "-t", "ext4", "-m", "0", "-J", "size=16"]);
    command.args(["-E", "lazy_itable_init=1,root_owner=0:0", "-d"]);
    run_tool(command.arg(content).arg(disk)).map(drop)
}

/// mkfs.xfs fills a new file system from a prototype: see its manual page, option -p.
fn make_xfs(disk: &Path, content: Option<&Path>) -> Result<()> {
    blank(disk, DATA_DISK_BYTES)?;
    let packages = build_directory().join("packages/root-cloud");
    let prototype = tempfile::NamedTempFile::new().during("create", "a prototype for mkfs.xfs")?;
    let mut text = String::from("-\n0 0\nd--755 0 0\nvmstore d--755 0 0\n");
    if let Some(content) = content {
        describe(content, &mut text)?;
    }
    text.push_str("$\n$\n");
    fs::write(prototype.path(), text).during("write", prototype.path())?;
    // The appliance's own: this machine may have none.
    let mut command = Command::new(packages.join("sbin/mkfs.xfs"));
    let libraries =
        ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|path| packages.join(path));
    command.env(
        "LD_LIBRARY_PATH",
        format!("{}:{}", libraries[0].display(), libraries[1].display()),
    );
    command
        .args(["-q", "-f", "-p"])
        .arg(prototype.path())
        .arg(disk);
    run_tool(&mut command).map(drop)
}

fn describe(directory: &Path, text: &mut String) -> Result<()> {
    for entry in fs::read_dir(directory).during("list", directory)? {
        let path = entry.during("list", directory)?.path();
        let mode = fs::metadata(&path)
            .during("look at", &path)?
            .permissions()
            .mode()
            & 0o777;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if path.is_dir() {
            writeln!(text, "{name} d--{mode:03o} 0 0").map_err(|error| error.to_string())?;
            describe(&path, text)?;
            text.push_str("$\n");
        } else {
            writeln!(text, "{name} ---{mode:03o} 0 0 {}", path.display())
                .map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
