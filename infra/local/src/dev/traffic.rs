//! What went over the topics since the start of the process: the load that a bill is made for.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use shared::clock::{Micros, SECOND};
use shared::publish::Message;
use shared::push;

use crate::cost::Load;

/// Counts of messages, bytes and lines.
#[derive(Default)]
pub struct Traffic {
    raw: Count,
    enriched: Count,
    /// When the first raw message was published, 0 before, and the last.
    first: AtomicI64,
    last: AtomicI64,
}

#[derive(Default)]
struct Count {
    messages: AtomicU64,
    bytes: AtomicU64,
    lines: AtomicU64,
}

impl Count {
    fn add(&self, message: &Message) {
        self.messages.fetch_add(1, Relaxed);
        self.bytes.fetch_add(message.data.len() as u64, Relaxed);
        self.lines.fetch_add(push::lines(&message.data).count() as u64, Relaxed);
    }

    /// Messages, bytes and lines.
    #[expect(clippy::cast_precision_loss, reason = "averages are made of them")]
    fn read(&self) -> [f64; 3] {
        [&self.messages, &self.bytes, &self.lines].map(|count| count.load(Relaxed) as f64)
    }
}

impl Traffic {
    /// Counts a message that the raw topic has taken.
    pub fn raw(&self, message: &Message, now: Micros) {
        self.raw.add(message);
        let _ = self.first.compare_exchange(0, now, Relaxed, Relaxed);
        self.last.fetch_max(now, Relaxed);
    }

    /// Counts a message that the enriched topic has taken.
    pub fn enriched(&self, message: &Message) {
        self.enriched.add(message);
    }

    /// The averages from the first event to the last, over a second at least; none before the first.
    pub fn load(&self) -> Option<Load> {
        let [requests, bytes, events] = self.raw.read();
        let [packs, _, rows] = self.enriched.read();
        let took = (self.last.load(Relaxed) - self.first.load(Relaxed)).max(SECOND);
        #[expect(clippy::cast_precision_loss, reason = "a time between two points of it")]
        let seconds = took as f64 / SECOND as f64;
        let pack = (packs > 0.0).then(|| rows / packs);
        (events > 0.0).then(|| Load {
            rps: events / seconds,
            event_bytes: bytes / events,
            batch: events / requests,
            bad: 0.0,
            regions: 1,
            pack,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_the_average_of_what_was_published() {
        let traffic = Traffic::default();
        assert!(traffic.load().is_none());
        let message = |text: &str| Message { data: text.to_string().into(), ..Message::default() };
        traffic.raw(&message("{\"a\":1}\n{\"a\":2}"), 7 * SECOND);
        traffic.raw(&message("{\"a\":3}\n{\"a\":4}"), 9 * SECOND);
        traffic.enriched(&message("{}\n{}\n{}\n{}"));
        let load = traffic.load().unwrap();
        let found = (load.rps, load.event_bytes, load.batch, load.pack);
        assert_eq!(found, (2.0, 7.5, 2.0, Some(4.0)));
    }
}
