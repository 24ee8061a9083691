//! The one thread that writes: it gathers waiting publishes and settlements into one transaction and commits it.
//!
//! While one commit waits for the disk the next group gathers in the channel, so that the number of commits follows the
//! speed of the disk, not the number of publishes.
//!
//! Every commit is `Durability::Immediate`. Settlements (acks, attempts, dead letters) ride along with the next
//! publish and get a commit of their own only when none comes within [`SETTLE_WITHIN`]: at most ten syncs a second on
//! a bus that is otherwise idle. `Durability::None` would save those, but redb frees pages only with a durable commit,
//! so a draining backlog would grow the file; and a reopening after an I/O error would lose acks already counted.

use std::borrow::Cow;
use std::mem;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use redb::WriteTransaction;
use shared::decode::time;
use tokio::sync::oneshot;

use super::record::Record;
use super::store::RESERVED_IDS;
use super::{Broker, PROJECT, Queue};

/// How long a settlement waits for a publish to ride along with.
const SETTLE_WITHIN: Duration = Duration::from_millis(100);
/// How long after a failed commit the writer tries again on its own.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A group closes at this size, so that no answer waits for more than a moment of writing.
const GROUP_BYTES: usize = 4 << 20;
/// Ids are reserved in blocks: one write a block, and a crash skips what is left of it.
const ID_BLOCK: u64 = 10_000;

/// What the writer is asked to do.
pub(super) enum Command {
    Publish(Publish),
    Settle(Settlement),
    /// Commit and end.
    Stop(oneshot::Sender<()>),
}

/// Messages for the queues `readers`, in order.
pub(super) struct Publish {
    pub readers: Vec<usize>,
    pub records: Vec<Vec<u8>>,
    /// The id of the first message, or why none was stored.
    pub answer: oneshot::Sender<Result<u64, String>>,
}

/// What became of a delivery.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settlement {
    pub queue: usize,
    pub id: u64,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The message may go. `tried_before`: an earlier attempt may have left a row of attempts.
    Acked { tried_before: bool },
    /// The message stays; remember how often it was tried.
    Refused { attempts: u32 },
    /// The message moves to the dead-letter topic.
    Dead { attempts: u32 },
}

pub(super) struct Writer {
    broker: Arc<Broker>,
    next_id: u64,
    /// Ids below this are reserved in the file.
    reserved: u64,
    publishes: Vec<Publish>,
    publish_bytes: usize,
    /// Kept until they are committed.
    settlements: Vec<Settlement>,
    settle_by: Option<Instant>,
    /// Whether the last commit failed; a failure is logged when it begins and when it ends.
    failing: bool,
}

/// What a transaction changes; it counts only when it is committed.
struct Changes {
    next_id: u64,
    reserved: u64,
    /// By queue.
    added: Vec<u64>,
    removed: Vec<u64>,
}

impl Writer {
    pub fn new(broker: Arc<Broker>) -> Result<Self> {
        let reserved = broker.store.reserved_ids()?;
        Ok(Self {
            broker,
            next_id: reserved,
            reserved,
            publishes: Vec::new(),
            publish_bytes: 0,
            settlements: Vec::new(),
            settle_by: None,
            failing: false,
        })
    }

    /// Works until it is told to stop or nobody is left who could ask.
    pub fn run(mut self, commands: &Receiver<Command>) {
        let mut stopped = None;
        let mut ended = false;
        while !ended {
            let first = match self.settle_by {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => commands.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            let mut next = match first {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    ended = true;
                    None
                }
            };
            while let Some(command) = next {
                match command {
                    Command::Publish(publish) => {
                        self.publish_bytes += publish.records.iter().map(Vec::len).sum::<usize>();
                        self.publishes.push(publish);
                    }
                    Command::Settle(settlement) => {
                        self.settlements.push(settlement);
                        self.settle_by.get_or_insert_with(|| Instant::now() + SETTLE_WITHIN);
                    }
                    Command::Stop(answer) => {
                        stopped = Some(answer);
                        ended = true;
                        break;
                    }
                }
                next = if self.publish_bytes < GROUP_BYTES { commands.try_recv().ok() } else { None };
            }
            let settle = self.settle_by.is_some_and(|at| ended || at <= Instant::now());
            if settle || !self.publishes.is_empty() {
                self.commit();
            }
        }
        // The file is closed before the answer, so that whoever waits for it may open the file again.
        self.broker.store.close();
        if let Some(answer) = stopped {
            let _ = answer.send(());
        }
    }

    fn commit(&mut self) {
        let written = self.write();
        if let Err(error) = &written {
            if !self.failing {
                tracing::error!(error = format!("{error:#}"), "the bus cannot write; publishes fail until it can");
            }
            self.broker.store.close();
        } else if self.failing {
            tracing::info!("the bus can write again");
        }
        let failed_before = mem::replace(&mut self.failing, written.is_err());
        *self.broker.failure.lock().unwrap_or_else(PoisonError::into_inner) =
            written.as_ref().err().map(|error| format!("the bus cannot write: {error:#}"));
        self.publish_bytes = 0;
        let publishes = mem::take(&mut self.publishes);
        match written {
            Ok(changes) => {
                let mut first = mem::replace(&mut self.next_id, changes.next_id);
                self.reserved = changes.reserved;
                self.settlements.clear();
                self.settle_by = None;
                self.count(&changes, failed_before);
                for publish in publishes {
                    let count = publish.records.len() as u64;
                    // Whoever asked may have gone.
                    let _ = publish.answer.send(Ok(first));
                    first += count;
                }
            }
            Err(error) => {
                // Some of the group may be in the file all the same, so its ids are not given again.
                let messages: usize = publishes.iter().map(|publish| publish.records.len()).sum();
                self.next_id += (messages + self.settlements.len()) as u64;
                // Even with nothing to settle: the deliverers cannot read until the file is open again.
                self.settle_by = Some(Instant::now() + RETRY_AFTER);
                for publish in publishes {
                    let _ = publish.answer.send(Err(format!("failed to store: {error:#}")));
                }
            }
        }
    }

    /// Writes and commits the group.
    fn write(&self) -> Result<Changes> {
        let queues = &self.broker.queues;
        let transaction = self.broker.store.begin_write()?;
        let mut changes = Changes {
            next_id: self.next_id,
            reserved: self.reserved,
            added: vec![0; queues.len()],
            removed: vec![0; queues.len()],
        };
        let mut arrivals: Vec<Vec<(u64, Cow<'_, [u8]>)>> = vec![Vec::new(); queues.len()];
        for publish in &self.publishes {
            for record in &publish.records {
                for &reader in &publish.readers {
                    arrivals[reader].push((changes.next_id, Cow::Borrowed(record)));
                }
                changes.next_id += 1;
            }
        }
        for settlement in &self.settlements {
            let Outcome::Dead { attempts } = settlement.outcome else { continue };
            let source = &queues[settlement.queue];
            let Some(record) = self.take_dead(&transaction, source, settlement.id, attempts)? else { continue };
            changes.removed[settlement.queue] += 1;
            let topic = source.subscription.dead_letter_topic.as_ref();
            for &reader in topic.and_then(|topic| self.broker.topics.get(topic)).into_iter().flatten() {
                arrivals[reader].push((changes.next_id, Cow::Owned(record.clone())));
            }
            changes.next_id += 1;
        }
        let mut settlements: Vec<Vec<Settlement>> = vec![Vec::new(); queues.len()];
        for settlement in &self.settlements {
            settlements[settlement.queue].push(*settlement);
        }
        for (index, (arrivals, settlements)) in arrivals.into_iter().zip(settlements).enumerate() {
            changes.added[index] = arrivals.len() as u64;
            changes.removed[index] += update(&transaction, &queues[index], &arrivals, &settlements)?;
        }
        if changes.next_id > changes.reserved {
            changes.reserved = changes.next_id + ID_BLOCK;
            transaction.open_table(RESERVED_IDS)?.insert("", changes.reserved)?;
        }
        transaction.commit()?;
        // A file that was removed meanwhile keeps nothing.
        self.broker.store.verify()?;
        Ok(changes)
    }

    /// Takes a message out of its queue and makes of it the one that Pub/Sub would forward
    /// (<https://cloud.google.com/pubsub/docs/handling-failures#dead_letter_topic>). `None` if it is gone.
    fn take_dead(
        &self,
        transaction: &WriteTransaction,
        queue: &Queue,
        id: u64,
        attempts: u32,
    ) -> Result<Option<Vec<u8>>> {
        let mut messages = transaction.open_table(queue.messages())?;
        let Some(stored) = messages.remove(id)? else { return Ok(None) };
        let Some(Record { published_at, mut attributes, data }) = Record::decode(stored.value()) else {
            // Nothing this code wrote. It moves on as it is, since a queue has no other way out for it.
            return Ok(Some(stored.value().to_vec()));
        };
        let mut add = |key: &str, value| attributes.insert(format!("CloudPubSubDeadLetterSource{key}"), value);
        add("Subscription", queue.subscription.name.clone());
        add("SubscriptionProject", PROJECT.into());
        add("DeliveryCount", attempts.to_string());
        add("TopicPublishTime", time::timestamp_text(published_at));
        Ok(Some(Record::encode(self.broker.clock.now(), &attributes, data)))
    }

    fn count(&self, changes: &Changes, failed_before: bool) {
        let broker = &self.broker;
        broker.commits.fetch_add(1, Ordering::Relaxed);
        if failed_before {
            // A commit that failed may have been stored all the same.
            broker.recount();
        } else {
            let (added, removed): (u64, u64) = (changes.added.iter().sum(), changes.removed.iter().sum());
            // In one step: see the field. Wrapping, as the sum of both is never below 0.
            broker.unacked.fetch_add(added.wrapping_sub(removed), Ordering::AcqRel);
            for (queue, (&added, &removed)) in broker.queues.iter().zip(changes.added.iter().zip(&changes.removed)) {
                queue.unacked.fetch_add(added.wrapping_sub(removed), Ordering::Relaxed);
            }
        }
        for (queue, &added) in broker.queues.iter().zip(&changes.added) {
            if added > 0 || failed_before {
                queue.arrived.notify_one();
            }
        }
    }
}

/// Adds and removes in one queue; answers how many messages it removed.
fn update(
    transaction: &WriteTransaction,
    queue: &Queue,
    arrivals: &[(u64, Cow<'_, [u8]>)],
    settlements: &[Settlement],
) -> Result<u64> {
    let mut removed = 0;
    let acked = |settlement: &Settlement| matches!(settlement.outcome, Outcome::Acked { .. });
    if !arrivals.is_empty() || settlements.iter().any(acked) {
        let mut messages = transaction.open_table(queue.messages())?;
        for settlement in settlements.iter().filter(|settlement| acked(settlement)) {
            removed += u64::from(messages.remove(settlement.id)?.is_some());
        }
        for (id, record) in arrivals {
            messages.insert(id, record.as_ref())?;
        }
    }
    if settlements.iter().any(|settlement| settlement.outcome != Outcome::Acked { tried_before: false }) {
        let mut rows = transaction.open_table(queue.attempts())?;
        for settlement in settlements {
            match settlement.outcome {
                Outcome::Refused { attempts } => drop(rows.insert(settlement.id, attempts)?),
                Outcome::Acked { .. } | Outcome::Dead { .. } => drop(rows.remove(settlement.id)?),
            }
        }
    }
    Ok(removed)
}
