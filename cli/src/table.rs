//! Tables for people: aligned columns, two spaces between them, none at the end of a line.

use std::fmt::Write as _;

use anstyle::Style;

use crate::output::HEAD;

/// A table that is being filled. Its cells are plain text without control characters.
pub(crate) struct Table {
    indent: usize,
    rows: Vec<Vec<Cell>>,
}

/// One cell.
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Coloured text.
    pub(crate) fn styled(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text.to_string(), Style::new())
    }
}

impl Table {
    /// A table without a heading, so far in from the left.
    pub(crate) fn plain(indent: usize) -> Self {
        Self { indent, rows: Vec::new() }
    }

    /// A table with a heading.
    pub(crate) fn new(indent: usize, heading: &[&str]) -> Self {
        let mut table = Self::plain(indent);
        table.row(heading.iter().map(|text| Cell::styled(*text, HEAD)));
        table
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The text of the table, with colours.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            // Spaces are owed, and paid when something follows.
            let mut owed = self.indent;
            for (Cell { text: words, style }, width) in row.iter().zip(&widths) {
                if !words.is_empty() {
                    text.extend(std::iter::repeat_n(' ', owed));
                    owed = 0;
                    match style.is_plain() {
                        true => text.push_str(words),
                        false => drop(write!(text, "{style}{words}{style:#}")),
                    }
                }
                owed += width - words.chars().count() + 2;
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stripped(table: &Table) -> String {
        anstream::adapter::strip_str(&table.render()).to_string()
    }

    #[test]
    fn columns_are_aligned_and_lines_end_where_their_text_does() {
        let mut table = Table::new(1, &["DEVICE", "N", "GUID"]);
        table.row(["rxe0".into(), 100.into(), "-".into()]);
        table.row(["a long name".into(), 2.into(), "".into()]);
        table.row(["".into(), "".into(), "x".into()]);
        let expected = [
            " DEVICE       N    GUID\n",
            " rxe0         100  -\n",
            " a long name  2\n",
            "                   x\n",
        ];
        assert_eq!(stripped(&table), expected.concat());
    }

    #[test]
    fn colour_does_not_count_as_width() {
        let mut table = Table::plain(0);
        table.row([Cell::styled("ok", crate::output::GOOD), "a".into()]);
        table.row(["FAILED".into(), "b".into()]);
        assert_eq!(stripped(&table), "ok      a\nFAILED  b\n");
        assert!(table.render().contains('\u{1b}'));
    }
}
