//! What ring 3 asks of ring 0 (`boot.s`).

unsafe extern "C" {
    fn ring0_call(service: u64, a: u64, b: u64) -> u64;
}

const CPUID: u64 = 0;
const WRMSR: u64 = 1;
const WRITE: u64 = 2;
const STOP: u64 = 3;
const END: u64 = 4;

/// `eax`, `ebx`, `ecx`, `edx` of a CPUID leaf.
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let mut answer = [0u32; 4];
    // SAFETY: the service writes four words to the address it is given.
    unsafe { ring0_call(CPUID, u64::from(leaf), answer.as_mut_ptr() as u64) };
    answer
}

/// Writes a model-specific register.
///
/// # Safety
/// The register must exist, and writing it must leave this program's memory alone.
pub unsafe fn wrmsr(register: u32, value: u64) {
    // SAFETY: the caller vouches for the register.
    unsafe { ring0_call(WRMSR, u64::from(register), value) };
}

/// Writes to the serial port.
pub fn write_serial(bytes: &[u8]) {
    // SAFETY: the service only reads the bytes.
    unsafe { ring0_call(WRITE, bytes.as_ptr() as u64, bytes.len() as u64) };
}

/// Halts this vCPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: the service halts; it touches nothing.
        unsafe { ring0_call(STOP, 0, 0) };
    }
}

/// Ends the machine by a triple fault.
pub fn end() -> ! {
    loop {
        // SAFETY: the machine is gone afterwards.
        unsafe { ring0_call(END, 0, 0) };
    }
}
