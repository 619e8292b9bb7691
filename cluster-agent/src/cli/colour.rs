//! Colours for people. Screens are always painted; what is printed keeps its colours only where
//! somebody sees them: on a terminal, unless NO_COLOR is set (<https://no-color.org>).

use std::io::{self, IsTerminal};

const ESCAPE: char = '\u{1b}';

/// All is well.
pub fn good(text: &str) -> String {
    paint(text, 32)
}

/// Worth a look.
pub fn warning(text: &str) -> String {
    paint(text, 33)
}

/// Wrong.
pub fn bad(text: &str) -> String {
    paint(text, 31)
}

fn paint(text: &str, code: u8) -> String {
    format!("{ESCAPE}[{code}m{text}{ESCAPE}[0m")
}

/// Is standard output for somebody who wants colours?
pub fn wanted() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
    io::stdout().is_terminal() && !refused && !dumb
}

/// The text without its colours.
pub fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut parts = text.split(ESCAPE);
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        // Ours are all `[<number>m`.
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

/// Columns that the text takes.
pub fn width(text: &str) -> usize {
    plain(text).chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_painted_is_as_wide_as_before_and_can_be_washed() {
        let text = format!("{} and {}, more", good("héalthy"), bad("dead"));
        assert!(text.contains("\u{1b}[32mhéalthy\u{1b}[0m"));
        assert_eq!(plain(&text), "héalthy and dead, more");
        assert_eq!(width(&text), 22);
        assert_eq!(plain("mm"), "mm");
    }
}
