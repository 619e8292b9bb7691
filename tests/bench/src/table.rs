//! Tables as text: Markdown, aligned so that they read well on a terminal too.

use std::fmt;

/// Rows under a title and column heads.
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column heads.
    pub fn new(title: impl Into<String>, heads: &[&str]) -> Table {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Table {
            title: title.into(),
            rows: vec![heads],
        }
    }

    /// Adds a row; one cell for each head.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            self.rows
                .iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        writeln!(f, "{}\n", self.title)?;
        for (index, row) in self.rows.iter().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let before = if column == 0 { "|" } else { "" };
                // The first column names things, the others hold figures.
                if column == 0 {
                    write!(f, "{before} {cell:<width$} |")?;
                } else {
                    write!(f, "{before} {cell:>width$} |")?;
                }
            }
            writeln!(f)?;
            if index == 0 {
                write!(f, "|")?;
                for (column, width) in widths.iter().enumerate() {
                    let right = if column == 0 { "-" } else { ":" };
                    write!(f, "{}{right}|", "-".repeat(width + 1))?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new("T", &["what", "ms"]);
        table.row(vec!["a long name".into(), "1.5".into()]);
        let expected = "T\n\n| what        |  ms |\n|-------------|----:|\n| a long name | 1.5 |\n";
        assert_eq!(table.to_string(), expected);
    }
}
