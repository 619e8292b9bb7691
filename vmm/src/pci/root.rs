//! The root bus: slots, configuration access, and the memory window of all BARs.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::config::{BARS, ECAM_FUNCTION_BYTES};
use super::function::{FunctionState, PciFunction};
use super::host_bridge::HostBridge;
use crate::bus::BusDevice;

/// Device slots on the bus, the host bridge's slot 0 included.
pub const SLOTS: usize = 32;
/// Bytes of ECAM for our single bus (32 slots of 8 functions).
pub const ECAM_BYTES: u64 = SLOTS as u64 * FUNCTIONS_PER_SLOT * ECAM_FUNCTION_BYTES;
/// First port of configuration mechanism 1, and how many there are.
pub const PORTS: (u16, u16) = (0xcf8, 8);

const FUNCTIONS_PER_SLOT: u64 = 8;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// Guest-physical range below 4 GiB in which BARs lie; also what the DSDT's `_CRS` names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioWindow {
    /// First byte.
    pub base: u32,
    /// Length.
    pub bytes: u32,
}

/// Why the bus cannot be built or restored.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// More devices than slots.
    #[error("cannot add a PCI device: all {SLOTS} slots are taken; use fewer devices")]
    NoSlot,
    /// The window is full.
    #[error(
        "cannot place a PCI BAR of {bytes:#x} bytes: the MMIO window is full; use fewer devices"
    )]
    NoRoom {
        /// Size of the BAR.
        bytes: u32,
    },
    /// A saved bus with other devices.
    #[error("cannot restore the PCI bus: it has {here} functions, the saved state {saved}")]
    OtherDevices {
        /// Functions here.
        here: usize,
        /// Functions in the saved state.
        saved: usize,
    },
    /// One function refused.
    #[error("cannot {act} the PCI device in slot {slot}")]
    Function {
        /// What was tried.
        act: &'static str,
        /// Slot number.
        slot: usize,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// State of the whole bus; one entry per slot in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// Address latch of configuration mechanism 1.
    pub address: u32,
    /// The functions, slot 0 first.
    pub functions: Vec<FunctionState>,
}

struct Bus {
    window: MmioWindow,
    next_bar: u64,
    address: u32,
    slots: Vec<Box<dyn PciFunction>>,
    /// Where each BAR lay at power-on, as slot, BAR and address.
    placed: Vec<(usize, usize, u32)>,
}

/// The PCI root; clones are handles to the same bus.
///
/// A device thread never takes the bus lock, so a register write that stops a device (and
/// waits for its threads) may hold it.
#[derive(Clone)]
pub struct PciRoot(Arc<Mutex<Bus>>);

impl PciRoot {
    /// A bus with a host bridge in slot 0 and BARs placed in `window`.
    pub fn new(window: MmioWindow) -> Self {
        Self(Arc::new(Mutex::new(Bus {
            window,
            next_bar: u64::from(window.base),
            address: 0,
            slots: vec![Box::new(HostBridge::new())],
            placed: Vec::new(),
        })))
    }

    /// Put a function on the bus and place its BARs. Returns its slot. Slots go by order of
    /// addition, so source and target of a migration add in the same order.
    pub fn add(&self, mut function: Box<dyn PciFunction>) -> Result<usize, PciError> {
        let mut bus = self.lock();
        if bus.slots.len() == SLOTS {
            return Err(PciError::NoSlot);
        }
        let slot = bus.slots.len();
        let end = u64::from(bus.window.base) + u64::from(bus.window.bytes);
        for bar in 0..BARS {
            let bytes = function.config().bar_bytes(bar);
            if bytes == 0 {
                continue;
            }
            let address = bus.next_bar.next_multiple_of(u64::from(bytes));
            if address + u64::from(bytes) > end {
                return Err(PciError::NoRoom { bytes });
            }
            bus.next_bar = address + u64::from(bytes);
            bus.placed.push((slot, bar, address as u32));
            function.config_mut().place_bar(bar, address as u32);
        }
        function.bars_changed();
        bus.slots.push(function);
        Ok(slot)
    }

    /// The ECAM window ([`ECAM_BYTES`] long, bus 0 only).
    pub fn ecam(&self) -> impl BusDevice + 'static {
        Ecam(self.clone())
    }

    /// Configuration mechanism 1 ([`PORTS`]).
    pub fn ports(&self) -> impl BusDevice + 'static {
        Ports(self.clone())
    }

    /// The memory window given to [`PciRoot::new`].
    pub fn mmio(&self) -> impl BusDevice + 'static {
        Mmio(self.clone())
    }

    /// Quiesce every device: when this returns nothing but vCPUs touches guest memory, and
    /// no I/O is in flight.
    pub fn pause(&self) {
        let slots = &mut self.lock().slots;
        for function in slots.iter() {
            function.ask_to_pause();
        }
        for function in slots {
            function.pause();
        }
    }

    /// Let every device go on.
    pub fn resume(&self) -> Result<(), PciError> {
        self.each("resume", |function| function.resume())
    }

    /// Every device back to power-on (the guest reboots in place).
    pub fn reset(&self) {
        let mut bus = self.lock();
        let bus = &mut *bus;
        bus.address = 0;
        for function in &mut bus.slots {
            function.reset();
        }
        for (slot, bar, address) in &bus.placed {
            bus.slots[*slot].config_mut().place_bar(*bar, *address);
        }
        for function in &mut bus.slots {
            function.bars_changed();
        }
    }

    /// Copy the state of all devices; call between [`PciRoot::pause`] and resume. Of devices that
    /// run it is a draft: queues may be anywhere.
    pub fn save(&self) -> PciState {
        let bus = self.lock();
        PciState {
            address: bus.address,
            functions: bus.slots.iter().map(|function| function.save()).collect(),
        }
    }

    /// Pour in a saved bus with the same devices. Nothing runs until [`PciRoot::resume`].
    pub fn restore(&self, state: &PciState) -> Result<(), PciError> {
        let mut bus = self.lock();
        let (here, saved) = (bus.slots.len(), state.functions.len());
        if here != saved {
            return Err(PciError::OtherDevices { here, saved });
        }
        bus.address = state.address;
        for (slot, (function, state)) in bus.slots.iter_mut().zip(&state.functions).enumerate() {
            function.pause();
            function
                .restore(state)
                .map_err(|source| PciError::Function {
                    act: "restore",
                    slot,
                    source,
                })?;
        }
        Ok(())
    }

    /// The guest has just arrived here: let devices tell the outside world.
    pub fn announce(&self) -> Result<(), PciError> {
        self.each("announce", |function| function.announce())
    }

    fn each(
        &self,
        act: &'static str,
        mut visit: impl FnMut(&mut dyn PciFunction) -> io::Result<()>,
    ) -> Result<(), PciError> {
        for (slot, function) in self.lock().slots.iter_mut().enumerate() {
            visit(function.as_mut()).map_err(|source| PciError::Function { act, slot, source })?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Bus> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bus {
    /// The function that `slot` and `function` name: only function 0 of a slot exists.
    fn find(&mut self, slot: u64, function: u64) -> Option<&mut Box<dyn PciFunction>> {
        let slot = usize::try_from(slot).ok()?;
        (function == 0).then(|| self.slots.get_mut(slot)).flatten()
    }

    fn read_config(&mut self, slot: u64, function: u64, register: u64, data: &mut [u8]) {
        match self.find(slot, function) {
            Some(function) => function.read_config(register, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&mut self, slot: u64, function: u64, register: u64, data: &[u8]) {
        let Some(function) = self.find(slot, function) else {
            return;
        };
        let bars = |function: &dyn PciFunction| -> [Option<Range<u64>>; BARS] {
            std::array::from_fn(|bar| function.config().bar_range(bar))
        };
        let before = bars(function.as_ref());
        function.write_config(register, data);
        if before != bars(function.as_ref()) {
            function.bars_changed();
        }
    }

    /// The function, BAR and offset behind an address of the window.
    fn behind(&mut self, address: u64) -> Option<(&mut Box<dyn PciFunction>, usize, u64)> {
        self.slots.iter_mut().find_map(|function| {
            let (bar, base) = (0..BARS).find_map(|bar| {
                let range = function.config().bar_range(bar)?;
                range.contains(&address).then_some((bar, range.start))
            })?;
            Some((function, bar, address - base))
        })
    }
}

struct Ecam(PciRoot);

/// Slot, function and register of an ECAM offset (PCIe 5.0 §7.2.2).
fn ecam_target(offset: u64) -> (u64, u64, u64) {
    (offset >> 15, (offset >> 12) & 7, offset & 0xfff)
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let (slot, function, register) = ecam_target(offset);
        self.0.lock().read_config(slot, function, register, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let (slot, function, register) = ecam_target(offset);
        self.0.lock().write_config(slot, function, register, data);
    }
}

struct Ports(PciRoot);

/// Slot, function and register that the address latch names; `None` when disabled or on
/// another bus.
fn latch_target(address: u32, port: u64) -> Option<(u64, u64, u64)> {
    let bus = (address >> 16) & 0xff;
    (address & ADDRESS_ENABLE != 0 && bus == 0).then(|| {
        let address = u64::from(address);
        (
            (address >> 11) & 31,
            (address >> 8) & 7,
            (address & 0xfc) + port,
        )
    })
}

impl BusDevice for Ports {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut bus = self.0.lock();
        data.fill(0xff);
        if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&bus.address.to_le_bytes());
        } else if let Some(port) = offset.checked_sub(4)
            && port + data.len() as u64 <= 4
            && let Some((slot, function, register)) = latch_target(bus.address, port)
        {
            bus.read_config(slot, function, register, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bus = self.0.lock();
        if let (0, Ok(address)) = (offset, data.try_into()) {
            bus.address = u32::from_le_bytes(address);
        } else if let Some(port) = offset.checked_sub(4)
            && port + data.len() as u64 <= 4
            && let Some((slot, function, register)) = latch_target(bus.address, port)
        {
            bus.write_config(slot, function, register, data);
        }
    }
}

struct Mmio(PciRoot);

impl BusDevice for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut bus = self.0.lock();
        let address = u64::from(bus.window.base).saturating_add(offset);
        match bus.behind(address) {
            Some((function, bar, offset)) => function.read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut bus = self.0.lock();
        let address = u64::from(bus.window.base).saturating_add(offset);
        if let Some((function, bar, offset)) = bus.behind(address) {
            function.write_bar(bar, offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: MmioWindow = MmioWindow {
        base: 0xe000_0000,
        bytes: 0x10_0000,
    };

    #[test]
    fn the_bridge_answers_both_ways_and_absent_slots_do_not() {
        let root = PciRoot::new(WINDOW);
        let mut id = [0; 4];
        root.ecam().read(0, &mut id);
        assert_eq!(id, [0x36, 0x1b, 0x08, 0x00]);
        let mut ports = root.ports();
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        let mut again = [0; 2];
        ports.read(6, &mut again);
        assert_eq!(again, [0x08, 0x00]);
        root.ecam().read(1 << 15, &mut id);
        assert_eq!(id, [0xff; 4]);
        root.ecam().read(1 << 12, &mut id);
        assert_eq!(id, [0xff; 4]);
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (0..3u8, any::<u64>(), prop::collection::vec(any::<u8>(), 0..9)), 0..64)
        ) {
            let root = PciRoot::new(WINDOW);
            let (mut ecam, mut ports, mut mmio) = (root.ecam(), root.ports(), root.mmio());
            for (which, offset, mut data) in accesses {
                match which {
                    0 => { ecam.write(offset, &data); ecam.read(offset, &mut data); }
                    1 => { ports.write(offset % 8, &data); ports.read(offset % 8, &mut data); }
                    _ => { mmio.write(offset, &data); mmio.read(offset, &mut data); }
                }
            }
        }
    }
}
