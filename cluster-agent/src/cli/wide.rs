//! What was observed of guests and hosts, as `--wide` shows it.

use cluster_core::model::Resources;

use super::table::{memory, percent, table};
use crate::api::views::{GuestView, HostView};

/// What is not known.
const UNKNOWN: &str = "-";

/// `godwit guests --wide`.
pub fn guests(guests: &[GuestView]) -> String {
    let rows: Vec<_> = guests
        .iter()
        .map(|guest| {
            let rates = guest.rates.as_ref();
            let or_unknown = |text: Option<String>| text.unwrap_or_else(|| UNKNOWN.to_owned());
            [
                guest.name.clone(),
                or_unknown(guest.host.clone()),
                or_unknown(rates.map(|of| cores(of.sample.used_mcpu))),
                or_unknown(rates.map(|of| cores(of.sample.delayed_mcpu))),
                cores(guest.demand_mcpu),
                or_unknown(guest.score_permille.map(percent)),
                memory(guest.memory_mib),
                or_unknown(rates.map(|of| memory(of.resident_mib))),
                or_unknown(rates.and_then(|of| of.active_mib).map(memory)),
                or_unknown(rates.map(|of| rate(of.disk_kib_s))),
                or_unknown(rates.map(|of| rate(of.net_kib_s))),
            ]
        })
        .collect();
    let header = [
        "GUEST", "HOST", "CPU", "WAITS", "DEMAND", "GETS", "MEMORY", "TOUCHED", "ACTIVE", "DISK",
        "NET",
    ];
    table(header, &rows)
}

/// `godwit hosts --wide`.
pub fn hosts(hosts: &[HostView]) -> String {
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            let used = |of: &dyn Fn(Resources) -> String| {
                let known = host.used.map(of);
                known.unwrap_or_else(|| UNKNOWN.to_owned())
            };
            [
                host.name.clone(),
                host.guests.to_string(),
                cores(host.capacity.mcpu),
                cores(host.demand.mcpu),
                used(&|of| cores(of.mcpu)),
                percent(host.load_permille),
                memory(host.capacity.memory_mib),
                memory(host.reserved.memory_mib),
                used(&|of| memory(of.memory_mib)),
                rate(host.disk_kib_s),
                rate(host.net_kib_s),
            ]
        })
        .collect();
    let header = [
        "HOST", "GUESTS", "CORES", "DEMAND", "BUSY", "LOAD", "MEMORY", "RESERVED", "IN USE",
        "DISK", "NET",
    ];
    table(header, &rows)
}

/// Thousandths of a core in cores.
fn cores(mcpu: u64) -> String {
    format!("{}.{:02}", mcpu / 1000, mcpu % 1000 / 10)
}

/// What flows in a second.
fn rate(kib_s: u64) -> String {
    match kib_s {
        0..1024 => format!("{kib_s} KiB/s"),
        _ => format!("{}.{} MiB/s", kib_s / 1024, kib_s % 1024 * 10 / 1024),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_amounts_are_short() {
        assert_eq!(rate(1023), "1023 KiB/s");
        assert_eq!(rate(1536), "1.5 MiB/s");
        assert_eq!(cores(2340), "2.34");
    }
}
