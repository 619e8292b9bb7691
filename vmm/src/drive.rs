//! The driving loop: acts on what the machine reports until the guest ends.

use std::collections::VecDeque;
use std::sync::Once;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use std::{process, thread};

use vmm_core::control::Happening;
use vmm_core::lifecycle::Ending;

use crate::console::restore_terminal;
use crate::error::one_line;
use crate::guest::Guest;
use crate::notice::Notice;
use crate::slim;

/// What a guest's start takes, it has taken by then.
const SETTLES_AFTER: Duration = Duration::from_secs(1);
/// Whoever asks for the end waits no longer for what does not end.
const END_LIMIT: Duration = Duration::from_secs(10);
const STACK_BYTES: usize = 64 << 10;

/// Drive a guest that runs to its end. Reasons for the end that need words go to the standard error.
pub fn drive(guest: &Guest, notices: &Receiver<Notice>) -> Ending {
    let mut kept = VecDeque::new();
    let mut is_settled = false;
    let ending = loop {
        // All senders are gone only when the guest is.
        let Some(notice) = kept.pop_front().or_else(|| next(notices, &mut is_settled)) else {
            break Ending::Failed;
        };
        // The machine is nobody's to end or rebuild while it is between two hosts.
        if !notice.is_verdict() && guest.settle() {
            kept.extend(notices.try_iter());
            let decided = kept.iter().any(Notice::is_verdict);
            // As long as nobody knows where it is, an operator may at least end it here.
            if decided || notice != Notice::Off {
                kept.retain(Notice::is_verdict);
                continue;
            }
        }
        match notice {
            Notice::Off => break Ending::PoweredOff,
            Notice::Reset => {
                // The old machine may have asked several times for the one reset it gets.
                let settle = || kept.extend(notices.try_iter().filter(|n| *n != Notice::Reset));
                if let Err(error) = guest.reboot(settle) {
                    say(&format!("cannot reboot the guest: {}", one_line(&error)));
                    break Ending::Failed;
                }
            }
            Notice::Panicked => {
                guest.events().tell(Happening::Panicked);
                say("the guest's kernel has panicked; its console has the reason");
                break Ending::Panicked;
            }
            Notice::Crashed => {
                say("the guest's processor gave up (triple fault)");
                break Ending::Crashed;
            }
            Notice::Failed(why) => {
                say(&why);
                break Ending::Failed;
            }
            Notice::Moved => break Ending::Moved,
            Notice::LeaseLost(why) => {
                say(&why);
                break Ending::LeaseLost;
            }
        }
    };
    guest.end();
    guest.backends().console.close();
    // A guest that moved or lost its lease has no right to its disks; their gate is shut.
    if !matches!(ending, Ending::Moved | Ending::LeaseLost)
        && let Err(error) = guest.backends().release_disks()
    {
        say(&format!(
            "cannot finish writing the disks: {}",
            one_line(&error)
        ));
        return Ending::Failed;
    }
    // What died is for the agent to run again; what was switched off is nobody's.
    if ending == Ending::PoweredOff
        && let Some(Err(error)) = guest.lease().map(|lease| lease.release())
    {
        say(&format!("cannot release the lease: {}", one_line(&error)));
    }
    ending
}

/// The next notice, however long it takes. The first time that none comes for a while the process
/// settles down to running the guest.
fn next(notices: &Receiver<Notice>, is_settled: &mut bool) -> Option<Notice> {
    if !*is_settled {
        match notices.recv_timeout(SETTLES_AFTER) {
            Err(RecvTimeoutError::Timeout) => slim::give_back(),
            notice => return notice.ok(),
        }
        *is_settled = true;
    }
    notices.recv().ok()
}

/// An operator has asked for the end. It comes, even if the guest's disks, or a reboot in the midst
/// of which it was asked for, wait for a storage that does not answer.
pub fn end_soon() {
    static ASKED: Once = Once::new();
    ASKED.call_once(|| {
        let end = thread::Builder::new().name("end".into());
        let end = end.stack_size(STACK_BYTES).spawn(|| {
            thread::sleep(END_LIMIT);
            say(&format!(
                "the guest is switched off, but its storage has not answered for {} s: what was \
                 under way may or may not be written",
                END_LIMIT.as_secs()
            ));
            process::exit(Ending::Failed.code().into());
        });
        if let Err(error) = end {
            say(&format!("cannot see to the guest's end: {error}"));
        }
    });
}

/// One line for a person, with the terminal as it was.
pub fn say(line: &str) {
    restore_terminal();
    eprintln!("vmm: {line}");
}
