//! What a run cannot use: kept in objects beside the run, and shown as rows of the dead-letter table when its rows are.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{ObjectStoreExt, path::Path};
use shared::bucket::Location;
use shared::clock::Micros;
use shared::dead_letter::{DeadLetter, MAX_RAW, Origin, Place, Reason};
use shared::enrich::address::{Anonymise, anonymise_event};
use shared::event;
use shared::schema::{DEAD_LETTER, Plan, Registry};
use shared::sink::{Batch, Outcome, Sink};

use crate::lines::{LongLine, Position};
use crate::report::Tally;

/// Dead letters of one object, in bytes.
const PART: usize = 8 << 20;
/// Rows of one append.
const BATCH: usize = 500;
/// How often an append is tried, and the first pause between; it doubles.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);
const STAGE: &str = "backfill";

/// The dead letters of a run.
pub struct DeadLetters {
    /// The run's folder.
    place: Option<Location>,
    /// How many parts are written.
    pub parts: u32,
    buffer: Vec<u8>,
    failed_at: Micros,
    /// The schema of the lines.
    plan: Arc<Plan>,
    /// What becomes of client addresses in them.
    anonymise: Anonymise,
}

impl DeadLetters {
    /// Of the run `run`, which has written so many `parts`. Later ones, of a run that was killed, go.
    pub async fn open(
        root: Option<&Location>,
        run: &str,
        parts: u32,
        plan: &Arc<Plan>,
        anonymise: Anonymise,
        failed_at: Micros,
    ) -> Result<Self, String> {
        let place = root.map(|root| Location {
            store: root.store.clone(),
            path: root.path.clone().join(run),
            uri: format!("{}/{run}", root.uri.trim_end_matches('/')),
        });
        let letters = Self { place, parts, buffer: Vec::new(), failed_at, plan: Arc::clone(plan), anonymise };
        if let Some(place) = &letters.place {
            let failed = |error: object_store::Error| format!("{}: {error}", place.uri);
            let found: Vec<_> = place.store.list(Some(&place.path)).try_collect().await.map_err(failed)?;
            let known: Vec<Path> = (0..parts).map(|part| part_of(place, part)).collect();
            for stale in found.into_iter().filter(|object| !known.contains(&object.location)) {
                place.store.delete(&stale.location).await.map_err(failed)?;
            }
        }
        Ok(letters)
    }

    /// Where they lie.
    pub fn uri(&self) -> Option<&str> {
        self.place.as_ref().map(|place| place.uri.as_str())
    }

    /// Keeps what stands at a place of the source. A large one leaves its beginning, and where the whole lies.
    #[cold]
    pub fn bury(&mut self, file: &str, at: Position, event_id: Option<&str>, reason: Reason, raw: &[u8]) {
        if self.place.is_some() {
            let letter = self.letter(file, at, event_id, reason, raw);
            self.keep_raw(letter, file, at, raw);
        }
    }

    /// Keeps a part of a line; `within` is the line with this part alone.
    #[cold]
    pub fn bury_part(&mut self, file: &str, at: Position, reason: Reason, raw: &[u8], within: &[&[u8]]) {
        if self.place.is_none() {
            return;
        }
        let mut letter = self.letter(file, at, None, reason, raw);
        if let Some(place) = &mut letter.place {
            place.within = String::from_utf8(within.concat()).ok().filter(|within| within.len() <= MAX_RAW);
        }
        self.keep_raw(letter, file, at, raw);
    }

    fn keep_raw(&mut self, mut letter: DeadLetter, file: &str, at: Position, raw: &[u8]) {
        if raw.len() > MAX_RAW {
            letter.move_raw_to(Some(range(file, at, raw.len() as u64)));
        }
        self.keep(&letter);
    }

    /// Keeps what is known of a line that was not held.
    #[cold]
    pub fn bury_long(&mut self, file: &str, at: Position, reason: Reason, line: &LongLine) {
        if self.place.is_none() {
            return;
        }
        let mut letter = self.letter(file, at, None, reason, &line.head);
        letter.move_raw_to(Some(range(file, at, line.size)));
        letter.raw_size = usize::try_from(line.size).unwrap_or(usize::MAX);
        letter.raw_sha256 = event::hex(&line.sha256);
        self.keep(&letter);
    }

    fn letter(&self, file: &str, at: Position, event_id: Option<&str>, reason: Reason, raw: &[u8]) -> DeadLetter {
        let origin = Origin {
            stage: STAGE,
            event_type: Some(&self.plan.event_type),
            event_id,
            // Of a file that is loaded again the dead letters are the same, unless it has changed there.
            identity: &[file.as_bytes(), &at.offset.to_le_bytes(), raw],
            failed_at: self.failed_at,
            ..Origin::default()
        };
        let shown = anonymise_event(self.anonymise, |key| self.plan.is_address_key(key), raw);
        let mut letter = DeadLetter::new(&origin, reason, shown.as_deref().unwrap_or(raw));
        letter.place = Some(Place { source: file.into(), line: at.line, byte_offset: at.offset, within: None });
        letter
    }

    fn keep(&mut self, letter: &DeadLetter) {
        self.buffer.extend_from_slice(&letter.to_json());
        self.buffer.push(b'\n');
    }

    /// Whether there are enough for a part.
    pub fn is_full(&self) -> bool {
        self.buffer.len() >= PART
    }

    /// Writes what is held as the next part.
    pub async fn flush(&mut self) -> Result<(), String> {
        let Some(place) = self.place.as_ref().filter(|_| !self.buffer.is_empty()) else { return Ok(()) };
        let bytes = Bytes::from(std::mem::take(&mut self.buffer));
        let written = place.store.put(&part_of(place, self.parts), bytes.into()).await;
        written.map_err(|error| format!("{}: failed to write dead letters: {error}", place.uri))?;
        self.parts += 1;
        Ok(())
    }

    /// Appends all of them to the dead-letter table.
    pub async fn show(&self, table: &dyn Sink, registry: &Registry, now: Micros) -> Result<(), String> {
        let (Some(place), Some(plan)) = (&self.place, registry.get(DEAD_LETTER)) else { return Ok(()) };
        for part in 0..self.parts {
            let failed = |error: object_store::Error| format!("{}: {error}", place.uri);
            let object = place.store.get(&part_of(place, part)).await.map_err(failed)?;
            let bytes = object.bytes().await.map_err(failed)?;
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let rows: Vec<_> = lines.map(|line| bytes.slice_ref(line)).collect();
            for rows in rows.chunks(BATCH) {
                append(table, Batch { plan: plan.clone(), rows: rows.to_vec(), loaded_at: now }).await?;
            }
        }
        Ok(())
    }
}

fn part_of(place: &Location, part: u32) -> Path {
    place.path.clone().join(format!("{part}.jsonl"))
}

/// Where the whole of a large one lies.
fn range(file: &str, at: Position, size: u64) -> String {
    format!("{file}#bytes={}-{}", at.offset, at.offset + size)
}

async fn append(table: &dyn Sink, mut batch: Batch) -> Result<(), String> {
    let mut pause = PAUSE;
    for _ in 0..ATTEMPTS {
        let mut outcomes = table.append(&batch).await;
        // A sink that answers too little has vouched for nothing of the rest.
        outcomes.resize(batch.rows.len(), Outcome::Retry("the warehouse gave no answer for this row".into()));
        let mut reason = String::new();
        let mut left = Vec::new();
        for (row, outcome) in batch.rows.iter().zip(outcomes) {
            match outcome {
                Outcome::Done => {}
                Outcome::Retry(why) => {
                    reason = why;
                    left.push(row.clone());
                }
                // It lies in its object all the same.
                Outcome::Poison(why) => {
                    tracing::warn!(reason = %why.code, why.detail, "the dead-letter table refuses a row");
                }
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        tracing::info!(reason, rows = left.len(), "appending dead letters again");
        batch.rows = left;
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Err("the dead-letter table takes no rows now".into())
}

/// Counts a dead letter.
pub fn count(tally: &mut Tally, file: &str, at: Position, reason: &Reason) {
    tally.dead_letters.entry(reason.code).or_default().add(file, at);
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;

    /// Answers for the first row of an append alone, and keeps no other.
    #[derive(Default)]
    struct Curt(Mutex<Vec<Bytes>>);

    #[async_trait]
    impl Sink for Curt {
        async fn append(&self, batch: &Batch) -> Vec<Outcome> {
            self.0.lock().unwrap().extend(batch.rows.first().cloned());
            vec![Outcome::Done]
        }

        async fn ready(&self) -> Result<(), String> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_row_without_an_answer_is_appended_again() {
        let registry = Registry::built_in().unwrap();
        let rows = ["0", "1", "2"].map(Bytes::from).to_vec();
        let table = Curt::default();
        append(&table, Batch { plan: registry.get(DEAD_LETTER).unwrap().clone(), rows, loaded_at: 0 }).await.unwrap();
        assert_eq!(*table.0.lock().unwrap(), ["0", "1", "2"]);
    }
}
