//! Virtio over PCI (virtio 1.2 §4.1): one function with one BAR.

mod interrupt;
mod layout;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{debug, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::common::{COMMON_BYTES, CommonConfig, CommonState, Effect};
use super::{Activation, ActiveQueue, QueueInterrupt, VirtioDevice};
use crate::codec;
use crate::interrupt::{Doorbells, MsiRouter};
use crate::memory::GuestMemory;
use crate::pci::config::ConfigSpace;
use crate::pci::msix::{self, Msix, MsixState};
use crate::pci::{FunctionState, PciFunction};
use interrupt::{ISR_CONFIG, ISR_QUEUE, VectorInterrupt};
use layout::{
    BAR, BAR_BYTES, DEVICE_AT, ISR_AT, NOTIFY_AT, NOTIFY_BYTES, PENDING_AT, PENDING_END, TABLE_AT,
};

/// Layout of [`FunctionState::bytes`] as this file writes it.
pub const STATE_VERSION: u16 = 1;

const MAX_QUEUES: usize = 128;

/// What a virtio function needs from the machine around it.
#[derive(Clone)]
pub struct Wiring {
    /// Guest-physical memory.
    pub memory: Arc<GuestMemory>,
    /// Routes MSI-X vectors.
    pub router: Arc<dyn MsiRouter>,
    /// Catches queue notifications inside the kernel.
    pub doorbells: Arc<dyn Doorbells>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    config: ConfigSpace,
    msix_capability: usize,
    window_capability: usize,
    msix: Arc<Msix>,
    common: CommonConfig,
    isr: Arc<AtomicU8>,
    bells: Vec<EventFd>,
    bells_at: Option<u64>,
    device: Box<dyn VirtioDevice>,
    wiring: Wiring,
    running: bool,
    paused: bool,
    arrived: bool,
}

#[derive(Serialize, Deserialize)]
struct TransportState {
    msix: MsixState,
    common: CommonState,
    isr: u8,
    device: Vec<u8>,
}

impl VirtioPci {
    /// Wrap `device`; add the result to the bus with [`crate::pci::PciRoot::add`].
    pub fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> io::Result<Self> {
        let queues = device.queue_sizes().len();
        if queues == 0 || queues > MAX_QUEUES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a virtio device has 1 to {MAX_QUEUES} queues, not {queues}"),
            ));
        }
        let vectors = queues + 1;
        let mut config = ConfigSpace::new(layout::identity(device.device_type()));
        config.add_bar(BAR, BAR_BYTES);
        let (body, writable) = msix::capability(
            vectors as u16,
            BAR as u32,
            TABLE_AT as u32,
            PENDING_AT as u32,
        );
        let msix_capability = config.add_capability(msix::CAPABILITY_ID, &body, &writable);
        let window_capability = layout::add_capabilities(&mut config, queues as u64);
        let common = CommonConfig::new(device.features(), device.queue_sizes(), vectors as u16);
        Ok(Self {
            config,
            msix_capability,
            window_capability,
            msix: Arc::new(Msix::new(vectors, wiring.router.clone())?),
            common,
            isr: Arc::default(),
            bells: (0..queues)
                .map(|_| EventFd::new(EFD_NONBLOCK))
                .collect::<io::Result<_>>()?,
            bells_at: None,
            device,
            wiring,
            running: false,
            paused: false,
            arrived: false,
        })
    }

    /// The driver said `DRIVER_OK`, or the guest resumes.
    fn start(&mut self) {
        if self.running || self.paused || !self.common.driver_ok() {
            return;
        }
        let Some(queues) = self.common.build_queues(&self.wiring.memory) else {
            debug!("the guest configured a virtio queue outside its memory");
            self.fail();
            return;
        };
        let started = self
            .activation(queues)
            .and_then(|activation| self.device.start(activation));
        match started {
            Ok(()) => {
                self.running = true;
                // Whatever the guest put into the rings while nobody listened is found now.
                for bell in &self.bells {
                    let _ = bell.write(1);
                }
            }
            Err(error) => {
                warn!(%error, device = self.device.device_type(), "cannot start a virtio device");
                self.fail();
            }
        }
    }

    fn activation(&self, queues: Vec<(u16, virtio_queue::Queue)>) -> io::Result<Activation> {
        let queues = queues
            .into_iter()
            .map(|(index, queue)| {
                let at = usize::from(index);
                Ok(ActiveQueue {
                    index,
                    queue,
                    doorbell: self.bells[at].try_clone()?,
                    interrupt: self.queue_interrupt(at),
                })
            })
            .collect::<io::Result<_>>()?;
        Ok(Activation {
            memory: self.wiring.memory.clone(),
            features: self.common.features(),
            queues,
            config_changed: self.config_interrupt(),
        })
    }

    fn queue_interrupt(&self, index: usize) -> Arc<dyn QueueInterrupt> {
        Arc::new(VectorInterrupt {
            msix: self.msix.clone(),
            vector: self.common.queue_vectors[index].clone(),
            isr: self.isr.clone(),
            isr_bit: ISR_QUEUE,
            generation: None,
        })
    }

    fn config_interrupt(&self) -> Arc<dyn QueueInterrupt> {
        Arc::new(VectorInterrupt {
            msix: self.msix.clone(),
            vector: self.common.config_vector.clone(),
            isr: self.isr.clone(),
            isr_bit: ISR_CONFIG,
            generation: Some(self.common.generation.clone()),
        })
    }

    /// Only a reset by the driver helps (virtio 1.2 §2.1.2).
    fn fail(&mut self) {
        self.common.needs_reset();
        if self.common.status() & super::common::status::DRIVER_OK != 0 {
            let _ = self.config_interrupt().used();
        }
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            for queue in self.device.stop() {
                self.common.queue_stopped(queue.index, &queue.queue);
            }
        }
    }

    fn reset_device(&mut self) {
        self.stop();
        self.device.reset();
        self.common.reset();
        self.isr.store(0, Ordering::Release);
        for bell in &self.bells {
            let _ = bell.read();
        }
    }

    fn ring(&self, offset: u64) {
        let index = usize::try_from(offset / NOTIFY_BYTES).unwrap_or(usize::MAX);
        if let Some(bell) = self.bells.get(index) {
            let _ = bell.write(1);
        }
    }

    /// The register window of §4.1.4.9: a BAR access by way of configuration space.
    fn window(&self) -> Option<(u64, usize)> {
        let at = self.window_capability;
        let bar = self.config.u32_at(at + 4) & 0xff;
        let offset = u64::from(self.config.u32_at(at + 8));
        let length = self.config.u32_at(at + 12) as usize;
        let fits = bar as usize == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length as u64)
            && offset < u64::from(BAR_BYTES);
        fits.then_some((offset, length))
    }

    fn touches_window(&self, offset: u64, bytes: usize) -> bool {
        let data = self.window_capability as u64 + 16;
        offset < data + 4 && offset.saturating_add(bytes as u64) > data
    }
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.window()
        {
            let mut value = [0; 4];
            self.read_bar(BAR, at, &mut value[..length]);
            self.config.put(self.window_capability + 16, &value);
        }
        self.config.read(offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.config.write(offset, data);
        self.msix
            .set_control(self.config.u16_at(self.msix_capability + 2));
        if self.touches_window(offset, data.len())
            && let Some((at, length)) = self.window()
        {
            let value = self
                .config
                .u32_at(self.window_capability + 16)
                .to_le_bytes();
            self.write_bar(BAR, at, &value[..length]);
        }
    }

    fn read_bar(&mut self, _bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            0..ISR_AT => self.common.read(offset, data),
            ISR_AT => {
                if let Some(first) = data.first_mut() {
                    *first = self.isr.swap(0, Ordering::AcqRel);
                }
            }
            DEVICE_AT..NOTIFY_AT => {
                let config = self.device.config();
                let from = config.len().min((offset - DEVICE_AT) as usize);
                for (byte, value) in data.iter_mut().zip(&config[from..]) {
                    *byte = *value;
                }
            }
            TABLE_AT..PENDING_AT => self.msix.read_table(offset - TABLE_AT, data),
            PENDING_AT..PENDING_END => self.msix.read_pending(offset - PENDING_AT, data),
            _ => {}
        }
    }

    fn write_bar(&mut self, _bar: usize, offset: u64, data: &[u8]) {
        match offset {
            0..COMMON_BYTES => match self.common.write(offset, data) {
                Effect::Reset => self.reset_device(),
                Effect::Start => self.start(),
                Effect::None => {}
            },
            NOTIFY_AT..TABLE_AT => self.ring(offset - NOTIFY_AT),
            TABLE_AT..PENDING_AT => self.msix.write_table(offset - TABLE_AT, data),
            _ => {}
        }
    }

    fn bars_changed(&mut self) {
        let now = self.config.bar_range(BAR).map(|range| range.start);
        if now == self.bells_at {
            return;
        }
        for (bell, at) in self
            .bells
            .iter()
            .zip((NOTIFY_AT..).step_by(NOTIFY_BYTES as usize))
        {
            if let Some(base) = self.bells_at {
                let _ = self.wiring.doorbells.unregister(base + at, bell);
            }
            if let Some(base) = now
                && let Err(error) = self.wiring.doorbells.register(base + at, bell)
            {
                debug!(address = base + at, %error, "a doorbell stays with write exits");
            }
        }
        self.bells_at = now;
    }

    fn ask_to_pause(&self) {
        self.device.ask_to_stop();
    }

    fn pause(&mut self) {
        self.stop();
        self.paused = true;
    }

    fn resume(&mut self) -> io::Result<()> {
        self.paused = false;
        self.start();
        if self.common.driver_ok() && !self.running {
            return Err(io::Error::other("the device did not start; see the log"));
        }
        // An interrupt that was under way on the source may have been lost with it; one too
        // many only makes the driver look at its rings.
        if std::mem::take(&mut self.arrived) && self.running {
            for index in 0..self.common.queues() {
                self.queue_interrupt(index).used()?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        let control = self.msix_capability as u64 + 2;
        self.config.write(control, &[0, 0]);
        self.paused = false;
        self.arrived = false;
    }

    fn save(&self) -> FunctionState {
        let state = TransportState {
            msix: self.msix.save(),
            common: self.common.save(),
            isr: self.isr.load(Ordering::Acquire),
            device: self.device.save(),
        };
        FunctionState {
            version: STATE_VERSION,
            config: self.config.save(),
            bytes: codec::encode(&state).expect("a virtio state is far below the codec limit"),
        }
    }

    fn restore(&mut self, state: &FunctionState) -> io::Result<()> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        codec::check_version("virtio state", state.version, STATE_VERSION)?;
        let saved: TransportState = codec::decode(&state.bytes)?;
        if !self.common.restore(&saved.common) {
            return Err(invalid(format!(
                "the saved state does not fit virtio device {}: its queues or features differ",
                self.device.device_type()
            )));
        }
        self.config.restore(&state.config)?;
        self.msix.restore(&saved.msix)?;
        self.isr.store(saved.isr, Ordering::Release);
        self.device.restore(&saved.device)?;
        self.bars_changed();
        self.arrived = true;
        Ok(())
    }

    fn announce(&mut self) -> io::Result<()> {
        if self.running {
            self.device.announce()
        } else {
            Ok(())
        }
    }
}

impl Drop for VirtioPci {
    fn drop(&mut self) {
        self.stop();
    }
}
