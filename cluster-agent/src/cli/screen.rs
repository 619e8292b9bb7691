//! What the verbs show to a person.

use std::fmt::Write;

use cluster_core::dependencies::words;

use super::colour::{bad, good, warning};
use super::table::{bar, memory, percent, table};
use crate::api::views::{BalanceView, ClusterView, Event, GuestView, HostView};
use crate::baseline;

/// `godwit status`.
pub fn status(cluster: &ClusterView) -> String {
    let mut out = String::new();
    let leader = cluster.leader.as_deref().unwrap_or("none");
    let members = cluster.hosts.len();
    let running = cluster
        .guests
        .iter()
        .filter(|g| g.state == "running")
        .count();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "cluster {}   {members} host{}, {running} of {} guests running   leader {leader}",
        cluster.cluster_id,
        if members == 1 { "" } else { "s" },
        cluster.guests.len(),
    );
    if !cluster.reserve.is_empty() {
        let _ = writeln!(out, "reserve: {}", cluster.reserve);
    }
    if let Some(balance) = &cluster.balance {
        let _ = writeln!(out, "balance: {}", balance_words(balance));
    }
    for host in cluster
        .hosts
        .iter()
        .filter(|host| !host.cpu_lacks.is_empty())
    {
        let (name, lacks) = (&host.name, baseline::named(&host.cpu_lacks));
        let _ = writeln!(
            out,
            "processors: guests do without {lacks}, which {name} lacks"
        );
    }
    out.push('\n');
    out.push_str(&hosts(&cluster.hosts));
    if !cluster.guests.is_empty() {
        out.push('\n');
        out.push_str(&guests(&cluster.guests));
    }
    if cluster.problems.is_empty() {
        let _ = writeln!(out, "\n{}", good("all is well"));
    } else {
        out.push_str("\nwhat is wrong, and what to do:\n");
        for problem in &cluster.problems {
            let _ = writeln!(out, "  ! {}\n    {}", bad(&problem.what), problem.remedy);
        }
    }
    out
}

fn balance_words(balance: &BalanceView) -> String {
    let (met, imbalance) = (balance.met_permille, balance.imbalance_permille);
    let mut words = format!(
        "{} of the demand is met, imbalance {}",
        percent(met),
        percent(imbalance)
    );
    if !balance.starving.is_empty() {
        let _ = write!(words, "; too little for {}", balance.starving.join(", "));
    }
    words
}

/// `godwit hosts`.
pub fn hosts(hosts: &[HostView]) -> String {
    let rows: Vec<_> = hosts
        .iter()
        .map(|host| {
            let (demand, has) = (host.demand.mcpu, host.capacity.mcpu);
            let (taken, room) = (host.reserved.memory_mib, host.capacity.memory_mib);
            [
                host.name.clone(),
                match &host.health[..] {
                    "alive" => good(&host.health),
                    "dead" | "without storage" => bad(&host.health),
                    _ => warning(&host.health),
                },
                host.address.to_string(),
                host.guests.to_string(),
                format!("{} {}/{}", bar(demand, has), cores(demand), cores(has)),
                percent(host.load_permille),
                format!("{} {} of {}", bar(taken, room), memory(taken), memory(room)),
            ]
        })
        .collect();
    table(
        [
            "HOST", "HEALTH", "ADDRESS", "GUESTS", "CPU", "LOAD", "MEMORY",
        ],
        &rows,
    )
}

/// Thousandths of a core in cores.
fn cores(mcpu: u64) -> String {
    format!("{}.{}", mcpu / 1000, mcpu % 1000 / 100)
}

/// `godwit images`.
pub fn images(names: &[String]) -> String {
    if names.is_empty() {
        return "there are no images yet; an image is a directory images/NAME of the datastore \
                with an image.toml (guest-images/linux/build makes some)\n"
            .to_owned();
    }
    let rows: Vec<_> = names.iter().map(|name| [name.clone()]).collect();
    table(["IMAGE"], &rows)
}

/// `godwit guests`.
pub fn guests(guests: &[GuestView]) -> String {
    let rows: Vec<_> = guests
        .iter()
        .map(|guest| {
            [
                guest.name.clone(),
                match &guest.state[..] {
                    "running" => good(&guest.state),
                    "waiting" => bad(&guest.state),
                    "stopped" => guest.state.clone(),
                    _ => warning(&guest.state),
                },
                guest.host.clone().unwrap_or_else(|| "-".to_owned()),
                guest.cpus.to_string(),
                memory(guest.memory_mib),
                format!(
                    "{}.{:02}",
                    guest.demand_mcpu / 1000,
                    guest.demand_mcpu % 1000 / 10
                ),
                guest.score_permille.map_or_else(|| "-".to_owned(), percent),
                format!("{:?}", guest.priority).to_lowercase(),
                guest.reason.clone().unwrap_or_else(|| after(guest)),
            ]
        })
        .collect();
    let header = [
        "GUEST", "STATE", "HOST", "CPUS", "MEMORY", "DEMAND", "GETS", "PRIORITY", "WHY",
    ];
    table(header, &rows)
}

/// What it is started after, in words.
fn after(guest: &GuestView) -> String {
    let all = guest.after.iter();
    let all: Vec<_> = all.map(|(one, until)| words(one, *until)).collect();
    if all.is_empty() {
        return String::new();
    }
    format!("starts after {}", all.join(", "))
}

/// `godwit events`.
pub fn events(events: &[Event]) -> String {
    let rows: Vec<_> = events
        .iter()
        .map(|event| {
            [
                time_of_day(event.unix_ms),
                event.host.clone(),
                match &event.what[..] {
                    "error" => bad(&event.what),
                    "warning" => warning(&event.what),
                    _ => event.what.clone(),
                },
                event.about.clone(),
                event.detail.clone(),
            ]
        })
        .collect();
    table(
        ["TIME (UTC)", "RECORDED BY", "WHAT", "ABOUT", "WHY AND HOW"],
        &rows,
    )
}

/// The time of day of an instant since 1970.
pub fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        unix_ms % 1000
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::views::Problem;
    use crate::cli::colour::plain;

    #[test]
    fn an_empty_cluster_is_well_and_a_sick_one_says_what_to_do() {
        let mut cluster = ClusterView {
            cluster_id: "c1".to_owned(),
            leader: None,
            hosts: vec![],
            guests: vec![],
            reserve: "nothing to protect".to_owned(),
            balance: None,
            problems: vec![],
        };
        assert!(plain(&status(&cluster)).ends_with("all is well\n"));
        cluster.problems.push(Problem {
            what: "host b is dead".to_owned(),
            remedy: "bring it back, or: godwit host forget b".to_owned(),
        });
        assert!(plain(&status(&cluster)).contains("! host b is dead\n    bring it back"));
    }

    #[test]
    fn times_are_read_as_utc() {
        assert_eq!(time_of_day(86_400_000 + 3_723_004), "01:02:03.004");
    }
}
