//! What a leader that is asked says of guests that are to start, and of hosts that are to rest.

use alloc::format;
use alloc::string::String;

use super::Brain;
use crate::admission::{Admission, Admitted, Refusal, Reserve};
use crate::drs::Automation;
use crate::model::{Guest, GuestId, HostId, Resources};
use crate::placement::{place, usage};
use crate::rules::RuleBook;
use crate::settings::Enforcement;

impl Brain {
    /// On the leader: may this guest be started, or have this reservation, under the admission
    /// policy? An admitted guest goes where the verdict says once it is wanted. `None`: this
    /// host does not lead; ask the one that does.
    pub fn admit(&mut self, name: &GuestId, guest: &Guest) -> Option<Result<Admitted, Refusal>> {
        let policy = self.settings().admission;
        let leading = self.leading.as_mut()?;
        let verdict = leading.admission(policy).may_start(name, guest);
        if let Ok(admitted) = &verdict {
            let host = admitted.host.clone();
            leading.failover.hint(name, host, "admission control");
        }
        Some(verdict)
    }

    /// On the leader: does somebody have to choose the host of this guest, because the cluster
    /// only recommends one?
    pub fn is_placed_by_hand(&self, guest: &Guest) -> bool {
        let level = guest.automation.unwrap_or(self.settings().drs.automation);
        level == Automation::Manual
    }

    /// On the leader: the operator wants this guest, which is about to be wanted, to start on
    /// this host. Or why it may not.
    pub fn place_on(&mut self, name: &GuestId, guest: &Guest, host: &HostId) -> Result<(), String> {
        let settings = self.settings();
        let only_begun = "this host has only begun to lead; ask again";
        let leading = self.leading.as_mut().ok_or(only_begun)?;
        let mut cluster = leading.cluster().clone();
        let mut guest = guest.clone();
        guest.host = None;
        cluster.guests.insert(name.clone(), guest.clone());
        let mut there = cluster.clone();
        there.hosts.retain(|other, _| other == host);
        if there.hosts.is_empty() {
            return Err(format!(
                "there is no host {host}; `godwit hosts` lists them"
            ));
        }
        let book = RuleBook::new(&there.rules);
        place(&there, &book, &usage(&there), name, &[].into())
            .map_err(|nowhere| format!("{name} may not start on {host}: {}", nowhere.because))?;
        guest.host = Some(host.clone());
        cluster.guests.insert(name.clone(), guest);
        let safe = Admission::new(&cluster, settings.admission).safe();
        if let (Err(refusal), Enforcement::Refuse) = (safe, settings.enforcement) {
            let why = refusal.because;
            return Err(format!("{name} may not start on {host}: {why}"));
        }
        leading.failover.hint(name, host.clone(), "the operator");
        Ok(())
    }

    /// On the leader: may this host be emptied for maintenance under the admission policy?
    pub fn may_rest(&mut self, host: &str) -> Option<Result<(), Refusal>> {
        let policy = self.settings().admission;
        Some(self.leading.as_mut()?.admission(policy).may_rest(host))
    }

    /// On the leader: how many more guests of this size would be admitted?
    pub fn reserve(&mut self, size: Resources) -> Option<Reserve> {
        let policy = self.settings().admission;
        Some(self.leading.as_mut()?.admission(policy).reserve(size))
    }
}
