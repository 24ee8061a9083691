//! What of the rows that land is worth a look.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, DefaultHasher, Hash, Hasher};

use shared::clock::DAY;
use shared::decode::time;
use shared::mapping::{Finding, Rule, Spot};
use shared::row::Value;

use crate::lines::Position;
use crate::report::{Count, Tally};

/// How many different values of a column that has to be unique are remembered; later ones are taken for new.
const REMEMBERED: usize = 2_000_000;

/// A set of hashes: they need not be hashed again.
type Hashes = HashSet<u64, BuildHasherDefault<Same>>;

/// The rules of a mapping at work.
pub struct Findings<'m> {
    rules: &'m [Finding],
    counts: Vec<Count>,
    seen: Vec<Hashes>,
}

/// The file that rows come from.
pub struct Place<'f> {
    /// Its name, for reports.
    pub file: &'f str,
    /// The day in its name, since 1970-01-01.
    pub day: Option<i64>,
}

impl<'m> Findings<'m> {
    /// None found yet.
    pub fn new(rules: &'m [Finding]) -> Self {
        Self { rules, counts: vec![Count::default(); rules.len()], seen: vec![Hashes::default(); rules.len()] }
    }

    /// Looks at a row that lands.
    #[inline]
    pub fn look(&mut self, table: usize, values: &[Value<'_>], place: &Place<'_>, at: Position) {
        for (index, finding) in self.rules.iter().enumerate() {
            if finding.table == table && breaks(&finding.rule, values, place, &mut self.seen[index]) {
                self.counts[index].add(place.file, at);
            }
        }
    }

    /// Adds what was found to the tally, and begins anew.
    pub fn settle(&mut self, tally: &mut Tally) {
        for (finding, found) in self.rules.iter().zip(&mut self.counts) {
            if found.count > 0 {
                let found = std::mem::take(found);
                let known = tally.findings.entry(finding.name.clone()).or_default();
                known.count += found.count;
                if known.first.is_empty() {
                    known.first = found.first;
                }
            }
        }
    }
}

/// The first day that stands in a name as `2024-07-01` or `20240701`.
pub fn day_of(name: &str) -> Option<i64> {
    let dashed = (0..name.len()).filter_map(|at| name.get(at..at + 10)).find_map(|text| time::date(text).ok());
    let plain = || {
        let day = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| time::date(&format!("{}-{}-{}", &text[..4], &text[4..6], &text[6..])).ok())?
        };
        (0..name.len()).filter_map(|at| name.get(at..at + 8)).find_map(day)
    };
    dashed.or_else(plain).map(i64::from)
}

#[inline]
fn breaks(rule: &Rule, values: &[Value<'_>], place: &Place<'_>, seen: &mut Hashes) -> bool {
    match rule {
        Rule::Unique(spot) => any(values, *spot, |value| {
            let Value::Text(text) = value else { return false };
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let hash = hasher.finish();
            if seen.len() < REMEMBERED { !seen.insert(hash) } else { seen.contains(&hash) }
        }),
        Rule::NotEmpty(spot) => match values.get(spot.column) {
            Some(Value::Repeated(elements)) => elements.is_empty(),
            other => other.is_none_or(Value::is_null),
        },
        Rule::FileDay(spot) => any(values, *spot, |value| {
            let day = value.partition_time().map(|time| time.div_euclid(DAY));
            day.zip(place.day).is_some_and(|(day, of_file)| day != of_file)
        }),
        Rule::OneOf(spot, texts) => {
            any(values, *spot, |value| value.as_text().is_some_and(|text| !texts.iter().any(|known| known == text)))
        }
        Rule::AtLeast(spot, least) => any(values, *spot, |value| matches!(value, Value::Int(number) if number < least)),
        Rule::SumOf { total, price, quantity } => match (values.get(total.column), values.get(price.column)) {
            (Some(Value::Numeric(total)), Some(Value::Repeated(items))) => {
                let sum = items.iter().try_fold(0_i128, |sum, item| {
                    let Value::Record(fields) = item else { return None };
                    match (fields.get(price.field?), fields.get(quantity.field?)) {
                        (Some(Value::Numeric(price)), Some(Value::Int(quantity))) => {
                            sum.checked_add(price.checked_mul(i128::from(*quantity))?)
                        }
                        _ => None,
                    }
                });
                sum != Some(*total)
            }
            _ => false,
        },
    }
}

/// Whether any of the values at a spot breaks the rule. Every one is looked at.
#[inline]
fn any(values: &[Value<'_>], spot: Spot, mut breaks: impl FnMut(&Value<'_>) -> bool) -> bool {
    match (values.get(spot.column), spot.field) {
        (Some(Value::Repeated(elements)), Some(field)) => elements.iter().fold(false, |broken, element| {
            let Value::Record(fields) = element else { return broken };
            fields.get(field).is_some_and(&mut breaks) || broken
        }),
        (Some(value), None) => breaks(value),
        _ => false,
    }
}

/// Hands on what is a hash already.
#[derive(Default)]
struct Same(u64);

impl Hasher for Same {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_day_of_a_file_stands_in_its_name() {
        let day = time::date("2024-07-01").ok().map(i64::from);
        assert_eq!(day_of("visits-2024-07-01.jsonl.gz"), day);
        assert_eq!(day_of("é20240701.jsonl"), day);
        for name in ["visits.jsonl", "visits-2024-02-30.jsonl", "v-1234.jsonl", ""] {
            assert_eq!(day_of(name), None, "{name}");
        }
    }
}
