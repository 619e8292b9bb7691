//! Interrupt routes: the IOAPIC's pins, and a global system interrupt for each MSI vector.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting,
    kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip,
    kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::KvmError;
use crate::interrupt::{MsiMessage, MsiRoute, MsiRouter};
use crate::layout::IOAPIC_PINS;

/// KVM's routing table has room for so many (api.rst, `KVM_SET_GSI_ROUTING`).
const ROUTES_MAX: u32 = 4096;

/// The routing table of one virtual machine.
pub struct KvmRouter {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

struct Table {
    next_gsi: u32,
    messages: BTreeMap<u32, MsiMessage>,
}

impl KvmRouter {
    /// A table with the IOAPIC's pins.
    pub fn new(vm: Arc<VmFd>) -> Result<Self, KvmError> {
        let table = Table {
            next_gsi: IOAPIC_PINS,
            messages: BTreeMap::new(),
        };
        table
            .install(&vm)
            .map_err(KvmError::request("route interrupts"))?;
        Ok(Self {
            vm,
            table: Mutex::new(table),
        })
    }

    /// An eventfd that raises IOAPIC pin `pin`, edge-triggered.
    pub fn pin(&self, pin: u32) -> io::Result<EventFd> {
        let trigger = EventFd::new(EFD_NONBLOCK)?;
        self.vm.register_irqfd(&trigger, pin)?;
        Ok(trigger)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MsiRouter for KvmRouter {
    fn allocate(&self) -> io::Result<MsiRoute> {
        let mut table = self.lock();
        if table.next_gsi == ROUTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "all interrupt routes are taken; use fewer devices or queues",
            ));
        }
        let trigger = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let gsi = table.next_gsi;
        self.vm.register_irqfd(&trigger, gsi)?;
        table.next_gsi += 1;
        Ok(MsiRoute { gsi, trigger })
    }

    fn set(&self, route: &MsiRoute, message: Option<MsiMessage>) -> io::Result<()> {
        let mut table = self.lock();
        let before = match message {
            Some(message) => table.messages.insert(route.gsi, message),
            None => table.messages.remove(&route.gsi),
        };
        if before == message {
            return Ok(());
        }
        Ok(table.install(&self.vm)?)
    }
}

impl Table {
    fn install(&self, vm: &VmFd) -> Result<(), vmm_sys_util::errno::Error> {
        let pins = (0..IOAPIC_PINS).map(pin_entry);
        let messages = self
            .messages
            .iter()
            .map(|(&gsi, &message)| message_entry(gsi, message));
        let entries: Vec<_> = pins.chain(messages).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| vmm_sys_util::errno::Error::new(libc::E2BIG))?;
        vm.set_gsi_routing(&routing)
    }
}

fn pin_entry(pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: pin,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip {
                irqchip: KVM_IRQCHIP_IOAPIC,
                pin,
            },
        },
        ..Default::default()
    }
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            msi: kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..Default::default()
            },
        },
        ..Default::default()
    }
}
