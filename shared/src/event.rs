//! What an event is called and what it is: its identity, its type and the fingerprint of its content.

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::clock::{Micros, SECOND};
use crate::decode::json::{JsonError, Next, Scanner};
use crate::encode;
use crate::row::{Row, Value};
use crate::schema::{DEFAULT_TYPE, Plan, Registry};

/// The rule for an `event_id`, in words.
pub const EVENT_ID_FORM: &str = "an event_id has 1 to 64 characters of A-Z, a-z, 0-9, `.`, `_`, `:` and `-`";

/// Whether `id` may be an `event_id`.
#[inline]
pub fn is_event_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'-'))
}

/// A new `event_id`: `UUIDv7`, so that ids sort by time. `random` are ten random bytes.
pub fn mint_event_id(now: Micros, random: &[u8; 10]) -> String {
    let millis = u64::try_from(now / 1_000).unwrap_or_default();
    uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid().to_string()
}

/// When a `UUIDv7` was minted, to the millisecond; `None` for an id of another form.
pub fn minted_at(id: &str) -> Option<Micros> {
    let uuid = Uuid::try_parse(id).ok().filter(|uuid| uuid.get_version_num() == 7)?;
    let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
    Some(Micros::try_from(seconds).ok()?.checked_mul(SECOND)?.saturating_add(i64::from(nanos) / 1_000))
}

/// Ten random bytes from the operating system, for [`mint_event_id`].
pub fn random_bytes() -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes.copy_from_slice(&Uuid::new_v4().into_bytes()[6..]);
    // Bytes 6 and 8 of a UUIDv4 hold its version and variant; the builder overwrites some of them again.
    bytes
}

/// An id that is the same whenever it is derived from the same parts: 32 hex digits of SHA-256.
pub fn derived_id(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize()[..16])
}

/// Fills in the fingerprint of a row of a streaming table, unless it has one: that of the columns of [`Plan::content`] in
/// their canonical encoding.
///
/// Two rows with one `event_id` are copies of one event if their fingerprints are equal, whatever differs between
/// attempts: times of receipt and load, enriched columns, the schema's version, an optional column added since.
pub fn set_fingerprint(plan: &Plan, row: &mut Row<'_>) {
    let Some(system) = plan.system else { return };
    if row.values.get(system.fingerprint).is_some_and(Value::is_null) {
        let mut content = Vec::with_capacity(512);
        encode::members(
            plan.content.iter().filter_map(|&index| Some((plan.columns.get(index)?, row.values.get(index)?))),
            &mut content,
        );
        row.set(system.fingerprint, Value::Int(fingerprint(&content)));
    }
}

/// The first 64 bits of SHA-256.
pub fn fingerprint(content: &[u8]) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&Sha256::digest(content)[..8]);
    i64::from_be_bytes(first)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    push_hex(bytes, &mut text);
    text
}

/// Adds lower-case hex to a text.
#[inline]
pub fn push_hex(bytes: &[u8], text: &mut String) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.extend(
        bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])),
    );
}

/// Whether `name` could be an event type at all (a type that this version does not know may be a newer one's).
pub fn is_event_type(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The value of a top-level member of a JSON object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member<'a> {
    /// Not there, or `null`.
    Absent,
    /// A string.
    Text(Cow<'a, str>),
    /// Anything else, or a string that is not Unicode.
    Other,
}

/// Finds a top-level member of a JSON object, the last one if there are several. `names` are the spellings of the key.
pub fn member<'a>(object: &'a str, names: [&str; 2]) -> Result<Member<'a>, JsonError> {
    let mut scanner = Scanner::new(object);
    if scanner.next_kind()? != Next::Object {
        return Ok(Member::Absent);
    }
    scanner.open()?;
    let mut found = Member::Absent;
    let mut first = true;
    while let Some(key) = scanner.key(first)? {
        first = false;
        let is_it = key.text().is_some_and(|key| names.contains(&key.as_ref()));
        match scanner.next_kind()? {
            Next::String if is_it => found = scanner.string()?.text().map_or(Member::Other, Member::Text),
            kind => {
                scanner.skip()?;
                if is_it {
                    found = if kind == Next::Null { Member::Absent } else { Member::Other };
                }
            }
        }
    }
    Ok(found)
}

/// The type of an event whose message names none.
#[derive(Debug, Clone, PartialEq)]
pub enum BodyType<'r> {
    /// That of a schema: of the member `event_type`, or [`DEFAULT_TYPE`] where there is none.
    Known(&'r Arc<Plan>),
    /// The member names no schema. The name as it is written, if it could be one's at all.
    Unknown(Option<String>),
}

/// Reads the type of an event from its body. A text that is no JSON object is of the default type, whose decoder says
/// what is wrong with it.
pub fn type_in_body<'r>(registry: &'r Registry, line: &[u8]) -> BodyType<'r> {
    let text = std::str::from_utf8(line).unwrap_or_default();
    let name = match member(text, ["event_type", "eventType"]).unwrap_or(Member::Absent) {
        Member::Absent => Cow::Borrowed(DEFAULT_TYPE),
        Member::Text(name) => name,
        Member::Other => return BodyType::Unknown(None),
    };
    let unknown = || BodyType::Unknown(is_event_type(&name).then(|| name.to_string()));
    registry.get(&name).map_or_else(unknown, BodyType::Known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_ids_keep_to_their_alphabet() {
        assert!(is_event_id("a.B_c:9-"));
        assert!(is_event_id(&"x".repeat(64)));
        for bad in ["", "a/b", "a b", "é", "a\0", &"x".repeat(65)] {
            assert!(!is_event_id(bad), "{bad}");
        }
    }

    #[test]
    fn minted_ids_are_valid_and_sort_by_time() {
        let early = mint_event_id(1_000_000, &[255; 10]);
        let late = mint_event_id(2_000_000, &[0; 10]);
        assert!(is_event_id(&early) && early < late);
        assert_ne!(mint_event_id(0, &random_bytes()), mint_event_id(0, &random_bytes()));
    }

    #[test]
    fn a_minted_id_tells_its_time() {
        let now = 1_795_000_000_123_456;
        assert_eq!(minted_at(&mint_event_id(now, &random_bytes())), Some(1_795_000_000_123_000));
        for id in ["", "e1", &Uuid::new_v4().to_string(), &derived_id(&[])] {
            assert_eq!(minted_at(id), None, "{id}");
        }
    }

    #[test]
    fn derived_ids_do_not_mix_parts_up() {
        assert_eq!(derived_id(&[b"a", b"b"]), derived_id(&[b"a", b"b"]));
        assert_ne!(derived_id(&[b"ab", b""]), derived_id(&[b"a", b"b"]));
        assert!(is_event_id(&derived_id(&[])));
    }

    const FINGERPRINT: i64 = -8_629_220_532_594_224_399;

    fn fingerprint_of(event: &str) -> i64 {
        let registry = Registry::built_in().unwrap();
        let plan = registry.get("clickstream").unwrap();
        let mut row = Row::default();
        crate::decode::event(plan, event.as_bytes(), 1_795_000_000_000_000, &mut row).unwrap();
        set_fingerprint(plan, &mut row);
        let Some(Value::Int(fingerprint)) = row.values.get(plan.system.unwrap().fingerprint) else { panic!("{row:?}") };
        *fingerprint
    }

    #[test]
    fn a_fingerprint_covers_what_the_event_says_and_nothing_that_differs_between_attempts() {
        let event = r#"{"eventTimestamp":"2026-11-18T00:00:00Z","event_id":"a","user_id":"u","ipAddress":"192.0.2.1"}"#;
        let first = fingerprint_of(event);
        // Written down in tables: it may never change.
        assert_eq!(first, FINGERPRINT);
        for same in [
            event.replace("192.0.2.1", "198.51.100.7"),
            event.replace(r#","ipAddress":"192.0.2.1""#, ""),
            event.replace(r#""event_id":"a""#, r#""event_id":"b""#),
            event.replace("T00:00:00Z", "T01:00:00+01:00"),
            event.replace("eventTimestamp", "event_timestamp"),
            event.replace('}', r#","country":"DE","fingerprint":1,"unknown":{}}"#),
        ] {
            assert_eq!(fingerprint_of(&same), first, "{same}");
        }
        for other in [event.replace(r#""u""#, r#""v""#), event.replace("00:00:00Z", "00:00:00.000001Z")] {
            assert_ne!(fingerprint_of(&other), first, "{other}");
        }
    }

    #[test]
    fn the_body_names_a_type_or_an_unknown_one() {
        let registry = Registry::built_in().unwrap();
        let kind = |line: &str| match type_in_body(&registry, line.as_bytes()) {
            BodyType::Known(plan) => plan.event_type.clone(),
            BodyType::Unknown(name) => format!("unknown {name:?}"),
        };
        assert_eq!(kind(r#"{"event_type":"order"}"#), "order");
        assert_eq!(kind(r#"{"eventType":"order"}"#), "order");
        assert_eq!(kind(r#"{"event_type":"dead_letter"}"#), "dead_letter");
        for default in ["{}", "{", "[]", "\u{fffd}", r#"{"event_type":null}"#] {
            assert_eq!(kind(default), "clickstream", "{default}");
        }
        assert_eq!(kind(r#"{"event_type":"ordr"}"#), r#"unknown Some("ordr")"#);
        for nameless in
            [r#"{"event_type":"../x"}"#, r#"{"event_type":""}"#, r#"{"event_type":5}"#, r#"{"event_type":"\ud800"}"#]
        {
            assert_eq!(kind(nameless), "unknown None", "{nameless}");
        }
    }
}
