//! What `godwit drs` shows to a person. Writing to a string cannot fail.

use std::fmt::Write;

use cluster_core::balance::{Bar, Recommendation, Why};
use cluster_core::drs::Automation;
use cluster_core::score::Assessment;

use super::clauses::clauses;
use super::view::{DrsView, words};
use crate::api::views::Event;
use crate::cli::screen::time_of_day;
use crate::cli::table::{bar, percent, table};

/// `godwit drs status`.
pub fn status(drs: &DrsView) -> String {
    let mut out = words(&drs.settings);
    out.push('\n');
    if !drs.settled {
        out.push_str("demand has not been observed for long enough yet\n");
    }
    let (before, after) = (&drs.round.before, &drs.round.after);
    let row =
        |name: &str, of: &dyn Fn(&Assessment) -> String| [name.to_owned(), of(before), of(after)];
    let rows = [
        row("demand that is met", &|a| percent(a.satisfied_permille)),
        row("imbalance", &|a| percent(a.imbalance_permille)),
        row("waiting, in cores", &|a| thousandths(a.waiting_mcpu)),
        row("guests that starve", &|a| a.starving.len().to_string()),
    ];
    out.push('\n');
    out.push_str(&table(["", "NOW", "IF ALL IS DONE"], &rows));
    let loads: Vec<_> = before
        .loads
        .iter()
        .map(|(host, load)| {
            let then = after.loads.get(host).copied();
            [
                host.clone(),
                format!("{} {}", bar(*load, 1000), percent(*load)),
                then.map(percent).unwrap_or_default(),
            ]
        })
        .collect();
    out.push('\n');
    out.push_str(&table(["HOST", "LOAD", "IF ALL IS DONE"], &loads));
    out.push('\n');
    out.push_str(&recommendations(drs));
    out
}

/// `godwit drs recommendations`.
pub fn recommendations(drs: &DrsView) -> String {
    let mut out = String::new();
    for step in &drs.under_way {
        let _ = writeln!(out, "under way: {}", step.because);
    }
    let waiting = drs.round.recommendations.iter();
    for one in waiting.filter(|one| !drs.is_under_way(one.number)) {
        out.push_str(&clauses(one.number, &one.step));
    }
    if drs.round.recommendations.is_empty() && drs.under_way.is_empty() {
        out.push_str("nothing to move\n");
    }
    for one in &drs.left_alone {
        let (guest, why, for_s) = (&one.guest, &one.why, one.for_ms.div_ceil(1000));
        let _ = writeln!(out, "left alone for {for_s} s: {guest}: {why}");
    }
    for one in &drs.round.unresolved {
        let _ = writeln!(out, "cannot be mended: {}: {}", one.what, one.because);
    }
    out
}

/// `godwit drs explain`.
pub fn explanation(number: u64, step: &Recommendation, drs: &DrsView) -> String {
    let mut out = format!("recommendation {number}: {}\n\n", step.words);
    for one in &step.moves {
        let _ = writeln!(
            out,
            "moves     {} from {} to {}",
            one.guest, one.from, one.to
        );
    }
    let _ = writeln!(out, "why       {}", why(&step.why));
    for load in &step.loads {
        let _ = writeln!(
            out,
            "load      {}: {} to {}",
            load.host,
            percent(load.before_permille),
            percent(load.after_permille)
        );
    }
    let _ = writeln!(
        out,
        "gain      {} cores less waiting",
        signed_thousandths(step.gain)
    );
    let _ = writeln!(
        out,
        "cost      {} cores: {} MiB, about {}.{} s on the wire",
        signed_thousandths(step.cost),
        step.memory_mib,
        step.migration_ms / 1000,
        step.migration_ms % 1000 / 100
    );
    let _ = writeln!(out, "takes     {}", step.migration);
    let settings = &drs.settings;
    let bar = settings.bar();
    let _ = match step.why {
        Why::Balance | Why::Swap => writeln!(
            out,
            "bar       at threshold {} the gain must be {} times the cost{}",
            settings.threshold,
            bar.times_cost,
            least_load(&bar)
        ),
        _ => writeln!(out, "bar       none: it is not for the balance"),
    };
    if !step.obeys.is_empty() {
        let _ = writeln!(out, "obeys     {}", step.obeys.join(", "));
    }
    let _ = writeln!(out, "\n{}", who_acts(number, step, drs));
    out
}

fn least_load(bar: &Bar) -> String {
    match bar.calm_permille {
        0 => String::new(),
        load => format!(", and the source at least {} loaded", percent(load)),
    }
}

/// Is it carried out by itself, or does it wait for somebody?
fn who_acts(number: u64, step: &Recommendation, drs: &DrsView) -> String {
    if drs.is_under_way(number) {
        return "is being carried out; `godwit drs history` tells how it went".to_owned();
    }
    let mut alone = drs.left_alone.iter();
    if let Some(one) = alone.find(|one| step.moves.iter().any(|of| of.guest == one.guest)) {
        let (guest, for_s, why) = (&one.guest, one.for_ms.div_ceil(1000), &one.why);
        return format!("waits: {guest} is left alone for {for_s} s more, as it failed: {why}");
    }
    if matches!(step.why, Why::Maintenance { .. }) {
        return "is carried out by itself: maintenance was asked for".to_owned();
    }
    let mut guests = step.moves.iter().map(|one| one.guest.as_str());
    match guests.find(|guest| drs.automation(guest) != Automation::Full) {
        None => "is carried out by itself: automation is full".to_owned(),
        Some(guest) => format!(
            "is recommended only: automation of {guest} is {}; to carry it out: \
             godwit drs apply {number}",
            drs.automation(guest).word()
        ),
    }
}

fn why(why: &Why) -> String {
    match why {
        Why::Balance => "it evens the load".to_owned(),
        Why::Swap => "it evens the load where no single move could".to_owned(),
        Why::Rule { rule } => format!("it mends rule {rule}"),
        Why::Wish => "it grants the wish of a soft rule".to_owned(),
        Why::Maintenance { host } => format!("it empties {host} for maintenance"),
    }
}

/// `godwit drs history`.
pub fn history(events: &[Event]) -> String {
    if events.is_empty() {
        return "nothing has been carried out yet\n".to_owned();
    }
    let rows: Vec<_> = events
        .iter()
        .map(|event| [time_of_day(event.unix_ms), event.detail.clone()])
        .collect();
    table(["TIME (UTC)", "WHAT AND WHY"], &rows)
}

fn thousandths(milli: u64) -> String {
    format!("{}.{:03}", milli / 1000, milli % 1000)
}

fn signed_thousandths(milli: i64) -> String {
    let sign = if milli < 0 { "-" } else { "" };
    format!("{sign}{}", thousandths(milli.unsigned_abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_cluster_has_nothing_to_move() {
        let text = status(&DrsView::default());
        assert!(
            text.starts_with("automation partial, threshold 3"),
            "{text}"
        );
        assert!(text.ends_with("nothing to move\n"), "{text}");
    }

    #[test]
    fn losses_have_a_sign() {
        assert_eq!(signed_thousandths(-20), "-0.020");
        assert_eq!(signed_thousandths(1500), "1.500");
    }
}
