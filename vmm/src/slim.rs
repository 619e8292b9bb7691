//! What only starting took goes back to the host once the guest runs.
//!
//! Reading a command line, a spec and a kernel touches most of the program once. Its pages come
//! from the file and stay in the host's page cache; whatever is needed again is mapped again from
//! there, sixteen pages at a time, in a microsecond or so. (So are those in which a debugger has
//! set breakpoints before: set them again.)

use std::ffi::c_void;
use std::slice;

const PAGE_BYTES: u64 = 4096;

/// Unmap the program's pages that nobody has changed, and let go of free heap.
pub fn give_back() {
    // SAFETY: the callback has the type that is asked for and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(unmap_program), std::ptr::null_mut()) };
    // SAFETY: takes a number; only pages that no allocation uses are given back.
    unsafe { libc::malloc_trim(0) };
}

/// For the first of the objects in memory, which is the program: others are shared with half of
/// the host's processes.
unsafe extern "C" fn unmap_program(
    object: *mut libc::dl_phdr_info,
    _bytes: usize,
    _data: *mut c_void,
) -> libc::c_int {
    const STOP: libc::c_int = 1;
    // SAFETY: the loader hands out a description that is alive for this call (dl_iterate_phdr(3)).
    let object = unsafe { &*object };
    // SAFETY: as above: so many headers lie there.
    let headers = unsafe { slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    let is_unchanged = |header: &&libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0
    };
    for segment in headers.iter().filter(is_unchanged) {
        let start = object.dlpi_addr + segment.p_vaddr;
        let end = (start + segment.p_memsz) & !(PAGE_BYTES - 1);
        let start = start.next_multiple_of(PAGE_BYTES);
        if start < end {
            // SAFETY: a private mapping of the program's file that was never writable, so every
            // page reads the same after the kernel has mapped it again.
            unsafe {
                libc::madvise(
                    start as *mut c_void,
                    (end - start) as usize,
                    libc::MADV_DONTNEED,
                )
            };
        }
    }
    STOP
}
