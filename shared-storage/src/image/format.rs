//! The formats of images, and their drivers.

use std::io;

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder};
use serde::{Deserialize, Serialize};

use super::file::GuardedFile;

/// How an image stores its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Byte for byte.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

impl Format {
    /// Its name in specs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "raw" => Some(Self::Raw),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

/// An image with everything below it.
pub(super) type Image = FormatAccess<GuardedFile>;

/// Put the driver of `format` on an open file; `below` is the image under it.
pub(super) fn open_format(
    file: GuardedFile,
    format: Format,
    writable: bool,
    below: Option<Image>,
) -> io::Result<Image> {
    let gate = DenyImplicitOpenGate::default();
    Ok(match format {
        Format::Raw => FormatAccess::new(Raw::builder(file).write(writable).open(gate)?),
        Format::Qcow2 => {
            let qcow2: Qcow2<GuardedFile> = Qcow2::builder(file)
                .write(writable)
                .backing(below)
                .data_file(None)
                .open(gate)?;
            FormatAccess::new(qcow2)
        }
    })
}
