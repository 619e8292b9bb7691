//! What fio in a guest gets of its disk, ours beside QEMU's virtio-blk: both run on the same emulated
//! host of the lab, the same kernel and system in them, on the same kind of image in the same place.
//!
//! Both guests are up at the same time and idle but for fio, which runs in one after the other.

mod job;
mod peer;

use std::time::Duration;

use clap::ValueEnum;
use lab::artefacts::catalogue;
use lab::host::DATASTORE;
use lab::shell::Shell;
use lab::{Host, Lab, LabError, Settings, empty_qcow2};

use crate::stats::Sample;
use crate::table::Table;
use job::JOBS;
use peer::Peer;

/// Measured passes over all jobs.
pub const DEFAULT_RUNS: u32 = 5;
/// Where an image lies on the host's own disk.
const OWN_DISK: &str = "/mnt/bench";
const DATA_MIB: u64 = 128;
/// Two guests and QEMU have room in it.
const HOST_MIB: u32 = 1024;
/// A kernel that boots two emulations deep, on a machine that does other things meanwhile.
const LIMIT: Duration = Duration::from_mins(6);

/// Where the images lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// On the host's own disk.
    Own,
    /// On the datastore, by NFS.
    Datastore,
}

impl Place {
    fn words(self) -> &'static str {
        match self {
            Self::Own => "its own disk",
            Self::Datastore => "NFS",
        }
    }
}

/// Measures both on both formats.
pub fn run(runs: u32, place: Place) -> lab::Result<String> {
    let wish = Settings {
        hosts: 1,
        memory_mib: HOST_MIB,
        name: "bench".to_owned(),
        datastore: Some(catalogue(&["debian"])?),
        files: peer::qemu_files()?,
        ..Settings::default()
    };
    let lab = match Lab::start(&wish) {
        Err(LabError::Unavailable(why)) => return Ok(format!("SKIPPED: disk: {why}")),
        started => started?,
    };
    let host = &lab.hosts()[0];
    let directory = prepare(host, place)?;
    let title = format!(
        "Disk: fio in guests on one emulated host, images on {}, median of {runs} passes, in turn",
        place.words()
    );
    let mut table = Table::new(
        title,
        &[
            "image, job",
            "unit",
            Peer::Godwit.name(),
            "min",
            "max",
            Peer::Qemu.name(),
            "min",
            "max",
            "ratio",
        ],
    );
    for format in ["raw", "qcow2"] {
        for (job, [ours, theirs]) in JOBS.iter().zip(measure(host, &directory, format, runs)?) {
            let mut row = vec![format!("{format}, {}", job.name), job.unit().to_owned()];
            for sample in [&ours, &theirs] {
                let values = [sample.median(), sample.min(), sample.max()];
                row.extend(values.map(|value| format!("{value:.0}")));
            }
            row.push(format!("{:.2}x", ours.median() / theirs.median()));
            table.row(row);
        }
    }
    Ok(table.to_string())
}

/// The directory for images.
fn prepare(host: &Host, place: Place) -> lab::Result<String> {
    let directory = match place {
        Place::Own => {
            host.run(&format!(
                "modprobe xfs && mkfs.xfs -q -f /dev/vdb && mkdir -p {OWN_DISK} && mount /dev/vdb {OWN_DISK}"
            ))?;
            OWN_DISK.to_owned()
        }
        Place::Datastore => format!("{DATASTORE}/bench"),
    };
    host.run(&format!("mkdir -p {directory}"))?;
    Ok(directory)
}

/// What each job got, ours and QEMU's.
fn measure(host: &Host, directory: &str, format: &str, runs: u32) -> lab::Result<Vec<[Sample; 2]>> {
    let mut guests = Vec::new();
    for peer in [Peer::Godwit, Peer::Qemu] {
        let image = format!("{directory}/{}.{format}", peer.file_name());
        make_image(host, &image, format)?;
        guests.push(boot(host, peer, &image, format)?);
    }
    let mut samples = vec![[Sample::default(), Sample::default()]; JOBS.len()];
    for _ in 0..runs {
        for (at, guest) in guests.iter().enumerate() {
            for (sample, value) in samples.iter_mut().zip(job::run_all(guest)?) {
                sample[at].push(value);
            }
        }
    }
    for guest in guests {
        guest.kill()?;
    }
    Ok(samples)
}

fn make_image(host: &Host, path: &str, format: &str) -> lab::Result<()> {
    let bytes = DATA_MIB << 20;
    match format {
        "raw" => host.run(&format!("truncate -s {bytes} {path}")).map(drop),
        _ => host.push(path, &empty_qcow2(bytes)?),
    }
}

/// A guest with a shell; its second disk is the image, whose every block exists.
fn boot(host: &Host, peer: Peer, image: &str, format: &str) -> lab::Result<Shell> {
    let vmm = host.start_command(&["sh", "-c", &peer.command(image, format)])?;
    let shell = Shell::new(vmm, LIMIT);
    shell.expect("# ")?;
    shell.run("PS1=; dmesg -n 1; cd /run")?;
    shell.run(job::FILL)?;
    job::run_all(&shell)?;
    Ok(shell)
}
