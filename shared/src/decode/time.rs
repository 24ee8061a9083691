//! Dates and times of the proleptic Gregorian calendar, years 0001 to 9999, to the microsecond.

use super::number;
use crate::clock::{DAY, Micros, SECOND};
use crate::problem::Code;

const MINUTE: Micros = 60 * SECOND;
const HOUR: Micros = 60 * MINUTE;
/// 0001-01-01T00:00:00Z and the first moment after 9999-12-31.
const FIRST: Micros = -62_135_596_800 * SECOND;
const PAST_LAST: Micros = 253_402_300_800 * SECOND;
/// Numbers below this are epoch seconds (up to the year 5138), from it on milliseconds (from 1973).
const MILLISECONDS_FROM: i128 = 100_000_000_000;

type Fault = (Code, &'static str);
const NOT_A_TIMESTAMP: Fault = (
    Code::BadTime,
    "expected an existing time as RFC 3339 (2026-10-20T00:15:02.92Z, at most 9 decimals) or epoch seconds or milliseconds",
);
const YEARS: Fault = (Code::OutOfRange, "a time lies in the years 0001 to 9999");

/// An RFC 3339 time as microseconds UTC; without an offset it is read as UTC. Digits past the sixth are cut off.
#[inline]
pub fn timestamp(text: &str) -> Result<Micros, Fault> {
    let bytes = text.as_bytes();
    let (day, rest) = take_date(bytes).ok_or_else(|| year_zero(bytes).unwrap_or(NOT_A_TIMESTAMP))?;
    let (b'T' | b't' | b' ', rest) = rest.split_first().map(|(&sign, rest)| (sign, rest)).ok_or(NOT_A_TIMESTAMP)?
    else {
        return Err(NOT_A_TIMESTAMP);
    };
    let (time, rest) = take_time(rest, 9).ok_or(NOT_A_TIMESTAMP)?;
    let offset = offset(rest).ok_or(NOT_A_TIMESTAMP)?;
    let micros = i64::from(day) * DAY + time - offset;
    if (FIRST..PAST_LAST).contains(&micros) { Ok(micros) } else { Err(YEARS) }
}

/// Epoch seconds or milliseconds, with decimals if need be, as microseconds.
pub fn epoch(number: &str) -> Result<Micros, Fault> {
    // NUMERIC is the value times 10^9: nanoseconds for seconds, 10^-12 s for milliseconds.
    let scaled =
        number::numeric(number).map_err(|(code, _)| if code == Code::TooPrecise { NOT_A_TIMESTAMP } else { YEARS })?;
    let seconds = scaled.abs() < MILLISECONDS_FROM * 1_000_000_000;
    let micros = scaled.div_euclid(if seconds { 1_000 } else { 1_000_000 });
    i64::try_from(micros).ok().filter(|micros| (FIRST..PAST_LAST).contains(micros)).ok_or(YEARS)
}

/// A calendar day, `2026-10-20`, as days since 1970-01-01.
pub fn date(text: &str) -> Result<i32, Fault> {
    let bytes = text.as_bytes();
    match take_date(bytes) {
        Some((day, [])) => Ok(day),
        _ => Err(year_zero(bytes).unwrap_or((Code::BadTime, "expected an existing day as 2026-10-20"))),
    }
}

/// `2026-10-20T00:15:02.92` without a zone, as microseconds since 1970-01-01T00:00:00.
pub fn date_time(text: &str) -> Result<Micros, Fault> {
    let expected = (Code::BadTime, "expected an existing day and time without a zone, as 2026-10-20T00:15:02.92");
    let bytes = text.as_bytes();
    let (day, rest) = take_date(bytes).ok_or_else(|| year_zero(bytes).unwrap_or(expected))?;
    match rest.split_first() {
        Some((b'T' | b't' | b' ', rest)) => match take_time(rest, 9) {
            Some((time, [])) => Ok(i64::from(day) * DAY + time),
            _ => Err(expected),
        },
        _ => Err(expected),
    }
}

/// `00:15:02.92` as microseconds since midnight.
pub fn time(text: &str) -> Result<Micros, Fault> {
    match take_time(text.as_bytes(), 9) {
        Some((time, [])) => Ok(time),
        _ => Err((Code::BadTime, "expected a time of day as 00:15:02.92")),
    }
}

/// The year 0000 and years past 9999 have a form of their own to be told apart from plain nonsense.
fn year_zero(bytes: &[u8]) -> Option<Fault> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let is_year = bytes.get(digits) == Some(&b'-') && (digits > 4 || bytes.starts_with(b"0000"));
    is_year.then_some(YEARS)
}

#[inline]
fn two_digits(bytes: &[u8], at: usize) -> Option<i64> {
    let tens = bytes.get(at)?.wrapping_sub(b'0');
    let ones = bytes.get(at + 1)?.wrapping_sub(b'0');
    (tens < 10 && ones < 10).then(|| i64::from(tens) * 10 + i64::from(ones))
}

/// `YYYY-MM-DD` as days since 1970-01-01, and what follows.
#[inline]
fn take_date(bytes: &[u8]) -> Option<(i32, &[u8])> {
    let year = two_digits(bytes, 0)? * 100 + two_digits(bytes, 2)?;
    let month = two_digits(bytes, 5)?;
    let day = two_digits(bytes, 8)?;
    let dashes = bytes[4] == b'-' && bytes[7] == b'-';
    if !dashes || year == 0 || !(1..=12).contains(&month) || day == 0 || day > days_in_month(year, month) {
        return None;
    }
    Some((days_from_civil(year, month, day), &bytes[10..]))
}

#[inline]
fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01; the year begins in March here, so that the leap day is its last.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "years 1 to 9999 are some 3.6 million days")]
pub(crate) fn days_from_civil(year: i64, month: i64, day: i64) -> i32 {
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    (year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468) as i32
}

/// Year, month and day of a number of days since 1970-01-01.
pub fn civil_from_days(days: i32) -> (i64, i64, i64) {
    let days = i64::from(days) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// `HH:MM:SS`, then at most `decimals` decimals, as microseconds, and what follows.
#[inline]
fn take_time(bytes: &[u8], decimals: usize) -> Option<(Micros, &[u8])> {
    let (hour, minute, second) = (two_digits(bytes, 0)?, two_digits(bytes, 3)?, two_digits(bytes, 6)?);
    if bytes[2] != b':' || bytes[5] != b':' || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let whole = hour * HOUR + minute * MINUTE + second * SECOND;
    let rest = &bytes[8..];
    let Some((b'.', fraction)) = rest.split_first() else {
        return Some((whole, rest));
    };
    let mut micros = 0;
    let mut unit = SECOND / 10;
    let mut length = 0;
    while let Some(digit @ b'0'..=b'9') = fraction.get(length) {
        micros += i64::from(digit - b'0') * unit;
        unit /= 10;
        length += 1;
    }
    if length == 0 || length > decimals {
        return None;
    }
    Some((whole + micros, &fraction[length..]))
}

/// `Z`, `+05:30` or nothing, as microseconds east of UTC.
#[inline]
fn offset(bytes: &[u8]) -> Option<Micros> {
    match bytes {
        [] | [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), _, _, b':', _, _] => {
            let (hours, minutes) = (two_digits(bytes, 1)?, two_digits(bytes, 4)?);
            if hours > 23 || minutes > 59 {
                return None;
            }
            let size = hours * HOUR + minutes * MINUTE;
            Some(if *sign == b'-' { -size } else { size })
        }
        _ => None,
    }
}

/// Writes `2026-10-20T00:15:02.920Z`: no decimals, three or six, as few as are exact.
pub fn write_timestamp(micros: Micros, out: &mut Vec<u8>) {
    write_date_time(micros, out);
    out.push(b'Z');
}

/// Writes `2026-10-20T00:15:02.920`.
#[expect(clippy::cast_possible_truncation, reason = "micros of the years 1 to 9999 are some 3.6 million days")]
pub fn write_date_time(micros: Micros, out: &mut Vec<u8>) {
    write_date(micros.div_euclid(DAY) as i32, out);
    out.push(b'T');
    write_time(micros.rem_euclid(DAY), out);
}

/// Writes `2026-10-20`.
pub fn write_date(days: i32, out: &mut Vec<u8>) {
    let (year, month, day) = civil_from_days(days);
    push_two(year / 100, out);
    push_two(year % 100, out);
    out.push(b'-');
    push_two(month, out);
    out.push(b'-');
    push_two(day, out);
}

/// Writes `00:15:02.920`.
pub fn write_time(micros: Micros, out: &mut Vec<u8>) {
    push_two(micros / HOUR, out);
    out.push(b':');
    push_two(micros / MINUTE % 60, out);
    out.push(b':');
    push_two(micros / SECOND % 60, out);
    let fraction = micros % SECOND;
    if fraction != 0 {
        out.push(b'.');
        let millis = fraction / 1_000;
        out.push(digit(millis / 100));
        push_two(millis % 100, out);
        let rest = fraction % 1_000;
        if rest != 0 {
            out.push(digit(rest / 100));
            push_two(rest % 100, out);
        }
    }
}

#[inline]
#[expect(clippy::cast_sign_loss, reason = "one decimal digit of a value that is not negative")]
fn digit(value: i64) -> u8 {
    b'0' + (value % 10) as u8
}

#[inline]
fn push_two(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(&[digit(value / 10), digit(value)]);
}

/// Days since 1970-01-01 as text, `2026-10-20`.
pub fn date_text(days: i32) -> String {
    let mut out = Vec::with_capacity(10);
    write_date(days, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// A timestamp as text, `2026-10-20T00:15:02.920Z`.
pub fn timestamp_text(micros: Micros) -> String {
    let mut out = Vec::with_capacity(27);
    write_timestamp(micros, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T: Micros = 1_792_455_302_920_000;

    #[test]
    fn every_form_of_one_moment_is_the_same() {
        for text in [
            "2026-10-20T00:15:02.920Z",
            "2026-10-20 00:15:02.92",
            "2026-10-20t05:45:02.920000000+05:30",
            "2026-10-19T23:15:02.92-01:00",
            "2026-10-20T00:15:02.920000999z",
        ] {
            assert_eq!(timestamp(text), Ok(T), "{text}");
        }
        assert_eq!(epoch("1792455302920"), Ok(T));
        assert_eq!(epoch("1792455302.92"), Ok(T));
        assert_eq!(epoch("1.79245530292e12"), Ok(T));
        assert_eq!(timestamp_text(T), "2026-10-20T00:15:02.920Z");
    }

    #[test]
    fn times_that_do_not_exist_are_refused() {
        for text in [
            "",
            "2026",
            "2026-02-30T00:00:00Z",
            "2025-02-29T00:00:00Z",
            "1900-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-01T00:00:00Z",
            "2026-01-00T00:00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:60:00Z",
            "2026-01-01T00:00:60Z",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00.1234567890Z",
            "2026-01-01T00:00:00+24:00",
            "2026-01-01T00:00:00+0100",
            "2026-01-01",
            "2026-01-01T00:00:00Zx",
            "é026-01-01T00:00:00",
        ] {
            assert_eq!(timestamp(text).unwrap_err().0, Code::BadTime, "{text}");
        }
    }

    #[test]
    fn years_end_at_0001_and_9999() {
        assert_eq!(timestamp("0001-01-01T00:00:00Z"), Ok(FIRST));
        assert_eq!(timestamp("9999-12-31T23:59:59.999999Z"), Ok(PAST_LAST - 1));
        for text in
            ["0000-12-31T23:59:59Z", "10000-01-01T00:00:00Z", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"]
        {
            assert_eq!(timestamp(text).unwrap_err().0, Code::OutOfRange, "{text}");
        }
        assert_eq!(epoch("1e400").unwrap_err().0, Code::OutOfRange);
        assert_eq!(epoch("253402300800000").unwrap_err().0, Code::OutOfRange);
    }

    #[test]
    fn days_and_times_alone() {
        assert_eq!(date("1970-01-02"), Ok(1));
        assert_eq!(date("2026-02-30").unwrap_err().0, Code::BadTime);
        assert_eq!(date("1970-01-02Z").unwrap_err().0, Code::BadTime);
        assert_eq!(date_time("1970-01-01 00:00:01"), Ok(SECOND));
        assert_eq!(date_time("1970-01-01T00:00:01Z").unwrap_err().0, Code::BadTime);
        assert_eq!(time("23:59:59.999999"), Ok(DAY - 1));
        assert_eq!(time("24:00:00").unwrap_err().0, Code::BadTime);
    }

    proptest! {
        #[test]
        fn any_time_comes_back_and_agrees_with_jiff(micros in FIRST + 2 * DAY..PAST_LAST - 2 * DAY) {
            let text = timestamp_text(micros);
            prop_assert_eq!(timestamp(&text), Ok(micros));
            let theirs: jiff::Timestamp = text.parse().unwrap();
            prop_assert_eq!(theirs.as_microsecond(), micros);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9TtZz:. +\\-é]{0,32}") {
            let _ = (timestamp(&text), date(&text), date_time(&text), time(&text), epoch(&text));
        }
    }
}
