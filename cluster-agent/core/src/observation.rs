//! What guests and hosts do, as the leader sees it in the members' reports.
//!
//! Members report what their VMMs and kernels have *counted*; the leader takes differences.
//! So a lost report costs nothing, a member remembers nothing, and a guest that moves keeps
//! what is known of it: only its counters begin anew, which its new lease epoch shows.

use alloc::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vmm_core::control::MemorySample;

use crate::demand::{Demand, Sample, Smoothing};
use crate::messages::Report;
use crate::migration_cost::{Link, MigrationCost, Writes};
use crate::model::{Cluster, Guest, GuestId, HostId, Resources};
use crate::own_needs::for_guests;

/// A sample is taken over at least so long.
const SAMPLE_US: u64 = 2_000_000;

/// What a guest's VMM has counted since it started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Counted {
    /// When it was read, on its host's boottime clock.
    pub at_us: u64,
    /// Processor time of the virtual processors.
    pub cpu_us: u64,
    /// Time that they were ready to run and had no processor.
    pub run_delay_us: u64,
    /// Memory that is backed, in MiB: what the guest has touched.
    pub resident_mib: u64,
    /// Bytes read from and written to its disks.
    pub disk_bytes: u64,
    /// Bytes received and sent by its network cards.
    pub net_bytes: u64,
    /// How it uses its memory, once its VMM has sampled that.
    #[serde(default)]
    pub memory: Option<MemorySample>,
}

/// What a host's kernel has counted since it booted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HostCounted {
    /// When it was read, on its own boottime clock.
    pub at_us: u64,
    /// Processor time of everything on it, guests and all.
    pub busy_us: u64,
    /// Memory that is not available for new uses, in MiB.
    pub used_mib: u64,
    /// All that it has.
    #[serde(default)]
    pub machine: Resources,
}

/// What a guest did over the last interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct GuestRates {
    /// CPU used and waited for, and memory that counts as demand.
    pub sample: Sample,
    /// Memory that is backed, in MiB: what it has touched, in use or not.
    #[serde(default)]
    pub resident_mib: u64,
    /// Read from and written to disks, in KiB/s.
    pub disk_kib_s: u64,
    /// Received and sent, in KiB/s.
    pub net_kib_s: u64,
    /// Memory that it reads or writes, or where accesses cannot be sampled only what it writes,
    /// in MiB; nothing before that was sampled.
    #[serde(default)]
    pub active_mib: Option<u64>,
    /// What a migration of it would come to.
    #[serde(default)]
    pub migration: MigrationCost,
}

#[derive(Debug, Clone, Default)]
struct Watched {
    epoch: u64,
    last: Counted,
    rates: Option<GuestRates>,
    demand: Demand,
    writes: Writes,
    /// Of the host that it is on.
    link: Option<Link>,
}

#[derive(Debug, Clone, Default)]
struct WatchedHost {
    last: HostCounted,
    busy_mcpu: Option<u64>,
    /// What the inventory grants to guests.
    granted: Resources,
    own_needs: Option<Resources>,
}

/// All that is seen.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    guests: BTreeMap<GuestId, Watched>,
    hosts: BTreeMap<HostId, WatchedHost>,
}

impl Observation {
    /// Takes in what a member counted and lets the cluster know what its guests want.
    pub fn reported(
        &mut self,
        now_us: u64,
        host: &HostId,
        report: &Report,
        cluster: &mut Cluster,
        by: &Smoothing,
    ) {
        if let (Some(counted), Some(watched)) = (report.host_counted, self.hosts.get_mut(host)) {
            watched.count(counted);
            watched.own_needs = report.own_needs.or(watched.own_needs);
            if let Some(host) = cluster.hosts.get_mut(host) {
                host.capacity = watched.capacity();
            }
        }
        for (name, counted) in &report.counted {
            let epoch = report.guests.get(name).map_or(0, |local| local.epoch);
            let Some(guest) = cluster.guests.get_mut(name).filter(|_| epoch > 0) else {
                continue;
            };
            let watched = self.guests.entry(name.clone()).or_default();
            if watched.epoch > epoch {
                continue;
            }
            watched.link = report.link;
            watched.count(now_us, epoch, *counted, guest.configured, by);
            watched.tell(guest);
        }
    }

    /// Lets a cluster that is as the inventory has it know what is known; guests and hosts that
    /// are gone are forgotten.
    pub fn apply(&mut self, cluster: &mut Cluster) {
        self.guests
            .retain(|name, _| cluster.guests.contains_key(name));
        self.hosts
            .retain(|name, _| cluster.hosts.contains_key(name));
        for (name, watched) in &self.guests {
            if let Some(guest) = cluster.guests.get_mut(name) {
                watched.tell(guest);
            }
        }
        for (name, host) in &mut cluster.hosts {
            let watched = self.hosts.entry(name.clone()).or_default();
            watched.granted = host.capacity;
            host.capacity = watched.capacity();
        }
    }

    /// What a guest did over the last interval.
    pub fn rates(&self, guest: &str) -> Option<GuestRates> {
        self.guests.get(guest)?.rates
    }

    /// How busy a host was over the last interval, in thousandths of a core, and its memory
    /// in use.
    pub fn host_use(&self, host: &str) -> Option<Resources> {
        let watched = self.hosts.get(host)?;
        Some(Resources::new(watched.busy_mcpu?, watched.last.used_mib))
    }
}

impl Watched {
    /// Lets the guest's model know.
    fn tell(&self, guest: &mut Guest) {
        if self.rates.is_some() {
            guest.demand = self.demand.wanted();
            guest.migration = self.migration();
        }
    }

    fn migration(&self) -> MigrationCost {
        MigrationCost::predict(self.last.resident_mib, &self.writes, self.link)
    }

    fn count(
        &mut self,
        now_us: u64,
        epoch: u64,
        counted: Counted,
        configured: Resources,
        by: &Smoothing,
    ) {
        let last = self.last;
        let anew = self.epoch != epoch || counted.cpu_us < last.cpu_us;
        let elapsed_us = counted.at_us.saturating_sub(last.at_us);
        if anew {
            self.epoch = epoch;
            self.last = counted;
            return;
        }
        if elapsed_us < SAMPLE_US {
            return;
        }
        self.last = counted;
        let kib_s = |bytes: u64| (bytes >> 10).saturating_mul(1_000_000) / elapsed_us;
        let sample = Sample {
            used_mcpu: mcpu(counted.cpu_us - last.cpu_us, elapsed_us),
            delayed_mcpu: mcpu(
                counted.run_delay_us.saturating_sub(last.run_delay_us),
                elapsed_us,
            ),
            active_mib: counted
                .memory
                .map(|memory| in_use_mib(memory, counted.resident_mib))
                .or(self.rates.map(|rates| rates.sample.active_mib))
                .unwrap_or(counted.resident_mib),
        };
        if let Some(memory) = counted.memory {
            self.writes.observe(now_us / 1000, memory, by);
        }
        self.rates = Some(GuestRates {
            sample,
            resident_mib: counted.resident_mib,
            active_mib: counted.memory.map(|memory| memory.active_mib()),
            migration: self.migration(),
            disk_kib_s: kib_s(counted.disk_bytes.saturating_sub(last.disk_bytes)),
            net_kib_s: kib_s(counted.net_bytes.saturating_sub(last.net_bytes)),
        });
        self.demand.observe(now_us / 1000, sample, configured, by);
    }
}

/// Memory that a guest uses: what it reads or writes where its VMM can tell, else all that it
/// ever touched.
fn in_use_mib(memory: MemorySample, resident_mib: u64) -> u64 {
    match memory.accessed {
        Some(_) => memory.active_mib(),
        None => resident_mib,
    }
}

impl WatchedHost {
    /// What it has for guests.
    fn capacity(&self) -> Resources {
        match self.own_needs {
            Some(own) => for_guests(self.granted, self.last.machine, own),
            None => self.granted,
        }
    }

    fn count(&mut self, counted: HostCounted) {
        let last = self.last;
        let elapsed_us = counted.at_us.saturating_sub(last.at_us);
        let anew = last.at_us == 0 || counted.at_us < last.at_us || counted.busy_us < last.busy_us;
        if anew {
            self.last = counted;
            self.busy_mcpu = None;
        } else if elapsed_us >= SAMPLE_US {
            self.busy_mcpu = Some(mcpu(counted.busy_us - last.busy_us, elapsed_us));
            self.last = counted;
        }
    }
}

/// Processor time over a time, in thousandths of a core.
pub(crate) fn mcpu(cpu_us: u64, elapsed_us: u64) -> u64 {
    cpu_us.saturating_mul(1000) / elapsed_us.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_core::control::Accessed;

    use crate::messages::{GuestState, LocalGuest};
    use crate::model::Host;

    fn report(epoch: u64, seconds: u64, cpu_s: u64, delay_s: u64) -> Report {
        let local = LocalGuest {
            epoch,
            state: GuestState::Running { beating: true },
            running_ms: 0,
        };
        let counted = Counted {
            at_us: seconds * 1_000_000,
            cpu_us: cpu_s * 1_000_000,
            run_delay_us: delay_s * 1_000_000,
            resident_mib: 100,
            disk_bytes: seconds << 20,
            net_bytes: 0,
            memory: None,
        };
        let mut report = Report::default();
        report.guests.insert("g".into(), local);
        report.counted.insert("g".into(), counted);
        report.host_counted = Some(HostCounted {
            at_us: counted.at_us,
            busy_us: counted.cpu_us * 2,
            used_mib: 300,
            machine: Resources::new(8000, 4096),
        });
        report
    }

    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for name in ["a", "b"] {
            let host = Host {
                capacity: Resources::new(8000, 3500),
                ..Host::default()
            };
            cluster.hosts.insert(name.into(), host);
        }
        let guest = Guest::sized(Resources::new(4000, 1024));
        cluster.guests.insert("g".into(), guest);
        cluster
    }

    fn known() -> (Observation, Cluster) {
        let (mut seen, mut cluster) = (Observation::default(), cluster());
        seen.apply(&mut cluster);
        (seen, cluster)
    }

    #[test]
    fn what_a_host_needs_itself_is_no_room_for_guests() {
        let (mut seen, mut cluster) = known();
        let by = Smoothing::default();
        let mut told = report(1, 10, 10, 0);
        told.own_needs = Some(Resources::new(700, 1000));
        seen.reported(10_000_000, &"a".into(), &told, &mut cluster, &by);
        let netted = Resources::new(7300, 3096);
        assert_eq!(cluster.hosts["a"].capacity, netted);
        // The inventory is read anew; an agent that has just begun does not know yet.
        cluster = self::cluster();
        seen.apply(&mut cluster);
        told.own_needs = None;
        seen.reported(11_000_000, &"a".into(), &told, &mut cluster, &by);
        assert_eq!(cluster.hosts["a"].capacity, netted);
        assert_eq!(cluster.hosts["b"].capacity, Resources::new(8000, 3500));
    }

    #[test]
    fn memory_that_is_in_use_counts_where_it_can_be_told() {
        let (mut seen, mut cluster) = known();
        let by = Smoothing::default();
        let mut sample = MemorySample {
            touched_mib: 80,
            ..MemorySample::default()
        };
        for (at, accessed) in [(10, None), (20, None), (30, Some(16))] {
            sample.accessed = accessed.map(|missed_pages| Accessed {
                taken_pages: 64,
                missed_pages,
                within_us: 10_000_000,
            });
            let mut told = report(1, at, 0, 0);
            for counted in told.counted.values_mut() {
                counted.memory = Some(sample);
            }
            seen.reported(at * 1_000_000, &"a".into(), &told, &mut cluster, &by);
        }
        let rates = seen.rates("g").expect("rates");
        assert_eq!((rates.active_mib, rates.sample.active_mib), (Some(20), 20));
        assert_eq!(rates.resident_mib, 100, "what it has touched stays known");
        assert!(
            cluster.guests["g"].demand.memory_mib > 90,
            "it falls slowly"
        );
    }

    #[test]
    fn differences_become_demand() {
        let (mut seen, mut cluster) = known();
        let by = Smoothing::default();
        for (seconds, report) in [(100, report(1, 10, 10, 0)), (110, report(1, 20, 15, 2))] {
            seen.reported(seconds * 1_000_000, &"a".into(), &report, &mut cluster, &by);
        }
        let rates = seen.rates("g").expect("two reports make a sample");
        assert_eq!(
            (rates.sample.used_mcpu, rates.sample.delayed_mcpu),
            (500, 200)
        );
        assert_eq!(rates.disk_kib_s, 1024);
        assert_eq!(cluster.guests["g"].demand, Resources::new(700, 100));
        assert_eq!(cluster.guests["g"].migration.link_mib_s, None);
        assert_eq!(seen.host_use("a"), Some(Resources::new(1000, 300)));
    }

    #[test]
    fn a_move_begins_the_counters_anew_and_keeps_the_demand() {
        let (mut seen, mut cluster) = known();
        let by = Smoothing::default();
        let reports = [
            (100, "a", report(1, 10, 10, 0)),
            (110, "a", report(1, 20, 20, 0)),
            // On another host, whose clock and counters are others.
            (111, "b", report(2, 3000, 0, 0)),
            // Late mail of the old one.
            (112, "a", report(1, 21, 20, 0)),
            (121, "b", report(2, 3010, 10, 0)),
        ];
        for (seconds, host, report) in reports {
            seen.reported(
                seconds * 1_000_000,
                &host.into(),
                &report,
                &mut cluster,
                &by,
            );
            if seconds > 100 {
                assert_eq!(cluster.guests["g"].demand.mcpu, 1000, "at {seconds} s");
            }
        }
    }
}
