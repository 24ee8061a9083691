//! Exact numbers: from JSON text to INTEGER, NUMERIC and BIGNUMERIC without a float in between.

use crate::problem::Code;

/// Digits after the point of a NUMERIC.
pub const NUMERIC_SCALE: u32 = 9;
/// The NUMERIC 1.
pub const UNIT: i128 = 10_i128.pow(NUMERIC_SCALE);
const NUMERIC_LIMIT: i128 = 10_i128.pow(38);
const BIGNUMERIC_SCALE: i64 = 38;
/// |BIGNUMERIC| is at most this, without the point (BigQuery's documented range).
const BIGNUMERIC_MAX: &str = "57896044618658097711785492504343953926634992332820282019728792003956564819967";

type Fault = (Code, &'static str);
const NOT_A_NUMBER: Fault = (Code::WrongType, "expected a number");
const INTEGER_RANGE: Fault = (Code::OutOfRange, "an INTEGER is between -2^63 and 2^63-1");
const NUMERIC_RANGE: Fault = (Code::OutOfRange, "a NUMERIC has at most 29 digits before the point");
const BIGNUMERIC_RANGE: Fault = (Code::OutOfRange, "a BIGNUMERIC is at most about 5.79e38");

/// A decimal number as written: `digits` (no leading or trailing zeros) times 10^`-scale`.
struct Decimal {
    negative: bool,
    digits: Vec<u8>,
    scale: i64,
}

impl Decimal {
    /// Reads the form of a JSON number; leading zeros and a leading `+` are let pass.
    fn parse(text: &str) -> Option<Self> {
        let (mantissa, exponent) = match text.find(['e', 'E']) {
            Some(at) => (text.get(..at)?, exponent(text.get(at + 1..)?)?),
            None => (text, 0),
        };
        let negative = mantissa.starts_with('-');
        let mantissa = mantissa.strip_prefix(['-', '+']).unwrap_or(mantissa);
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let mut scale = i64::try_from(fraction.len()).ok()? - exponent;
        while digits.last() == Some(&b'0') {
            digits.pop();
            scale -= 1;
        }
        let leading = digits.iter().take_while(|&&digit| digit == b'0').count();
        digits.drain(..leading);
        if digits.is_empty() {
            scale = 0;
        }
        Some(Self { negative, digits, scale })
    }

    /// The value times 10^`scale`; `None` where it does not fit 38 digits or is not whole.
    fn scaled(&self, scale: i64) -> Option<i128> {
        let zeros = usize::try_from(scale - self.scale).ok()?;
        if self.digits.is_empty() {
            return Some(0);
        }
        if self.digits.len().checked_add(zeros)? > 38 {
            return None;
        }
        let digits = self.digits.iter().copied().chain(std::iter::repeat_n(b'0', zeros));
        let value = digits.fold(0_i128, |value, digit| value * 10 + i128::from(digit - b'0'));
        Some(if self.negative { -value } else { value })
    }
}

/// An exponent, held to a range in which no arithmetic on it can overflow.
fn exponent(text: &str) -> Option<i64> {
    const BOUND: i64 = 1 << 40;
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let size = digits.parse::<i64>().map_or(BOUND, |size| size.min(BOUND));
    Some(if text.starts_with('-') { -size } else { size })
}

/// An INTEGER. `1.0` and `1e3` are whole and pass, `1.5` does not.
#[inline]
pub fn integer(text: &str) -> Result<i64, Fault> {
    if let Ok(value) = text.parse::<i64>() {
        return Ok(value);
    }
    let decimal = Decimal::parse(text).ok_or(NOT_A_NUMBER)?;
    if decimal.scale > 0 {
        return Err((Code::WrongType, "expected a whole number"));
    }
    decimal.scaled(0).and_then(|value| i64::try_from(value).ok()).ok_or(INTEGER_RANGE)
}

/// A NUMERIC as the value times 10^9.
pub fn numeric(text: &str) -> Result<i128, Fault> {
    let decimal = Decimal::parse(text).ok_or(NOT_A_NUMBER)?;
    if decimal.scale > i64::from(NUMERIC_SCALE) {
        return Err((Code::TooPrecise, "a NUMERIC has at most 9 decimals"));
    }
    decimal.scaled(i64::from(NUMERIC_SCALE)).filter(|value| value.abs() < NUMERIC_LIMIT).ok_or(NUMERIC_RANGE)
}

/// A BIGNUMERIC as canonical decimal text.
pub fn big_numeric(text: &str) -> Result<Box<str>, Fault> {
    let decimal = Decimal::parse(text).ok_or(NOT_A_NUMBER)?;
    if decimal.scale > BIGNUMERIC_SCALE {
        return Err((Code::TooPrecise, "a BIGNUMERIC has at most 38 decimals"));
    }
    let zeros = usize::try_from(BIGNUMERIC_SCALE - decimal.scale).unwrap_or(usize::MAX);
    let length = decimal.digits.len().saturating_add(zeros);
    if !decimal.digits.is_empty() && length > BIGNUMERIC_MAX.len() {
        return Err(BIGNUMERIC_RANGE);
    }
    if length == BIGNUMERIC_MAX.len() {
        let mut digits = decimal.digits.clone();
        digits.resize(length, b'0');
        if digits.as_slice() > BIGNUMERIC_MAX.as_bytes() {
            return Err(BIGNUMERIC_RANGE);
        }
    }
    Ok(plain_decimal(&decimal).into_boxed_str())
}

fn plain_decimal(decimal: &Decimal) -> String {
    if decimal.digits.is_empty() {
        return "0".into();
    }
    let mut digits: String = decimal.digits.iter().copied().map(char::from).collect();
    if let Ok(decimals) = usize::try_from(decimal.scale) {
        if digits.len() <= decimals {
            digits.insert_str(0, &"0".repeat(decimals + 1 - digits.len()));
        }
        if decimals > 0 {
            digits.insert(digits.len() - decimals, '.');
        }
    } else {
        let zeros = usize::try_from(-decimal.scale).unwrap_or_default();
        digits.push_str(&"0".repeat(zeros));
    }
    if decimal.negative {
        digits.insert(0, '-');
    }
    digits
}

/// A FLOAT as a NUMERIC with at most `decimals` decimals, half away from zero, by its shortest decimal form: the noise
/// of sums of floats goes (3859.9399999999996 is 3859.94 to the cent). `None` past NUMERIC's range.
#[inline]
pub fn rounded(value: f64, decimals: u32) -> Option<i128> {
    /// Below this the product's error is under a tenth.
    const EXACT: f64 = 1e14;
    let decimals = decimals.min(NUMERIC_SCALE);
    let scaled = value * f64::from(10_u32.pow(decimals));
    let whole = scaled.round();
    if scaled.abs() < EXACT && (scaled - whole).abs() < 0.3 {
        #[expect(clippy::cast_possible_truncation, reason = "whole and below 2^53")]
        return Some(i128::from(whole as i64) * 10_i128.pow(NUMERIC_SCALE - decimals));
    }
    rounded_by_digits(value, decimals)
}

#[cold]
fn rounded_by_digits(value: f64, decimals: u32) -> Option<i128> {
    let mut decimal = Decimal::parse(zmij::Buffer::new().format(value))?;
    let dropped = decimal.scale - i64::from(decimals);
    if let Ok(dropped @ 1..) = usize::try_from(dropped) {
        let kept = decimal.digits.len().checked_sub(dropped);
        let up = kept.is_some_and(|kept| decimal.digits[kept] >= b'5');
        decimal.digits.truncate(kept.unwrap_or(0));
        decimal.scale = i64::from(decimals);
        let value = decimal.scaled(i64::from(NUMERIC_SCALE))?;
        let unit = 10_i128.pow(NUMERIC_SCALE - decimals);
        return Some(value + if up { if decimal.negative { -unit } else { unit } } else { 0 });
    }
    decimal.scaled(i64::from(NUMERIC_SCALE)).filter(|value| value.abs() < NUMERIC_LIMIT)
}

/// Writes a NUMERIC (value times 10^9) in its shortest exact form: `12.5`, `-0.000000001`, `3`.
pub fn write_numeric(value: i128, out: &mut Vec<u8>) {
    let unit = UNIT.unsigned_abs();
    if value < 0 {
        out.push(b'-');
    }
    let size = value.unsigned_abs();
    out.extend_from_slice(itoa::Buffer::new().format(size / unit).as_bytes());
    let fraction = size % unit;
    if fraction > 0 {
        let digits = format!("{fraction:09}");
        out.push(b'.');
        out.extend_from_slice(digits.trim_end_matches('0').as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn integers_are_exact_or_refused() {
        assert_eq!(integer("9223372036854775807"), Ok(i64::MAX));
        assert_eq!(integer("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(integer("1.0"), Ok(1));
        assert_eq!(integer("12e2"), Ok(1200));
        assert_eq!(integer("-0.0"), Ok(0));
        assert_eq!(integer("18446744073709551616").unwrap_err().0, Code::OutOfRange);
        assert_eq!(integer("1e400").unwrap_err().0, Code::OutOfRange);
        assert_eq!(integer("1.5").unwrap_err().0, Code::WrongType);
        assert_eq!(integer("1e-1").unwrap_err().0, Code::WrongType);
    }

    #[test]
    fn numerics_keep_every_digit() {
        assert_eq!(numeric("3859.9399999999996").unwrap_err().0, Code::TooPrecise);
        assert_eq!(numeric("0.1"), Ok(100_000_000));
        assert_eq!(numeric("1.50e1"), Ok(15_000_000_000));
        assert_eq!(numeric("0.000000001000"), Ok(1));
        assert_eq!(numeric("0e999999999999999999999"), Ok(0));
        assert_eq!(numeric("99999999999999999999999999999.999999999"), Ok(NUMERIC_LIMIT - 1));
        assert_eq!(numeric("100000000000000000000000000000").unwrap_err().0, Code::OutOfRange);
        assert_eq!(numeric("1e400").unwrap_err().0, Code::OutOfRange);
        assert_eq!(numeric("1e-400").unwrap_err().0, Code::TooPrecise);
        assert_eq!(numeric("").unwrap_err().0, Code::WrongType);
    }

    #[test]
    fn big_numerics_end_where_bigquery_says() {
        let max = "578960446186580977117854925043439539266.34992332820282019728792003956564819967";
        assert_eq!(big_numeric(max).unwrap().as_ref(), max);
        assert_eq!(
            big_numeric("578960446186580977117854925043439539266.34992332820282019728792003956564819968"),
            Err(BIGNUMERIC_RANGE)
        );
        assert_eq!(big_numeric("-1.50e2").unwrap().as_ref(), "-150");
        assert_eq!(big_numeric("0.0010").unwrap().as_ref(), "0.001");
        assert_eq!(big_numeric("-0").unwrap().as_ref(), "0");
        assert_eq!(big_numeric("1e39").unwrap_err().0, Code::OutOfRange);
        assert_eq!(big_numeric("1e999999999999999").unwrap_err().0, Code::OutOfRange);
    }

    proptest! {
        #[test]
        fn a_numeric_comes_back(value in -NUMERIC_LIMIT + 1..NUMERIC_LIMIT) {
            let mut text = Vec::new();
            write_numeric(value, &mut text);
            prop_assert_eq!(numeric(std::str::from_utf8(&text).unwrap()), Ok(value));
        }

        #[test]
        fn any_integer_is_itself(value in any::<i64>()) {
            prop_assert_eq!(integer(&value.to_string()), Ok(value));
            prop_assert_eq!(big_numeric(&value.to_string()).unwrap().into_string(), value.to_string());
        }
    }

    #[test]
    fn floats_are_rounded_to_the_cent_half_away_from_zero() {
        for (value, cents) in [
            (3_859.939_999_999_999_6, 385_994),
            (89.99, 8_999),
            (0.0, 0),
            (1.005, 101),
            (-1.005, -101),
            (2.675, 268),
            (0.005, 1),
            (0.004_999, 0),
            (-0.001, 0),
            (9.995, 1_000),
            (1e16, 1_000_000_000_000_000_000),
            (123_456_789_012_345.67, 12_345_678_901_234_567),
        ] {
            assert_eq!(rounded(value, 2), Some(cents * UNIT / 100), "{value}");
        }
        assert_eq!(rounded(1e29, 2), None);
        assert_eq!(rounded(f64::MAX, 2), None);
    }

    proptest! {
        #[test]
        fn every_rounding_is_that_of_the_digits(value in prop_oneof![-1e15..1e15_f64, -1e3..1e3_f64], decimals in 0..=9_u32) {
            prop_assert_eq!(rounded(value, decimals), rounded_by_digits(value, decimals));
        }

        #[test]
        fn cents_stay_as_they_are(cents in -1_000_000_000_000_i64..1_000_000_000_000) {
            #[expect(clippy::cast_precision_loss, reason = "below 2^53")]
            let value = cents as f64 / 100.0;
            prop_assert_eq!(rounded(value, 2), Some(i128::from(cents) * UNIT / 100));
        }
    }
}
