//! Checking a qcow2 image: does every reference lead somewhere, and is every cluster counted as
//! often as it is referred to? Reads only; repairing is left to `qemu-img check -r`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Serialize;

use super::confine::{Access, open_file};
use super::error::ImageError;
use super::file::file_bytes;
use super::format::Format;
use super::header::{Header, is_qcow2};

/// Most clusters an image may have to be checked (16 TiB at the usual 64 KiB).
const MAX_CLUSTERS: u64 = 1 << 28;
/// Most findings that are put into words.
const MAX_FINDINGS: usize = 16;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const COMPRESSED: u64 = 1 << 62;

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// Clusters that hold guest data.
    pub data_clusters: u64,
    /// Clusters counted but not referred to: space lost, data sound.
    pub leaks: u64,
    /// References that are wrong or not counted: data is or will be lost.
    pub errors: u64,
    /// The first findings in words.
    pub findings: Vec<String>,
}

impl CheckReport {
    /// Nothing is wrong with the data (leaks only waste space).
    pub fn is_sound(&self) -> bool {
        self.errors == 0
    }

    fn error(&mut self, what: impl FnOnce() -> String) {
        self.errors += 1;
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(what());
        }
    }
}

/// Check the image at `path`. It should not be in use: a guest that writes meanwhile makes it
/// look wrong. A raw image has nothing that could be inconsistent.
pub fn check(root: Option<&Path>, path: &Path, format: Format) -> Result<CheckReport, ImageError> {
    let file = open_file(
        root,
        path,
        Access {
            write: false,
            direct: false,
        },
    )?;
    let bytes = file_bytes(&file).map_err(|error| ImageError::from_io("read", path, error))?;
    if format == Format::Raw && !is_qcow2(&file) {
        return Ok(CheckReport::default());
    }
    let header = Header::read(&file, bytes, path)?;
    let unsupported = |why: &str| ImageError::Unsupported {
        path: path.into(),
        why: why.into(),
    };
    if header.snapshots > 0 {
        return Err(unsupported(
            "it has internal snapshots; check it with `qemu-img check`",
        ));
    }
    let clusters = bytes.div_ceil(1 << header.cluster_bits);
    if clusters > MAX_CLUSTERS {
        return Err(unsupported(
            "it is too large; check it with `qemu-img check`",
        ));
    }
    let mut checker = Checker {
        file: &file,
        path,
        header: &header,
        file_bytes: bytes,
        referred: vec![0; clusters as usize],
        report: CheckReport::default(),
    };
    checker.run()?;
    Ok(checker.report)
}

struct Checker<'a> {
    file: &'a File,
    path: &'a Path,
    header: &'a Header,
    file_bytes: u64,
    /// References to each cluster of the file.
    referred: Vec<u16>,
    report: CheckReport,
}

impl Checker<'_> {
    fn run(&mut self) -> Result<(), ImageError> {
        let cluster = self.cluster_bytes();
        self.refer("header", 0, cluster);
        let (l1_at, l1_entries) = self.header.l1;
        self.refer("L1 table", l1_at, u64::from(l1_entries) * 8);
        let (counts_at, counts_clusters) = self.header.refcounts;
        let counts_bytes = u64::from(counts_clusters) * cluster;
        self.refer("refcount table", counts_at, counts_bytes);
        for entry in self.table(l1_at, u64::from(l1_entries) * 8)? {
            self.l2_table(entry)?;
        }
        let blocks = self.table(counts_at, counts_bytes)?;
        for block in &blocks {
            if block & OFFSET_MASK != 0 {
                self.refer("refcount block", *block & OFFSET_MASK, cluster);
            }
        }
        self.compare(&blocks)
    }

    fn cluster_bytes(&self) -> u64 {
        1 << self.header.cluster_bits
    }

    /// Note that something occupies `bytes` at `at`. Returns whether that is inside the file.
    fn refer(&mut self, what: &str, at: u64, bytes: u64) -> bool {
        let cluster = self.cluster_bytes();
        if !at.is_multiple_of(cluster) {
            self.report
                .error(|| format!("a {what} lies at {at:#x}, not on a cluster"));
            return false;
        }
        let Some(end) = at.checked_add(bytes).filter(|_| at < self.file_bytes) else {
            self.report
                .error(|| format!("a {what} lies at {at:#x}, past the end of the file"));
            return false;
        };
        self.count(at / cluster, end.div_ceil(cluster));
        true
    }

    fn count(&mut self, first: u64, end: u64) {
        let end = (end as usize).min(self.referred.len());
        for counter in &mut self.referred[(first as usize).min(end)..end] {
            *counter = counter.saturating_add(1);
        }
    }

    /// Read big-endian 64-bit entries; what lies past the end of the file reads as zero.
    fn table(&self, at: u64, bytes: u64) -> Result<Vec<u64>, ImageError> {
        let inside = self.file_bytes.saturating_sub(at).min(bytes);
        let mut raw = vec![0; inside as usize];
        self.file
            .read_exact_at(&mut raw, at)
            .map_err(|error| ImageError::from_io("read", self.path, error))?;
        let entry = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |value, byte| value << 8 | u64::from(*byte))
        };
        Ok(raw.chunks_exact(8).map(entry).collect())
    }

    fn l2_table(&mut self, entry: u64) -> Result<(), ImageError> {
        let at = entry & OFFSET_MASK;
        if entry & L1_RESERVED != 0 {
            self.report
                .error(|| format!("the L1 entry {entry:#x} has reserved bits set"));
        }
        if at == 0 || !self.refer("L2 table", at, self.cluster_bytes()) {
            return Ok(());
        }
        for entry in self.table(at, self.cluster_bytes())? {
            if entry & COMPRESSED != 0 {
                self.compressed(entry);
            } else if entry & OFFSET_MASK != 0 {
                self.report.data_clusters += 1;
                self.refer("data cluster", entry & OFFSET_MASK, self.cluster_bytes());
            }
        }
        Ok(())
    }

    /// A compressed cluster: an offset of `x` bits, then a number of 512-byte sectors.
    fn compressed(&mut self, entry: u64) {
        self.report.data_clusters += 1;
        let offset_bits = 62 - (self.header.cluster_bits - 8);
        let at = entry & ((1 << offset_bits) - 1);
        let sectors = ((entry & !(3 << 62)) >> offset_bits) + 1;
        let end = (at & !511) + sectors * 512;
        if at >= self.file_bytes {
            self.report
                .error(|| format!("a compressed cluster lies at {at:#x}, past the end"));
            return;
        }
        let cluster = self.cluster_bytes();
        self.count(at / cluster, end.div_ceil(cluster));
    }

    /// Compare the references with the counts that the image keeps.
    fn compare(&mut self, blocks: &[u64]) -> Result<(), ImageError> {
        let width = 1u64 << self.header.refcount_order;
        let per_block = self.cluster_bytes() * 8 / width;
        let referred = std::mem::take(&mut self.referred);
        for (number, references) in referred.chunks(per_block as usize).enumerate() {
            let at = blocks.get(number).copied().unwrap_or(0) & OFFSET_MASK;
            let mut raw = vec![0; self.cluster_bytes() as usize];
            if at != 0 && at < self.file_bytes {
                let inside = (self.file_bytes - at).min(raw.len() as u64) as usize;
                self.file
                    .read_exact_at(&mut raw[..inside], at)
                    .map_err(|error| ImageError::from_io("read", self.path, error))?;
            }
            for (index, references) in references.iter().enumerate() {
                let counted = refcount(&raw, index, self.header.refcount_order);
                let cluster = number as u64 * per_block + index as u64;
                let references = u64::from(*references);
                if references > counted {
                    self.report.error(|| {
                        format!("cluster {cluster} is counted {counted} times, used {references}")
                    });
                } else if references < counted {
                    self.report.leaks += 1;
                }
            }
        }
        Ok(())
    }
}

/// Entry `index` of a refcount block whose entries are `1 << order` bits wide.
fn refcount(block: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let width = 1 << order;
        let bit = index * width;
        let byte = block.get(bit / 8).copied().unwrap_or(0);
        return u64::from(byte >> (bit % 8)) & ((1 << width) - 1);
    }
    let width = 1 << (order - 3);
    let entry = block
        .get(index * width..(index + 1) * width)
        .unwrap_or_default();
    entry
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
