//! Giving buffers back, several at once where the driver must not see them one by one.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::{Error, Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::ActiveQueue;
use crate::memory::GuestMemory;

const RING_HEADER: u64 = 4;
const USED_ELEMENT: u64 = 8;
const AVAIL_ELEMENT: u64 = 2;
const NO_INTERRUPT: u16 = 1;

/// Publishes used buffers and decides when to interrupt (virtio 1.2 §2.7.7).
#[derive(Debug, Default)]
pub struct Completions {
    /// Index of the used ring up to which the driver has been told.
    told: Option<u16>,
}

impl Completions {
    /// Give back `used` (head and length) in one step: the driver sees all or none.
    pub fn publish(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemory,
        used: &[(u16, u32)],
    ) -> Result<(), Error> {
        let Some(((head, length), earlier)) = used.split_last() else {
            return Ok(());
        };
        self.told.get_or_insert(queue.next_used());
        let size = queue.size();
        let mut next = queue.next_used();
        for (head, length) in earlier {
            let slot = u64::from(next % size);
            let at = place(queue.used_ring(), RING_HEADER + USED_ELEMENT * slot)?;
            let element = u64::from(*length) << 32 | u64::from(*head);
            memory
                .write_obj(element.to_le(), at)
                .map_err(Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        queue.set_next_used(next);
        // Moves the index past all of them.
        queue.add_used(memory, *head, *length)
    }

    /// Interrupt the driver if it wants that for what was published.
    pub fn signal(&mut self, queue: &ActiveQueue, memory: &GuestMemory) -> Result<(), Error> {
        if self.should_signal(&queue.queue, memory)? {
            // A vector that cannot be raised is the driver's own doing.
            let _ = queue.interrupt.used();
        }
        Ok(())
    }

    /// Whether the driver wants an interrupt for what was published since the last `true`.
    pub fn should_signal(&mut self, queue: &Queue, memory: &GuestMemory) -> Result<bool, Error> {
        let now = queue.next_used();
        let Some(told) = self.told.filter(|told| *told != now) else {
            return Ok(false);
        };
        // The used index must be visible before we look whether the driver sleeps.
        fence(Ordering::SeqCst);
        let wanted = if queue.event_idx_enabled() {
            let offset = RING_HEADER + AVAIL_ELEMENT * u64::from(queue.size());
            let event: u16 = memory
                .load(place(queue.avail_ring(), offset)?, Ordering::Acquire)
                .map_err(Error::GuestMemory)?;
            let event = u16::from_le(event);
            now.wrapping_sub(event).wrapping_sub(1) < now.wrapping_sub(told)
        } else {
            let flags: u16 = memory
                .load(place(queue.avail_ring(), 0)?, Ordering::Acquire)
                .map_err(Error::GuestMemory)?;
            u16::from_le(flags) & NO_INTERRUPT == 0
        };
        self.told = Some(now);
        Ok(wanted)
    }
}

fn place(ring: u64, offset: u64) -> Result<GuestAddress, Error> {
    GuestAddress(ring)
        .checked_add(offset)
        .ok_or(Error::AddressOverflow)
}

#[cfg(test)]
mod tests {
    use virtio_queue::QueueState;

    use super::super::testing::plain_memory;
    use super::*;

    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    fn queue(event_idx_enabled: bool) -> Queue {
        Queue::try_from(QueueState {
            max_size: 4,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled,
            size: 4,
            ready: true,
            desc_table: 0,
            avail_ring: AVAIL,
            used_ring: USED,
        })
        .unwrap()
    }

    #[test]
    fn several_buffers_appear_at_once_and_wrap() {
        let memory = plain_memory();
        let mut queue = queue(false);
        let mut completions = Completions::default();
        completions
            .publish(&mut queue, &memory, &[(1, 10), (2, 20), (3, 30)])
            .unwrap();
        assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 3);
        completions
            .publish(&mut queue, &memory, &[(0, 40), (1, 50)])
            .unwrap();
        assert_eq!(memory.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 5);
        let element = |slot: u64| {
            memory
                .read_obj::<[u32; 2]>(GuestAddress(USED + 4 + 8 * slot))
                .unwrap()
        };
        assert_eq!(
            [element(0), element(1), element(3)],
            [[1, 50], [2, 20], [0, 40]]
        );
        assert_eq!(queue.next_used(), 5);
    }

    #[test]
    fn the_driver_is_told_when_it_wants_to_be() {
        let memory = plain_memory();
        let mut queue = queue(true);
        let mut completions = Completions::default();
        assert!(!completions.should_signal(&queue, &memory).unwrap());
        let used_event = GuestAddress(AVAIL + 4 + 2 * 4);
        memory.write_obj(1u16, used_event).unwrap();
        completions.publish(&mut queue, &memory, &[(0, 1)]).unwrap();
        assert!(!completions.should_signal(&queue, &memory).unwrap());
        completions
            .publish(&mut queue, &memory, &[(1, 1), (2, 1)])
            .unwrap();
        assert!(completions.should_signal(&queue, &memory).unwrap());
        assert!(!completions.should_signal(&queue, &memory).unwrap());
    }
}
