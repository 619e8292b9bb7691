//! Puts a kernel and what it needs to know into guest memory, as a boot loader would.

mod kernel;
mod linux;
mod pvh;
pub mod registers;
mod reset_vector;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_core::spec::Spec;

use crate::error::with_remedy;
use crate::layout::{ACPI_TABLES, CMDLINE, HIGH_RAM, KERNEL, LOW_RAM_END, RAM_GAP_START};
use crate::memory::{GuestMemory, regions};
use kernel::{Kernel, Kind};

const PAGE_BYTES: u64 = 4096;

/// Why the guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read the {what} {}: {}", path.display(), with_remedy(source))]
    Read {
        /// kernel or initramfs.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel is not one.
    #[error(
        "{} is not a kernel that can be booted: {why}; a bzImage (vmlinuz) or an ELF image \
         (vmlinux) is needed",
        path.display()
    )]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The kernel is too large for the guest's memory.
    #[error(
        "the kernel {} needs memory up to {needed_mib} MiB to start; give the guest more",
        path.display()
    )]
    KernelTooLarge {
        /// The file.
        path: PathBuf,
        /// Where what it takes ends.
        needed_mib: u64,
    },
    /// The initramfs is too large for the guest's memory.
    #[error(
        "the initramfs {} has {bytes} bytes and does not fit above the kernel; \
         give the guest more memory",
        path.display()
    )]
    InitramfsTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// Something did not fit into guest memory.
    #[error("cannot write the {0} into guest memory: {1}")]
    Write(&'static str, String),
}

/// How the boot processor enters the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode with `rsi` at the boot parameters (Linux x86 boot protocol, §1.15).
    Long {
        /// First instruction.
        rip: u64,
    },
    /// In 32-bit mode without paging and with `ebx` at the start info (Xen's PVH).
    Pvh {
        /// First instruction.
        rip: u64,
    },
}

/// Where the initramfs lies.
#[derive(Debug, Clone, Copy, Default)]
struct Initramfs {
    address: u64,
    bytes: u64,
}

/// A stretch of guest-physical space for the kernel's memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct MapEntry {
    address: u64,
    bytes: u64,
    usable: bool,
}

/// Load the kernel and its initramfs and write the boot information. `rsdp` is the address
/// of the ACPI root pointer.
pub fn load(spec: &Spec, memory: &GuestMemory, rsdp: u64) -> Result<Entry, BootError> {
    let (kernel, loaded) = load_kernel(Path::new(&spec.kernel), memory)?;
    let initramfs = match &spec.initramfs {
        Some(initramfs) => load_initramfs(Path::new(initramfs), &kernel, &loaded, memory)?,
        None => Initramfs::default(),
    };
    write_cmdline(&spec.cmdline, memory)?;
    reset_vector::write_reset_vector(memory)?;
    let map = memory_map(spec.memory_mib);
    let entry = match (kernel.kind, loaded.pvh_boot_cap) {
        (Kind::Elf, PvhBootCapability::PvhEntryPresent(rip)) => {
            pvh::write_start_info(memory, &map, initramfs, rsdp)?;
            return Ok(Entry::Pvh { rip: rip.0 });
        }
        (Kind::Elf, _) => loaded.kernel_load.0,
        (Kind::BzImage, _) => loaded.kernel_load.0 + linux::BZIMAGE_ENTRY_64,
    };
    linux::write_boot_params(memory, &map, &loaded, initramfs, spec.cmdline.len(), rsdp)?;
    Ok(Entry::Long { rip: entry })
}

fn read_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> BootError + 'a {
    move |source| BootError::Read {
        what,
        path: path.to_owned(),
        source,
    }
}

fn open(what: &'static str, path: &Path) -> Result<File, BootError> {
    let file = File::open(path).map_err(read_error(what, path))?;
    let metadata = file.metadata().map_err(read_error(what, path))?;
    if metadata.is_dir() {
        return Err(read_error(what, path)(io::ErrorKind::IsADirectory.into()));
    }
    Ok(file)
}

fn load_kernel(
    path: &Path,
    memory: &GuestMemory,
) -> Result<(Kernel, KernelLoaderResult), BootError> {
    let not_a_kernel = |why| BootError::NotAKernel {
        path: path.to_owned(),
        why,
    };
    let mut file = open("kernel", path)?;
    let kernel = kernel::examine(&file)
        .map_err(read_error("kernel", path))?
        .map_err(|flaw| not_a_kernel(flaw.to_string()))?;
    if kernel.memory_end > low_memory_end(memory) {
        return Err(BootError::KernelTooLarge {
            path: path.to_owned(),
            needed_mib: kernel.memory_end.div_ceil(1 << 20),
        });
    }
    let high = Some(GuestAddress(HIGH_RAM));
    let loaded = match kernel.kind {
        Kind::Elf => Elf::load(memory, None, &mut file, high),
        Kind::BzImage => BzImage::load(memory, Some(GuestAddress(KERNEL)), &mut file, high),
    };
    // The loader names itself at each level.
    let innermost = |error: &str| error.rsplit("Kernel Loader: ").next().map(str::to_owned);
    let loaded =
        loaded.map_err(|error| not_a_kernel(innermost(&error.to_string()).unwrap_or_default()))?;
    Ok((kernel, loaded))
}

fn low_memory_end(memory: &GuestMemory) -> u64 {
    let low = memory.iter().map(GuestMemoryRegion::len).next();
    low.unwrap_or(0).min(RAM_GAP_START)
}

/// As high as the kernel can reach, so that nothing it unpacks runs into it.
fn load_initramfs(
    path: &Path,
    kernel: &Kernel,
    loaded: &KernelLoaderResult,
    memory: &GuestMemory,
) -> Result<Initramfs, BootError> {
    let mut file = open("initramfs", path)?;
    let bytes = file
        .metadata()
        .map_err(read_error("initramfs", path))?
        .len();
    let reach = loaded
        .setup_header
        .map_or(u64::MAX, |header| u64::from(header.initrd_addr_max) + 1);
    let address = low_memory_end(memory)
        .min(reach)
        .checked_sub(bytes)
        .map(|at| at & !(PAGE_BYTES - 1));
    let floor = loaded.kernel_end.max(kernel.memory_end);
    let Some(address) = address.filter(|at| *at >= floor) else {
        return Err(BootError::InitramfsTooLarge {
            path: path.to_owned(),
            bytes,
        });
    };
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, bytes as usize)
        .map_err(|error| read_error("initramfs", path)(io::Error::other(error)))?;
    Ok(Initramfs { address, bytes })
}

fn write_cmdline(cmdline: &str, memory: &GuestMemory) -> Result<(), BootError> {
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    write(memory, "command line", CMDLINE, &text)
}

fn write(
    memory: &GuestMemory,
    what: &'static str,
    address: u64,
    bytes: &[u8],
) -> Result<(), BootError> {
    memory
        .write_slice(bytes, GuestAddress(address))
        .map_err(|error| BootError::Write(what, error.to_string()))
}

fn memory_map(memory_mib: u64) -> Vec<MapEntry> {
    let mut map = vec![
        MapEntry {
            address: 0,
            bytes: LOW_RAM_END,
            usable: true,
        },
        MapEntry {
            address: ACPI_TABLES,
            bytes: HIGH_RAM - ACPI_TABLES,
            usable: false,
        },
    ];
    for (address, bytes) in regions(memory_mib) {
        let start = address.max(HIGH_RAM);
        map.push(MapEntry {
            address: start,
            bytes: address + bytes as u64 - start,
            usable: true,
        });
    }
    map
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::layout::RAM_GAP_END;
    use crate::memory::map;

    fn spec(kernel: &Path) -> Spec {
        toml::from_str(&format!("name = 'g'\nkernel = '{}'\n", kernel.display())).unwrap()
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let memory = map(32, false).unwrap();
        let missing = dir.path().join("missing");
        let error = load(&spec(&missing), &memory, 0).unwrap_err().to_string();
        assert!(
            error.contains("missing") && error.contains("No such file"),
            "{error}"
        );
        let error = load(&spec(dir.path()), &memory, 0).unwrap_err().to_string();
        assert!(error.contains("directory"), "{error}");
        for content in [&b""[..], b"MZ", b"\x7fELF\x02\x01", &[0x55; 4096]] {
            let path = dir.path().join("rubbish");
            std::fs::write(&path, content).unwrap();
            let error = load(&spec(&path), &memory, 0).unwrap_err().to_string();
            assert!(error.contains("not a kernel"), "{error}");
        }
    }

    #[test]
    fn the_memory_map_covers_all_memory_but_the_first_mib() {
        let usable = |mib| -> u64 {
            let map = memory_map(mib);
            map.iter()
                .filter(|entry| entry.usable)
                .map(|entry| entry.bytes)
                .sum()
        };
        for mib in [16, 512, 3072, 8192] {
            assert_eq!(usable(mib), (mib << 20) - (HIGH_RAM - LOW_RAM_END));
        }
    }

    proptest! {
        #[test]
        fn whatever_the_size_nothing_overlaps_and_the_gap_is_left_out(mib in 16u64..1 << 24) {
            let map = memory_map(mib);
            for pair in map.windows(2) {
                prop_assert!(pair[0].address + pair[0].bytes <= pair[1].address, "{map:?}");
            }
            for entry in map {
                let end = entry.address + entry.bytes;
                prop_assert!(entry.bytes > 0);
                prop_assert!(end <= RAM_GAP_START || entry.address >= RAM_GAP_END, "{entry:?}");
            }
        }
    }
}
