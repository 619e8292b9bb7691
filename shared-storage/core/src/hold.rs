//! Until when this host may act, in one word that all its processes share.
//!
//! The word holds a deadline (own boottime clock) and a *term*. A heartbeat acknowledged
//! before the deadline moves it on within the term. One acknowledged after it starts the
//! next term: whatever was held under an older term may have been taken meanwhile, and has
//! to be claimed anew before anybody acts on it. One word, so that it changes as a whole
//! and a reader needs one load.

/// Bits of the word that hold the term; the rest is the deadline in milliseconds (34 years).
const TERM_BITS: u32 = 24;
/// Terms are counted modulo this.
pub const TERM_COUNT: u32 = 1 << TERM_BITS;
const TERM_MASK: u64 = (TERM_COUNT - 1) as u64;

/// A deadline and the term it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold(u64);

impl Hold {
    /// A hold that has run out, in the given term.
    pub fn expired(term: u32) -> Self {
        Self::new(0, term)
    }

    /// A hold until `deadline_us`, rounded down to the millisecond.
    pub fn new(deadline_us: u64, term: u32) -> Self {
        Self(((deadline_us / 1000) << TERM_BITS) | (u64::from(term) & TERM_MASK))
    }

    /// The word as it lies in memory.
    pub fn to_word(self) -> u64 {
        self.0
    }

    /// The hold that this word means.
    pub fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The instant at which acting ends, in microseconds of the host's boottime clock.
    pub fn deadline_us(self) -> u64 {
        (self.0 >> TERM_BITS) * 1000
    }

    /// The term.
    pub fn term(self) -> u32 {
        (self.0 & TERM_MASK) as u32
    }

    /// Whether the host may act at `now_us`.
    pub fn is_live(self, now_us: u64) -> bool {
        now_us < self.deadline_us()
    }

    /// Whether the host may act at `now_us` on what it got in `term`.
    pub fn covers(self, now_us: u64, term: u32) -> bool {
        self.term() == term && self.is_live(now_us)
    }

    /// By how much, at least, the clock was set back; 0 if that does not show. A deadline further
    /// ahead than any heartbeat could have put it tells.
    pub fn set_back_us(self, now_us: u64, reach_us: u64) -> u64 {
        self.deadline_us()
            .saturating_sub(now_us.saturating_add(reach_us))
    }

    /// The hold after storage acknowledged, at `now_us`, a heartbeat sent at `sent_us`.
    ///
    /// If the clock was set back, a new term starts.
    #[must_use]
    pub fn after_ack(self, sent_us: u64, now_us: u64, reach_us: u64) -> Self {
        let deadline_us = sent_us.saturating_add(reach_us);
        if self.is_live(now_us) && self.set_back_us(now_us, reach_us) == 0 {
            Self::new(deadline_us.max(self.deadline_us()), self.term())
        } else if now_us < deadline_us {
            Self::new(deadline_us, (self.term() + 1) % TERM_COUNT)
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REACH_US: u64 = 1_000_000;

    #[test]
    fn an_answer_in_time_extends_and_a_late_one_starts_a_term() {
        let first = Hold::expired(7).after_ack(5_000_000, 5_010_000, REACH_US);
        assert_eq!((first.deadline_us(), first.term()), (6_000_000, 8));
        let next = first.after_ack(5_500_000, 5_600_000, REACH_US);
        assert_eq!((next.deadline_us(), next.term()), (6_500_000, 8));
        let late = next.after_ack(6_400_000, 6_500_000, REACH_US);
        assert_eq!((late.deadline_us(), late.term()), (7_400_000, 9));
        assert!(!late.covers(6_600_000, 8) && late.covers(6_600_000, 9));
    }

    #[test]
    fn an_answer_later_than_its_own_reach_gives_nothing() {
        let hold = Hold::new(6_000_000, 3);
        assert_eq!(hold.after_ack(6_500_000, 8_000_000, REACH_US), hold);
    }

    #[test]
    fn a_clock_that_was_set_back_starts_a_term() {
        let hold = Hold::new(60_000_000, 3);
        assert_eq!(hold.set_back_us(5_010_000, REACH_US), 53_990_000);
        assert_eq!(hold.set_back_us(59_000_000, REACH_US), 0);
        let next = hold.after_ack(5_000_000, 5_010_000, REACH_US);
        assert_eq!((next.deadline_us(), next.term()), (6_000_000, 4));
    }

    proptest! {
        #[test]
        fn within_a_term_the_deadline_never_steps_back_nor_past_its_evidence(
            deadline_us in 0..1_u64 << 40, term in 0..TERM_COUNT,
            sent_us in 0..1_u64 << 40, took_us in 0..10_000_000_u64,
        ) {
            let hold = Hold::new(deadline_us, term);
            let now_us = sent_us + took_us;
            let next = hold.after_ack(sent_us, now_us, REACH_US);
            prop_assert_eq!(Hold::from_word(next.to_word()), next);
            if next.term() == term {
                prop_assert!(next.deadline_us() >= hold.deadline_us());
            } else {
                let set_back = hold.deadline_us() > now_us + REACH_US;
                prop_assert!(!hold.is_live(now_us) && next.is_live(now_us) || set_back);
            }
            prop_assert!(next.deadline_us() <= hold.deadline_us().max(sent_us + REACH_US));
        }
    }
}
