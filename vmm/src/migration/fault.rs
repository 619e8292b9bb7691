//! Where tests make a migration fail: `GODWIT_FAIL_AT=before-commit:kill`, `after-pages@2:cut`,
//! `upon-end@1:cut`, `before-round@last:kill`.
//!
//! Every step of the protocol is the sending of a frame, and each side sends frames of its own, so
//! that a frame's kind and whether it is sent or heard name both the step and the side. A number is
//! that of a round (0 in those that measure), `last` the time after the guest was stopped.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use super::wire::Kind;

const VARIABLE: &str = "GODWIT_FAIL_AT";

/// The guest was stopped, which only its source knows.
static IS_LAST: AtomicBool = AtomicBool::new(false);

/// When, in relation to a frame's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It will not be sent.
    Before,
    /// It has been sent.
    After,
    /// It has been heard, without the pages that may follow it.
    Upon,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    /// The process dies as if its host had.
    Kill,
    /// The connection is lost.
    Cut,
    /// The process stands still until it gets a SIGCONT.
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Which {
    Any,
    Round(u32),
    Last,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Wish {
    step: String,
    which: Which,
    act: Act,
}

impl Wish {
    fn is_due(&self, moment: Moment, kind: Kind, round: u32) -> bool {
        let which = match self.which {
            Which::Any => true,
            Which::Round(wanted) => wanted == round,
            Which::Last => IS_LAST.load(Ordering::Relaxed),
        };
        which && self.step == format!("{moment:?}-{kind:?}").to_lowercase()
    }
}

/// What is sent from now on belongs to the last round.
pub fn last_round_begins() {
    IS_LAST.store(true, Ordering::Relaxed);
}

/// An error, or the end of the process, if a test wants a failure here.
pub fn pass(moment: Moment, kind: Kind, round: u32) -> io::Result<()> {
    static WANTED: OnceLock<Option<Wish>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let Some(wish) = wanted
        .as_ref()
        .filter(|wish| wish.is_due(moment, kind, round))
    else {
        return Ok(());
    };
    let signal = match wish.act {
        Act::Cut => return Err(io::Error::other("a test has cut the connection")),
        Act::Kill => Signal::KILL,
        Act::Stop => Signal::STOP,
    };
    Ok(kill_process(getpid(), signal)?)
}

fn parse(text: &str) -> Option<Wish> {
    let (step, act) = text.split_once(':')?;
    let (step, which) = match step.split_once('@') {
        None => (step, Which::Any),
        Some((step, "last")) => (step, Which::Last),
        Some((step, round)) => (step, Which::Round(round.parse().ok()?)),
    };
    let act = match act {
        "kill" => Act::Kill,
        "cut" => Act::Cut,
        "stop" => Act::Stop,
        _ => return None,
    };
    Some(Wish {
        step: step.to_owned(),
        which,
        act,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_and_without_one_nothing_fails() {
        let wish = parse("after-pages@2:cut").unwrap();
        assert_eq!((wish.which, wish.act), (Which::Round(2), Act::Cut));
        assert!(wish.is_due(Moment::After, Kind::Pages, 2));
        assert!(!wish.is_due(Moment::After, Kind::Pages, 1));
        assert!(!wish.is_due(Moment::Upon, Kind::Pages, 2));
        let wish = parse("before-end@last:kill").unwrap();
        assert!(!wish.is_due(Moment::Before, Kind::End, 2));
        assert!(
            parse("upon-state:stop")
                .unwrap()
                .is_due(Moment::Upon, Kind::State, 0)
        );
        assert_eq!(parse("commit"), None);
        assert_eq!(parse("before-end@later:cut"), None);
        pass(Moment::After, Kind::State, 1).unwrap();
    }
}
