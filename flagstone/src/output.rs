//! Results on standard output: text for people, or one JSON document.

use std::io::{self, Write as _};

use serde::Serialize;

/// Prints `value` as one line of JSON.
///
/// # Errors
/// Standard output is closed or full.
pub fn json<T: Serialize>(value: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    bytes(&line)
}

/// The name of a value that JSON shows as a string, such as a variant.
#[must_use]
pub fn json_name<T: Serialize>(value: &T) -> Option<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => Some(name),
        _ => None,
    }
}

/// Prints `text` followed by a new line.
///
/// # Errors
/// Standard output is closed or full.
pub fn line(text: &str) -> io::Result<()> {
    let mut line = text.as_bytes().to_vec();
    line.push(b'\n');
    bytes(&line)
}

/// Prints `bytes` as they are.
///
/// # Errors
/// Standard output is closed or full.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Left-aligned columns, two spaces apart; a column whose header ends in `>` is right-aligned.
#[derive(Debug)]
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headers.
    #[must_use]
    pub fn new(headers: &[&'static str]) -> Self {
        Self { headers: headers.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; missing cells are empty.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table as text, without a trailing new line.
    #[must_use]
    pub fn render(&self) -> String {
        let header = |i: usize| self.headers[i].trim_end_matches('>');
        let width = |i: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count());
            cells.max().unwrap_or(0).max(header(i).chars().count())
        };
        let widths: Vec<usize> = (0..self.headers.len()).map(width).collect();
        let render_row = |cell: &dyn Fn(usize) -> String| {
            let cells = widths.iter().enumerate().map(|(i, &width)| {
                if self.headers[i].ends_with('>') {
                    format!("{:>width$}", cell(i))
                } else {
                    format!("{:<width$}", cell(i))
                }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut lines = vec![render_row(&|i| header(i).to_owned())];
        for row in &self.rows {
            lines.push(render_row(&|i| row.get(i).cloned().unwrap_or_default()));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", "SIZE>", "URI"]);
        table.row(["demo".to_owned(), "4 GiB".to_owned(), "x".to_owned()]);
        table.row(["longer-name".to_owned(), "512 MiB".to_owned()]);
        let expected = "NAME            SIZE  URI\n\
                        demo           4 GiB  x\n\
                        longer-name  512 MiB";
        assert_eq!(table.render(), expected);
    }
}
