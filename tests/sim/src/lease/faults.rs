//! What goes wrong.

use super::host::{Host, Leaving, Who};
use super::plan::{Fault, HEAL_US};
use super::steps::Step;
use super::world::World;

const MS: u64 = 1000;

impl World {
    pub(super) fn fault(&mut self, fault: Fault) {
        let now_us = self.queue.now_us();
        // Whatever is wrong at the end is repaired then.
        let until_us = |for_us: u64| (now_us + for_us).min(HEAL_US);
        match fault {
            Fault::PowerCut { host, off_us } => {
                let off = !self.hosts[host].up;
                self.hosts[host].up = false;
                self.hosts[host].agent = None;
                self.hosts[host].guest = None;
                match off_us {
                    Some(off_us) if !off => self.queue.at(until_us(off_us), Step::Boot(host)),
                    Some(_) => {}
                    None => self.hosts[host].gone = true,
                }
            }
            Fault::AgentCrash { host, off_us } => {
                if self.hosts[host].agent.take().is_some() {
                    let boot = self.hosts[host].boot;
                    self.queue.at(
                        until_us(off_us),
                        Step::Spawn {
                            host,
                            boot,
                            who: Who::Agent,
                        },
                    );
                }
            }
            Fault::GuestCrash { host } => self.hosts[host].guest = None,
            Fault::Freeze {
                host,
                agent,
                guest,
                for_us,
            } => {
                let host = &mut self.hosts[host];
                if let (true, Some(agent)) = (agent, &mut host.agent) {
                    let frozen = &mut agent.process.frozen_until_us;
                    *frozen = until_us(for_us).max(*frozen);
                }
                if let (true, Some(guest)) = (guest, &mut host.guest) {
                    let frozen = &mut guest.process.frozen_until_us;
                    *frozen = until_us(for_us).max(*frozen);
                }
            }
            Fault::Stop { host, .. } if now_us < self.hosts[host].stopped_until_us => {}
            Fault::Stop { host, for_us } => {
                let until_us = until_us(for_us);
                let own_us = self.own_us(host);
                let stopped = &mut self.hosts[host];
                let agent = stopped.agent.as_mut().map(|agent| &mut agent.process);
                let guest = stopped.guest.as_mut().map(|guest| &mut guest.process);
                for process in agent.into_iter().chain(guest) {
                    process.frozen_until_us = until_us.max(process.frozen_until_us);
                }
                stopped.stopped_until_us = until_us;
                self.queue
                    .at(until_us.saturating_sub(1), Step::ClockThaw { host, own_us });
            }
            Fault::ClockJump { host, by_us } => {
                let own_us = self.own_us(host).saturating_add_signed(by_us);
                self.hosts[host].clock.set(now_us, own_us);
            }
            Fault::Cut { host, for_us } => {
                let cut = &mut self.hosts[host].cut_until_us;
                *cut = until_us(for_us).max(*cut);
            }
            Fault::Outage { for_us } => {
                self.outage_until_us = until_us(for_us).max(self.outage_until_us);
            }
            Fault::Migrate { to } => self.migrate(to),
            Fault::Release => {
                if let Some(guest) = self.hosts.iter_mut().find_map(|host| host.guest.as_mut()) {
                    guest.leaving = Some(Leaving::Release);
                }
            }
        }
    }

    pub(super) fn boot(&mut self, host: usize) {
        if self.hosts[host].gone {
            return;
        }
        let now_us = self.queue.now_us();
        let boot = self.hosts[host].boot + 1;
        let drift = u64::from(self.plan.timing.drift_ppm);
        let cut_until_us = self.hosts[host].cut_until_us;
        self.hosts[host] = Host::boot(now_us, boot, 0, drift, &mut self.rng);
        self.hosts[host].cut_until_us = cut_until_us;
        let delay_us = self.rng.below(300 * MS);
        self.queue.after(
            delay_us,
            Step::Spawn {
                host,
                boot,
                who: Who::Agent,
            },
        );
    }

    /// A target process gets ready on `to`; the source commits some time later.
    pub(super) fn migrate(&mut self, to: usize) {
        let now_us = self.queue.now_us();
        let own_us = self.own_us(to);
        let Some(from) = (0..self.hosts.len()).find(|host| self.acts(*host)) else {
            return;
        };
        let hold = self.hosts[to].page.hold;
        if from == to
            || !self.hosts[to].up
            || self.hosts[to].guest.is_some()
            || !hold.is_live(own_us)
        {
            return;
        }
        self.spawn(to, Who::Guest);
        let give_up_us = now_us + self.rng.between(100 * MS, 3000 * MS);
        let Some(target) = self.hosts[to].guest.as_mut() else {
            return;
        };
        target.awaiting = true;
        target.give_up_us = give_up_us;
        let holder = target.lease.identity().holder(hold.term());
        if let Some(source) = self.hosts[from].guest.as_mut() {
            source.leaving = Some(Leaving::To(holder));
        }
    }
}
