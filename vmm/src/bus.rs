//! What a vCPU exit talks to: address ranges and the devices behind them.

use std::sync::{Arc, Mutex, PoisonError};

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

impl<D: BusDevice> BusDevice for Arc<Mutex<D>> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}

/// The guest's ports, or its MMIO space. Fixed once built; shared by all vCPUs.
#[derive(Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

/// All that a processor's exits can reach.
#[derive(Default)]
pub struct Buses {
    /// Ports.
    pub ports: Bus,
    /// Memory-mapped registers.
    pub mmio: Bus,
}

struct Range {
    base: u64,
    bytes: u64,
    device: Mutex<Box<dyn BusDevice>>,
}

impl Bus {
    /// Put `device` on `bytes` addresses from `base`. Ranges must not overlap.
    pub fn attach(&mut self, base: u64, bytes: u64, device: impl BusDevice + 'static) {
        debug_assert!(
            self.ranges
                .iter()
                .all(|r| base + bytes <= r.base || r.base + r.bytes <= base)
        );
        let device = Mutex::new(Box::new(device) as Box<dyn BusDevice>);
        let at = self.ranges.partition_point(|range| range.base < base);
        self.ranges.insert(
            at,
            Range {
                base,
                bytes,
                device,
            },
        );
    }

    /// The guest reads. Where nobody answers, all bits are set.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((range, offset)) => {
                let mut device = range.device.lock().unwrap_or_else(PoisonError::into_inner);
                device.read(offset, data);
            }
            None => data.fill(0xff),
        }
    }

    /// The guest writes. Where nobody answers, nothing happens.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((range, offset)) = self.find(address, data.len()) {
            let mut device = range.device.lock().unwrap_or_else(PoisonError::into_inner);
            device.write(offset, data);
        }
    }

    /// The range that holds the whole access.
    fn find(&self, address: u64, bytes: usize) -> Option<(&Range, u64)> {
        let next = self.ranges.partition_point(|range| range.base <= address);
        let range = &self.ranges[next.checked_sub(1)?];
        let offset = address - range.base;
        let end = offset.checked_add(bytes as u64)?;
        (end <= range.bytes).then_some((range, offset))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Echo(u8);

    impl BusDevice for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            assert!(offset + data.len() as u64 <= 8);
            data.fill(self.0);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            assert!(offset + data.len() as u64 <= 8);
            self.0 = data.last().copied().unwrap_or(self.0);
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.attach(0x100, 8, Echo(1));
        bus.attach(0x10, 8, Echo(2));
        bus
    }

    #[test]
    fn accesses_find_their_device() {
        let bus = bus();
        let mut data = [0];
        for (address, expected) in [(0x0f, 0xff), (0x10, 2), (0x17, 2), (0x18, 0xff), (0x107, 1)] {
            bus.read(address, &mut data);
            assert_eq!(data, [expected], "{address:#x}");
        }
    }

    proptest! {
        #[test]
        fn devices_see_only_whole_accesses(address: u64, near in 0..0x200u64, bytes in 0..16usize) {
            let bus = bus();
            for address in [address, near] {
                bus.write(address, &vec![0; bytes]);
                bus.read(address, &mut vec![0; bytes]);
            }
        }
    }
}
