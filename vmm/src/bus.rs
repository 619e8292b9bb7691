//! What a vCPU exit talks to: address ranges and the devices behind them.

/// A device that answers register accesses of the guest (port I/O or MMIO).
///
/// Every argument but the range itself is chosen by the guest: an implementation must
/// accept any offset below its size and any access width, and never panic. Reads that
/// mean nothing fill `data` with `0xff`; writes that mean nothing are dropped.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset` from the start of the range.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// The guest writes `data` at `offset` from the start of the range.
    fn write(&mut self, offset: u64, data: &[u8]);
}
