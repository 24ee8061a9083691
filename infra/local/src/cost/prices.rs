//! The price table, `infra/prices.json`: what services charge and what is assumed of the pipeline, each with its source.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The table that is built in.
const BUILT_IN: &str = include_str!("../../../prices.json");

/// What services charge, and what is assumed of the pipeline.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    /// The month in which they were looked up.
    pub as_of: String,
    /// Of all amounts.
    pub currency: String,
    /// Where they were looked up.
    pub source: String,
    prices: BTreeMap<String, Price>,
    /// Figures of the pipeline that no service says, by name.
    pub assumptions: BTreeMap<String, Assumption>,
}

/// A figure and where it is from.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Assumption {
    /// The figure; the unit is in its name.
    pub value: f64,
    /// Where it is from.
    pub why: String,
}

/// The price of one thing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Who charges it.
    pub service: String,
    /// What for.
    pub what: String,
    /// What it is counted in.
    pub unit: String,
    /// How many requests, bytes or seconds a unit has.
    pub per: f64,
    /// Units a month that cost nothing, for ever and not for a first year.
    #[serde(default)]
    pub free: f64,
    /// From the first unit on; the last has no end.
    tiers: Vec<Tier>,
    /// The page that says so.
    #[serde(rename = "source")]
    _source: String,
}

/// A price up to an amount of units.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tier {
    up_to: Option<f64>,
    price: f64,
}

impl PriceTable {
    /// Those that are built in.
    pub fn built_in() -> Result<Self, String> {
        Self::read(BUILT_IN)
    }

    /// Reads a table in JSON.
    pub fn read(text: &str) -> Result<Self, String> {
        let table: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (name, price) in &table.prices {
            let is_number = |number: f64| number.is_finite() && number >= 0.0;
            let ends: Vec<_> = price.tiers.iter().map(|tier| tier.up_to.unwrap_or(f64::INFINITY)).collect();
            let are_sorted = ends.is_sorted() && ends.last() == Some(&f64::INFINITY);
            let are_numbers = price.tiers.iter().all(|tier| is_number(tier.price)) && is_number(price.free);
            if !(are_sorted && are_numbers && price.per > 0.0) {
                return Err(format!(
                    "price `{name}`: `per` is above 0, tiers rise and the last has no `up_to`, no amount is below 0"
                ));
            }
        }
        Ok(table)
    }

    /// The price called `name`.
    pub fn price(&self, name: &str) -> Result<&Price, String> {
        self.prices.get(name).ok_or_else(|| format!("no price `{name}`"))
    }

    /// The assumption called `name`.
    pub fn assumed(&self, name: &str) -> Result<f64, String> {
        self.assumptions.get(name).map(|assumption| assumption.value).ok_or_else(|| format!("no assumption `{name}`"))
    }
}

impl Price {
    /// What so many units cost.
    pub fn of(&self, units: f64) -> f64 {
        let mut from = 0.0;
        let mut amount = 0.0;
        for tier in &self.tiers {
            let to = tier.up_to.unwrap_or(f64::INFINITY).min(units);
            amount += (to - from).max(0.0) * tier.price;
            from = to;
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tier_has_its_price() {
        let prices = PriceTable::built_in().unwrap();
        let http_api = prices.price("http_api").unwrap();
        for (millions, expected) in [(0.0, 0.0), (1.0, 1.0), (300.0, 300.0), (301.0, 300.9), (3_000.0, 2_730.0)] {
            assert!((http_api.of(millions) - expected).abs() < 1e-9, "{millions} M");
        }
    }

    #[test]
    fn a_table_that_cannot_be_used_says_where() {
        let table = |price: &str| {
            format!(
                r#"{{"as_of": "x", "currency": "USD", "source": "x", "assumptions": {{}}, "prices": {{"gas": {{"service":
                "s", "what": "w", "unit": "u", "source": "x", {price}}}}}}}"#
            )
        };
        for price in [
            r#""per": 0, "tiers": [{"price": 1}]"#,
            r#""per": 1, "tiers": []"#,
            r#""per": 1, "tiers": [{"up_to": 5, "price": 1}]"#,
            r#""per": 1, "tiers": [{"up_to": 5, "price": 1}, {"up_to": 3, "price": 1}, {"price": 1}]"#,
            r#""per": 1, "tiers": [{"price": -1}]"#,
        ] {
            let error = PriceTable::read(&table(price)).unwrap_err();
            assert!(error.starts_with("price `gas`: "), "{price}: {error}");
        }
        assert!(PriceTable::read("{").is_err());
        let known = PriceTable::read(&table(r#""per": 1, "tiers": [{"price": 1}]"#)).unwrap();
        assert_eq!(known.price("oil").unwrap_err(), "no price `oil`");
    }
}
