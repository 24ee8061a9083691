//! Sums of money in the one currency that the kill-switch is set to.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Parts of a unit that are counted: budgets tell cents, converted ones a little more.
const PARTS: f64 = 10_000.0;
/// Where a number of 64 bits still tells every part.
const LARGEST: f64 = 900_000_000_000.0;

/// A sum from zero up, exact to the ten-thousandth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Amount(u64);

impl Amount {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// Whether it is at least `percent` of `limit`.
    pub fn reaches(self, limit: Self, percent: u32) -> bool {
        u128::from(self.0) * 100 >= u128::from(limit.0) * u128::from(percent)
    }

    /// What it is more than `other`; never below zero.
    #[must_use]
    pub fn above(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl TryFrom<f64> for Amount {
    type Error = &'static str;

    fn try_from(units: f64) -> Result<Self, Self::Error> {
        if !(0.0..=LARGEST).contains(&units) {
            return Err("a sum is finite and not negative");
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within the range checked above")]
        Ok(Self((units * PARTS).round() as u64))
    }
}

impl From<Amount> for f64 {
    fn from(amount: Amount) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "below 2^53 by the range of an amount")]
        let parts = amount.0 as f64;
        parts / PARTS
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2}", f64::from(*self))
    }
}

/// A limit as it is written in a setting, `100 USD`: the sum and its currency.
pub fn limit(text: &str) -> Result<(Amount, String), String> {
    let wrong = || format!("`{text}`: give an amount above zero and its currency, `100 USD`");
    let (units, currency) = text.trim().split_once(' ').ok_or_else(wrong)?;
    let currency = currency.trim();
    let is_currency = currency.len() == 3 && currency.bytes().all(|byte| byte.is_ascii_uppercase());
    let amount = units.parse().ok().and_then(|units: f64| Amount::try_from(units).ok());
    match amount {
        Some(amount) if is_currency && amount > Amount::ZERO => Ok((amount, currency.to_string())),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(units: f64) -> Amount {
        Amount::try_from(units).unwrap()
    }

    #[test]
    fn only_finite_sums_from_zero_up_are_sums() {
        for wrong in [-0.01, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e300] {
            assert!(Amount::try_from(wrong).is_err(), "{wrong}");
        }
        assert_eq!(amount(0.0), Amount::ZERO);
        assert_eq!(amount(-0.0), Amount::ZERO);
        for units in [0.0001, 79.99, 12_345.678_9, 900_000_000_000.0] {
            assert_eq!(f64::from(amount(units)).to_string(), units.to_string());
        }
    }

    #[test]
    fn a_share_is_reached_at_its_last_part_and_not_before() {
        assert!(amount(80.0).reaches(amount(100.0), 80));
        assert!(!amount(79.9999).reaches(amount(100.0), 80));
        assert!(amount(36.1).above(amount(20.1)).reaches(amount(20.0), 80), "16 of 20, whatever a float makes of it");
        assert!(!amount(5.0).above(amount(20.1)).reaches(amount(20.0), 1));
    }

    #[test]
    fn a_limit_names_its_currency() {
        assert_eq!(limit("100 USD"), Ok((amount(100.0), "USD".into())));
        assert_eq!(limit(" 0.5  EUR "), Ok((amount(0.5), "EUR".into())));
        for wrong in
            ["", "100", "USD", "100USD", "100 usd", "100 DOLLAR", "0 USD", "-1 USD", "NaN USD", "inf USD", "1e300 USD"]
        {
            assert!(limit(wrong).unwrap_err().contains("`100 USD`"), "{wrong}");
        }
    }
}
