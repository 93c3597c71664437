//! Sizes, times and counts as people read them.

/// `331.9 MiB`, `4 KiB`, `0 B`.
pub fn size(bytes: u64) -> String {
    devpagemap::Size::bytes(bytes).to_string()
}

/// `842 ns`, `1.25 ms`, `2.31 s`, `4 min 12 s`.
pub fn time(ns: u64) -> String {
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} µs", ns as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        1_000_000_000..120_000_000_000 => format!("{:.2} s", ns as f64 / 1e9),
        _ => format!("{} min {} s", ns / 60_000_000_000, ns / 1_000_000_000 % 60),
    }
}

/// `8.42 GB/s`: bandwidths count in powers of ten.
pub fn bandwidth(bytes_per_s: u64) -> String {
    match bytes_per_s {
        1_000_000_000.. => format!("{:.2} GB/s", bytes_per_s as f64 / 1e9),
        _ => format!("{:.1} MB/s", bytes_per_s as f64 / 1e6),
    }
}

/// `23 167`: digits in threes.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push('\u{202f}');
        }
        grouped.push(digit);
    }
    grouped
}

/// `1 eviction`, `2 evictions`.
pub fn plural(value: u64, one: &str) -> String {
    format!("{} {one}{}", count(value), if value == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!(size(348_028_928), "331.9 MiB");
        assert_eq!(time(2_310_000_000), "2.31 s");
        assert_eq!(time(252_000_000_000), "4 min 12 s");
        assert_eq!(bandwidth(8_420_000_000), "8.42 GB/s");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(plural(1, "eviction"), "1 eviction");
    }
}
