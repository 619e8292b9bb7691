//! Guest memory: how it is mapped, laid out and tracked.

use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::AtomicBitmap;

/// Guest-physical memory. Its bitmap records the pages that *we* wrote (device I/O), which
/// KVM's dirty log never sees; live migration needs both.
pub type GuestMemory = GuestMemoryMmap<AtomicBitmap>;
