//! Rows as gzip JSONL objects in a bucket: created once, never overwritten.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutMode, PutOptions, PutPayload};
use sha2::{Digest, Sha256};
use shared::bucket::Location;
use shared::clock::{Micros, SECOND};
use shared::decode::time::civil_from_days;
use shared::event;

/// The place of everything that is archived: the path is a prefix of every name, and may be empty.
#[derive(Clone)]
pub struct Archive(pub Location);

const MINUTE: Micros = 60 * SECOND;
/// Events older than this when they are archived count as late.
const LATE_AFTER: Micros = 10 * MINUTE;

/// Rows that go into one object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    folder: String,
    late: bool,
    /// Minutes since the epoch.
    minute: i64,
}

impl Group {
    /// By event time if it lies in the last ten minutes before `now`, else late, by the time of receipt.
    pub fn of_row(event_type: &str, event_time: Option<Micros>, received_at: Micros, now: Micros) -> (Self, Micros) {
        let on_time = event_time.filter(|time| (now - LATE_AFTER..=now + MINUTE).contains(time));
        let time = on_time.unwrap_or(received_at);
        let group = Self { folder: event_type.to_string(), late: on_time.is_none(), minute: time.div_euclid(MINUTE) };
        (group, time)
    }

    /// Dead letters, by the time of the fault.
    pub fn of_dead_letters(failed_at: Micros) -> Self {
        Self { folder: "dead-letter".into(), late: false, minute: failed_at.div_euclid(MINUTE) }
    }

    /// `<type>[/late]/YYYY/MM/DD/HH/mm/<type>_<YYYYMMDDHHmmss>_<hash>.jsonl.gz`; `earliest` is a time of this minute.
    fn object(&self, earliest: Micros, hash: &str) -> String {
        let late = if self.late { "/late" } else { "" };
        let [year, month, day, hour, minute, second] = clock_time(earliest);
        let folder = &self.folder;
        format!(
            "{folder}{late}/{year:04}/{month:02}/{day:02}/{hour:02}/{minute:02}/\
             {folder}_{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}_{hash}.jsonl.gz"
        )
    }
}

#[expect(clippy::cast_possible_truncation, reason = "times of the years 1 to 9999 are some 3.6 million days")]
fn clock_time(time: Micros) -> [i64; 6] {
    let seconds = time.div_euclid(SECOND);
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400) as i32);
    let of_day = seconds.rem_euclid(86_400);
    [year, month, day, of_day / 3_600, of_day / 60 % 60, of_day % 60]
}

/// Lines for one object, and the earliest time among them.
#[derive(Debug, Clone)]
pub struct Lines {
    /// One JSON object each.
    pub lines: Vec<Bytes>,
    /// Earliest event time (or time of receipt, or of the fault).
    pub earliest: Micros,
}

impl Archive {
    /// Writes one object. The same lines have the same name, and an object that is there already is success.
    pub async fn write(&self, group: &Group, parts: &[Lines]) -> Result<(), String> {
        let earliest = parts.iter().map(|part| part.earliest).min().unwrap_or_default();
        let lines: Vec<Bytes> = parts.iter().flat_map(|part| part.lines.iter().cloned()).collect();
        let packed = tokio::task::spawn_blocking(move || gzip(&lines)).await.map_err(|error| error.to_string())?;
        let (body, hash) = packed.map_err(|error| format!("failed to compress: {error}"))?;
        self.create(&group.object(earliest, &hash), body.into()).await
    }

    async fn create(&self, name: &str, body: PutPayload) -> Result<(), String> {
        let path: Path = self.0.path.parts().chain(Path::from(name).parts()).collect();
        let options = PutOptions::from(PutMode::Create);
        match self.0.store.put_opts(&path, body, options).await {
            Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(format!("{}/{name}: {error}", self.0.uri.trim_end_matches('/'))),
        }
    }
}

/// Compressed lines and the start of the SHA-256 of what was compressed.
fn gzip(lines: &[Bytes]) -> std::io::Result<(Vec<u8>, String)> {
    let mut hasher = Sha256::new();
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    for line in lines {
        for part in [line.as_ref(), b"\n"] {
            hasher.update(part);
            encoder.write_all(part)?;
        }
    }
    Ok((encoder.finish()?, event::hex(&hasher.finalize()[..8])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Micros = 1_792_455_302_920_000; // 2026-10-20T00:15:02.92Z

    fn name(event_time: Option<Micros>, received_at: Micros) -> String {
        let (group, time) = Group::of_row("order", event_time, received_at, NOW);
        group.object(time, "abcd")
    }

    #[test]
    fn on_time_events_lie_by_their_own_time() {
        let name = name(Some(NOW - 9 * MINUTE), NOW);
        assert_eq!(name, "order/2026/10/20/00/06/order_20261020000602_abcd.jsonl.gz");
    }

    #[test]
    fn late_and_timeless_events_lie_by_their_receipt() {
        let late = "order/late/2026/10/20/00/15/order_20261020001502_abcd.jsonl.gz";
        assert_eq!(name(Some(NOW - 11 * MINUTE), NOW), late);
        assert_eq!(name(Some(NOW + 2 * MINUTE), NOW), late);
        assert_eq!(name(None, NOW), late);
    }
}
