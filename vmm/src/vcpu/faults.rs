//! How often a processor had to wait for a page, by KVM's own count (api.rst,
//! `KVM_GET_STATS_FD`). While the dirty log is on, most of that is writing to pages that were
//! sent: the count tells which processors dirty memory.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_bindings::KVMIO;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

/// `KVM_GET_STATS_FD`.
mod request {
    use super::{KVMIO, ioctl_io_nr};
    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

const NAME: &[u8] = b"pf_taken\0";
// struct kvm_stats_header: flags, name_size, num_desc, id_offset, desc_offset, data_offset.
const HEADER_WORDS: usize = 6;
// struct kvm_stats_desc before its name: flags, exponent and size, offset, bucket_size.
const DESCRIPTOR_BYTES: usize = 16;
const DESCRIPTOR_OFFSET_AT: usize = 8;
/// A kernel counts some fifty things.
const DESCRIPTORS_MAX: u32 = 1024;
const NAME_BYTES_MAX: u32 = 1024;

/// What KVM counts of one processor.
pub struct Statistics(File);

impl Statistics {
    /// Of the processor behind `fd`; none where KVM does not count. To be asked for before the
    /// processor runs: until it stops, KVM would answer nothing else.
    pub fn of(fd: &impl AsRawFd) -> Option<Self> {
        // SAFETY: the request takes no argument and answers with a new descriptor.
        let statistics = unsafe { ioctl(fd, request::KVM_GET_STATS_FD()) };
        // SAFETY: the descriptor is new and nobody else's.
        (statistics >= 0).then(|| Self(unsafe { File::from_raw_fd(statistics) }))
    }
}

/// The count of one processor.
pub struct Faults {
    statistics: File,
    at: u64,
}

impl Faults {
    /// Of the processor that `statistics` are about; none where KVM does not count this.
    pub fn of(statistics: &Statistics) -> Option<Self> {
        let statistics = statistics.0.try_clone().ok()?;
        let at = find(&statistics)?;
        Some(Self { statistics, at })
    }

    /// Faults so far.
    pub fn count(&self) -> u64 {
        let mut count = [0; 8];
        let read = self.statistics.read_exact_at(&mut count, self.at);
        read.map_or(0, |()| u64::from_ne_bytes(count))
    }
}

/// Where the count lies.
fn find(statistics: &File) -> Option<u64> {
    let mut header = [0; HEADER_WORDS * 4];
    statistics.read_exact_at(&mut header, 0).ok()?;
    let [_, name_bytes, descriptors, _, first, data] =
        std::array::from_fn(|word| word_at(&header, word * 4));
    let name_bytes = name_bytes.min(NAME_BYTES_MAX) as usize;
    let mut descriptor = vec![0; DESCRIPTOR_BYTES + name_bytes];
    (0..u64::from(descriptors.min(DESCRIPTORS_MAX))).find_map(|index| {
        let at = u64::from(first) + index * descriptor.len() as u64;
        statistics.read_exact_at(&mut descriptor, at).ok()?;
        descriptor[DESCRIPTOR_BYTES..]
            .starts_with(NAME)
            .then(|| u64::from(data) + u64::from(word_at(&descriptor, DESCRIPTOR_OFFSET_AT)))
    })
}

fn word_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
