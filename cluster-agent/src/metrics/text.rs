//! The text format of Prometheus, version 0.0.4.

use std::fmt::{Display, Write};

/// What `Content-Type` says.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of metrics that is being written.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// A number that only goes up.
    pub fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, &[], value);
    }

    /// Begins a metric; its samples follow.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<_> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels[..] {
            [] => String::new(),
            _ => format!("{{{}}}", labels.join(",")),
        };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// The page.
    pub fn text(self) -> String {
        self.0
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_reads_as_it_should() {
        let mut page = Page::default();
        page.gauge("up", "Is it?", 1);
        page.family("errors_total", "counter", "How many.");
        page.sample(
            "errors_total",
            &[("kind", "a \"b\"\\\n"), ("host", "h")],
            0.5,
        );
        assert_eq!(
            page.text(),
            "# HELP up Is it?\n# TYPE up gauge\nup 1\n\
             # HELP errors_total How many.\n# TYPE errors_total counter\n\
             errors_total{kind=\"a \\\"b\\\"\\\\\\n\",host=\"h\"} 0.5\n"
        );
    }
}
