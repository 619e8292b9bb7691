//! Columns for people.

use std::fmt::Write;

/// Lay out `rows` under `header`, columns as wide as their widest cell, two spaces between.
pub fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = header.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
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
    for (cell, width) in cells.iter().zip(widths) {
        // Writing to a String cannot fail.
        let _ = write!(line, "{cell:width$}  ");
    }
    line.truncate(line.trim_end().len());
    line.push('\n');
    line
}

/// A bar of ten cells for `part` of `whole`.
pub fn bar(part: u64, whole: u64) -> String {
    const CELLS: u64 = 10;
    let filled = (part * CELLS).div_ceil(whole.max(1)).min(CELLS);
    (0..CELLS)
        .map(|n| if n < filled { '█' } else { '░' })
        .collect()
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

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let rows = [
            ["web1".to_owned(), "running".to_owned()],
            ["a".to_owned(), String::new()],
        ];
        let expected = "GUEST  STATE\nweb1   running\na\n";
        assert_eq!(table(["GUEST", "STATE"], &rows), expected);
    }

    #[test]
    fn bars_and_memory() {
        assert_eq!(bar(0, 100), "░░░░░░░░░░");
        assert_eq!(bar(1, 100), "█░░░░░░░░░");
        assert_eq!(bar(200, 100), "██████████");
        assert_eq!(bar(0, 0), "░░░░░░░░░░");
        assert_eq!(memory(512), "512 MiB");
        assert_eq!(memory(4096), "4 GiB");
        assert_eq!(memory(1536), "1.5 GiB");
    }
}
