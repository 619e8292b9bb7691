//! Power control: the sleep and reset registers, the old keyboard reset, the panic port.
//!
//! They do nothing themselves; they tell the machine what the guest wants.

use crate::bus::BusDevice;
use crate::layout::POWER_PORT;
use crate::notice::{Notice, Reports};

/// Sleep type of "soft off", named by `_S5` in the DSDT.
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Written to the reset register.
pub const RESET_VALUE: u8 = 1;

// Sleep control register, ACPI 6.5 §4.8.3.7.
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;
const RESET_OFFSET: u64 = 2;
/// Ports of [`PowerRegisters`].
pub const POWER_PORTS: u64 = 3;

/// Sleep control and sleep status port.
pub fn sleep_ports() -> (u16, u16) {
    (POWER_PORT, POWER_PORT + 1)
}

/// Reset port.
pub fn reset_port() -> u16 {
    POWER_PORT + RESET_OFFSET as u16
}

/// Sleep control, sleep status and reset.
pub struct PowerRegisters(pub Reports);

impl BusDevice for PowerRegisters {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let off = SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE;
        let request = match (offset, data) {
            (0, [value]) if *value == off => Notice::Off,
            (RESET_OFFSET, [RESET_VALUE]) => Notice::Reset,
            _ => return,
        };
        self.0.tell(request);
    }
}

/// The keyboard controller's command port: old software resets the machine through it.
pub struct KeyboardReset(pub Reports);

/// "Pulse the processor's reset line".
const KEYBOARD_RESET: u8 = 0xfe;

impl BusDevice for KeyboardReset {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        // Its buffers are empty.
        data.fill(0);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data == [KEYBOARD_RESET] {
            self.0.tell(Notice::Reset);
        }
    }
}

/// QEMU's pvpanic port (docs/specs/pvpanic.txt).
pub struct PanicPort(pub Reports);

const PANICKED: u8 = 1 << 0;

impl BusDevice for PanicPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        if data.iter().any(|byte| byte & PANICKED != 0) {
            self.0.tell(Notice::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use proptest::prelude::*;

    use super::*;
    use crate::notice::Notice::{Off, Panicked, Reset};

    #[test]
    fn requests_are_told_apart() {
        let (sender, requests) = channel();
        let sender = Reports::new(sender);
        let mut power = PowerRegisters(sender.clone());
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        KeyboardReset(sender.clone()).write(0, &[0xfe]);
        PanicPort(sender).write(0, &[1]);
        power.write(0, &[0x20]);
        power.write(1, &[0x34]);
        drop(power);
        assert_eq!(
            requests.iter().collect::<Vec<_>>(),
            [Off, Reset, Reset, Panicked]
        );
    }

    proptest! {
        #[test]
        fn no_access_panics(offset in 0..POWER_PORTS, mut data in prop::collection::vec(any::<u8>(), 0..9)) {
            let (sender, _requests) = channel();
            let sender = Reports::new(sender);
            let mut power = PowerRegisters(sender.clone());
            power.write(offset, &data);
            power.read(offset, &mut data);
            KeyboardReset(sender.clone()).write(0, &data);
            PanicPort(sender).write(0, &data);
        }
    }
}
