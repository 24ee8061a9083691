//! The way of dead letters to their topic: packed into messages as rows are, and never larger than a topic takes.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::try_join_all;
use object_store::path::Path;
use object_store::{Error, ObjectStore, PutMode, PutOptions};
use sha2::{Digest, Sha256};

use super::{DeadLetter, MAX_RAW};
use crate::bucket::Location;
use crate::clock::Micros;
use crate::decode::time;
use crate::event;
use crate::metrics::Metrics;
use crate::publish::{Attributes, Message, PublishError, Publisher, publish_one};
use crate::schema::DEAD_LETTER;
use crate::window::{Limits, Window};

/// Raw text that a dead letter keeps where there is no bucket, in bytes: as base64 it fits into a message of 10 MB.
const MAX_RAW_WITHOUT_BUCKET: usize = 6 << 20;

/// Dead letters of one push, one line of JSON each.
type Lines = Vec<Bytes>;

/// Publishes the dead letters of concurrent pushes.
pub struct DeadLetterPublisher {
    packer: Window<(), Lines, Result<(), PublishError>>,
    bucket: Option<Location>,
    limits: Limits,
    metrics: Arc<Metrics>,
}

impl DeadLetterPublisher {
    /// Publishes to `topic` in messages within `limits`. The raw text of large ones goes to `bucket`. Inside a tokio
    /// runtime.
    pub fn spawn(topic: Arc<dyn Publisher>, bucket: Option<Location>, limits: Limits, metrics: Arc<Metrics>) -> Self {
        let packer = Window::spawn(limits, move |(), parts: Vec<Lines>| {
            let topic = Arc::clone(&topic);
            async move { vec![publish_one(topic.as_ref(), pack(&parts)).await.map(drop); parts.len()] }
        });
        Self { packer, bucket, limits, metrics }
    }

    /// Publishes without waiting for further dead letters from here on: the process is about to end.
    pub fn flush_now(&self) {
        self.packer.hurry();
    }

    /// Publishes dead letters, counts them and logs a sample. Acknowledge the messages that they come from only after this
    /// succeeds.
    pub async fn publish(&self, mut letters: Vec<DeadLetter>) -> Result<(), String> {
        if letters.is_empty() {
            return Ok(());
        }
        self.log(&letters);
        for letter in letters.iter_mut().filter(|letter| letter.is_large()) {
            self.shorten(letter).await?;
        }
        let lines: Lines = letters.iter().map(DeadLetter::to_json).collect();
        try_join_all(parts(&lines, &self.limits).into_iter().map(|part| self.submit(part))).await?;
        for letter in &letters {
            self.metrics.dead_letter(letter.reason.as_str());
        }
        Ok(())
    }

    async fn submit(&self, part: &[Bytes]) -> Result<(), String> {
        let bytes = part.iter().map(|line| line.len() + 1).sum();
        let published = self.packer.submit((), part.len(), bytes, part.to_vec()).await;
        published.map_err(|closed| closed.to_string())?.map_err(|error| error.to_string())
    }

    /// Moves the raw text of a large dead letter to the bucket. Without one it stays as long as a message takes it; of a
    /// still larger one only the beginning is kept.
    async fn shorten(&self, letter: &mut DeadLetter) -> Result<(), String> {
        let Some(raw) = letter.raw_bytes() else { return Ok(()) };
        if let Some(bucket) = &self.bucket {
            let failed_at = time::timestamp(&letter.failed_at).unwrap_or_default();
            letter.move_raw_to(Some(store_raw(bucket, failed_at, raw).await?));
        } else if raw.len() > MAX_RAW_WITHOUT_BUCKET {
            let (id, bytes) = (&letter.dead_letter_id, letter.raw_size);
            tracing::error!(
                id,
                bytes,
                "no bucket for a large dead letter, only its beginning is kept; set ARCHIVE_URI"
            );
            letter.move_raw_to(None);
        }
        Ok(())
    }

    /// Logs one line per reason and minute.
    fn log(&self, letters: &[DeadLetter]) {
        for letter in letters {
            let reason = letter.reason.as_str();
            if let Some(count) = self.metrics.sample(reason) {
                tracing::info!(reason, count, stage = letter.stage, id = letter.dead_letter_id, "dead letter");
            }
        }
    }
}

/// Splits the dead letters of one push into parts that fit into a message each.
fn parts<'l>(lines: &'l [Bytes], limits: &Limits) -> Vec<&'l [Bytes]> {
    let mut parts = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, line) in lines.iter().enumerate() {
        if index > start && (index - start >= limits.rows || bytes + line.len() + 1 > limits.bytes) {
            parts.push(&lines[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += line.len() + 1;
    }
    parts.push(&lines[start..]);
    parts
}

fn pack(parts: &[Lines]) -> Message {
    let lines: Vec<&[u8]> = parts.iter().flatten().map(AsRef::as_ref).collect();
    let attributes = Attributes::from([
        ("event_type".to_string(), DEAD_LETTER.to_string()),
        ("rows".to_string(), lines.len().to_string()),
    ]);
    Message { data: lines.join(&b'\n').into(), attributes }
}

impl DeadLetter {
    /// About how many bytes it takes in memory, and as a row.
    pub fn size(&self) -> usize {
        const FIELDS: usize = 512;
        FIELDS + self.raw.len() + self.detail.as_ref().map_or(0, String::len)
    }

    /// Whether the raw bytes have to leave the dead letter for the bucket.
    pub fn is_large(&self) -> bool {
        self.raw_uri.is_none() && self.raw_size > MAX_RAW
    }
}

/// Writes the raw text of a dead letter to `dead-letter/raw/YYYY/MM/DD/<sha256>.bin` and returns its address. The same text
/// has the same name; an object that exists already is success.
pub async fn store_raw(bucket: &Location, failed_at: Micros, raw: Vec<u8>) -> Result<String, String> {
    let day = time::timestamp_text(failed_at)[..10].replace('-', "/");
    let name = format!("dead-letter/raw/{day}/{}.bin", event::hex(&Sha256::digest(&raw)));
    let path: Path = bucket.path.parts().chain(Path::from(name.as_str()).parts()).collect();
    let uri = format!("{}/{name}", bucket.uri.trim_end_matches('/'));
    match bucket.store.put_opts(&path, raw.into(), PutOptions::from(PutMode::Create)).await {
        Ok(_) | Err(Error::AlreadyExists { .. }) => Ok(uri),
        Err(error) => Err(format!("{uri}: {error}")),
    }
}
