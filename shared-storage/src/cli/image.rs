//! The commands that look at images, make them and change them.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use super::size::{Size, in_words};
use super::{Cli, CliError, FOUND_WRONG, show};
use crate::datastore::Datastore;
use crate::error::StoreError;
use crate::fence;
use crate::image::{
    self, CheckReport, CopyProgress, Disk, DiskOptions, Format, ImageError, ImageInfo, Made,
};

/// Where output is no terminal, progress is said in steps of so many hundredths.
const PROGRESS_STEP: u64 = 10;

/// What is done to an image.
#[derive(Debug, clap::Subcommand)]
pub(super) enum ImageCommand {
    /// What an image is, and which images it rests on.
    Info {
        /// Its path in the datastore.
        image: PathBuf,
    },
    /// Whether an image and those it rests on are consistent. Changes nothing.
    Check {
        /// Its path in the datastore.
        image: PathBuf,
    },
    /// Make an empty image.
    Create {
        /// Its path in the datastore.
        image: PathBuf,
        /// What the guest sees: bytes, or 512M, 10G, 1T.
        size: Size,
    },
    /// Make an independent image, without storing zeroes, in the format that its name says.
    Copy {
        /// The original, with everything that it rests on.
        from: PathBuf,
        /// The copy.
        to: PathBuf,
    },
    /// Make an independent image that shares its blocks with the original until they are
    /// written, where the file system can; else a copy.
    Clone {
        /// The original.
        from: PathBuf,
        /// The clone.
        to: PathBuf,
    },
    /// Make a qcow2 image on top of another, which must not change from then on.
    Overlay {
        /// What it rests on.
        base: PathBuf,
        /// The new image.
        image: PathBuf,
    },
    /// Change what the guest sees, while it is off.
    Resize {
        /// Its path in the datastore.
        image: PathBuf,
        /// Bytes, or 512M, 10G, 1T.
        size: Size,
        /// Lose what lies past the new end.
        #[arg(long)]
        shrink: bool,
    },
}

pub(super) fn run(
    cli: &Cli,
    store: &Datastore,
    command: &ImageCommand,
) -> Result<ExitCode, CliError> {
    match command {
        ImageCommand::Info { image } => info(cli, store, image),
        ImageCommand::Check { image } => check(cli, store, image),
        ImageCommand::Create { image, size } => {
            let (path, format) = (store.root().join(image), format_of(image)?);
            image::create(Some(store.root()), &path, format, size.bytes)?;
            made(cli, &path, "made")
        }
        ImageCommand::Copy { from, to } => {
            let (path, format) = (store.root().join(to), format_of(to)?);
            let progress = image::copy(existing(store, from)?, &path, format, reporter(cli))?;
            made(cli, &path, &copied(progress))
        }
        ImageCommand::Clone { from, to } => clone(cli, store, from, to),
        ImageCommand::Overlay { base, image } => {
            let (path, below) = (store.root().join(image), existing(store, base)?);
            if format_of(image)? != Format::Qcow2 {
                return Err(said(&path, "an overlay is qcow2: end its name in .qcow2"));
            }
            image::create_overlay(Some(store.root()), &path, &below.path, below.format)?;
            made(cli, &path, &format!("rests on {}", below.path.display()))
        }
        ImageCommand::Resize {
            image,
            size,
            shrink,
        } => {
            let options = existing(store, image)?;
            may_change(store, &options.path)?;
            let path = options.path.clone();
            image::resize(options, size.bytes, *shrink)?;
            made(cli, &path, &format!("has {} now", in_words(size.bytes)))
        }
    }
}

fn said(path: &Path, why: &str) -> CliError {
    CliError::Said(format!("{}: {why}", path.display()))
}

/// An image that is there, for reading. A guest's disk is found under whatever epoch it has.
fn existing(store: &Datastore, given: &Path) -> Result<DiskOptions, CliError> {
    let format = format_of(given)?;
    let there = store.root().join(given);
    let path = match fence::resolve(&there, u64::MAX) {
        // It is refused for where it is, not for being absent.
        Err(StoreError::Missing(_)) if leads_out(given) => there,
        found => found?,
    };
    Ok(DiskOptions {
        root: Some(store.root().into()),
        ..DiskOptions::new(path, format)
    })
}

fn leads_out(given: &Path) -> bool {
    let mut parts = given.components();
    given.is_absolute() || parts.any(|part| part == Component::ParentDir)
}

/// The content is not asked: a guest can make its raw disk look like anything.
fn format_of(image: &Path) -> Result<Format, CliError> {
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let (name, _) = fence::split(&name);
    match Path::new(name)
        .extension()
        .and_then(|ending| ending.to_str())
    {
        Some("raw" | "img") => Ok(Format::Raw),
        Some("qcow2") => Ok(Format::Qcow2),
        _ => Err(said(
            image,
            "its format is not known; end its name in .raw, .img or .qcow2",
        )),
    }
}

/// Images of the catalogue are what guests' disks rest on, and a held guest's are its own.
fn may_change(store: &Datastore, path: &Path) -> Result<(), CliError> {
    let root = store.root().canonicalize();
    let (Ok(root), Ok(real)) = (root, path.canonicalize()) else {
        return Ok(());
    };
    let inside = real.strip_prefix(root).unwrap_or(&real);
    let mut names = inside.iter().filter_map(|name| name.to_str());
    match (names.next(), names.next()) {
        (Some("images"), _) => Err(said(
            path,
            "guests may rest on images of the catalogue; copy it and change the copy",
        )),
        (Some("guests"), Some(guest)) => {
            let last = store.guest(guest)?.lease().last()?;
            last.and_then(|last| last.holder).map_or(Ok(()), |holder| {
                let why = format!("{holder} holds {guest}; stop it first: godwit stop {guest}");
                Err(said(path, &why))
            })
        }
        _ => Ok(()),
    }
}

#[derive(Serialize)]
struct MadeImage<'a> {
    image: &'a Path,
    what: &'a str,
}

fn made(cli: &Cli, image: &Path, what: &str) -> Result<ExitCode, CliError> {
    show::answer(cli, &MadeImage { image, what }, || {
        format!("{}: {what}", image.display())
    })
}

fn copied(progress: CopyProgress) -> String {
    let (written, total) = (progress.written_bytes, progress.total_bytes);
    format!("copied, {} of {}", in_words(written), in_words(total))
}

fn clone(cli: &Cli, store: &Datastore, from: &Path, to: &Path) -> Result<ExitCode, CliError> {
    let (source, path) = (existing(store, from)?, store.root().join(to));
    if format_of(to)? != source.format {
        return Err(said(&path, "a clone has the format of its original"));
    }
    let what = match image::duplicate(source, &path, reporter(cli))? {
        Made::Reflink => "shares its blocks with the original until they are written".into(),
        Made::Copy(progress) => copied(progress),
    };
    made(cli, &path, &what)
}

/// Says how far a copy is: over and over in one line of a terminal, in steps elsewhere.
fn reporter(cli: &Cli) -> impl FnMut(CopyProgress) -> ControlFlow<()> {
    let (quiet, terminal) = (cli.json, io::stderr().is_terminal());
    let step = if terminal { 1 } else { PROGRESS_STEP };
    let mut next = step;
    move |progress| {
        let hundredths = progress.done_bytes * 100 / progress.total_bytes.max(1);
        if !quiet && hundredths >= next {
            next = hundredths / step * step + step;
            let written = in_words(progress.written_bytes);
            let line = format!("{hundredths:3} %, {written} written");
            let end = if terminal && hundredths < 100 {
                "\r"
            } else {
                "\n"
            };
            // Nobody may be reading.
            let _ = write!(io::stderr(), "{line}{end}");
        }
        ControlFlow::Continue(())
    }
}

fn info(cli: &Cli, store: &Datastore, image: &Path) -> Result<ExitCode, CliError> {
    let layers = image::layers(&existing(store, image)?)?;
    let facts = layers
        .iter()
        .map(|(path, _)| image::info(Some(store.root()), path))
        .collect::<Result<Vec<_>, _>>()?;
    show::answer(cli, &facts, || {
        let texts = facts.iter().map(describe);
        texts.collect::<Vec<_>>().join("\nrests on\n")
    })
}

fn describe(facts: &ImageInfo) -> String {
    let mut text = format!(
        "image   {}\nformat  {}\nsize    {} ({} bytes)\ntakes   {}",
        facts.path.display(),
        facts.format.name(),
        in_words(facts.virtual_bytes),
        facts.virtual_bytes,
        in_words(facts.allocated_bytes)
    );
    let notes = [
        (
            facts.corrupt,
            "damaged: repair it with `qemu-img check -r all`",
        ),
        (facts.dirty, "not closed by its last writer"),
        (facts.snapshots > 0, "has internal snapshots"),
    ];
    for (_, note) in notes.iter().filter(|(is_so, _)| *is_so) {
        // Writing into a string does not fail.
        let _ = write!(text, "\nnote    {note}");
    }
    text
}

#[derive(Serialize)]
struct Checked {
    image: PathBuf,
    #[serde(flatten)]
    report: CheckReport,
}

fn check(cli: &Cli, store: &Datastore, image: &Path) -> Result<ExitCode, CliError> {
    let top = existing(store, image)?;
    // As long as this is open, nobody writes. What cannot be opened is judged all the same.
    let reader = Disk::open(DiskOptions {
        readonly: true,
        ..top.clone()
    });
    if let Err(error @ ImageError::Locked(_)) = reader {
        return Err(error.into());
    }
    let mut checked = Vec::new();
    for (path, format) in image::layers(&top)? {
        checked.push(Checked {
            report: image::check(Some(store.root()), &path, format)?,
            image: path,
        });
    }
    let sound = checked.iter().all(|one| one.report.is_sound());
    show::answer(cli, &checked, || {
        checked.iter().map(verdict).collect::<Vec<_>>().join("\n")
    })?;
    Ok(if sound {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(FOUND_WRONG)
    })
}

fn verdict(checked: &Checked) -> String {
    let (path, report) = (checked.image.display(), &checked.report);
    let mut text = match (report.errors, report.leaks) {
        (0, 0) => format!("{path}: sound"),
        (0, leaks) => format!("{path}: sound; {leaks} clusters are lost space"),
        (errors, _) => format!("WRONG {path}: {errors} references are wrong; restore it"),
    };
    for finding in &report.findings {
        let _ = write!(text, "\n      {finding}");
    }
    text
}
