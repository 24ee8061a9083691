//! How long events took, to the millisecond.

use std::sync::{Mutex, PoisonError};

/// Longer than this counts as this.
const MAX_MILLIS: usize = 60_000;

/// Counts by millisecond since the start of the process.
pub struct Latency {
    counts: Mutex<Vec<u64>>,
}

/// Percentiles in milliseconds, and of how many events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Percentiles {
    /// Median; none before the first event.
    pub p50: Option<usize>,
    /// 99 of 100 were no slower.
    pub p99: Option<usize>,
    /// How many events.
    pub samples: u64,
}

impl Latency {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self { counts: Mutex::new(vec![0; MAX_MILLIS + 1]) }
    }

    /// Counts one event.
    pub fn record(&self, micros: i64) {
        let millis = usize::try_from(micros / 1_000).unwrap_or_default().min(MAX_MILLIS);
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)[millis] += 1;
    }

    /// What has been counted.
    pub fn percentiles(&self) -> Percentiles {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let samples: u64 = counts.iter().sum();
        let at = |percent: u64| {
            let rank = (samples * percent).div_ceil(100).max(1);
            let mut seen = 0;
            counts.iter().position(|count| {
                seen += count;
                seen >= rank
            })
        };
        Percentiles { p50: at(50), p99: at(99), samples }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_counted() {
        let latency = Latency::new();
        assert_eq!(latency.percentiles(), Percentiles { p50: None, p99: None, samples: 0 });
        for millis in 1..=100 {
            latency.record(millis * 1_000);
        }
        assert_eq!(latency.percentiles(), Percentiles { p50: Some(50), p99: Some(99), samples: 100 });
    }
}
