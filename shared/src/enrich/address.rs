//! Client addresses: reading them and, after every lookup, making them less personal.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::str::FromStr;

use crate::decode::json::{JsonError, Next, Scanner};
use crate::encode;
use crate::row::{Row, Value};
use crate::schema::Plan;

/// What becomes of client addresses before anything leaves the enricher (`IP_ANONYMISE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Anonymise {
    /// They stay.
    #[default]
    Off,
    /// IPv4 keeps 24 bits, IPv6 48; what is no address is dropped.
    Truncate,
    /// They are dropped.
    Drop,
}

impl FromStr for Anonymise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "off" => Ok(Self::Off),
            "truncate" => Ok(Self::Truncate),
            "drop" => Ok(Self::Drop),
            _ => Err(format!("`{text}` is none of off, truncate, drop")),
        }
    }
}

/// An address; an IPv4 address mapped into IPv6 comes out as IPv4.
#[inline]
pub fn parse(text: &str) -> Option<IpAddr> {
    if let Some(address) = parse_ipv4(text.as_bytes()) {
        return Some(IpAddr::V4(address));
    }
    let address: Ipv6Addr = text.parse().ok()?;
    Some(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4))
}

/// Four decimal numbers of at most three digits and no leading zero, as the standard library reads them.
#[inline]
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0_u8; 4];
    let mut at = 0;
    for (index, octet) in octets.iter_mut().enumerate() {
        if index > 0 {
            if *text.get(at)? != b'.' {
                return None;
            }
            at += 1;
        }
        let start = at;
        let mut value = 0_u32;
        while let Some(digit) = text.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
            value = value * 10 + u32::from(digit);
            at += 1;
            if at - start > 3 {
                return None;
            }
        }
        let leading_zero = at - start > 1 && text.get(start) == Some(&b'0');
        if at == start || leading_zero {
            return None;
        }
        *octet = u8::try_from(value).ok()?;
    }
    (at == text.len()).then(|| Ipv4Addr::from(octets))
}

/// The address as `policy` lets it be seen.
pub fn anonymise(policy: Anonymise, text: &str) -> Option<String> {
    match (policy, parse(text)) {
        (Anonymise::Off, _) => Some(text.to_string()),
        (Anonymise::Drop, _) | (Anonymise::Truncate, None) => None,
        (Anonymise::Truncate, Some(IpAddr::V4(address))) => {
            let [a, b, c, _] = address.octets();
            Some(Ipv4Addr::new(a, b, c, 0).to_string())
        }
        (Anonymise::Truncate, Some(IpAddr::V6(address))) => {
            let [a, b, c, ..] = address.segments();
            Some(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0).to_string())
        }
    }
}

/// Applies `policy` to every address column of an enriched row.
pub fn anonymise_row(policy: Anonymise, plan: &Plan, row: &mut Row<'_>) {
    if policy == Anonymise::Off {
        return;
    }
    for step in plan.enrichments.iter().filter(|step| super::ENRICHMENTS[step.enrichment].reads_address) {
        let shown = row.text(step.from).and_then(|text| anonymise(policy, text));
        row.set(step.from, shown.map_or(Value::Null, |text| Value::Text(text.into())));
    }
}

/// Applies `policy` to the client addresses in the text of one event, a JSON object: `None` where nothing has to change.
/// `is_address_key` tells which top-level members hold one; what is no address there becomes `null`. In text that is no
/// JSON object everything that reads as an address is one.
pub fn anonymise_event(policy: Anonymise, is_address_key: impl Fn(&str) -> bool, event: &[u8]) -> Option<Vec<u8>> {
    if policy == Anonymise::Off {
        return None;
    }
    let Some(found) = addresses(policy, is_address_key, event) else { return anonymise_words(policy, event) };
    if found.is_empty() {
        return None;
    }
    let mut changed = Vec::with_capacity(event.len());
    let mut copied = 0;
    for (span, address) in found {
        changed.extend_from_slice(&event[copied..span.start]);
        match address {
            Some(address) => encode::string(&address, &mut changed),
            None => changed.extend_from_slice(b"null"),
        }
        copied = span.end;
    }
    changed.extend_from_slice(&event[copied..]);
    Some(changed)
}

/// Applies `policy` to every run of hexadecimal digits, points and colons that is an address.
fn anonymise_words(policy: Anonymise, text: &[u8]) -> Option<Vec<u8>> {
    let is_part = |byte: &u8| byte.is_ascii_hexdigit() || matches!(byte, b'.' | b':');
    let mut changed = Vec::new();
    for word in text.chunk_by(|one, next| is_part(one) == is_part(next)) {
        let address = std::str::from_utf8(word).ok().filter(|word| parse(word).is_some());
        match address {
            Some(address) => changed.extend(anonymise(policy, address).unwrap_or_default().bytes()),
            None => changed.extend_from_slice(word),
        }
    }
    (changed != text).then_some(changed)
}

/// [`anonymise_event`] for each line of a text.
pub fn anonymise_lines<'t>(policy: Anonymise, is_address_key: impl Fn(&str) -> bool, text: &'t [u8]) -> Cow<'t, [u8]> {
    if policy == Anonymise::Off {
        return Cow::Borrowed(text);
    }
    let line = |line: &'t [u8]| anonymise_event(policy, &is_address_key, line).map_or(Cow::Borrowed(line), Cow::Owned);
    let lines: Vec<_> = text.split_inclusive(|&byte| byte == b'\n').map(line).collect();
    Cow::Owned(lines.concat())
}

/// The values of address members of an object that have to change: where they stand, and the address to put there. `None`
/// for text that is no JSON object.
fn addresses(
    policy: Anonymise,
    is_address_key: impl Fn(&str) -> bool,
    line: &[u8],
) -> Option<Vec<(Range<usize>, Option<String>)>> {
    let mut found = Vec::new();
    let mut scanner = Scanner::new(std::str::from_utf8(line).ok()?);
    let mut read = || {
        if scanner.next_kind()? != Next::Object {
            return Ok(false);
        }
        scanner.open()?;
        let mut first = true;
        while let Some(key) = scanner.key(first)? {
            first = false;
            let is_address = key.text().is_some_and(|key| is_address_key(&key));
            let kind = scanner.next_kind()?;
            let start = scanner.at();
            let value = if kind == Next::String { scanner.string()?.text() } else { scanner.skip().map(|_| None)? };
            if is_address && kind != Next::Null {
                let shown = value.as_deref().and_then(|text| anonymise(policy, text));
                if shown.is_none() || shown.as_deref() != value.as_deref() {
                    found.push((start..scanner.at(), shown));
                }
            }
        }
        scanner.end()?;
        Ok::<_, JsonError>(true)
    };
    read().is_ok_and(|is_object| is_object).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mapped_addresses_are_unwrapped() {
        assert_eq!(parse("::ffff:8.8.8.8"), Some(IpAddr::from([8, 8, 8, 8])));
        assert!(parse("2001:db8::1").is_some_and(|address| address.is_ipv6()));
        for bad in ["", "8.8.8", "8.8.8.8.8", "256.1.1.1", "08.8.8.8", "8.8.8.8 ", "8.8.8.8:80", "unknown"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn truncation_keeps_the_network() {
        let cut = |text| anonymise(Anonymise::Truncate, text);
        assert_eq!(cut("93.184.216.34").as_deref(), Some("93.184.216.0"));
        assert_eq!(cut("::ffff:93.184.216.34").as_deref(), Some("93.184.216.0"));
        assert_eq!(cut("2001:db8:1:2::3").as_deref(), Some("2001:db8:1::"));
        assert_eq!(cut("jane@example.com"), None);
        assert_eq!(anonymise(Anonymise::Drop, "93.184.216.34"), None);
    }

    #[test]
    fn texts_keep_no_full_address() {
        let is_key = |key: &str| key == "ip" || key == "clientIp";
        let cut = |text: &str| {
            let changed = anonymise_event(Anonymise::Truncate, is_key, text.as_bytes());
            changed.map(|changed| String::from_utf8(changed).unwrap())
        };
        for (text, expected) in [
            (
                r#"{"a":1,"ip":"93.184.216.34","b":"93.184.216.34"}"#,
                r#"{"a":1,"ip":"93.184.216.0","b":"93.184.216.34"}"#,
            ),
            ("{\n\"clientIp\" : \"2001:db8:1:2::3\"}", "{\n\"clientIp\" : \"2001:db8:1::\"}"),
            (r#"{"ip":"1.2.3.4","ip":["1.2.3.4"],"ip":"here"}"#, r#"{"ip":"1.2.3.0","ip":null,"ip":null}"#),
            (r#"{"\u0069p":"1.2.3.\u0034"}"#, r#"{"\u0069p":"1.2.3.0"}"#),
            (r#"{"broken":no,"ip":"1.2.3.4"}"#, r#"{"broken":no,"ip":"1.2.3.0"}"#),
            (r#"[{"ip":"1.2.3.4"},"2001:db8:1:2::3"]"#, r#"[{"ip":"1.2.3.0"},"2001:db8:1::"]"#),
            (r#"  "ip": "1.2.3.4","#, r#"  "ip": "1.2.3.0","#),
        ] {
            assert_eq!(cut(text).as_deref(), Some(expected), "{text}");
        }
        for text in [
            "",
            "[]",
            "{",
            "at 12:34:56, version 1.2.3",
            r#"{"ip":null}"#,
            r#"{"ip":"1.2.3.0"}"#,
            r#"{"a":{"ip":"1.2.3.4"}}"#,
        ] {
            assert_eq!(cut(text), None, "{text}");
        }
        let bytes = b"{\"ip\":\"1.2.3.4\",\"a\":\"\xff\"}";
        let changed = anonymise_event(Anonymise::Drop, is_key, bytes).unwrap();
        assert_eq!(changed, b"{\"ip\":\"\",\"a\":\"\xff\"}");
        let lines = b"no JSON\n\n{\"ip\":\"1.2.3.4\"}\n{\"ip\":\"::1\"}";
        let changed = anonymise_lines(Anonymise::Truncate, is_key, lines);
        assert_eq!(*changed, b"no JSON\n\n{\"ip\":\"1.2.3.0\"}\n{\"ip\":\"::\"}"[..]);
    }

    proptest! {
        #[test]
        fn ipv4_agrees_with_the_standard_library(text in "[0-9]{1,4}(\\.[0-9]{1,4}){2,4}") {
            prop_assert_eq!(parse_ipv4(text.as_bytes()), text.parse::<Ipv4Addr>().ok());
        }
    }
}
