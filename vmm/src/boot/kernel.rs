//! Looks at a kernel's file before it is loaded: what it is, whether all of it is there, and
//! how much memory it takes. Loaders find out too late, or not at all, and cannot say it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::layout::KERNEL;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_HEADER_BYTES: usize = 64;
/// Programs for x86-64 in the 64-bit little-endian form of ELF (elf(5)).
const ELF_64_LITTLE: [u8; 2] = [2, 1];
const ELF_X86_64: u16 = 62;
const SEGMENT_BYTES: usize = 56;
const SEGMENT_LOAD: u32 = 1;
/// More segments than any kernel has.
const SEGMENTS_MAX: u16 = 64;

// Offsets in the set-up header, Linux Documentation/arch/x86/boot.rst.
const BZIMAGE_HEAD_BYTES: usize = 0x264;
const SETUP_SECTORS: usize = 0x1f1;
const SYSTEM_PARAGRAPHS: usize = 0x1f4;
const MAGIC_AT: usize = 0x202;
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";
const VERSION: usize = 0x206;
const PREFERRED_ADDRESS: usize = 0x258;
const INIT_BYTES: usize = 0x260;
/// 2.10 brought `pref_address` and `init_size`.
const VERSION_WITH_SIZE: u16 = 0x20a;
const SECTOR_BYTES: u64 = 512;
const PARAGRAPH_BYTES: u64 = 16;
/// A set-up sector count of zero stands for four.
const SETUP_SECTORS_DEFAULT: u64 = 4;

/// The two kinds of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An ELF image (vmlinux).
    Elf,
    /// A bzImage (vmlinuz).
    BzImage,
}

/// What a kernel's file says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Which kind.
    pub kind: Kind,
    /// The memory it touches before it looks at the memory map ends here.
    pub memory_end: u64,
}

/// Why a file is no kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Flaw {
    /// It begins like nothing that is known.
    Unknown,
    /// It is an ELF file for something else.
    OtherMachine,
    /// It goes on beyond its end.
    Truncated {
        /// How long it should be.
        wanted: u64,
        /// How long it is.
        found: u64,
    },
}

impl std::fmt::Display for Flaw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("it begins neither as a bzImage nor as an ELF image"),
            Self::OtherMachine => f.write_str("it is an ELF file, but no 64-bit x86 program"),
            Self::Truncated { wanted, found } => write!(
                f,
                "it is truncated: it should have {wanted} bytes and has {found}"
            ),
        }
    }
}

/// Look at the file.
pub fn examine(file: &File) -> io::Result<Result<Kernel, Flaw>> {
    let found = file.metadata()?.len();
    let mut head = [0; BZIMAGE_HEAD_BYTES];
    let read = read_some(file, &mut head)?;
    if head.starts_with(&ELF_MAGIC) {
        return examine_elf(file, &head, found);
    }
    if read < BZIMAGE_HEAD_BYTES || head[MAGIC_AT..MAGIC_AT + 4] != BZIMAGE_MAGIC {
        return Ok(Err(Flaw::Unknown));
    }
    let setup = match u64::from(head[SETUP_SECTORS]) {
        0 => SETUP_SECTORS_DEFAULT,
        sectors => sectors,
    };
    let system = u64::from(word(&head, SYSTEM_PARAGRAPHS)) * PARAGRAPH_BYTES;
    let wanted = (setup + 1) * SECTOR_BYTES + system;
    if found < wanted {
        return Ok(Err(Flaw::Truncated { wanted, found }));
    }
    let memory_end = if half(&head, VERSION) < VERSION_WITH_SIZE {
        KERNEL + system
    } else {
        let start = long(&head, PREFERRED_ADDRESS).max(KERNEL);
        start.saturating_add(u64::from(word(&head, INIT_BYTES)))
    };
    let kind = Kind::BzImage;
    Ok(Ok(Kernel { kind, memory_end }))
}

fn examine_elf(file: &File, head: &[u8], found: u64) -> io::Result<Result<Kernel, Flaw>> {
    let truncated = |wanted| Ok(Err(Flaw::Truncated { wanted, found }));
    if found < ELF_HEADER_BYTES as u64 {
        return truncated(ELF_HEADER_BYTES as u64);
    }
    let (offset, count) = (long(head, 32), half(head, 56));
    let is_x86 = head[4..6] == ELF_64_LITTLE && half(head, 18) == ELF_X86_64;
    if !is_x86 || usize::from(half(head, 54)) != SEGMENT_BYTES || count > SEGMENTS_MAX {
        return Ok(Err(Flaw::OtherMachine));
    }
    let mut wanted = offset.saturating_add(u64::from(count) * SEGMENT_BYTES as u64);
    let mut table = vec![0; usize::from(count) * SEGMENT_BYTES];
    if found < wanted {
        return truncated(wanted);
    }
    file.read_exact_at(&mut table, offset)?;
    let mut memory_end = 0;
    for segment in table.chunks(SEGMENT_BYTES) {
        if word(segment, 0) == SEGMENT_LOAD {
            wanted = wanted.max(long(segment, 8).saturating_add(long(segment, 32)));
            memory_end = memory_end.max(long(segment, 24).saturating_add(long(segment, 40)));
        }
    }
    if found < wanted {
        return truncated(wanted);
    }
    let kind = Kind::Elf;
    Ok(Ok(Kernel { kind, memory_end }))
}

/// As much of the beginning as there is.
fn read_some(file: &File, head: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < head.len() {
        match file.read_at(&mut head[read..], read as u64)? {
            0 => break,
            bytes => read += bytes,
        }
    }
    Ok(read)
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from(half(bytes, at)) | u32::from(half(bytes, at + 2)) << 16
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn look(content: &[u8]) -> Result<Kernel, Flaw> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        examine(&file).unwrap()
    }

    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 2 * 512 + 32];
        image[SETUP_SECTORS] = 1;
        image[SYSTEM_PARAGRAPHS] = 2;
        image[MAGIC_AT..MAGIC_AT + 4].copy_from_slice(&BZIMAGE_MAGIC);
        image[VERSION..VERSION + 2].copy_from_slice(&0x20fu16.to_le_bytes());
        image[PREFERRED_ADDRESS..PREFERRED_ADDRESS + 8]
            .copy_from_slice(&0x100_0000u64.to_le_bytes());
        image[INIT_BYTES..INIT_BYTES + 4].copy_from_slice(&0x200_0000u32.to_le_bytes());
        image
    }

    #[test]
    fn kernels_are_told_apart_and_measured() {
        let kernel = look(&bzimage()).unwrap();
        assert_eq!(
            (kernel.kind, kernel.memory_end),
            (Kind::BzImage, 0x300_0000)
        );
        let kernel = look(probe::IMAGE).unwrap();
        assert_eq!(kernel.kind, Kind::Elf);
        assert!(kernel.memory_end > 0x10_0000);
    }

    #[test]
    fn what_is_cut_off_is_truncated() {
        for whole in [bzimage(), probe::IMAGE.to_vec()] {
            let cut = look(&whole[..whole.len().min(0x3ff)]).unwrap_err();
            assert!(matches!(cut, Flaw::Truncated { .. }), "{cut}");
        }
        assert_eq!(look(b""), Err(Flaw::Unknown));
        assert_eq!(look(&bzimage()[..0x250]), Err(Flaw::Unknown));
        assert!(matches!(look(b"\x7fELF"), Err(Flaw::Truncated { .. })));
    }

    proptest! {
        #[test]
        fn no_file_panics(
            is_elf: bool,
            mut content in prop::collection::vec(any::<u8>(), 0..2048),
            header in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut image = if is_elf { probe::IMAGE[..256].to_vec() } else { bzimage() };
            for (at, byte) in header.iter().enumerate() {
                image[at * 8 % 256] ^= byte;
            }
            let _ = look(&image);
            content.splice(0..0, ELF_MAGIC);
            let _ = look(&content);
        }
    }
}
