//! The PCI bus of a guest: one root bus, type-0 functions, memory BARs, MSI-X.
//!
//! [`PciRoot`] holds every function. It hands out three bus devices: the ECAM window
//! ([`PciRoot::ecam`]), the legacy ports `0xcf8..=0xcff` ([`PciRoot::ports`]) and the memory
//! window in which all BARs lie ([`PciRoot::mmio`]). The guest may move BARs about inside the
//! window; nothing outside the root has to know.

pub mod config;
pub mod function;
pub mod host_bridge;
pub mod msix;
pub mod root;

pub use config::ConfigSpace;
pub use function::{FunctionState, PciFunction};
pub use msix::Msix;
pub use root::{MmioWindow, PciError, PciRoot, PciState};
