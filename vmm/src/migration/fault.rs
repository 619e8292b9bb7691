//! Where tests make a migration fail: `GODWIT_FAIL_AT=before-commit:kill`, `after-pages:cut`.
//!
//! Every step of the protocol is the sending of a frame, and each side sends frames of its own,
//! so that a frame's kind names both the step and the side.

use std::io;
use std::sync::OnceLock;

use rustix::process::{Signal, getpid, kill_process};

use super::wire::Kind;

const VARIABLE: &str = "GODWIT_FAIL_AT";

/// When, in relation to the sending of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// It will not be sent.
    Before,
    /// It has been sent.
    After,
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

/// An error, or the end of the process, if a test wants a failure here.
pub fn pass(moment: Moment, kind: Kind) -> io::Result<()> {
    static WANTED: OnceLock<Option<(String, Act)>> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| parse(&std::env::var(VARIABLE).ok()?));
    let Some((step, act)) = wanted else {
        return Ok(());
    };
    if *step != format!("{moment:?}-{kind:?}").to_lowercase() {
        return Ok(());
    }
    let signal = match act {
        Act::Cut => return Err(io::Error::other("a test has cut the connection")),
        Act::Kill => Signal::KILL,
        Act::Stop => Signal::STOP,
    };
    Ok(kill_process(getpid(), signal)?)
}

fn parse(text: &str) -> Option<(String, Act)> {
    let (step, act) = text.split_once(':')?;
    let act = match act {
        "kill" => Act::Kill,
        "cut" => Act::Cut,
        "stop" => Act::Stop,
        _ => return None,
    };
    Some((step.to_owned(), act))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_read_and_without_one_nothing_fails() {
        let wish = parse("after-state:cut");
        assert_eq!(wish, Some(("after-state".to_owned(), Act::Cut)));
        assert_eq!(parse("commit"), None);
        pass(Moment::After, Kind::State).unwrap();
    }
}
