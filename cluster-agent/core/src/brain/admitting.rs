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
    /// policy? `None`: this host does not lead; ask the one that does.
    pub fn admit(&mut self, name: &GuestId, guest: &Guest) -> Option<Result<Admitted, Refusal>> {
        let policy = self.settings().admission;
        let now_us = self.now_us;
        let leading = self.leading.as_mut()?;
        Some(leading.admission(now_us, policy).may_start(name, guest))
    }

    /// On the leader: this guest was told that it may start. It goes where `who` says once it is
    /// wanted, and takes that room from now on.
    pub fn expect(&mut self, name: &GuestId, guest: &Guest, host: HostId, who: &'static str) {
        if let Some(leading) = &mut self.leading {
            leading.promise(self.now_us, name, guest, &host);
            leading.failover.hint(name, host, who);
        }
    }

    /// On the leader: does somebody have to choose the host of this guest, because the cluster
    /// only recommends one?
    pub fn is_placed_by_hand(&self, guest: &Guest) -> bool {
        let level = guest.automation.unwrap_or(self.settings().drs.automation);
        level == Automation::Manual
    }

    /// On the leader: the operator wants this guest, which is about to be wanted, to start on
    /// this host. With a warning, if the policy only warns; or why it may not.
    pub fn place_on(
        &mut self,
        name: &GuestId,
        wanted: &Guest,
        host: &HostId,
    ) -> Result<Option<String>, String> {
        let settings = self.settings();
        let only_begun = "this host has only begun to lead; ask again";
        let leading = self.leading.as_ref().ok_or(only_begun)?;
        let mut cluster = leading.expected(self.now_us);
        let mut guest = wanted.clone();
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
        let warning = safe.err().map(|refusal| refusal.because);
        if let (Some(why), Enforcement::Refuse) = (&warning, settings.enforcement) {
            return Err(format!("{name} may not start on {host}: {why}"));
        }
        self.expect(name, wanted, host.clone(), "the operator");
        Ok(warning.map(|why| format!("{name} on {host}: {why}")))
    }

    /// On the leader: how many more guests of this size would be admitted?
    pub fn reserve(&mut self, size: Resources) -> Option<Reserve> {
        let policy = self.settings().admission;
        let now_us = self.now_us;
        let leading = self.leading.as_mut()?;
        Some(leading.admission(now_us, policy).reserve(size))
    }
}
