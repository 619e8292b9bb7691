//! The thread of a processor: takes orders while parked, runs the guest until it must park.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::ImmediateExit;
use super::{Exit, Order, Shared};
use crate::bus::Buses;
use crate::notice::{Notice, Reports};
use crate::urgent;

/// Returns from the guest that completing one access can take: KVM hands a wide access over
/// in pieces of 8 bytes, and a string instruction a page at a time.
const COMPLETIONS_MAX: u32 = 1024;

/// So short a rest is none: it only shows that the interruption was noticed.
pub(super) const NOTICE: Duration = Duration::from_micros(1);

/// One that rests looks so often whether it must park.
const REST_STEP: Duration = Duration::from_micros(500);

pub(super) struct Runner {
    pub index: u32,
    pub immediate_exit: ImmediateExit,
    pub buses: Arc<Buses>,
    pub reports: Reports,
    pub shared: Arc<Shared>,
}

/// What to do after a return from the guest.
enum Next {
    Again,
    /// `KVM_RUN` was interrupted before it entered the guest, or while in it.
    Interrupted,
    /// The guest cannot go on.
    End(Notice),
}

impl Runner {
    pub fn serve(self, inbox: &Receiver<Order>) {
        // SAFETY: no arguments, cannot fail.
        let thread_id = unsafe { libc::gettid() };
        self.shared.gauge.set_thread_id(thread_id);
        for order in inbox {
            match order {
                Order::Run => self.run(),
                Order::Act(act) => act(&self.shared),
                Order::Quit => return,
            }
        }
    }

    fn run(&self) {
        if self.shared.is_urgent.swap(false, Ordering::AcqRel) {
            urgent::lower(urgent::THIS_THREAD);
        }
        self.run_until_parked(self.shared.processor());
        // Whoever waits for this finds the processor free.
        self.shared.set_parked(true);
    }

    fn run_until_parked(&self, mut processor: MutexGuard<'_, VcpuFd>) {
        self.shared.rest_us.store(0, Ordering::Release);
        self.immediate_exit.clear();
        // Tells the guest's watchdogs that time passed without them. A guest without kvmclock
        // has nothing to be told: EINVAL.
        let _ = processor.kvmclock_ctrl();
        let began = self.shared.began.lock();
        *began.unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        let mut ended = false;
        // The flag is looked at after the reset above: a request that came before it stays.
        while !ended && !self.shared.park.load(Ordering::SeqCst) {
            match self.enter(&mut processor) {
                Next::Again => {}
                Next::Interrupted => self.rest(&processor),
                Next::End(notice) => {
                    self.reports.tell(notice);
                    ended = true;
                }
            }
        }
        self.complete(&mut processor);
    }

    /// Let whoever asked read, and rest if that is wanted. A request to park, which may be what interrupted it, is seen
    /// after the reset of the flag, as in [`Runner::run`].
    fn rest(&self, processor: &VcpuFd) {
        self.immediate_exit.clear();
        self.shared.read(processor);
        let mut left = Duration::from_micros(self.shared.rest_us.swap(0, Ordering::AcqRel));
        if left == NOTICE {
            return;
        }
        while !left.is_zero() && !self.shared.park.load(Ordering::SeqCst) {
            let step = left.min(REST_STEP);
            thread::sleep(step);
            left -= step;
        }
    }

    /// Finish an access that is half done: KVM completes it at the next `KVM_RUN`.
    fn complete(&self, processor: &mut VcpuFd) {
        self.immediate_exit.set();
        for _ in 0..COMPLETIONS_MAX {
            match self.enter(processor) {
                Next::Again => {}
                Next::Interrupted => return,
                Next::End(notice) => {
                    self.reports.tell(notice);
                    return;
                }
            }
        }
    }

    fn enter(&self, processor: &mut VcpuFd) -> Next {
        let exit = match processor.run() {
            Ok(exit) => exit,
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                self.shared.gauge.count(Exit::Interrupted);
                return Next::Interrupted;
            }
            Err(error) => {
                let why = format!("processor {} cannot run: {error}", self.index);
                return Next::End(Notice::Failed(why));
            }
        };
        let kind = match exit {
            VcpuExit::IoIn(port, data) => {
                self.buses.ports.read(u64::from(port), data);
                Exit::PortRead
            }
            VcpuExit::IoOut(port, data) => {
                self.buses.ports.write(u64::from(port), data);
                Exit::PortWrite
            }
            VcpuExit::MmioRead(address, data) => {
                self.buses.mmio.read(address, data);
                Exit::MmioRead
            }
            VcpuExit::MmioWrite(address, data) => {
                self.buses.mmio.write(address, data);
                Exit::MmioWrite
            }
            VcpuExit::Intr => Exit::Interrupted,
            VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => Exit::Other,
            VcpuExit::Shutdown | VcpuExit::SystemEvent(..) => {
                return Next::End(Notice::Crashed);
            }
            VcpuExit::InternalError => {
                return Next::End(Notice::Failed(self.emulation_failed(processor)));
            }
            other => {
                let why = format!(
                    "processor {} left the guest in a way nobody expects: {other:?}",
                    self.index
                );
                return Next::End(Notice::Failed(why));
            }
        };
        self.shared.gauge.count(kind);
        Next::Again
    }

    /// KVM met an instruction it can neither run nor emulate.
    fn emulation_failed(&self, processor: &VcpuFd) -> String {
        let index = self.index;
        match processor.get_regs() {
            Ok(regs) => format!(
                "KVM cannot run the guest's instruction at {:#x} on processor {index}; \
                 `vmm check` tells whether this host can run stock kernels",
                regs.rip
            ),
            Err(error) => format!("KVM gave up on processor {index} ({error})"),
        }
    }
}
