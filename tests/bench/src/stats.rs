//! Order statistics of a few measurements.

/// Measurements of one thing in one unit.
#[derive(Debug, Clone, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Adds one measurement.
    pub fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|other| *other < value);
        self.0.insert(at, value);
    }

    /// The middle one, or the mean of the middle two. `NaN` of nothing.
    pub fn median(&self) -> f64 {
        match self.0.len() {
            0 => f64::NAN,
            len if len % 2 == 1 => self.0[len / 2],
            len => f64::midpoint(self.0[len / 2 - 1], self.0[len / 2]),
        }
    }

    /// So many per cent of them are no larger. `NaN` of nothing.
    pub fn percentile(&self, percent: usize) -> f64 {
        let at = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(at).copied().unwrap_or(f64::NAN)
    }

    /// The smallest. `NaN` of nothing.
    pub fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest. `NaN` of nothing.
    pub fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sample = Sample::default();
        values.into_iter().for_each(|value| sample.push(value));
        sample
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        let sample: Sample = [9.0, 1.0, 5.0].into_iter().collect();
        let all = format!("{} {} {}", sample.min(), sample.median(), sample.max());
        assert_eq!(all, "1 5 9");
        assert!((sample.percentile(99) - 9.0).abs() < f64::EPSILON);
        assert!((sample.percentile(33) - 1.0).abs() < f64::EPSILON);
        let even: Sample = [4.0, 1.0, 2.0, 9.0].into_iter().collect();
        assert!((even.median() - 3.0).abs() < f64::EPSILON);
        assert!(Sample::default().median().is_nan());
    }
}
