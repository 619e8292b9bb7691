//! `godwit console`.

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::PROTOCOL;
use super::terminal::{Raw, keys};
use crate::api::views::ClusterView;
use crate::cli::{Agent, CliError};

/// Control and ]: leaves the console; the guest notices nothing.
const ESCAPE: u8 = 0x1d;
/// Output is read in pieces of so many bytes.
const CHUNK_BYTES: usize = 4096;
/// So long after a console has ended it is looked what became of the guest.
const FATE_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Why it is over.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The operator has left.
    Left,
    /// The other side has ended it.
    Closed,
}

/// Give the terminal to the guest until the operator leaves or the guest does.
pub async fn run(agent: &Agent, named: &str) -> Result<(), CliError> {
    let guest = agent.guest(named).await?;
    let host = host_of(agent, &guest).await?;
    let path = format!("/v1/guests/{guest}/console");
    let console = agent.upgrade(&path, PROTOCOL).await?;
    let at = host.as_deref().unwrap_or("its host");
    let raw = Raw::take()?;
    if raw.is_terminal() {
        eprint!("{guest} on {at}; control and ] leaves\r\n");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let end = tokio::select! {
        end = carry(console, keys(), tokio::io::stdout(), raw.is_terminal()) => end?,
        _ = terminate.recv() => End::Left,
    };
    drop(raw);
    eprintln!();
    match end {
        End::Left => Ok(()),
        End::Closed => Err(CliError::Failed(fate(agent, &guest, host).await)),
    }
}

async fn carry(
    mut console: impl AsyncRead + AsyncWrite + Unpin,
    mut keys: mpsc::Receiver<Vec<u8>>,
    mut screen: impl AsyncWrite + Unpin,
    is_terminal: bool,
) -> Result<End, std::io::Error> {
    let mut chunk = [0; CHUNK_BYTES];
    let mut typing = true;
    loop {
        tokio::select! {
            read = console.read(&mut chunk) => match read {
                // A connection that broke has ended, too.
                Ok(0) | Err(_) => return Ok(End::Closed),
                Ok(bytes) => {
                    screen.write_all(&chunk[..bytes]).await?;
                    screen.flush().await?;
                }
            },
            typed = keys.recv(), if typing => match typed {
                Some(typed) => {
                    let escape = typed.iter().position(|key| *key == ESCAPE && is_terminal);
                    let typed = &typed[..escape.unwrap_or(typed.len())];
                    if console.write_all(typed).await.is_err() {
                        return Ok(End::Closed);
                    }
                    if escape.is_some() {
                        return Ok(End::Left);
                    }
                }
                // What is piped in ends; what the guest says does not.
                None => typing = false,
            },
        }
    }
}

async fn host_of(agent: &Agent, guest: &str) -> Result<Option<String>, CliError> {
    let cluster: ClusterView = agent.ask("/v1/cluster").await?;
    let found = cluster.guests.into_iter().find(|one| one.name == guest);
    Ok(found.and_then(|found| found.host))
}

/// What became of a guest whose console has ended.
async fn fate(agent: &Agent, guest: &str, was: Option<String>) -> String {
    let give_up = Instant::now() + FATE_LIMIT;
    loop {
        match host_of(agent, guest).await {
            Ok(None) => return format!("{guest} does not run any more; see: godwit events"),
            Ok(now) if now != was => {
                let now = now.unwrap_or_default();
                return format!(
                    "{guest} has moved to {now}; go on there with: godwit console {guest}"
                );
            }
            Err(error) if Instant::now() > give_up => {
                return format!("the console of {guest} has ended: {error}");
            }
            Ok(_) if Instant::now() > give_up => {
                return format!(
                    "the console of {guest} has ended, though it is where it was; \
                     try again: godwit console {guest}"
                );
            }
            _ => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_escape_leaves_and_what_was_typed_before_it_arrives() {
        let (console, mut guest) = tokio::io::duplex(64);
        let (typed, keys) = mpsc::channel(4);
        typed.send(b"ls\n\x1dmore".to_vec()).await.unwrap();
        let mut screen = Vec::new();
        let end = carry(console, keys, &mut screen, true).await.unwrap();
        assert_eq!(end, End::Left);
        let mut heard = Vec::new();
        guest.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"ls\n");
    }

    #[tokio::test]
    async fn input_that_ends_does_not_end_the_console() {
        let (console, mut guest) = tokio::io::duplex(64);
        let (typed, keys) = mpsc::channel(4);
        typed.send(b"\x1d".to_vec()).await.unwrap();
        drop(typed);
        let mut screen = Vec::new();
        let says = async {
            assert_eq!(
                guest.read_u8().await.unwrap(),
                ESCAPE,
                "no person, no escape"
            );
            guest.write_all(b"login: ").await.unwrap();
            drop(guest);
        };
        let (end, ()) = tokio::join!(carry(console, keys, &mut screen, false), says);
        assert_eq!(end.unwrap(), End::Closed);
        assert_eq!(screen, b"login: ");
    }
}
