//! Medians and what lies around them.

use crate::report::ratio;

/// The middle half of some figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// A quarter of the figures is lower.
    pub low: f64,
    /// Half of them are.
    pub median: f64,
    /// A quarter is higher.
    pub high: f64,
}

impl Spread {
    /// The spread of `figures`.
    ///
    /// # Panics
    /// Without figures.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Spread {
        let mut figures: Vec<f64> = figures.into_iter().collect();
        figures.sort_unstable_by(f64::total_cmp);
        let at = |share| quantile(&figures, share);
        Spread { low: at(0.25), median: at(0.5), high: at(0.75) }
    }

    /// As a ratio with its middle half.
    pub fn as_ratio(&self) -> String {
        format!("{} ({} .. {})", ratio(self.median), ratio(self.low), ratio(self.high))
    }
}

/// The figure below which `share` of the sorted `figures` lie.
///
/// # Panics
/// Without figures.
pub fn quantile(figures: &[f64], share: f64) -> f64 {
    let last = figures.len().checked_sub(1).expect("a spread of nothing");
    let position = last as f64 * share;
    let (below, above) = (figures[position.floor() as usize], figures[position.ceil() as usize]);
    below + (above - below) * position.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_round_that_was_disturbed_does_not_move_the_median() {
        let spread = Spread::of([1.0, 1.1, 900.0, 1.2, 1.0]);
        assert_eq!(spread, Spread { low: 1.0, median: 1.1, high: 1.2 });
    }

    #[test]
    fn between_two_figures_the_quantile_is_between_them() {
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0], 1.0), 3.0);
    }
}
