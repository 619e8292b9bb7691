//! The qcow2 header, read to judge an image before a driver trusts it.
//!
//! QEMU `docs/interop/qcow2.txt`; all numbers are big-endian.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::ImageError;

const MAGIC: [u8; 4] = *b"QFI\xfb";
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;
pub(super) const MAX_BACKING_NAME: u64 = 1023;
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 64 << 20;
const MAX_EXTENSIONS: usize = 64;

const INCOMPATIBLE_DIRTY: u64 = 1;
const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_KNOWN: u64 = INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT;

const UNREADABLE_NAME: &str = "the name of its backing file cannot be read";
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What a qcow2 header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Cluster size is `1 << cluster_bits` bytes.
    pub cluster_bits: u32,
    /// Bytes that the guest sees.
    pub virtual_bytes: u64,
    /// The image below, as written in the header.
    pub backing_file: Option<String>,
    /// Its format, as written in the header.
    pub backing_format: Option<String>,
    /// Where the L1 table lies, and its entries.
    pub l1: (u64, u32),
    /// Where the refcount table lies, and its clusters.
    pub refcounts: (u64, u32),
    /// Width of a refcount is `1 << refcount_order` bits.
    pub refcount_order: u32,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Refcounts may be stale: the last writer did not close the image.
    pub dirty: bool,
    /// A writer found the image damaged.
    pub corrupt: bool,
}

/// Does `file` begin like a qcow2 image?
pub fn is_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == MAGIC
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4]
        .iter()
        .fold(0, |value, byte| value << 8 | u32::from(*byte))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

impl Header {
    /// Read and judge the header of `file`, `file_bytes` long. `path` is for errors. The file
    /// must not be open with `O_DIRECT`.
    pub fn read(file: &File, file_bytes: u64, path: &Path) -> Result<Self, ImageError> {
        let not = |why: String| ImageError::NotAnImage {
            path: path.into(),
            format: "qcow2",
            why,
        };
        let truncated = |why: String| ImageError::Truncated {
            path: path.into(),
            why,
        };
        let unsupported = |why: String| ImageError::Unsupported {
            path: path.into(),
            why,
        };
        let fail = |error| ImageError::from_io("read", path, error);

        if !is_qcow2(file) {
            return Err(not("it does not begin with a qcow2 header".into()));
        }
        if file_bytes < V2_BYTES as u64 {
            return Err(truncated(format!(
                "{file_bytes} bytes do not hold a header"
            )));
        }
        let mut raw = [0; V3_BYTES];
        let have = (file_bytes as usize).min(V3_BYTES);
        file.read_exact_at(&mut raw[..have], 0).map_err(fail)?;

        let version = be32(&raw, 4);
        if !matches!(version, 2 | 3) {
            return Err(unsupported(format!(
                "it is qcow2 version {version}; we know 2 and 3"
            )));
        }
        let v3 = version == 3;
        if v3 && have < V3_BYTES {
            return Err(truncated(format!(
                "{file_bytes} bytes do not hold a version 3 header"
            )));
        }
        let cluster_bits = be32(&raw, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(not(format!(
                "its cluster size of 2^{cluster_bits} bytes is impossible"
            )));
        }
        if be32(&raw, 32) != 0 {
            return Err(unsupported(
                "it is encrypted; convert it with qemu-img".into(),
            ));
        }
        let incompatible = if v3 { be64(&raw, 72) } else { 0 };
        if incompatible & INCOMPATIBLE_DATA_FILE != 0 {
            return Err(unsupported(
                "its data lies in another file; convert it with qemu-img".into(),
            ));
        }
        if incompatible & !INCOMPATIBLE_KNOWN != 0 {
            let unknown = incompatible & !INCOMPATIBLE_KNOWN;
            return Err(unsupported(format!(
                "it needs unknown features {unknown:#x}; convert it with qemu-img"
            )));
        }
        let header = Self {
            version,
            cluster_bits,
            virtual_bytes: be64(&raw, 24),
            backing_file: None,
            backing_format: None,
            l1: (be64(&raw, 40), be32(&raw, 36)),
            refcounts: (be64(&raw, 48), be32(&raw, 56)),
            refcount_order: if v3 { be32(&raw, 96) } else { 4 },
            snapshots: be32(&raw, 60),
            dirty: incompatible & INCOMPATIBLE_DIRTY != 0,
            corrupt: incompatible & INCOMPATIBLE_CORRUPT != 0,
        };
        if header.refcount_order > 6 {
            return Err(not(format!(
                "refcounts of 2^{} bits are impossible",
                header.refcount_order
            )));
        }
        header.check_tables(file_bytes).map_err(truncated)?;
        let name = (be64(&raw, 8), u64::from(be32(&raw, 16)));
        let length = if v3 {
            be32(&raw, 100) as usize
        } else {
            V2_BYTES
        };
        header
            .with_backing(file, name, length)
            .map_err(|why| not(why.to_owned()))
    }

    /// The tables must fit the file; imago would read what is missing as zeroes.
    fn check_tables(&self, file_bytes: u64) -> Result<(), String> {
        let cluster = 1u64 << self.cluster_bits;
        let needed = self.virtual_bytes.div_ceil(cluster).div_ceil(cluster / 8);
        let (l1_at, l1_entries) = self.l1;
        let l1_bytes = u64::from(l1_entries) * 8;
        if u64::from(l1_entries) < needed || l1_bytes > MAX_L1_BYTES {
            return Err(format!(
                "its L1 table of {l1_entries} entries cannot be right"
            ));
        }
        let (counts_at, counts_clusters) = self.refcounts;
        if u64::from(counts_clusters) * cluster > MAX_REFCOUNT_TABLE_BYTES {
            return Err(format!(
                "its refcount table of {counts_clusters} clusters cannot be right"
            ));
        }
        let tables = [
            ("L1 table", l1_at, l1_bytes),
            (
                "refcount table",
                counts_at,
                u64::from(counts_clusters) * cluster,
            ),
        ];
        for (name, at, bytes) in tables {
            let end = at
                .checked_add(bytes)
                .ok_or_else(|| format!("its {name} is nowhere"))?;
            if bytes > 0 && end > file_bytes {
                return Err(format!(
                    "its {name} should end at byte {end}, the file at {file_bytes}"
                ));
            }
        }
        Ok(())
    }

    fn with_backing(
        mut self,
        file: &File,
        (name_at, name_bytes): (u64, u64),
        extensions_at: usize,
    ) -> Result<Self, &'static str> {
        if name_at == 0 || name_bytes == 0 {
            return Ok(self);
        }
        if name_bytes > MAX_BACKING_NAME {
            return Err("the name of its backing file is too long");
        }
        let text = |at: u64, bytes: usize| {
            let mut text = vec![0; bytes];
            file.read_exact_at(&mut text, at).ok()?;
            String::from_utf8(text)
                .ok()
                .filter(|text| !text.contains('\0'))
        };
        self.backing_file = Some(text(name_at, name_bytes as usize).ok_or(UNREADABLE_NAME)?);
        let mut at = extensions_at as u64;
        for _ in 0..MAX_EXTENSIONS {
            let mut head = [0; 8];
            if file.read_exact_at(&mut head, at).is_err() {
                break;
            }
            let (kind, bytes) = (be32(&head, 0), be32(&head, 4));
            if kind == 0 {
                break;
            }
            if kind == EXTENSION_BACKING_FORMAT && bytes <= 64 {
                self.backing_format = text(at + 8, bytes as usize);
            }
            at += 8 + u64::from(bytes).next_multiple_of(8);
        }
        Ok(self)
    }
}
