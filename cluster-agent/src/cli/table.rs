//! Columns for people.

use std::fmt::Write;

use super::colour::{bad, good, warning, width};

/// Lay out `rows` under `header`, columns as wide as their widest cell, two spaces between.
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(width);
    for row in rows {
        for (widest, cell) in widths.iter_mut().zip(row) {
            *widest = (*widest).max(width(cell));
        }
    }
    let mut out = line(&header.map(str::to_owned), &widths);
    for row in rows {
        out.push_str(&line(row, &widths));
    }
    out
}

fn line(cells: &[String], widths: &[usize]) -> String {
    let mut line = String::new();
    for (cell, widest) in cells.iter().zip(widths) {
        let missing = widest.saturating_sub(width(cell));
        // Writing to a String cannot fail.
        let _ = write!(line, "{cell}{:missing$}  ", "");
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// A bar of ten cells for `part` of `whole`; it warns when it is nearly full.
pub fn bar(part: u64, whole: u64) -> String {
    const CELLS: u64 = 10;
    let filled = (part * CELLS).div_ceil(whole.max(1)).min(CELLS);
    let bar: String = (0..CELLS)
        .map(|n| if n < filled { '█' } else { '░' })
        .collect();
    match filled {
        0..8 => good(&bar),
        8..10 => warning(&bar),
        _ => bad(&bar),
    }
}

/// Memory for people: `512 MiB`, `4 GiB`, `1.5 GiB`.
pub fn memory(mib: u64) -> String {
    match mib {
        0..1024 => format!("{mib} MiB"),
        _ if mib.is_multiple_of(1024) => format!("{} GiB", mib / 1024),
        _ => format!("{}.{} GiB", mib / 1024, mib % 1024 * 10 / 1024),
    }
}

/// Thousandths for people: `87.5 %`.
pub fn percent(permille: u64) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::colour::plain;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let rows = [
            [good("web1"), "running".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        let expected = "GUEST  STATE\nweb1   running\na\n";
        assert_eq!(plain(&table(["GUEST", "STATE"], &rows)), expected);
    }

    #[test]
    fn bars_and_memory() {
        let seen = |part, whole| plain(&bar(part, whole));
        assert_eq!(seen(0, 100), "░░░░░░░░░░");
        assert_eq!(seen(1, 100), "█░░░░░░░░░");
        assert_eq!(seen(200, 100), "██████████");
        assert_eq!(seen(0, 0), "░░░░░░░░░░");
        assert_eq!(bar(5, 5), bad("██████████"));
        assert_eq!(memory(512), "512 MiB");
        assert_eq!(memory(4096), "4 GiB");
        assert_eq!(memory(1536), "1.5 GiB");
    }
}
