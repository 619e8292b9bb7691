//! What must hold after every event, and in the end.

use std::collections::{BTreeMap, BTreeSet};

use cluster_core::admission::Admission;
use cluster_core::model::{HostMode, Resources, Rule};
use cluster_core::rules::violations;

use super::world::World;
use crate::harness::Violation;

impl World {
    /// Does admission's promise hold?
    pub fn is_safe(&self) -> bool {
        let seen = self.as_the_leader_sees_it();
        Admission::new(&seen, self.settings.admission)
            .safe()
            .is_ok()
    }

    /// Nothing over capacity; no hard rule broken but by a failure, or while its guests move
    /// as one; the promise kept by each wave.
    pub fn check(&mut self, at_us: u64) -> Result<(), Violation> {
        let violation = |what: String| Err(Violation { at_us, what });
        if let Some(what) = self.overfull() {
            return violation(what);
        }
        let seen = self.as_the_leader_sees_it();
        let mut broken = BTreeSet::new();
        for (guest, one) in violations(&seen).into_iter().filter(|(_, one)| one.hard) {
            if !self.moves_with(&guest) && !self.excused.contains(&one.rule) {
                return violation(one.why);
            }
            broken.insert(one.rule);
        }
        if self.under_way.is_empty() {
            self.excused.retain(|rule| broken.contains(rule));
            if self.promised {
                self.tally.promises += 1;
                if !self.is_safe() {
                    return violation("a wave broke admission's promise".to_owned());
                }
                self.promised = false;
            }
        }
        Ok(())
    }

    /// A host that is given more than it has, with what is on its way to it.
    fn overfull(&self) -> Option<String> {
        let mut used: BTreeMap<&String, Resources> = BTreeMap::new();
        let at_home = self.cluster.guests.values();
        let at_home = at_home.filter_map(|guest| Some((guest.host.as_ref()?, guest.reservation)));
        let coming = self.under_way.values().map(|trip| {
            let guest = &self.cluster.guests[&trip.one.guest];
            (&trip.one.to, guest.reservation)
        });
        for (host, size) in at_home.chain(coming) {
            let at = used.entry(host).or_default();
            *at = at.plus(size);
        }
        let hosts = &self.cluster.hosts;
        let over = used.into_iter().find(|(host, used)| {
            hosts[*host].mode != HostMode::Lost && !used.fits(hosts[*host].capacity)
        });
        over.map(|(host, used)| format!("{host} is given {used}"))
    }

    /// Is a guest of one of its rules on its way?
    fn moves_with(&self, guest: &String) -> bool {
        let rules = self.cluster.rules.values();
        rules
            .filter(|rule| rule.guests().contains(guest))
            .flat_map(Rule::guests)
            .any(|guest| self.under_way.contains_key(guest))
    }

    /// Once all is well again: every guest runs, every hard rule is obeyed, nothing is left
    /// to do. Says what is not so.
    pub fn unsettled(&self) -> Option<String> {
        let seen = self.as_the_leader_sees_it();
        if let Some((name, _)) = seen.guests.iter().find(|(_, guest)| guest.host.is_none()) {
            return Some(format!("{name} does not run"));
        }
        if let Some((_, broken)) = violations(&seen).into_iter().find(|(_, one)| one.hard) {
            return Some(broken.why);
        }
        (!self.rests()).then(|| "balancing does not come to rest".to_owned())
    }
}
