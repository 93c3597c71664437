//! Figures and tables as people read them.

/// A ratio.
pub fn ratio(of: f64) -> String {
    format!("{of:.2}x")
}

/// Nanoseconds, in the unit that suits them.
pub fn ns(ns: f64) -> String {
    match ns {
        ns if ns < 100.0 => format!("{ns:.1} ns"),
        ns if ns < 10_000.0 => format!("{ns:.0} ns"),
        ns if ns < 10_000_000.0 => format!("{:.1} us", ns / 1e3),
        ns => format!("{:.1} ms", ns / 1e6),
    }
}

/// Rows in columns as wide as they need; the first row is the heading.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let rule = format!("|{}|\n", widths.map(|width| "-".repeat(width + 2)).join("|"));
    let mut lines = rows.iter().map(line);
    lines.next().into_iter().chain([rule]).chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_can_be_pasted_into_a_page() {
        let rows = [["a", "b"], ["long", "c"]].map(|row| row.map(String::from));
        assert_eq!(table(&rows), "| a    | b |\n|------|---|\n| long | c |\n");
    }

    #[test]
    fn every_time_has_a_unit_that_suits_it() {
        assert_eq!([6.71, 742.3, 3712.0, 41_000.0].map(ns), ["6.7 ns", "742 ns", "3712 ns", "41.0 us"]);
    }
}
