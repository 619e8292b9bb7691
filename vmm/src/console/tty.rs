//! The terminal: raw while the guest has it, as it was on every way out.

use std::io;
use std::sync::{Mutex, Once, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

static ORIGINAL: Mutex<Option<Termios>> = Mutex::new(None);
static HOOK: Once = Once::new();

/// Hand the terminal to the guest: every key goes through.
pub fn make_raw() -> io::Result<()> {
    let stdin = io::stdin();
    let original = tcgetattr(&stdin)?;
    let mut raw = original.clone();
    raw.make_raw();
    *ORIGINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(original);
    HOOK.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            report(panic);
        }));
    });
    Ok(tcsetattr(&stdin, OptionalActions::Now, &raw)?)
}

/// The terminal as it was before [`make_raw`]; does nothing where it was not called.
pub fn restore() {
    let original = ORIGINAL
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(original) = original {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &original);
    }
}
