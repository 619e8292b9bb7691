//! Who may claim a lease, and why.

use alloc::string::String;

use crate::observer::Verdict;
use crate::record::{Grant, Holder, Incarnation, LeaseRecord};

/// Who we are and what is leased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster.
    pub cluster: [u8; 16],
    /// The guest's name, or the leadership.
    pub subject: String,
    /// This host.
    pub host: String,
    /// Its boot.
    pub incarnation: Incarnation,
    /// Random, different for every process that may claim.
    pub salt: [u8; 8],
}

impl Identity {
    /// Us as a holder in `term`.
    pub fn holder(&self, term: u32) -> Holder {
        Holder {
            host: self.host.clone(),
            incarnation: self.incarnation,
            term,
        }
    }

    /// Whether `record` names this boot of this host.
    pub fn is_holder(&self, record: &LeaseRecord) -> bool {
        let is_us =
            |holder: &Holder| holder.host == self.host && holder.incarnation == self.incarnation;
        record.holder.as_ref().is_some_and(is_us)
    }
}

/// Why a lease may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grounds {
    /// There never was an epoch, or the last holder released it.
    Free,
    /// An operator declared the holder gone.
    Forced,
    /// The last holder's host rebooted.
    Rebooted,
    /// The last holder's heartbeat stood still for this long.
    Silent {
        /// Microseconds counted.
        silent_us: u64,
    },
}

/// Why a lease may not be claimed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// By this very host: adopt it, or release it first.
    #[error("this host holds it already (epoch {epoch})")]
    ByUs {
        /// The epoch.
        epoch: u64,
    },
    /// By a host that may be alive.
    #[error("{holder} holds it (epoch {epoch}) and has not been silent for long enough")]
    ByOther {
        /// Who.
        holder: Holder,
        /// The epoch.
        epoch: u64,
    },
}

/// Whether the lease whose last epoch is `last` may be claimed. `verdict` is what its
/// holder's heartbeat says.
pub fn grounds(
    me: &Identity,
    last: Option<&LeaseRecord>,
    verdict: Verdict,
) -> Result<Grounds, Held> {
    let Some(record) = last else {
        return Ok(Grounds::Free);
    };
    let Some(holder) = &record.holder else {
        let forced = record.grant == Grant::ForcedFree;
        return Ok(if forced {
            Grounds::Forced
        } else {
            Grounds::Free
        });
    };
    let epoch = record.epoch;
    if me.is_holder(record) {
        return Err(Held::ByUs { epoch });
    }
    if holder.host == me.host {
        return Ok(Grounds::Rebooted);
    }
    match verdict {
        Verdict::Rebooted => Ok(Grounds::Rebooted),
        Verdict::Silent { silent_us } => Ok(Grounds::Silent { silent_us }),
        Verdict::Unknown | Verdict::Watching { .. } => Err(Held::ByOther {
            holder: holder.clone(),
            epoch,
        }),
    }
}

/// The same for people, as it is noted in the record.
pub(super) fn note(grounds: Grounds, last: Option<&LeaseRecord>) -> String {
    let host = last
        .and_then(|last| last.holder.as_ref())
        .map_or("nobody", |h| h.host.as_str());
    match grounds {
        Grounds::Free => String::from("was free"),
        Grounds::Forced => String::from("an operator freed it"),
        Grounds::Rebooted => alloc::format!("{host} rebooted"),
        Grounds::Silent { silent_us } => {
            alloc::format!("{host} was silent for {} ms", silent_us / 1000)
        }
    }
}
