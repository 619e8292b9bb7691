//! Many requests of one disk under way at once, all from one thread: the kernel's asynchronous I/O
//! (io_submit(2)).
//!
//! Raw images only, for their bytes lie where the guest thinks, and around the page cache only, for
//! through it the kernel carries such requests out one by one. Everything else goes by [`Disk`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::disk::{Disk, SECTOR_BYTES};
use super::format::Format;

/// Pieces of memory in one request (`IOV_MAX`).
const PIECES_MAX: usize = 1024;

// <linux/aio_abi.h>
const READ: u16 = 7;
const WRITE: u16 = 8;
const RING_BELL: u32 = 1;

/// `struct iocb`.
#[repr(C)]
#[derive(Default)]
struct Order {
    data: u64,
    #[cfg(target_endian = "little")]
    key: u32,
    rw_flags: u32,
    #[cfg(target_endian = "big")]
    key: u32,
    opcode: u16,
    priority: i16,
    file: u32,
    pieces: u64,
    count: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    bell: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    order: u64,
    result: i64,
    more: i64,
}

/// How a request ended.
#[derive(Debug)]
pub enum Landing {
    /// All of its bytes went where they should.
    Done,
    /// Not in this way, or not at once: carry it out by [`Disk`].
    Again,
    /// The gate was shut: nobody knows what became of it. Try again later.
    Shut,
    /// The storage says no.
    Failed(io::Error),
}

/// Requests under way, each with something of the caller's that comes back with its end. Dropped,
/// it waits for them.
pub struct Flights<T> {
    disk: Arc<Disk>,
    kernel: Kernel,
    bell: OwnedFd,
    /// Never grows: the kernel is told where the orders in it lie.
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    /// Slots that wait for [`Flights::depart`].
    batch: Vec<usize>,
    events: Vec<Event>,
}

struct Slot<T> {
    token: Option<T>,
    bytes: u64,
    order: Order,
    pieces: Vec<libc::iovec>,
}

impl<T> Flights<T> {
    /// Up to `most` requests of `disk` at a time; `None` where it has to do without.
    pub fn of(disk: &Arc<Disk>, most: u16) -> Option<Self> {
        let sectors = disk.top().request_align() as u64 == SECTOR_BYTES;
        if disk.format() != Format::Raw || !disk.is_direct() || !sectors {
            // Where a sector is less than the file takes, writing one is reading and writing more,
            // which those under way must not come between.
            return None;
        }
        let slot = || Slot {
            token: None,
            bytes: 0,
            order: Order::default(),
            pieces: Vec::new(),
        };
        Some(Self {
            disk: disk.clone(),
            kernel: Kernel::open(most).ok()?,
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?,
            slots: (0..most).map(|_| slot()).collect(),
            free: (0..usize::from(most)).collect(),
            batch: Vec::new(),
            events: vec![Event::default(); usize::from(most)],
        })
    }

    /// Readable when some have landed; reset it by [`Flights::heard`].
    pub fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// The bell was heard.
    pub fn heard(&self) {
        // Nothing to read is as good.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// How many more there may be.
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Is none under way or about to be?
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Have a transfer between the disk at `offset` and the `slices` of `token` go with the next
    /// batch. What cannot go in this way is given back.
    ///
    /// # Safety
    /// The memory stays where it is until the token is back or this is dropped, and this is not
    /// forgotten. Nobody holds a reference into it.
    pub unsafe fn board<'m, B: BitmapSlice + 'm>(
        &mut self,
        token: T,
        write: bool,
        offset: u64,
        slices: impl Fn(&T) -> &[VolatileSlice<'m, B>],
    ) -> Result<(), T> {
        let slices = slices(&token);
        let bytes = slices.iter().map(|slice| slice.len() as u64).sum();
        let end = offset.checked_add(bytes);
        let inside = end.is_some_and(|end| end <= self.disk.bytes());
        let allowed = inside && bytes > 0 && !(write && self.disk.readonly());
        if !allowed || slices.len() > PIECES_MAX || !self.disk.top().takes(offset, slices) {
            return Err(token);
        }
        let Some(at) = self.free.pop() else {
            return Err(token);
        };
        let slot = &mut self.slots[at];
        slot.bytes = bytes;
        slot.pieces.clear();
        slot.pieces.extend(slices.iter().map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }));
        slot.order = Order {
            data: at as u64,
            opcode: if write { WRITE } else { READ },
            file: self.disk.top().file().as_raw_fd().cast_unsigned(),
            pieces: slot.pieces.as_ptr() as u64,
            count: slot.pieces.len() as u64,
            offset: offset.cast_signed(),
            flags: RING_BELL,
            bell: self.bell.as_raw_fd().cast_unsigned(),
            ..Order::default()
        };
        slot.token = Some(token);
        self.batch.push(at);
        Ok(())
    }

    /// Send the batch off if the gate is open. What did not go lands at once.
    pub fn depart(&mut self, landed: &mut Vec<(T, Landing)>) {
        let batch = std::mem::take(&mut self.batch);
        if batch.is_empty() {
            return;
        }
        self.send(&batch, landed);
        self.batch = batch;
        self.batch.clear();
    }

    fn send(&mut self, mut batch: &[usize], landed: &mut Vec<(T, Landing)>) {
        let mut orders: Vec<*mut Order> = Vec::with_capacity(batch.len());
        for at in batch {
            orders.push(&raw mut self.slots[*at].order);
        }
        let mut orders = &mut orders[..];
        while let Some(first) = batch.first() {
            // Every time: handing in what came before may have taken until after the deadline.
            if self.disk.pass().is_err() {
                for at in batch {
                    self.land(*at, Landing::Shut, landed);
                }
                return;
            }
            // SAFETY: the orders lie in slots that stay where they are, the memory that they
            // lead to is there by the promise of `board`.
            let sent = match unsafe { self.kernel.submit(orders) } {
                Ok(sent) if sent > 0 => sent,
                // What is wrong with the first is not with the others.
                Ok(_) | Err(_) => {
                    self.land(*first, Landing::Again, landed);
                    1
                }
            };
            batch = &batch[sent..];
            orders = &mut orders[sent..];
        }
    }

    /// Those that have landed; all of them, however long that takes, if `all`.
    pub fn arrivals(&mut self, all: bool, landed: &mut Vec<(T, Landing)>) {
        while !self.is_empty() {
            let least = usize::from(all);
            let mut events = std::mem::take(&mut self.events);
            let count = self.kernel.events(least, &mut events);
            // As with any request the second question is no less needed: a host that froze may
            // hear of an end that came after the disk was cloned away.
            let open = self.disk.pass().is_ok();
            for event in &events[..count] {
                let at = event.data as usize;
                let landing = if open {
                    judge(event.result, self.slots[at].bytes)
                } else {
                    Landing::Shut
                };
                self.land(at, landing, landed);
            }
            self.events = events;
            if !all {
                return;
            }
        }
    }

    fn land(&mut self, at: usize, landing: Landing, landed: &mut Vec<(T, Landing)>) {
        if let Some(token) = self.slots[at].token.take() {
            self.free.push(at);
            landed.push((token, landing));
        }
    }
}

fn judge(result: i64, bytes: u64) -> Landing {
    let Ok(done) = u64::try_from(result) else {
        let error = io::Error::from_raw_os_error(-result as i32);
        return match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EINTR | libc::EINVAL) => Landing::Again,
            _ => Landing::Failed(error),
        };
    };
    if done == bytes {
        Landing::Done
    } else {
        Landing::Again
    }
}

/// `aio_context_t`: what the kernel knows of our requests.
struct Kernel(libc::c_ulong);

impl Kernel {
    fn open(most: u16) -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        let most = libc::c_long::from(most);
        // SAFETY: io_setup(2) writes the context's name there.
        let answer = unsafe { libc::syscall(libc::SYS_io_setup, most, &raw mut context) };
        if answer == 0 {
            Ok(Self(context))
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Hand in orders; how many the kernel took.
    ///
    /// # Safety
    /// Each is an order whose pieces, and the memory that these lead to, are there: the pieces for
    /// the length of the call, the memory until its event has come.
    unsafe fn submit(&self, orders: &mut [*mut Order]) -> io::Result<usize> {
        let count = orders.len();
        loop {
            // SAFETY: the caller's promise.
            let sent =
                unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, orders.as_mut_ptr()) };
            if let Ok(sent) = usize::try_from(sent) {
                return Ok(sent);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// Events that have come, `least` of them at least; how many there are.
    fn events(&self, least: usize, events: &mut [Event]) -> usize {
        let zero = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = if least > 0 {
            std::ptr::null()
        } else {
            &raw const zero
        };
        let most = events.len();
        let into = events.as_mut_ptr();
        // SAFETY: io_getevents(2) writes at most so many events there.
        let got =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, least, most, into, timeout) };
        // Interrupted, it has taken none; whoever waits for more asks again.
        usize::try_from(got).unwrap_or(0)
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: our own context, not used any more. Returns when nothing is under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::super::{DiskOptions, create};
    use super::*;
    use crate::gate::{Gate, Shut};

    const PIECE: usize = 4096;

    /// Shut once it has been passed so often.
    #[derive(Debug)]
    struct Passes(AtomicU32);

    impl Gate for Passes {
        fn pass(&self) -> Result<(), Shut> {
            let one_less = |left: u32| left.checked_sub(1);
            let passed = self
                .0
                .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less);
            passed.map(|_| ()).map_err(|_| Shut)
        }
    }

    #[test]
    fn what_the_kernel_did_not_take_at_once_asks_the_gate_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.raw");
        create(None, &path, Format::Raw, 1 << 20).unwrap();
        let gate = Arc::new(Passes(AtomicU32::new(u32::MAX)));
        let disk = Disk::open(DiskOptions {
            direct: true,
            gate: gate.clone(),
            ..DiskOptions::new(&path, Format::Raw)
        });
        let disk = Arc::new(disk.unwrap());
        let Some(mut flights) = Flights::of(&disk, 4) else {
            println!("SKIPPED: this file system takes no direct requests of one sector");
            return;
        };
        let mut memory = vec![7; 2 * PIECE];
        let aligned = memory.as_ptr().align_offset(PIECE);
        let piece = [VolatileSlice::from(&mut memory[aligned..aligned + PIECE])];
        for number in 0..3 {
            let offset = number * PIECE as u64;
            // SAFETY: `memory` outlives `flights`, which is dropped before it.
            unsafe { flights.board(number, true, offset, |_| &piece) }.unwrap();
        }
        // The kernel takes those before it, and says so.
        flights.slots[flights.batch[1]].order.file = u32::MAX;
        gate.0.store(1, Ordering::Release);
        let mut landed = Vec::new();
        flights.depart(&mut landed);
        let shut = |landing: &Landing| matches!(landing, Landing::Shut);
        assert!(
            landed.iter().all(|(_, landing)| shut(landing)),
            "{landed:?}"
        );
        let numbers: Vec<u64> = landed.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 2]);
        flights.arrivals(true, &mut landed);
        drop(flights);
        let written = std::fs::read(&path).unwrap();
        assert!(written[..PIECE].iter().all(|byte| *byte == 7));
        assert!(written[PIECE..].iter().all(|byte| *byte == 0));
    }
}
