//! Which pages were written since they were sent.
//!
//! KVM logs what the guest writes; the memory's own bitmap what our devices write. Logging
//! starts with all pages marked and unprotected (`KVM_DIRTY_LOG_INITIALLY_SET`, api.rst
//! 7.18): it costs nothing up front, and a page is write-protected only just before it is
//! read for sending.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::kvm::KvmError;
use crate::memory::GuestMemory;

mod number {
    //! The macro makes a public function without a comment; here nobody sees it.
    #![allow(missing_docs)]
    use super::{KVMIO, ioctl_iowr_nr, kvm_clear_dirty_log};
    ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
}

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;
/// Pages of one word of a bitmap; clearing the log goes by whole words.
pub const WORD_PAGES: u64 = 64;

/// The log of one virtual machine, on for as long as it lives.
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
}

/// Dirty pages of one memory slot, a bit each.
pub struct SlotBitmap {
    /// KVM's number of the slot.
    pub slot: u32,
    /// Guest-physical address of its first page.
    pub base: u64,
    /// Bits; page 0 is the lowest of the first word.
    pub words: Vec<u64>,
    /// Length of the slot.
    pub pages: u64,
}

impl DirtyLog {
    /// Switch the log on. All pages count as dirty.
    pub fn start(vm: Arc<VmFd>, memory: Arc<GuestMemory>) -> Result<Self, KvmError> {
        let request = KvmError::request;
        let mut cap = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            ..Default::default()
        };
        cap.args[0] = u64::from(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET);
        vm.enable_cap(&cap)
            .map_err(request("choose the kind of dirty log"))?;
        for region in memory.iter() {
            device_writes(region).reset();
        }
        set_flags(&vm, &memory, KVM_MEM_LOG_DIRTY_PAGES)
            .map_err(request("switch the dirty log on"))?;
        Ok(Self { vm, memory })
    }

    /// What was written since each page was last cleared. Our devices' writes are forgotten
    /// by being told; the guest's stay until [`DirtyLog::clear`].
    pub fn collect(&self) -> Result<Vec<SlotBitmap>, KvmError> {
        let slots = (0..).zip(self.memory.iter()).map(|(slot, region)| {
            let mut words = self
                .vm
                .get_dirty_log(slot, region.len() as usize)
                .map_err(KvmError::request("read the dirty log"))?;
            for (word, ours) in words.iter_mut().zip(device_writes(region).get_and_reset()) {
                *word |= ours;
            }
            Ok(SlotBitmap {
                slot,
                base: region.start_addr().raw_value(),
                words,
                pages: region.len() / PAGE_BYTES,
            })
        });
        slots.collect()
    }

    /// How many bytes are dirty; nothing is forgotten by telling.
    pub fn collect_size(&self) -> Result<u64, KvmError> {
        let mut bytes = 0;
        for (slot, region) in (0..).zip(self.memory.iter()) {
            let words = self
                .vm
                .get_dirty_log(slot, region.len() as usize)
                .map_err(KvmError::request("read the dirty log"))?;
            bytes += words
                .iter()
                .map(|word| u64::from(word.count_ones()) * PAGE_BYTES)
                .sum::<u64>();
        }
        Ok(bytes)
    }

    /// Write-protect the pages that `words` marks, from `first_page` (a multiple of
    /// [`WORD_PAGES`]) on: from here on, writing to them is logged anew.
    pub fn clear(
        &self,
        bitmap: &SlotBitmap,
        first_page: u64,
        words: &[u64],
    ) -> Result<(), KvmError> {
        let mut words = words.to_vec();
        let pages = (words.len() as u64 * WORD_PAGES).min(bitmap.pages - first_page);
        let request = kvm_clear_dirty_log {
            slot: bitmap.slot,
            num_pages: pages as u32,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the kernel reads one bit for each page, which `words` has, during the call.
        let answer =
            unsafe { ioctl_with_ref(self.vm.as_ref(), number::KVM_CLEAR_DIRTY_LOG(), &request) };
        if answer != 0 {
            return Err(KvmError::request("clear the dirty log")(Errno::last()));
        }
        Ok(())
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // The guest goes on at full speed, or is about to end; nothing depends on the answer.
        let _ = set_flags(&self.vm, &self.memory, 0);
    }
}

/// The pages that our devices wrote (not the trait's view of it, which cannot be reset).
fn device_writes(region: &GuestRegionMmap<AtomicBitmap>) -> &AtomicBitmap {
    MmapRegion::bitmap(region)
}

fn set_flags(vm: &VmFd, memory: &GuestMemory, flags: u32) -> Result<(), Errno> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the same slots with the same memory as when the machine was made; only the
        // flags differ.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}
