//! Until a guest has come to stay, whoever asks a waiting target to end (a signal, the console) ends
//! it at once: the guest goes on at its source. From then on he asks the guest.

use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::notice::Notice;

const STACK_BYTES: usize = 128 << 10;

/// Stands between those who ask and those who act on it.
#[derive(Debug, Clone, Default)]
pub struct Usher(Arc<Mutex<bool>>);

impl Usher {
    /// What is `asked` goes on to `notices` once the guest is here; before that, the first of it
    /// makes `leave` end the process.
    pub fn stand(
        &self,
        asked: Receiver<Notice>,
        notices: Sender<Notice>,
        leave: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let usher = self.clone();
        let thread = thread::Builder::new()
            .name("usher".into())
            .stack_size(STACK_BYTES);
        thread.spawn(move || {
            for notice in asked {
                // Held until the process has ended: nothing begins to run here meanwhile.
                let is_here = usher.is_here();
                if !*is_here {
                    return leave();
                }
                drop(is_here);
                if notices.send(notice).is_err() {
                    return;
                }
            }
        })?;
        Ok(())
    }

    /// The guest is about to run here.
    pub fn let_in(&self) {
        *self.is_here() = true;
    }

    fn is_here(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn whoever_asks_before_the_guest_is_here_ends_it_and_later_asks_the_guest() {
        let (left, leaves) = channel();
        let (notices, inbox) = channel();
        let usher = Usher::default();
        let leave = || {
            let left = left.clone();
            move || left.send(()).unwrap()
        };
        let (early, asked) = channel();
        usher.stand(asked, notices.clone(), leave()).unwrap();
        early.send(Notice::Off).unwrap();
        leaves.recv().unwrap();
        inbox.try_recv().unwrap_err();
        let (late, asked) = channel();
        usher.stand(asked, notices, leave()).unwrap();
        usher.let_in();
        late.send(Notice::Off).unwrap();
        assert_eq!(inbox.recv(), Ok(Notice::Off));
    }
}
