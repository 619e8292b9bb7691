//! What admission control says: where a guest goes and what is promised then, or which hosts'
//! loss would not be survived, and what would help.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::ledger::{self, G, H};
use super::{Admission, Admitted, Checked, Refusal};
use crate::model::Resources;
use crate::settings::AdmissionPolicy;

impl Admission {
    pub(super) fn admitted(&self, index: G, host: H) -> Admitted {
        let name = self.ledger.host_names[host as usize].clone();
        let left = self.ledger.hosts[host as usize].free();
        let what = &self.ledger.guest_names[index as usize];
        let promise = match self.policy {
            AdmissionPolicy::Off => "admission control is off".to_string(),
            AdmissionPolicy::ReservePercent(percent) => format!("{percent} % stay unreserved"),
            AdmissionPolicy::TolerateHostFailures(k) => {
                match (k as usize).min(self.ledger.serving().count().saturating_sub(1)) {
                    0 => "no host failure is tolerated".to_string(),
                    1 => "the failure of any one host is survived".to_string(),
                    k => format!("the failure of any {k} hosts is survived"),
                }
            }
        };
        Admitted {
            because: format!("with {what} on {name} {left} are left there and {promise}"),
            host: name,
        }
    }

    pub(super) fn no_host(&self, index: G) -> Refusal {
        let size = self.ledger.guests[index as usize].size;
        let what = &self.ledger.guest_names[index as usize];
        let most = self.largest_room();
        Refusal {
            failing: Vec::new(),
            proved: true,
            because: format!(
                "no host that receives guests has {size} free for {what} where its rules allow it; the largest room is {most}"
            ),
            remedies: Vec::from([
                format!("reserve at most {most} for {what}, stop a guest, or add a host"),
                format!("look at the rules that name {what}"),
            ]),
        }
    }

    fn largest_room(&self) -> Resources {
        let hosts = self.ledger.hosts.iter().filter(|host| host.receives);
        hosts
            .map(ledger::DenseHost::free)
            .max_by_key(|free| free.memory_mib)
            .unwrap_or_default()
    }

    pub(super) fn refusal(&self, checked: Checked, asked: Option<(G, H)>) -> Refusal {
        let asked = asked.map(|(guest, host)| {
            (
                self.ledger.guest_names[guest as usize].clone(),
                self.ledger.host_names[host as usize].clone(),
            )
        });
        let with = match &asked {
            Some((guest, host)) => format!("with {guest} on {host} "),
            None => String::new(),
        };
        let (hosts, because, proved) = match checked {
            Checked::Safe => (Vec::new(), String::new(), true),
            Checked::Short { hosts, short } => {
                let names = self.ledger.names(&hosts).join(" and ");
                let because = format!(
                    "{with}the guests of {names}, were it lost, would lack {short} on all other hosts together"
                );
                (hosts, because, true)
            }
            Checked::Homeless { hosts, guest } => {
                let because = self.homeless(&with, &hosts, guest);
                (hosts, because, true)
            }
            Checked::Unproved(hosts) => {
                let names = self.ledger.names(&hosts).join(" and ");
                let because = format!(
                    "{with}it could not be proved within the time allowed that the guests of {names} find room elsewhere"
                );
                (hosts, because, false)
            }
            Checked::OverPercent(over) => (
                Vec::new(),
                format!("{with}{over} more than the policy allows would be reserved"),
                true,
            ),
        };
        let remedies = self.remedies(&hosts, asked.as_ref());
        Refusal {
            failing: self.ledger.names(&hosts),
            proved,
            because,
            remedies,
        }
    }

    fn homeless(&self, with: &str, hosts: &[H], guest: G) -> String {
        let name = &self.ledger.guest_names[guest as usize];
        let size = self.ledger.guests[guest as usize].size;
        if hosts.is_empty() {
            return format!("{with}{name}, which waits for {size}, would not find room");
        }
        let names = self.ledger.names(hosts).join(" and ");
        let rules = if self.ledger.guests[guest as usize].bonds.is_some() {
            " where its rules allow it"
        } else {
            ""
        };
        format!(
            "{with}the guests of {names} could not all be restarted if it failed: among them {name} ({size}) would find no host{rules}"
        )
    }

    fn remedies(&self, hosts: &[H], asked: Option<&(String, String)>) -> Vec<String> {
        let mut remedies = Vec::new();
        if let Some((guest, _)) = asked {
            remedies.push(format!(
                "lower the reservation of {guest}, or take it out of HA's protection"
            ));
        }
        if !hosts.is_empty() {
            let names = self.ledger.names(hosts).join(" or ");
            remedies.push(format!(
                "move a guest away from {names}, or stop one on another host"
            ));
        }
        remedies.push(
            "add a host, or let the policy tolerate fewer failures (or only warn)".to_string(),
        );
        remedies
    }
}

/// Nothing that is known here is asked for.
pub(super) fn unknown(because: String) -> Refusal {
    Refusal {
        failing: Vec::new(),
        proved: true,
        because,
        remedies: Vec::new(),
    }
}
