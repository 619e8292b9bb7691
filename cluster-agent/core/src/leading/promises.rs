//! Guests that were told that they may start, and do not show yet as wanted: what they will take
//! is not promised to others.

use alloc::collections::BTreeMap;

use super::Leading;
use crate::admission::Admission;
use crate::model::{Cluster, Guest, GuestId, HostId};
use crate::settings::AdmissionPolicy;

/// A promise that nobody has made use of by then is void.
const PROMISE_US: u64 = 10_000_000;

/// The promises that hold.
#[derive(Debug, Clone, Default)]
pub(super) struct Promises(BTreeMap<GuestId, Promise>);

#[derive(Debug, Clone)]
struct Promise {
    guest: Guest,
    host: HostId,
    until_us: u64,
}

impl Promises {
    /// Those that are neither void nor seen in the cluster.
    fn open<'a>(
        &'a self,
        now_us: u64,
        cluster: &'a Cluster,
    ) -> impl Iterator<Item = (&'a GuestId, &'a Promise)> {
        let seen = |name: &GuestId| cluster.guests.get(name).is_some_and(Guest::takes_room);
        self.0
            .iter()
            .filter(move |(name, promise)| now_us < promise.until_us && !seen(name))
    }
}

impl Leading {
    /// This guest may start, there.
    pub fn promise(&mut self, now_us: u64, name: &GuestId, guest: &Guest, host: &HostId) {
        let promise = Promise {
            guest: guest.clone(),
            host: host.clone(),
            until_us: now_us + PROMISE_US,
        };
        let open = self.promises.open(now_us, &self.cluster);
        let mut open: BTreeMap<_, _> = open.map(|(name, p)| (name.clone(), p.clone())).collect();
        open.insert(name.clone(), promise);
        self.promises = Promises(open);
    }

    /// The cluster as it will be once every promise is kept.
    pub fn expected(&self, now_us: u64) -> Cluster {
        let mut cluster = self.cluster.clone();
        for (name, promise) in self.promises.open(now_us, &self.cluster) {
            let mut guest = promise.guest.clone();
            guest.host = Some(promise.host.clone());
            cluster.guests.insert(name.clone(), guest);
        }
        cluster
    }

    /// Admission control of that cluster, kept warm between requests.
    pub fn admission(&mut self, now_us: u64, policy: AdmissionPolicy) -> &mut Admission {
        let kept = self.admission.take();
        let kept = kept.and_then(|mut kept| kept.follow(&self.cluster, policy).then_some(kept));
        let mut warm = kept.unwrap_or_else(|| Admission::new(&self.cluster, policy));
        for (name, promise) in self.promises.open(now_us, &self.cluster) {
            warm.hold(name, &promise.guest, &promise.host);
        }
        self.admission.insert(warm)
    }
}
