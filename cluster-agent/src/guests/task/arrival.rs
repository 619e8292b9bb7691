//! A guest that comes in by live migration: its VMM waits here for the source's.

use std::path::Path;
use std::time::{Duration, Instant};

use cluster_core::messages::GuestState;

use super::{Berth, CLAIM_PAUSE, End, Task};
use crate::guests::process::{self, Vmm};

/// The VMM waits for its source within this.
const LISTEN_LIMIT: Duration = Duration::from_secs(20);
/// How often a guest on its way is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// What the VMM says of where it waits.
const WAITS_ON: &str = "waiting for a guest on ";

impl Task {
    /// Have a VMM wait for the guest, tell where, and watch the guest once it is here.
    pub(super) async fn arrive(&mut self, reply: Berth) -> End {
        self.tell(Some(GuestState::Arriving)).await;
        let vmm = match self.await_source().await {
            Ok((vmm, address)) => {
                // A source that does not wait any more will not come; the VMM gives up then.
                let _ = reply.send(Ok(crate::migration::view::Berth { address }));
                vmm
            }
            Err(why) => {
                let _ = reply.send(Err(why.clone()));
                return End::Failed(why);
            }
        };
        if !self.await_guest(&vmm).await && !self.owns().await {
            return End::Failed(format!("it did not arrive: {}", self.last_words()));
        }
        self.watch(vmm).await
    }

    async fn await_source(&self) -> Result<(Vmm, std::net::SocketAddr), String> {
        self.prepare().await?;
        // What an earlier VMM said here is not what this one will say.
        let log = self.run_dir.join("vmm.log");
        match std::fs::remove_file(&log) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(format!("cannot remove {}: {error}", log.display()));
            }
            _ => {}
        }
        let vmm = process::spawn_receiver(&self.host, &self.guest, &self.run_dir)
            .map_err(|error| error.to_string())?;
        let give_up = Instant::now() + LISTEN_LIMIT;
        loop {
            if let Some(address) = waits_on(&log) {
                return Ok((vmm, address));
            }
            tokio::select! {
                () = vmm.ended() => return Err(self.last_words()),
                () = tokio::time::sleep(CLAIM_PAUSE) => {}
            }
            if Instant::now() > give_up {
                vmm.kill();
                let limit = LISTEN_LIMIT.as_secs();
                return Err(format!("its VMM was not ready within {limit} s"));
            }
        }
    }

    /// Is the guest ours though its VMM has died? Nobody else will start it then.
    async fn owns(&self) -> bool {
        let last = self.last_lease().await;
        last.is_ok_and(|last| last.is_some_and(|last| self.is_mine(&last)))
    }

    /// Is it here? It answers only then.
    async fn await_guest(&self, vmm: &Vmm) -> bool {
        loop {
            tokio::select! {
                () = vmm.ended() => return false,
                here = self.look(vmm) => if here.is_some() {
                    return true;
                },
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn waits_on(log: &Path) -> Option<std::net::SocketAddr> {
    let said = std::fs::read_to_string(log).ok()?;
    let line = said.lines().find_map(|line| line.split_once(WAITS_ON))?.1;
    line.trim().parse().ok()
}
