//! How our migrations went, drawn: rates over time, a panel for each case.

use std::fmt::Write as _;
use std::time::Duration;

use vmm_core::migration::Progress;

const WIDTH: f64 = 760.0;
const PANEL: f64 = 170.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 30.0;
/// Rates are means over at least this: shorter ones show the scheduler.
const WINDOW_MS: f64 = 10.0;
const TRANSFER: &str = "#1f6fb4";
const DIRTY: &str = "#c8501e";
const MIB: f64 = (1 << 20) as f64;

/// What was known at one moment of a migration.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    at_ms: f64,
    sent_mib: f64,
    round: u32,
    dirty_mib: f64,
}

impl Point {
    /// What `progress` says `after` its beginning.
    pub fn new(after: Duration, progress: &Progress) -> Point {
        Point {
            at_ms: after.as_secs_f64() * 1000.0,
            sent_mib: progress.sent_bytes as f64 / MIB,
            round: progress.round,
            dirty_mib: progress.dirty_bytes as f64 / MIB,
        }
    }
}

/// A moment and a rate in MiB/s.
type Rate = (f64, f64);

/// The drawing.
#[derive(Default)]
pub struct Plot {
    panels: Vec<(&'static str, Vec<Point>)>,
}

impl Plot {
    /// Draw this run of `case`, unless it says nothing or a later one does.
    pub fn keep(&mut self, case: &'static str, trace: Vec<Point>) {
        if trace.is_empty() {
            return;
        }
        self.panels.retain(|(other, _)| *other != case);
        self.panels.push((case, trace));
    }

    /// The picture.
    pub fn svg(&self) -> String {
        let height = PANEL * self.panels.len() as f64 + TOP;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"16\" fill=\"{TRANSFER}\">transfer rate, MiB/s</text>\n\
             <text x=\"220\" y=\"16\" fill=\"{DIRTY}\">dirty rate of the round before, \
             MiB/s</text>\n<text x=\"480\" y=\"16\" fill=\"gray\">grey: rounds</text>\n"
        );
        for (index, (case, trace)) in self.panels.iter().enumerate() {
            panel(&mut svg, TOP + PANEL * index as f64, case, trace);
        }
        svg + "</svg>\n"
    }
}

fn panel(svg: &mut String, top: f64, case: &str, trace: &[Point]) {
    let transfer = transfer_rates(trace);
    let (rounds, dirty) = rounds(trace);
    let end_ms = trace.last().map_or(1.0, |point| point.at_ms).max(1.0);
    let highest = transfer.iter().chain(&dirty).map(|(_, rate)| *rate);
    let highest = highest.fold(1.0, f64::max);
    let bottom = top + PANEL - BOTTOM;
    let x = |ms: f64| LEFT + ms / end_ms * (WIDTH - LEFT - RIGHT);
    let y = |rate: f64| bottom - rate / highest * (PANEL - BOTTOM - 16.0);
    for ms in rounds {
        line(svg, (x(ms), top + 16.0), (x(ms), bottom), "lightgray");
    }
    line(svg, (LEFT, bottom), (WIDTH - RIGHT, bottom), "black");
    line(svg, (LEFT, bottom), (LEFT, top + 16.0), "black");
    for (rates, colour) in [(&transfer, TRANSFER), (&dirty, DIRTY)] {
        let points: Vec<String> = rates
            .iter()
            .map(|(ms, rate)| format!("{:.1},{:.1}", x(*ms), y(*rate)))
            .collect();
        let points = points.join(" ");
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\"/>"
        );
    }
    let labels = [
        (LEFT, top + 12.0, "start", case.to_owned()),
        (LEFT - 4.0, top + 24.0, "end", format!("{highest:.0}")),
        (LEFT - 4.0, bottom, "end", "0".to_owned()),
        (
            WIDTH - RIGHT,
            bottom + 14.0,
            "end",
            format!("{end_ms:.0} ms"),
        ),
    ];
    for (x, y, anchor, label) in labels {
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{label}</text>"
        );
    }
}

fn line(svg: &mut String, (x1, y1): Rate, (x2, y2): Rate, colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn transfer_rates(trace: &[Point]) -> Vec<Rate> {
    let mut rates = Vec::new();
    let Some(mut before) = trace.first().copied() else {
        return rates;
    };
    for point in trace {
        let took_ms = point.at_ms - before.at_ms;
        if took_ms >= WINDOW_MS {
            let rate = (point.sent_mib - before.sent_mib) * 1000.0 / took_ms;
            rates.push((point.at_ms, rate));
            before = *point;
        }
    }
    rates
}

/// When rounds ended, and how fast memory had been dirtied in each.
fn rounds(trace: &[Point]) -> (Vec<f64>, Vec<Rate>) {
    let (mut ends, mut rates) = (vec![0.0], Vec::new());
    for pair in trace.windows(2) {
        if pair[0].round != pair[1].round {
            let began_ms = ends[ends.len() - 1];
            let end_ms = pair[1].at_ms;
            let rate = pair[1].dirty_mib * 1000.0 / (end_ms - began_ms).max(1.0);
            rates.extend([(began_ms, rate), (end_ms, rate)]);
            ends.push(end_ms);
        }
    }
    (ends, rates)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_from_what_was_seen() {
        let point = |at_ms, sent_mib, round, dirty_mib| Point {
            at_ms,
            sent_mib,
            round,
            dirty_mib,
        };
        let trace = [
            point(0.0, 0.0, 0, 0.0),
            point(50.0, 100.0, 0, 0.0),
            point(100.0, 200.0, 1, 10.0),
        ];
        assert_eq!(transfer_rates(&trace), [(50.0, 2000.0), (100.0, 2000.0)]);
        let (ends, dirty) = rounds(&trace);
        assert_eq!(ends, [0.0, 100.0]);
        assert_eq!(dirty, [(0.0, 100.0), (100.0, 100.0)]);
        let mut plot = Plot::default();
        plot.keep("a", trace.to_vec());
        plot.keep("a", Vec::new());
        let svg = plot.svg();
        assert!(svg.starts_with("<svg") && svg.contains("polyline"), "{svg}");
    }
}
