//! What a lab is made of: the appliance, our programs, the disks. Made when missing or older than
//! what they are made from.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};

use crate::error::During;
use crate::machine::QEMU;
use crate::process::run_tool;
use crate::{LabError, Result};

/// Where our programs lie inside every host.
pub const PROGRAMS: &str = "/opt/godwit";
/// The packages whose programs are put there.
const PACKAGES: [&str; 3] = ["vmm", "cluster-agent", "shared-storage"];

/// Those programs.
const PROGRAM_NAMES: [&str; 4] = ["vmm", "cluster-agent", "godwit", "godwit-store"];

/// What the catalogue holds of each guest, where it has it.
const CATALOGUE_FILES: [&str; 7] = [
    "image.toml",
    "vmlinux",
    "vmlinuz",
    "initramfs.cpio",
    "initrd.img",
    "root.qcow2",
    "root.raw",
];

/// The appliance's two files.
#[derive(Clone, Debug)]
pub struct Appliance {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initramfs, with the lab's agent in it.
    pub initramfs: PathBuf,
}

/// The directory that holds the workspace's Cargo.toml.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap_or_else(|_| PathBuf::from("."))
}

/// `build/` of the workspace, where everything the lab makes lies.
pub fn build_directory() -> PathBuf {
    workspace().join("build")
}

/// Says why the lab cannot run here, if it cannot.
pub fn check_tools() -> Result<()> {
    for (tool, package) in [
        (QEMU, "qemu-system-x86"),
        ("mke2fs", "e2fsprogs"),
        ("dpkg", "dpkg"),
        ("cpio", "cpio"),
    ] {
        let paths = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&paths)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|directory| directory.join(tool).exists());
        if !found {
            return Err(LabError::Unavailable(format!(
                "{tool} is missing; apt-get install {package}"
            )));
        }
    }
    Ok(())
}

/// Held while shared files under `build/` are made; other labs wait.
pub struct BuildLock(
    #[expect(dead_code, reason = "closing the file gives the lock back")] fs::File,
);

impl BuildLock {
    /// Waits for the lock.
    pub fn take() -> Result<Self> {
        let directory = build_directory();
        fs::create_dir_all(&directory).during("create", &directory)?;
        let path = directory.join(".lock");
        let file = fs::File::create(&path).during("create", &path)?;
        flock(&file, FlockOperation::LockExclusive).during("lock", &path)?;
        Ok(Self(file))
    }
}

/// A directory for sockets, by a path short enough for them wherever the workspace lies. Those of
/// labs that were killed are removed on the way.
pub fn socket_directory() -> Result<tempfile::TempDir> {
    const PREFIX: &str = "godwit-lab-";
    let all = std::env::temp_dir();
    for entry in fs::read_dir(&all).during("list", &all)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new()
        .prefix(&prefix)
        .tempdir_in(&all)
        .during("create", all.join(prefix))
}

/// `target/debug` or `target/release`: where the program that runs this was built.
fn profile_directory() -> Result<PathBuf> {
    let program = std::env::current_exe().during("find", "this program")?;
    let directory = program.parent().unwrap_or(Path::new("/"));
    Ok(if directory.ends_with("deps") {
        directory.parent().unwrap_or(directory).into()
    } else {
        directory.into()
    })
}

fn cargo_build(release: bool, packages: &[&str]) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace())
        .args(["build", "--quiet", "--bins"]);
    if release {
        command.arg("--release");
    }
    for package in packages {
        command.args(["-p", package]);
    }
    run_tool(&mut command).map(drop)
}

/// Builds our programs in the profile of this one and says where they are.
/// `GODWIT_LAB_BINARIES` names a directory to take them from instead.
pub fn programs() -> Result<PathBuf> {
    if let Some(directory) = std::env::var_os("GODWIT_LAB_BINARIES") {
        return Ok(directory.into());
    }
    let directory = profile_directory()?;
    cargo_build(directory.ends_with("release"), &PACKAGES)?;
    Ok(directory)
}

/// Makes the appliance if it is missing or older than its recipe or the agent.
pub fn appliance() -> Result<Appliance> {
    cargo_build(true, &["lab-agent"])?;
    let profile = profile_directory()?;
    let agent = profile
        .parent()
        .unwrap_or(&profile)
        .join("release/lab-agent");
    let recipe = workspace().join("guest-images/host");
    let directory = build_directory().join("host-image");
    let made = Appliance {
        kernel: directory.join("vmlinuz"),
        initramfs: directory.join("initramfs.cpio"),
    };
    let newest = newest_change(&recipe.join("files"))
        .max(newest_change(&recipe.join("build")))
        .max(newest_change(&recipe.join("modules")))
        .max(newest_change(&agent));
    let fresh =
        made.kernel.exists() && changed(&made.initramfs).is_some_and(|made| Some(made) > newest);
    if !fresh {
        run_tool(
            Command::new(recipe.join("build"))
                .arg("--out")
                .arg(&directory)
                .arg("--agent")
                .arg(&agent),
        )?;
    }
    Ok(made)
}

/// A directory that [`crate::Settings::datastore`] can name: the catalogue with the Linux guests
/// (`images/busybox`, `images/debian`), made by their recipe if they are missing. Minutes the
/// first time; `GODWIT_LAB_IMAGES` names a directory that has them already.
pub fn catalogue(names: &[&str]) -> Result<PathBuf> {
    let _held = BuildLock::take()?;
    let made = std::env::var_os("GODWIT_LAB_IMAGES")
        .map_or_else(|| build_directory().join("images"), PathBuf::from);
    let datastore = build_directory().join("lab/datastore");
    let _ = fs::remove_dir_all(&datastore);
    for name in names {
        let (from, to) = (made.join(name), datastore.join("images").join(name));
        if !from.join("image.toml").exists() {
            run_tool(Command::new(workspace().join("guest-images/linux/build")).arg(name))?;
        }
        fs::create_dir_all(&to).during("create", &to)?;
        for file in CATALOGUE_FILES {
            if from.join(file).exists() {
                fs::hard_link(from.join(file), to.join(file)).during("link", to.join(file))?;
            }
        }
    }
    Ok(datastore)
}

fn changed(path: &Path) -> Option<SystemTime> {
    fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
}

fn newest_change(path: &Path) -> Option<SystemTime> {
    let inside = fs::read_dir(path).ok().into_iter().flatten().flatten();
    inside
        .filter_map(|entry| newest_change(&entry.path()))
        .max()
        .max(changed(path))
}

/// Copies our programs without debug information, which would make them several times as big;
/// panics name their line without it. Gives their names.
pub fn stage_programs(programs: &Path, into: &Path) -> Result<Vec<&'static str>> {
    let built: Vec<_> = PROGRAM_NAMES
        .into_iter()
        .filter(|program| programs.join(program).exists())
        .collect();
    for program in &built {
        run_tool(
            Command::new("strip")
                .arg("-o")
                .arg(into.join(program))
                .arg(programs.join(program)),
        )?;
    }
    Ok(built)
}
