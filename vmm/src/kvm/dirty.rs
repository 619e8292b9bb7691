//! KVM's log of the pages that processors wrote (api.rst, `KVM_GET_DIRTY_LOG`,
//! `KVM_CLEAR_DIRTY_LOG`).
//!
//! With `MANUAL_PROTECT2` and `INITIALLY_SET` switching it on write-protects nothing: every
//! page counts as dirty until it is cleared, chunk by chunk, just before it is sent.

use std::sync::Arc;

use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_MEM_LOG_DIRTY_PAGES, KVMIO, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_iow_nr, ioctl_iowr_nr};

use super::{KvmError, slot_region};
use crate::memory::GuestMemory;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);

/// Pages that one bit each of a log word stands for.
pub const PAGES_PER_WORD: u64 = 64;
const PAGE_BYTES: u64 = 4096;

/// The dirty log of one machine. Slot n is the n-th region of guest memory.
#[derive(Clone)]
pub struct DirtyLog {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemory>,
}

impl DirtyLog {
    /// The log of `vm`, whose memory slots are the regions of `memory`.
    pub fn new(vm: Arc<VmFd>, memory: Arc<GuestMemory>) -> Self {
        Self { vm, memory }
    }

    /// Begin. Says whether clearing is manual (every page starts out dirty, and
    /// [`DirtyLog::fetch`] does not clear); without kernel support it is not.
    pub fn start(&self) -> Result<bool, KvmError> {
        let flags = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
        let manual = kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [u64::from(flags), 0, 0, 0],
            ..Default::default()
        };
        // Linux before 5.7 knows less and says so.
        let is_manual = self.vm.enable_cap(&manual).is_ok();
        self.set_flags(KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(is_manual)
    }

    /// End; pages become large again.
    pub fn stop(&self) -> Result<(), KvmError> {
        self.set_flags(0)
    }

    /// Words of the log of slot `slot`.
    pub fn words(&self, slot: usize) -> usize {
        let region = self.memory.iter().nth(slot);
        let pages = region.map_or(0, |region| region.len() / PAGE_BYTES);
        pages.div_ceil(PAGES_PER_WORD) as usize
    }

    /// Copy the log of `slot` into `words`, which must have [`DirtyLog::words`] of them.
    pub fn fetch(&self, slot: usize, words: &mut [u64]) -> Result<(), KvmError> {
        let act = "read the dirty log";
        if words.len() < self.words(slot) {
            let source = Errno::new(libc::EINVAL);
            return Err(KvmError::Request { act, source });
        }
        let log = kvm_dirty_log {
            slot: slot as u32,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_mut_ptr().cast(),
            },
        };
        // SAFETY: the kernel writes a bit for each page of the slot, for which there is room.
        let answer = unsafe { ioctl_with_ref(&*self.vm, KVM_GET_DIRTY_LOG(), &log) };
        check(answer, act)
    }

    /// Forget those pages of `slot` from `first_page` on whose bits are set in `words`, and
    /// log their next write. `first_page` is a multiple of 64, `pages` too unless they reach
    /// to the end of the slot.
    pub fn clear(
        &self,
        slot: usize,
        first_page: u64,
        pages: u32,
        words: &[u64],
    ) -> Result<(), KvmError> {
        let act = "clear the dirty log";
        if (words.len() as u64) < u64::from(pages).div_ceil(PAGES_PER_WORD) {
            let source = Errno::new(libc::EINVAL);
            return Err(KvmError::Request { act, source });
        }
        let mut log = kvm_clear_dirty_log {
            slot: slot as u32,
            num_pages: pages,
            first_page,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
                dirty_bitmap: words.as_ptr().cast_mut().cast(),
            },
        };
        // SAFETY: the kernel reads a bit for each of `pages`, which are there.
        let answer = unsafe { ioctl_with_mut_ref(&*self.vm, KVM_CLEAR_DIRTY_LOG(), &mut log) };
        check(answer, act)
    }

    fn set_flags(&self, flags: u32) -> Result<(), KvmError> {
        for (slot, region) in self.memory.iter().enumerate() {
            let region = slot_region(slot, region, flags);
            // SAFETY: the slot as it was, with other flags; its memory lives as long as
            // `self.memory`.
            unsafe { self.vm.set_user_memory_region(region) }
                .map_err(KvmError::request("switch the dirty log"))?;
        }
        Ok(())
    }
}

fn check(answer: libc::c_int, act: &'static str) -> Result<(), KvmError> {
    if answer == 0 {
        Ok(())
    } else {
        let source = Errno::last();
        Err(KvmError::Request { act, source })
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::kvm::VirtualMachine;
    use crate::memory::map;

    #[test]
    fn everything_is_dirty_until_it_is_cleared() {
        let Ok(kvm) = crate::kvm::open() else {
            ground::skip("no /dev/kvm here");
            return;
        };
        let memory = Arc::new(map(16, false).unwrap());
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        let vm = VirtualMachine::new(&kvm, memory).unwrap();
        let log = vm.dirty_log();
        let is_manual = log.start().unwrap();
        let mut words = vec![0; log.words(0)];
        assert_eq!(words.len(), 64);
        log.fetch(0, &mut words).unwrap();
        if is_manual {
            assert!(words.iter().all(|word| *word == u64::MAX));
            log.clear(0, 64, 64, &[u64::MAX]).unwrap();
            log.fetch(0, &mut words).unwrap();
            assert_eq!(words[..3], [u64::MAX, 0, u64::MAX]);
        }
        assert!(log.fetch(0, &mut [0; 3]).is_err());
        log.stop().unwrap();
    }
}
