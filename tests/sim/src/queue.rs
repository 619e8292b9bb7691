//! What happens next: events ordered by time, and by insertion where times are equal.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

struct Entry<E> {
    at_us: u64,
    serial: u64,
    event: E,
}

impl<E> Entry<E> {
    fn key(&self) -> (u64, u64) {
        (self.at_us, self.serial)
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<E> Eq for Entry<E> {}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Entry<E> {
    // Reversed: `BinaryHeap` gives its greatest entry first, we want the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        other.key().cmp(&self.key())
    }
}

/// The events to come, in microseconds of true time.
pub struct Queue<E> {
    heap: BinaryHeap<Entry<E>>,
    serial: u64,
    now_us: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            serial: 0,
            now_us: 0,
        }
    }
}

impl<E> Queue<E> {
    /// The time of the event taken last.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Adds an event; one in the past happens now.
    pub fn at(&mut self, at_us: u64, event: E) {
        self.serial += 1;
        self.heap.push(Entry {
            at_us: at_us.max(self.now_us),
            serial: self.serial,
            event,
        });
    }

    /// Adds an event `delay_us` from now.
    pub fn after(&mut self, delay_us: u64, event: E) {
        self.at(self.now_us.saturating_add(delay_us), event);
    }

    /// Takes the earliest event and moves time to it.
    pub fn pop(&mut self) -> Option<(u64, E)> {
        let entry = self.heap.pop()?;
        self.now_us = entry.at_us;
        Some((entry.at_us, entry.event))
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no event waits.
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn earlier_first_and_equal_times_in_order_of_insertion() {
        let mut queue = Queue::default();
        queue.at(20, 'c');
        queue.at(10, 'a');
        queue.at(10, 'b');
        assert_eq!(queue.pop(), Some((10, 'a')));
        queue.after(5, 'x');
        queue.at(0, 'y');
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(rest, [(10, 'b'), (10, 'y'), (15, 'x'), (20, 'c')]);
    }
}
