//! Dead letters: what could not be used, with the reason and the exact bytes.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Micros;
use crate::decode::time::timestamp_text;
use crate::decode::{Code, Problem};
use crate::event;
use crate::metrics::Metrics;
use crate::publish::{Attributes, Message, Publisher, publish_all};
use crate::schema::DEAD_LETTER;

/// Raw bytes over this size go to the bucket; the dead letter keeps their first [`RAW_HEAD`].
pub const MAX_RAW: usize = 256 * 1024;
/// How much of a large input stays in the dead letter itself, in bytes.
pub const RAW_HEAD: usize = 4 * 1024;
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

impl From<&Problem> for Reason {
    fn from(problem: &Problem) -> Self {
        Self { code: problem.code, detail: problem.to_string() }
    }
}

/// All faults of one event: the first one's code, everyone's words.
pub fn reason_of(problems: &[Problem]) -> Option<Reason> {
    let first = problems.first()?;
    let words: Vec<_> = problems.iter().map(Problem::to_string).collect();
    Some(Reason { code: first.code, detail: words.join("; ") })
}

/// Publishes dead letters and counts them. What they were made of may be settled only after their topic has them.
pub async fn bury(letters: &[DeadLetter], topic: &dyn Publisher, metrics: &Metrics) -> Result<(), String> {
    if letters.is_empty() {
        return Ok(());
    }
    for letter in letters {
        tracing::info!(reason = %letter.reason, stage = letter.stage, id = letter.dead_letter_id, "dead letter");
    }
    let messages = letters.iter().map(DeadLetter::to_message).collect();
    publish_all(topic, messages).await.map_err(|error| error.to_string())?;
    for letter in letters {
        metrics.dead_letter(letter.reason.as_str());
    }
    Ok(())
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
            place: None,
        }
    }

    /// The exact bytes again; `None` where only their beginning is here or `raw` is no base64.
    pub fn raw_bytes(&self) -> Option<Vec<u8>> {
        if self.raw_uri.is_some() {
            return None;
        }
        match self.raw_encoding.as_str() {
            "base64" => base64_simd::STANDARD.decode_to_vec(self.raw.as_bytes()).ok(),
            _ => Some(self.raw.clone().into_bytes()),
        }
    }

    /// Leaves the beginning of a large input here and says where the whole lies.
    pub fn move_raw_to(&mut self, uri: String) {
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
        self.raw_uri = Some(uri);
    }

    /// The row as one line of JSON.
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).unwrap_or_default().into()
    }

    /// The message for the dead-letter topic.
    pub fn to_message(&self) -> Message {
        let attributes = Attributes::from([
            ("event_type".to_string(), DEAD_LETTER.to_string()),
            ("reason".to_string(), self.reason.to_string()),
        ]);
        Message { data: self.to_json(), attributes }
    }
}

fn encode_raw(raw: &[u8]) -> (String, &'static str) {
    match std::str::from_utf8(raw) {
        Ok(text) => (text.to_string(), "utf8"),
        Err(_) => (base64_simd::STANDARD.encode_to_string(raw), "base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode;
    use crate::row::Row;
    use crate::schema::Registry;

    fn letter(raw: &[u8]) -> DeadLetter {
        let origin = Origin { stage: "enricher", identity: &[b"sub", b"1", b"0"], ..Origin::default() };
        DeadLetter::new(&origin, Reason { code: Code::BadJson, detail: "at byte 1".into() }, raw)
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
    fn any_bytes_come_back() {
        for raw in [&b"plain"[..], b"\xff\0", b""] {
            assert_eq!(letter(raw).raw_bytes().unwrap(), raw);
        }
    }

    #[test]
    fn a_large_input_leaves_its_beginning() {
        let raw = "é".repeat(MAX_RAW);
        let mut dead = letter(raw.as_bytes());
        dead.move_raw_to("gs://b/x".into());
        assert_eq!((dead.raw.len(), dead.raw_encoding.as_str(), dead.raw_size), (RAW_HEAD, "utf8", raw.len()));
        assert!(raw.starts_with(&dead.raw) && dead.raw_bytes().is_none());
    }
}
