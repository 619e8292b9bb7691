//! What a guest's lease and spec say on the datastore, and what is written there.

use cluster_core::model::Desired;
use shared_storage::lease::{HeldLease, LeaseRecord};
use shared_storage::{GuestDir, StoreError};
use tracing::warn;

use super::{STORAGE_LIMIT, Task};
use crate::guest_file::GuestFile;

impl Task {
    pub(super) fn is_mine(&self, last: &LeaseRecord) -> bool {
        let me = self.host.keeper.host();
        last.holder
            .as_ref()
            .is_some_and(|h| h.host == me.name() && h.incarnation == me.incarnation())
    }

    pub(super) async fn last_lease(&self) -> Result<Option<LeaseRecord>, StoreError> {
        self.on_dir(|dir| dir.lease().last()).await
    }

    pub(super) async fn wants_stop(&self) -> bool {
        self.guest_file()
            .await
            .is_ok_and(|file| file.desired == Desired::Stopped)
    }

    /// It switched itself off, or was: its owner does not want it to run any more.
    pub(super) async fn switched_off(&self) {
        let updated = self.on_dir(|dir| {
            let mut file = dir.spec::<GuestFile>()?;
            if file.spec.desired == Desired::Stopped {
                return Ok(());
            }
            file.spec.desired = Desired::Stopped;
            dir.update_spec(file.revision, &file.spec).map(|_| ())
        });
        if let Err(error) = updated.await {
            warn!(guest = self.guest, %error, "cannot write down that it is off");
        }
    }

    /// Let others have it: take the lease that the dead VMM left, and release it.
    pub(super) async fn give_up_lease(&self) {
        let host = self.host.clone();
        let held = self
            .on_dir(move |dir| HeldLease::adopt(&host.keeper, dir.lease(), None, STORAGE_LIMIT));
        match held.await {
            Ok(lease) => self.release(lease).await,
            Err(error) => warn!(guest = self.guest, %error, "cannot release its lease"),
        }
    }

    pub(super) async fn release(&self, lease: HeldLease) {
        let release = move || lease.release(STORAGE_LIMIT);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(release).await {
            warn!(guest = self.guest, %error, "cannot release its lease");
        }
    }

    pub(super) async fn on_dir<T: Send + 'static>(
        &self,
        act: impl FnOnce(&GuestDir) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (host, guest) = (self.host.clone(), self.guest.clone());
        let on_dir = move || act(&host.store.guest(&guest)?);
        match tokio::task::spawn_blocking(on_dir).await {
            Ok(result) => result,
            Err(join) => Err(StoreError::io("look at", &self.guest)(
                std::io::Error::other(join),
            )),
        }
    }
}
