//! The probe: a tiny guest that measures a hypervisor from inside.
//!
//! [`IMAGE`] is the guest: an ELF file for the PVH boot protocol. It needs nothing but RAM, a
//! serial port at 0x3f8 and a local APIC, and it runs on every KVM, those included that emulate
//! ring 0, as well as under plain emulation. Its command line is a [`config::Config`].
//!
//! The first byte that it writes to the serial port, with its first instructions, ends the boot
//! measurement. Then it fills memory with contents that can be checked, and each vCPU loops in
//! ring 3: it keeps its hot pages dirty, verifies what it has filled, and notes every gap in its
//! own running. What it finds stands in guest memory at [`abi::REPORT_GPA`], where
//! [`report::Report::decode`] reads it; [`abi::Header::command`] there is the one word that may be
//! written from outside.
//!
//! ```no_run
//! # fn read_guest_memory(gpa: u64, bytes: &mut [u8]) {}
//! let config = probe::config::Config { fill_mib: 64, hot_mib: 16, ..Default::default() };
//! std::fs::write("probe.elf", probe::IMAGE)?; // then boot it with `config.to_string()`
//! let mut bytes = vec![0; probe::abi::REPORT_BYTES];
//! read_guest_memory(probe::abi::REPORT_GPA, &mut bytes);
//! let report = probe::report::Report::decode(&bytes)?;
//! assert_eq!(report.bad_pages(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod abi;
pub mod config;
pub mod content;
pub mod report;

// The guest's own modules, which `build.rs` compiles: here only for clippy to see.
#[cfg(clippy)]
#[path = "../guest/clock.rs"]
mod clock;
#[cfg(clippy)]
#[path = "../guest/entry.rs"]
mod entry;
#[cfg(clippy)]
#[path = "../guest/intrinsics.rs"]
mod intrinsics;
#[cfg(clippy)]
#[path = "../guest/memory.rs"]
mod memory;
#[cfg(clippy)]
#[path = "../guest/ring0.rs"]
mod ring0;
#[cfg(clippy)]
#[path = "../guest/serial.rs"]
mod serial;
#[cfg(clippy)]
#[path = "../guest/smp.rs"]
mod smp;
#[cfg(clippy)]
#[path = "../guest/steal.rs"]
mod steal;
#[cfg(clippy)]
#[path = "../guest/work.rs"]
mod work;

/// The guest; empty where the workspace is built for another machine than `x86_64` Linux.
pub const IMAGE: &[u8] = include_bytes!(env!("PROBE_IMAGE"));
