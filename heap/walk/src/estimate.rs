//! Estimates of a whole from samples.

/// An estimate as it adds up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sum {
    /// Bytes.
    pub bytes: f64,
    /// Blocks.
    pub objects: f64,
    /// Samples behind it.
    pub samples: u64,
    /// Variance of `bytes`.
    pub variance: f64,
    /// Variance of `objects`.
    pub objects_variance: f64,
}

impl Sum {
    /// So many `samples` of `bytes` each, taken with probability `p`.
    ///
    /// One of them stands for 1/p others; the variance of that is (1-p)/p²
    /// (Horvitz and Thompson, 1952).
    #[must_use]
    pub fn of(samples: u64, bytes: f64, p: f64) -> Self {
        // Nothing stands for nothing, whatever its probability.
        if samples == 0 {
            return Sum::default();
        }
        let p = p.clamp(f64::MIN_POSITIVE, 1.0);
        let (count, weighted) = (samples as f64, bytes / p);
        Sum {
            bytes: count * weighted,
            objects: count / p,
            samples,
            variance: count * weighted * weighted * (1.0 - p),
            objects_variance: count * (1.0 - p) / (p * p),
        }
    }

    /// Adds another.
    pub fn join(&mut self, other: &Sum) {
        self.bytes += other.bytes;
        self.objects += other.objects;
        self.samples = self.samples.saturating_add(other.samples);
        self.variance += other.variance;
        self.objects_variance += other.objects_variance;
    }

    /// What is left without a part of it.
    #[must_use]
    pub fn without(&self, part: &Sum) -> Self {
        Sum {
            bytes: (self.bytes - part.bytes).max(0.0),
            objects: (self.objects - part.objects).max(0.0),
            samples: self.samples.saturating_sub(part.samples),
            variance: (self.variance - part.variance).max(0.0),
            objects_variance: (self.objects_variance - part.objects_variance).max(0.0),
        }
    }
}

/// Probability that a block of `bytes` is sampled when one byte in `period` is, on
/// average (Poisson): 1 - e^(-bytes/period).
#[must_use]
pub fn probability(bytes: u64, period: u64) -> f64 {
    match period {
        0 | 1 => 1.0,
        // Exact for small blocks of a huge period, too.
        period => -libm::expm1(-(bytes as f64) / period as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sample_stands_for_many() {
        let sum = Sum::of(3, 100.0, 0.25);
        assert_eq!((sum.bytes, sum.objects, sum.samples), (1200.0, 12.0, 3));
        assert_eq!((sum.variance, sum.objects_variance), (3.0 * 400.0 * 400.0 * 0.75, 3.0 * 12.0));
        assert_eq!(Sum::of(0, 100.0, 0.0), Sum::default());
        let mut two = sum;
        two.join(&sum);
        assert_eq!(two.without(&sum), sum);
        assert_eq!(sum.without(&two), Sum::default());
    }

    #[test]
    fn big_blocks_are_always_sampled() {
        assert_eq!(probability(1 << 40, 1024), 1.0);
        assert_eq!(probability(7, 1), 1.0);
        let one = probability(1, 1 << 40);
        assert!((one * (1u64 << 40) as f64 - 1.0).abs() < 1e-9, "{one}");
    }
}
