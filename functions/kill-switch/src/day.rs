//! The day of Google's billing: it begins at midnight in California.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use shared::clock::Micros;

const ZONE: &str = "America/Los_Angeles";

/// Tells the billing day of a time.
#[derive(Debug, Clone)]
pub struct BillingDays(TimeZone);

impl BillingDays {
    /// Reads the rules of the time zone that are built in: a minimal image has none, and they are everywhere the same.
    pub fn new() -> Result<Self, String> {
        TimeZoneDatabase::bundled().get(ZONE).map(Self).map_err(|error| format!("time zone {ZONE}: {error}"))
    }

    /// The day as `2026-11-27`: texts in the order of their days.
    pub fn of(&self, time: Micros) -> String {
        self.0.to_datetime(Timestamp::from_microsecond(time).unwrap_or_default()).date().to_string()
    }
}

/// How many days `to` is after `from`, at least 1. What is no day counts as the day before.
pub(crate) fn days_after(from: &str, to: &str) -> u32 {
    let (from, to) = (from.parse::<Date>(), to.parse::<Date>());
    let days = from.and_then(|from| to?.since(from)).map_or(1, |span| span.get_days());
    u32::try_from(days).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use shared::decode::time::timestamp;

    use super::*;

    #[test]
    fn days_are_counted_over_the_ends_of_months() {
        for (from, to, days) in [
            ("2026-11-26", "2026-11-27", 1),
            ("2026-10-31", "2026-11-04", 4),
            ("2026-01-31", "2026-03-31", 59),
            ("2026-11-27", "2026-11-27", 1),
            ("2026-11-28", "2026-11-27", 1),
            ("", "2026-11-27", 1),
        ] {
            assert_eq!(days_after(from, to), days, "{from} {to}");
        }
    }

    #[test]
    fn a_day_ends_at_midnight_in_california_in_summer_and_in_winter() {
        let days = BillingDays::new().unwrap();
        for (time, day) in [
            ("2026-07-02T06:59:59.999999Z", "2026-07-01"),
            ("2026-07-02T07:00:00Z", "2026-07-02"),
            ("2026-12-02T07:59:59.999999Z", "2026-12-01"),
            ("2026-12-02T08:00:00Z", "2026-12-02"),
            // The clocks go forward on 8 March 2026: a day of 23 hours …
            ("2026-03-08T07:59:59Z", "2026-03-07"),
            ("2026-03-08T08:00:00Z", "2026-03-08"),
            ("2026-03-09T06:59:59Z", "2026-03-08"),
            ("2026-03-09T07:00:00Z", "2026-03-09"),
            // … and back on 1 November 2026: one of 25.
            ("2026-11-01T06:59:59Z", "2026-10-31"),
            ("2026-11-01T07:00:00Z", "2026-11-01"),
            ("2026-11-02T07:59:59Z", "2026-11-01"),
            ("2026-11-02T08:00:00Z", "2026-11-02"),
        ] {
            assert_eq!(days.of(timestamp(time).unwrap()), day, "{time}");
        }
    }
}
