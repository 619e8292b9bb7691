//! The serial port: a 16550 by vm-superio.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vm_superio::serial::{SerialEvents, SerialState as UartState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::codec;

/// Ports of the device.
pub const SERIAL_PORTS: u64 = 8;
/// Layout of [`SerialState`] as this file writes it.
const STATE_VERSION: u16 = 1;

struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Tells the console that the guest has read what it was given.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

type Output = Box<dyn Write + Send>;

struct Uart {
    /// Taken only while a restored device takes its place.
    serial: Option<Serial<Interrupt, Drained, Output>>,
    interrupt: EventFd,
    drained: EventFd,
}

/// The serial port; clones are handles to the same one.
#[derive(Clone)]
pub struct SerialPort(Arc<Mutex<Uart>>);

/// Its registers as they travel to another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    version: u16,
    /// Divisor low and high, interrupt enable and identification, line control and status,
    /// modem control and status, scratch.
    registers: [u8; 9],
    input: Vec<u8>,
}

impl SerialPort {
    /// A port that interrupts by `interrupt`, writes to `output` and signals `drained` when
    /// it can take input again.
    pub fn new(interrupt: EventFd, drained: EventFd, output: Output) -> io::Result<Self> {
        let serial = Serial::with_events(
            Interrupt(interrupt.try_clone()?),
            Drained(drained.try_clone()?),
            output,
        );
        Ok(Self(Arc::new(Mutex::new(Uart {
            serial: Some(serial),
            interrupt,
            drained,
        }))))
    }

    /// How many bytes of input fit now.
    pub fn room(&self) -> usize {
        let uart = self.lock();
        uart.serial.as_ref().map_or(0, Serial::fifo_capacity)
    }

    /// Give the guest input; returns how much was taken.
    pub fn feed(&self, input: &[u8]) -> usize {
        let mut uart = self.lock();
        let serial = uart.serial.as_mut();
        serial.map_or(0, |serial| serial.enqueue_raw_bytes(input).unwrap_or(0))
    }

    /// Copy the registers.
    pub fn save(&self) -> SerialState {
        let uart = self.lock();
        let state = uart
            .serial
            .as_ref()
            .map_or_else(UartState::default, Serial::state);
        SerialState {
            version: STATE_VERSION,
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }

    /// Pour registers in.
    pub fn restore(&self, state: &SerialState) -> io::Result<()> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        codec::check_version("serial port", state.version, STATE_VERSION)?;
        let [
            low,
            high,
            enable,
            identification,
            line,
            line_status,
            modem,
            modem_status,
            scratch,
        ] = state.registers;
        let registers = UartState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: state.input.clone(),
        };
        let mut uart = self.lock();
        let interrupt = Interrupt(uart.interrupt.try_clone()?);
        let drained = Drained(uart.drained.try_clone()?);
        let output = match uart.serial.take() {
            Some(serial) => serial.into_writer(),
            None => Box::new(io::sink()),
        };
        let serial = Serial::from_state(&registers, interrupt, drained, output)
            .map_err(|error| invalid(format!("the saved serial port is damaged: {error}")))?;
        uart.serial = Some(serial);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (Some(serial), [byte]) = (self.lock().serial.as_mut(), data) {
            *byte = serial.read(offset as u8);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // `rep outsb` arrives as one write of many bytes to one register.
        if let Some(serial) = self.lock().serial.as_mut() {
            for byte in data {
                // Output that cannot be written is lost, as on a line without a listener.
                let _ = serial.write(offset as u8, *byte);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[derive(Clone, Default)]
    struct Tape(Arc<Mutex<Vec<u8>>>);

    impl Write for Tape {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn port() -> (SerialPort, Tape) {
        let tape = Tape::default();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(event(), event(), Box::new(tape.clone())).unwrap();
        (port, tape)
    }

    #[test]
    fn output_input_and_state() {
        let (mut port, tape) = port();
        port.write(0, b"hello");
        assert_eq!(*tape.0.lock().unwrap(), b"hello");
        assert_eq!(port.feed(b"ab"), 2);
        port.write(7, &[0x5a]);
        let state = port.save();
        let (mut other, _tape) = self::port();
        other.restore(&state).unwrap();
        assert_eq!(other.save(), state);
        let mut byte = [0];
        other.read(0, &mut byte);
        assert_eq!(byte, *b"a");
        other.read(7, &mut byte);
        assert_eq!(byte, [0x5a]);
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (0..8u64, prop::collection::vec(any::<u8>(), 0..9), any::<bool>()), 0..64)
        ) {
            let (mut port, _tape) = port();
            for (offset, mut data, write) in accesses {
                if write {
                    port.write(offset, &data);
                } else {
                    port.read(offset, &mut data);
                }
                port.feed(&data);
            }
            let state = port.save();
            port.restore(&state).unwrap();
        }
    }
}
