//! Which pages were dirtied in each of the last rounds: they will be dirtied again, and are best
//! sent last.
//!
//! A page that is sent early in a round has all of the round to be written to again; one that is
//! sent at its end has a moment. Sequence matters only for pages that are written to all the time,
//! and these are told by what they did in the rounds before.

use alloc::vec;
use alloc::vec::Vec;

/// Pages are hot that were dirtied in so many rounds in a row.
pub const ROUNDS: usize = 2;

/// The dirty bitmaps of the latest rounds, a bit for each page.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The latest last; at most [`ROUNDS`] - 1 of them.
    before: Vec<Vec<u64>>,
}

impl History {
    /// A round begins with `dirty`, as dirtied during the one before it. Returns which of these
    /// pages are hot: none before enough is known.
    pub fn hot(&mut self, dirty: &[u64]) -> Vec<u64> {
        let mut hot = vec![0; dirty.len()];
        if self.before.len() == ROUNDS - 1 {
            hot.copy_from_slice(dirty);
            for round in &self.before {
                for (hot, before) in hot.iter_mut().zip(round) {
                    *hot &= before;
                }
            }
            self.before.remove(0);
        }
        self.before.push(dirty.to_vec());
        hot
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hot_is_what_was_dirty_in_each_of_the_last_rounds() {
        let mut history = History::default();
        assert_eq!(history.hot(&[0b0111]), [0]);
        assert_eq!(history.hot(&[0b1101]), [0b0101]);
        assert_eq!(history.hot(&[0b1010]), [0b1000]);
        assert_eq!(history.hot(&[0]), [0]);
    }

    proptest! {
        #[test]
        fn a_page_is_hot_if_and_only_if_no_round_of_the_last_left_it_out(
            rounds in prop::collection::vec(prop::collection::vec(any::<u64>(), 3), 1..8),
        ) {
            let mut history = History::default();
            for (number, dirty) in rounds.iter().enumerate() {
                let hot = history.hot(dirty);
                for page in 0..dirty.len() * 64 {
                    let is_set = |words: &[u64]| words[page / 64] >> (page % 64) & 1 == 1;
                    let last = rounds[..=number].iter().rev().take(ROUNDS);
                    let in_each = number + 1 >= ROUNDS && last.into_iter().all(|r| is_set(r));
                    prop_assert_eq!(is_set(&hot), in_each);
                }
            }
        }
    }
}
