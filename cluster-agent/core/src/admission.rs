//! May this guest be started without breaking the promise that failures are survived?
//!
//! With `tolerate k host failures` a state is *safe* iff for every set `F` of `k` serving
//! hosts all protected guests on `F`, and all guests that wait for a host, can be packed
//! onto the other serving hosts beside what runs there, within CPU and memory reservations
//! and hard rules. `k` is at most the number of serving hosts less one: the last host has
//! nobody to lean on. A request is admitted iff the state after it is safe.
//!
//! How that is decided fast, in this order:
//!
//! 1. *Necessary*: for each `f`, what is lost with `f` and what is asked for must fit into
//!    the sum of the room elsewhere. If not: refused, proved.
//! 2. *Sufficient*: let `B` be the largest protected guest and
//!    `c(j) = min((free_mem(j) - B_mem) / M, (free_cpu(j) - B_cpu) / C)`. Packing each guest
//!    anywhere it fits can only fail when every refuge `j` is filled beyond `c(j)`, so it
//!    succeeds if the `k` largest `lost(f) + c(f)` sum to no more than all `c`. Additive:
//!    one pass for all `n` choose `k` sets.
//! 3. *Certificates* (`k` = 1): for each host where its guests would go. After a change a
//!    certificate mostly still holds, or a guest or two find another place.
//! 4. *Exact search*, bounded. If it is cut short the request is refused and the refusal says
//!    that it could not be proved either way.

mod bound;
mod certificates;
mod follow;
pub(crate) mod ledger;
mod packing;
mod words;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::model::{Cluster, Guest, GuestId, HostId, Resources};
use crate::settings::AdmissionPolicy;
use certificates::{Certificates, Checked};
use follow::Grounds;
use ledger::{G, H, Ledger};
use words::unknown;

/// Hosts tried for one guest before the search is cut short.
const MAX_CANDIDATES: usize = 64;
/// Largest number of further guests that is counted.
const MAX_RESERVE: u32 = 1000;

/// Admitted, and where the guest goes best.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admitted {
    /// A host on which the cluster stays safe.
    pub host: HostId,
    /// In words.
    pub because: String,
}

/// Refused, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The hosts whose failure together could not be survived; empty if it does not even
    /// fit now.
    pub failing: Vec<HostId>,
    /// Certain, or could safety only not be proved?
    pub proved: bool,
    /// In words and numbers.
    pub because: String,
    /// What would help.
    pub remedies: Vec<String>,
}

/// What is left for more guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// How many more guests of the given size are admitted.
    pub fits: u32,
    /// The hosts whose failure is what stands against one more.
    pub critical: Vec<HostId>,
    /// In words: `2 more guests of 1 core and 4 GiB fit; host b is the critical one`.
    pub words: String,
}

/// The admission control of a cluster, kept warm between requests.
#[derive(Debug, Clone)]
pub struct Admission {
    policy: AdmissionPolicy,
    grounds: Grounds,
    pub(crate) ledger: Ledger,
    certificates: Certificates,
}

impl Admission {
    /// Takes in the cluster. The first verdict after this is slower than the next ones.
    pub fn new(cluster: &Cluster, policy: AdmissionPolicy) -> Self {
        Self {
            policy,
            grounds: Grounds::of(cluster),
            ledger: Ledger::new(cluster),
            certificates: Certificates::default(),
        }
    }

    /// Is the present state safe?
    pub fn safe(&mut self) -> Result<(), Refusal> {
        match self.check() {
            Checked::Safe => Ok(()),
            unsafe_ => Err(self.refusal(unsafe_, None)),
        }
    }

    /// May this guest be started (or, if it runs, have this reservation)? Nothing changes.
    pub fn may_start(&mut self, name: &GuestId, guest: &Guest) -> Result<Admitted, Refusal> {
        let before = self.ledger.guest(name).map(|index| self.recall(index));
        let verdict = self.start(name, guest);
        if let Some(before) = before {
            self.restore(&before);
        } else {
            self.stop(name);
        }
        verdict
    }

    /// As [`Self::may_start`], and if admitted the guest counts from now on.
    pub fn start(&mut self, name: &GuestId, guest: &Guest) -> Result<Admitted, Refusal> {
        let before = self.ledger.guest(name).map(|index| self.recall(index));
        let index = self.ledger.add(name, guest);
        let at = self.ledger.take(index);
        let verdict = self.find(index, at);
        match (&verdict, before) {
            (Ok(_), _) => {}
            (Err(_), Some(before)) => self.restore(&before),
            (Err(_), None) => {
                self.ledger.take(index);
            }
        }
        verdict
    }

    /// The guest takes its room there, whatever the verdict would be.
    pub fn hold(&mut self, name: &GuestId, guest: &Guest, host: &str) {
        let index = self.ledger.add(name, guest);
        self.ledger.take(index);
        let host = self.ledger.host(host);
        self.ledger.put(index, host);
    }

    /// The guest takes no room any more.
    pub fn stop(&mut self, name: &str) {
        if let Some(index) = self.ledger.guest(name) {
            self.ledger.take(index);
        }
    }

    /// May this host be emptied for maintenance? Nothing changes.
    pub fn may_rest(&mut self, host: &str) -> Result<(), Refusal> {
        let Some(index) = self.ledger.host(host) else {
            return Err(unknown(format!("there is no host {host}")));
        };
        let dense = &self.ledger.hosts[index as usize];
        let before = (dense.serves, dense.receives);
        self.ledger.set_mode(index, false, false);
        let verdict = self.safe();
        self.ledger.set_mode(index, before.0, before.1);
        verdict.map_err(|mut refusal| {
            refusal.because = format!("with {host} empty, {}", refusal.because);
            refusal
        })
    }

    /// How many more guests of this size would be admitted?
    pub fn reserve(&mut self, size: Resources) -> Reserve {
        let guest = Guest::sized(size);
        let mut added: Vec<GuestId> = Vec::new();
        let mut critical = Vec::new();
        while added.len() < MAX_RESERVE as usize {
            let name = format!("\u{0}reserve-{}", added.len());
            match self.start(&name, &guest) {
                Ok(_) => added.push(name),
                Err(refusal) => {
                    critical = refusal.failing;
                    break;
                }
            }
        }
        for name in &added {
            self.stop(name);
        }
        let fits = added.len() as u32;
        let more = if fits == MAX_RESERVE { "at least " } else { "" };
        let size = match size.mcpu {
            0 => size.memory_words(),
            _ => size.to_string(),
        };
        let (guests, fit) = match fits {
            1 => ("guest", "fits"),
            _ => ("guests", "fit"),
        };
        let mut words = format!("{more}{fits} more {guests} of {size} {fit}");
        match &critical[..] {
            [] => {}
            [one] => words = format!("{words}; host {one} is the critical one"),
            many => words = format!("{words}; hosts {} are the critical ones", many.join(", ")),
        }
        Reserve {
            fits,
            critical,
            words,
        }
    }

    fn find(&mut self, index: G, at: Option<H>) -> Result<Admitted, Refusal> {
        if let Some(refusal) = self.hopeless(index) {
            return Err(refusal);
        }
        // One guest more never makes room: what is not survived now will not be then.
        let before = self.check();
        if !matches!(before, Checked::Safe) {
            let mut refusal = self.refusal(before, None);
            refusal.because = format!("already {}", refusal.because);
            return Err(refusal);
        }
        let candidates = self.candidates(index, at);
        if candidates.is_empty() {
            return Err(self.no_host(index));
        }
        let (mut first, mut unproved) = (None, candidates.len() > MAX_CANDIDATES);
        for host in candidates.iter().take(MAX_CANDIDATES) {
            self.ledger.put(index, Some(*host));
            let checked = self.check();
            if matches!(checked, Checked::Safe) {
                return Ok(self.admitted(index, *host));
            }
            unproved |= matches!(checked, Checked::Unproved(_));
            if first.is_none() {
                first = Some(self.refusal(checked, Some((index, *host))));
            }
            self.ledger.take(index);
        }
        let mut refusal = first.unwrap_or_else(|| self.no_host(index));
        refusal.proved = !unproved;
        Err(refusal)
    }

    /// Hosts it could run on now: those first on which it disturbs no certificate, then the
    /// roomiest.
    fn candidates(&mut self, index: G, at: Option<H>) -> Vec<H> {
        let size = self.ledger.guests[index as usize].size;
        let spare = self.certificates.spare(&self.ledger);
        let fits = |host: &H| {
            let dense = &self.ledger.hosts[*host as usize];
            (dense.receives || at == Some(*host))
                && dense.serves
                && size.fits(dense.free())
                && self.ledger.allows(index, *host)
        };
        if let Some(at) = at {
            // It runs: it stays where it is.
            return Some(at).filter(fits).into_iter().collect();
        }
        let mut hosts: Vec<H> = (0..self.ledger.hosts.len() as H).filter(fits).collect();
        hosts.sort_by_cached_key(|host| {
            let dense = &self.ledger.hosts[*host as usize];
            let left = dense.free().minus(size);
            let share = (left.memory_mib * 4096 / dense.capacity.memory_mib.max(1))
                .min(left.mcpu * 4096 / dense.capacity.mcpu.max(1));
            let disturbs = !size.fits(spare[*host as usize]);
            (disturbs, core::cmp::Reverse(share), *host)
        });
        hosts
    }

    fn check(&mut self) -> Checked {
        match self.policy {
            AdmissionPolicy::Off => Checked::Safe,
            AdmissionPolicy::ReservePercent(percent) => self.check_percent(percent),
            AdmissionPolicy::TolerateHostFailures(k) => {
                let serving = self.ledger.serving().count();
                let k = (k as usize).min(serving.saturating_sub(1));
                self.certificates.check(&self.ledger, k)
            }
        }
    }

    fn check_percent(&self, percent: u32) -> Checked {
        let keep = u64::from(percent.min(100));
        let (used, whole) = self.sums();
        let most = |whole: u64| whole * (100 - keep) / 100;
        let most = Resources::new(most(whole.mcpu), most(whole.memory_mib));
        if used.fits(most) {
            Checked::Safe
        } else {
            Checked::OverPercent(used.minus(most))
        }
    }

    /// What is reserved, and what there is, on all hosts that serve.
    fn sums(&self) -> (Resources, Resources) {
        let waiting = self
            .ledger
            .displaced
            .iter()
            .map(|g| self.ledger.guests[*g as usize].size);
        let waiting = waiting.fold(Resources::default(), Resources::plus);
        self.ledger
            .serving()
            .map(|host| &self.ledger.hosts[host as usize])
            .fold((waiting, Resources::default()), |(used, whole), host| {
                (used.plus(host.used), whole.plus(host.capacity))
            })
    }

    /// Refused whatever the host: the sums say so already.
    fn hopeless(&self, index: G) -> Option<Refusal> {
        let AdmissionPolicy::TolerateHostFailures(k) = self.policy else {
            return None;
        };
        let guest = &self.ledger.guests[index as usize];
        if k == 0 || !guest.protected || self.ledger.serving().count() < 2 {
            return None;
        }
        let (host, short) = bound::overfull(&self.ledger, guest.size)?;
        let checked = Checked::Short {
            hosts: Vec::from([host]),
            short,
        };
        Some(self.refusal(checked, Some((index, host))))
    }

    fn recall(&self, index: G) -> Before {
        let guest = &self.ledger.guests[index as usize];
        Before {
            index,
            size: guest.size,
            protected: guest.protected,
            host: guest.host,
            there: guest.host.is_some() || guest.displaced,
        }
    }

    fn restore(&mut self, before: &Before) {
        self.ledger.take(before.index);
        let guest = &mut self.ledger.guests[before.index as usize];
        (guest.size, guest.protected) = (before.size, before.protected);
        if before.there {
            self.ledger.put(before.index, before.host);
        }
    }
}

struct Before {
    index: G,
    size: Resources,
    protected: bool,
    host: Option<H>,
    there: bool,
}
