//! A message as it lies in a queue.
//!
//! `publish time (8 bytes, little endian) | length of the attributes (4 bytes) | attributes as JSON | data`

use shared::clock::Micros;
use shared::publish::Attributes;

const HEAD: usize = 12;

/// A message read back from its queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub published_at: Micros,
    pub attributes: Attributes,
    pub data: &'a [u8],
}

impl<'a> Record<'a> {
    pub fn encode(published_at: Micros, attributes: &Attributes, data: &[u8]) -> Vec<u8> {
        // A map of strings always serialises.
        let attributes = serde_json::to_vec(attributes).unwrap_or_default();
        let mut record = Vec::with_capacity(HEAD + attributes.len() + data.len());
        record.extend_from_slice(&published_at.to_le_bytes());
        record.extend_from_slice(&u32::try_from(attributes.len()).unwrap_or(u32::MAX).to_le_bytes());
        record.extend_from_slice(&attributes);
        record.extend_from_slice(data);
        record
    }

    /// `None` for bytes that [`Record::encode`] did not write.
    pub fn decode(record: &'a [u8]) -> Option<Self> {
        let (published_at, rest) = record.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (attributes, data) = rest.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        Some(Self {
            published_at: Micros::from_le_bytes(*published_at),
            attributes: serde_json::from_slice(attributes).ok()?,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let attributes = Attributes::from([("event_type".into(), "größe \"x\"".into())]);
        for (attributes, data) in [(attributes, &b"\x00\xff{}"[..]), (Attributes::new(), b"")] {
            let record = Record::encode(-7, &attributes, data);
            assert_eq!(Record::decode(&record), Some(Record { published_at: -7, attributes, data }));
        }
    }

    #[test]
    fn a_torn_record_is_refused() {
        let record = Record::encode(1, &Attributes::from([("a".into(), "b".into())]), b"");
        for length in 0..record.len() {
            assert_eq!(Record::decode(&record[..length]), None);
        }
    }
}
