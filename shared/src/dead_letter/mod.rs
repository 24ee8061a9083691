//! Dead letters: what could not be used, with the reason and the exact bytes.

mod publish;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Micros;
use crate::decode::time::timestamp_text;
use crate::decode::{Code, Problem, Problems};
use crate::event;

pub use publish::{DeadLetterPublisher, store_raw};

/// Raw bytes over this size go to the bucket; the dead letter keeps their first [`RAW_HEAD`].
pub const MAX_RAW: usize = 256 * 1024;
/// How much of a large input stays in the dead letter itself, in bytes.
pub const RAW_HEAD: usize = 4 * 1024;
/// The longest text of a reason, in bytes.
const MAX_DETAIL: usize = 2 * 1024;
/// The attribute of a message that a dead letter is replayed in: its `dead_letter_id`.
pub const REPLAY_OF: &str = "replay_of";

/// Why something can never be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Stable code.
    pub code: Code,
    /// In words: column, position, what was expected.
    pub detail: String,
}

impl Reason {
    /// A reason whose text is cut at [`MAX_DETAIL`].
    pub fn new(code: Code, mut detail: String) -> Self {
        if detail.len() > MAX_DETAIL {
            let end = (0..=MAX_DETAIL).rev().find(|&at| detail.is_char_boundary(at)).unwrap_or_default();
            detail.truncate(end);
            detail.push('…');
        }
        Self { code, detail }
    }
}

impl From<&Problem> for Reason {
    fn from(problem: &Problem) -> Self {
        Self::new(problem.code, problem.to_string())
    }
}

/// All faults of one event: the first one's code, everyone's words as far as they are kept.
pub fn reason_of(problems: &Problems) -> Option<Reason> {
    let code = problems.code()?;
    let mut words: Vec<_> = problems.iter().map(Problem::to_string).collect();
    match problems.omitted() {
        0 => {}
        1 => words.push("1 more fault".into()),
        more => words.push(format!("{more} more faults")),
    }
    Some(Reason::new(code, words.join("; ")))
}

/// A row of the table `dead_letters`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its own identity, the same on every delivery.
    pub dead_letter_id: String,
    /// Code of the fault.
    pub reason: Code,
    /// The fault in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// `enricher`, `batcher`, `warehouse`, `pubsub` or `backfill`.
    pub stage: String,
    /// Type of the event, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_type: Option<String>,
    /// Identity of the event, where known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The exact bytes, as `raw_encoding` says; their beginning where `raw_uri` is set.
    pub raw: String,
    /// `utf8` or `base64`.
    pub raw_encoding: String,
    /// Where the whole lies, if it is large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw_uri: Option<String>,
    /// Size of the whole in bytes.
    pub raw_size: usize,
    /// SHA-256 of the whole, hex.
    pub raw_sha256: String,
    /// When the event was received, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_at: Option<String>,
    /// When it failed, RFC 3339.
    pub failed_at: String,
    /// Deliveries until it was given up.
    pub attempts: u32,
    /// `public` where anyone may have sent it as an event of any type: a replay takes public types alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingest: Option<String>,
    /// Where it stands, if it came from a file.
    #[serde(flatten)]
    pub place: Option<Place>,
}

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Address of the file.
    pub source: String,
    /// Line, from 1.
    pub line: u64,
    /// Where the raw bytes begin, unpacked.
    pub byte_offset: u64,
    /// Where only a part of a line failed: the line with this part alone, as the part says nothing of its visit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
}

/// What is known of an input that failed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Origin<'a> {
    /// Where it failed.
    pub stage: &'a str,
    /// Type of the event.
    pub event_type: Option<&'a str>,
    /// Identity of the event.
    pub event_id: Option<&'a str>,
    /// What tells this input from every other: subscription, message id, line.
    pub identity: &'a [&'a [u8]],
    /// When it was received.
    pub received_at: Option<Micros>,
    /// When it failed.
    pub failed_at: Micros,
    /// Deliveries until now.
    pub attempts: u32,
    /// What the message says of who may have sent it.
    pub ingest: Option<&'a str>,
}

impl DeadLetter {
    /// Wraps `raw` with what is known of it.
    pub fn new(origin: &Origin<'_>, reason: Reason, raw: &[u8]) -> Self {
        let (text, encoding) = encode_raw(raw);
        let stage: &[&[u8]] = &[origin.stage.as_bytes()];
        Self {
            dead_letter_id: event::derived_id(&[stage, origin.identity].concat()),
            reason: reason.code,
            detail: Some(reason.detail).filter(|detail| !detail.is_empty()),
            stage: origin.stage.to_string(),
            event_type: origin.event_type.map(str::to_string),
            event_id: origin.event_id.map(str::to_string),
            raw: text,
            raw_encoding: encoding.to_string(),
            raw_uri: None,
            raw_size: raw.len(),
            raw_sha256: event::hex(&Sha256::digest(raw)),
            received_at: origin.received_at.map(timestamp_text),
            failed_at: timestamp_text(origin.failed_at),
            attempts: origin.attempts.max(1),
            ingest: origin.ingest.map(str::to_string),
            place: None,
        }
    }

    /// The exact bytes again; `None` where only their beginning is here or `raw` is no base64.
    pub fn raw_bytes(&self) -> Option<Vec<u8>> {
        if self.raw_uri.is_some() {
            return None;
        }
        let raw = match self.raw_encoding.as_str() {
            "base64" => base64_simd::STANDARD.decode_to_vec(self.raw.as_bytes()).ok()?,
            _ => self.raw.clone().into_bytes(),
        };
        (raw.len() == self.raw_size).then_some(raw)
    }

    /// Keeps only the beginning of a large input here, and the address of the whole if it lies anywhere.
    pub fn move_raw_to(&mut self, uri: Option<String>) {
        let Some(raw) = self.raw_bytes() else { return };
        let mut head = &raw[..raw.len().min(RAW_HEAD)];
        if let Err(error) = std::str::from_utf8(head)
            && error.error_len().is_none()
        {
            head = &head[..error.valid_up_to()];
        }
        let (text, encoding) = encode_raw(head);
        self.raw = text;
        self.raw_encoding = encoding.to_string();
        self.raw_uri = uri;
    }

    /// The row as one line of JSON.
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }
}

/// Text as it is; base64 where it is no UTF-8, or where its escapes in JSON would take more room: a third more is about
/// the most that any input grows by.
fn encode_raw(raw: &[u8]) -> (String, &'static str) {
    /// What a short text may grow by, to stay readable.
    const SPARE: usize = 256;
    match std::str::from_utf8(raw) {
        Ok(text) if escapes_length(raw) <= raw.len() / 3 + SPARE => (text.to_string(), "utf8"),
        _ => (base64_simd::STANDARD.encode_to_string(raw), "base64"),
    }
}

/// How many bytes longer the text is as a JSON string.
fn escapes_length(text: &[u8]) -> usize {
    let added = |byte: &u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 1,
        0..0x20 => 5,
        _ => 0,
    };
    text.iter().map(added).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::row::Row;
    use crate::schema::{DEAD_LETTER, Registry};

    fn letter(raw: &[u8]) -> DeadLetter {
        let origin = Origin { stage: "enricher", identity: &[b"sub", b"1", b"0"], ..Origin::default() };
        DeadLetter::new(&origin, Reason::new(Code::BadJson, "at byte 1".into()), raw)
    }

    #[test]
    fn a_dead_letter_is_a_row_of_its_schema() {
        let registry = Registry::built_in().unwrap();
        let json = letter(b"{\0\"").to_json();
        let mut row = Row::default();
        decode::row(registry.get(DEAD_LETTER).unwrap(), &json, &mut row).unwrap();
        assert_eq!((row.problems.len(), row.unknown_keys), (0, 0));
        assert_eq!(row.text(6), Some("{\0\""));
    }

    #[test]
    fn no_input_grows_by_more_than_a_third() {
        for raw in [vec![0; 3_000], vec![b'"'; 3_000], vec![0xff; 3_000], "é".repeat(1_500).into_bytes()] {
            let dead = letter(&raw);
            assert_eq!(dead.raw_bytes().unwrap(), raw);
            assert!(serde_json::to_string(&dead.raw).unwrap().len() <= 4_258);
        }
    }

    #[test]
    fn a_reason_names_twenty_faults_in_bounded_words() {
        let mut problems = Problems::default();
        (0..23).for_each(|_| problems.push(Problem::of("a", Code::WrongType, "é".repeat(20))));
        let reason = reason_of(&problems).unwrap();
        assert!(reason.detail.ends_with("; 3 more faults"), "{}", reason.detail);
        let problems = Problem::of("a", Code::WrongType, "é".repeat(3_000)).into();
        let reason = reason_of(&problems).unwrap();
        assert!(reason.detail.len() <= MAX_DETAIL + 3 && reason.detail.ends_with("é…"));
    }

    #[test]
    fn any_bytes_come_back() {
        for raw in [&b"plain"[..], b"\xff\0", b""] {
            assert_eq!(letter(raw).raw_bytes().unwrap(), raw);
        }
    }

    #[test]
    fn a_large_input_leaves_its_beginning() {
        let raw = "é".repeat(MAX_RAW);
        let mut dead = letter(raw.as_bytes());
        dead.move_raw_to(Some("gs://b/x".into()));
        assert_eq!((dead.raw.len(), dead.raw_encoding.as_str(), dead.raw_size), (RAW_HEAD, "utf8", raw.len()));
        assert!(raw.starts_with(&dead.raw) && dead.raw_bytes().is_none());
    }
}
