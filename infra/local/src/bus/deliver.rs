//! Delivers one subscription: reads what is due, POSTs it, and reports what became of it to the writer.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, Url, redirect};
use shared::push::Push;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::record::Record;
use super::store::{Again, Fetched, Room};
use super::writer::{Command, Outcome, Settlement};
use super::{Broker, PROJECT, Queue};

/// Messages read at once.
const READ_MESSAGES: usize = 256;
/// Bodies of one subscription on their way at once, so that large messages do not fill the memory.
const OUTSTANDING_BYTES: usize = 32 << 20;
/// After so many refusals in a row the endpoint counts as down, and is tried once in [`PACE`] (or in the shortest
/// backoff, if that is shorter) until it acknowledges: an outage with a large backlog must not keep the processor busy
/// with attempts.
const DOWN_AFTER: u32 = 16;
const PACE: Duration = Duration::from_millis(100);
/// How long a connection without a push is kept: shorter than any endpoint keeps it, so that none is closed under a push.
const IDLE: Duration = Duration::from_secs(5);
/// How long the deliverer waits after it failed to read its queue.
const READ_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The client of all pushes. No proxy and no redirect: endpoints are on this machine, and to Pub/Sub a redirect is a
/// refusal.
pub(super) fn client(token: Option<&str>) -> Result<Client> {
    let mut headers = HeaderMap::new();
    if let Some(token) = token {
        let mut bearer = HeaderValue::try_from(format!("Bearer {token}")).context("not a token")?;
        bearer.set_sensitive(true);
        headers.insert(AUTHORIZATION, bearer);
    }
    Client::builder()
        .no_proxy()
        .default_headers(headers)
        .pool_idle_timeout(IDLE)
        .redirect(redirect::Policy::none())
        .user_agent("CloudPubSub-Google")
        .build()
        .context("failed to build the push client")
}

pub(super) struct Deliverer {
    broker: Arc<Broker>,
    commands: mpsc::Sender<Command>,
    index: usize,
    client: Client,
    url: Url,
    /// Full name of the subscription.
    name: Arc<str>,
    /// The largest id read so far: a message above it was not delivered since the start.
    cursor: u64,
    /// Whether there is nothing above the cursor, as far as is known.
    caught_up: bool,
    /// Refused messages by the time of their next attempt: (when, id, attempts).
    refused: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    pushes: JoinSet<Delivery>,
    outstanding_bytes: usize,
    refusals_in_a_row: u32,
    /// Whether the last read failed: logged once.
    unreadable: bool,
    /// No delivery begins before.
    not_before: Instant,
}

/// A push that has ended.
struct Delivery {
    id: u64,
    /// Deliveries tried, this one included.
    attempts: u32,
    bytes: usize,
    acked: bool,
}

impl Deliverer {
    pub fn new(broker: Arc<Broker>, commands: mpsc::Sender<Command>, index: usize, client: Client, url: Url) -> Self {
        let name = format!("projects/{PROJECT}/subscriptions/{}", broker.queues[index].subscription.name).into();
        Self {
            broker,
            commands,
            index,
            client,
            url,
            name,
            cursor: 0,
            caught_up: false,
            refused: BinaryHeap::new(),
            pushes: JoinSet::new(),
            outstanding_bytes: 0,
            refusals_in_a_row: 0,
            unreadable: false,
            not_before: Instant::now(),
        }
    }

    /// Delivers until `stopping` says how long pushes on their way may still take.
    pub async fn run(mut self, mut stopping: watch::Receiver<Option<Duration>>) {
        let broker = self.broker.clone();
        let arrived = &broker.queues[self.index].arrived;
        let grace = loop {
            if let Some(grace) = *stopping.borrow_and_update() {
                break grace;
            }
            self.deliver_due().await;
            let wake = self.wakes_at();
            tokio::select! {
                changed = stopping.changed() => if changed.is_err() { break Duration::ZERO },
                () = arrived.notified() => self.caught_up = false,
                Some(ended) = self.pushes.join_next() => {
                    let mut ended = Some(ended);
                    while let Some(delivery) = ended {
                        self.settle(delivery);
                        ended = self.pushes.try_join_next();
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            }
        };
        self.finish(grace).await;
    }

    fn queue(&self) -> &Queue {
        &self.broker.queues[self.index]
    }

    fn room(&self) -> Room {
        let paced = if self.refusals_in_a_row < DOWN_AFTER { READ_MESSAGES } else { 1 };
        let max_outstanding = self.queue().subscription.max_outstanding;
        Room {
            messages: max_outstanding.saturating_sub(self.pushes.len()).min(paced),
            bytes: OUTSTANDING_BYTES.saturating_sub(self.outstanding_bytes),
        }
    }

    /// When there is something to begin that a timer must wake for.
    fn wakes_at(&self) -> Option<Instant> {
        let room = self.room();
        if room.messages == 0 || room.bytes == 0 {
            return None;
        }
        let due =
            if self.caught_up { self.refused.peek().map(|Reverse((due, ..))| *due) } else { Some(self.not_before) };
        due.map(|due| due.max(self.not_before))
    }

    /// Begins a batch of deliveries if something is due and there is room.
    async fn deliver_due(&mut self) {
        let now = Instant::now();
        if self.wakes_at().is_none_or(|wake| wake > now) {
            return;
        }
        let room = self.room();
        let mut again = Again::new();
        while again.len() < room.messages
            && let Some(&Reverse((due, id, attempts))) = self.refused.peek()
            && due <= now
        {
            again.push_back((id, attempts));
            self.refused.pop();
        }
        let (broker, index, after) = (self.broker.clone(), self.index, self.cursor);
        let wanted = again.clone();
        let read = move || {
            let fetched = broker.store.fetch(&broker.queues[index], &mut again, after, room);
            (fetched, again)
        };
        // On a thread for blocking work: a page of a long backlog comes from the disk.
        let read = tokio::task::spawn_blocking(read).await.context("the read did not end well");
        let left = match read.and_then(|(fetched, left)| Ok((fetched?, left))) {
            Ok((fetched, left)) => {
                self.unreadable = false;
                self.begin(fetched, room);
                left
            }
            Err(error) => {
                // As a rule the writer, which reopens the file after a failed write, cannot do so yet.
                if !self.unreadable {
                    tracing::warn!(subscription = %self.name, error = format!("{error:#}"), "failed to read the queue");
                }
                self.unreadable = true;
                self.not_before = now + READ_AGAIN_AFTER;
                wanted
            }
        };
        self.refused.extend(left.into_iter().map(|(id, attempts)| Reverse((now, id, attempts))));
    }

    fn begin(&mut self, fetched: Vec<Fetched>, room: Room) {
        let bytes: usize = fetched.iter().map(|message| message.record.len()).sum();
        self.caught_up = fetched.len() < room.messages && bytes < room.bytes;
        self.outstanding_bytes += bytes;
        if self.refusals_in_a_row >= DOWN_AFTER {
            self.not_before = Instant::now() + PACE.min(self.queue().subscription.min_backoff);
        }
        self.queue().outstanding.fetch_add(fetched.len() as u64, Ordering::Relaxed);
        let deadline = self.queue().subscription.ack_deadline;
        for message in fetched {
            self.cursor = self.cursor.max(message.id);
            let (client, url, name) = (self.client.clone(), self.url.clone(), self.name.clone());
            self.pushes.spawn(async move {
                let (id, attempts, bytes) = (message.id, message.attempts + 1, message.record.len());
                let acked = match body(&name, &message) {
                    Some(body) => {
                        drop(message);
                        timeout(deadline, push(&client, url, body)).await.unwrap_or(false)
                    }
                    None => false,
                };
                Delivery { id, attempts, bytes, acked }
            });
        }
    }

    fn settle(&mut self, ended: Result<Delivery, tokio::task::JoinError>) {
        self.queue().outstanding.fetch_sub(1, Ordering::Relaxed);
        let Delivery { id, attempts, bytes, acked } = match ended {
            Ok(delivery) => delivery,
            Err(error) => {
                // A push does not panic; if one did, its message waits for the next start.
                tracing::error!(subscription = %self.name, %error, "a push did not end well");
                return;
            }
        };
        self.outstanding_bytes -= bytes;
        if acked {
            self.refusals_in_a_row = 0;
            self.report(id, Outcome::Acked { tried_before: attempts > 1 });
            return;
        }
        self.refusals_in_a_row = self.refusals_in_a_row.saturating_add(1);
        if self.refusals_in_a_row == DOWN_AFTER {
            tracing::warn!(subscription = %self.name, "the endpoint refuses; it is tried slowly until it acknowledges");
        }
        let subscription = &self.queue().subscription;
        if attempts >= subscription.max_attempts && subscription.dead_letter_topic.is_some() {
            self.report(id, Outcome::Dead { attempts });
            return;
        }
        let wait = backoff(subscription.min_backoff, subscription.max_backoff, attempts, fastrand::f64());
        self.refused.push(Reverse((Instant::now() + wait, id, attempts)));
        // Not every attempt is worth a write: after a crash a message may be tried up to twice as often, or 15 times
        // more, than it was to be. `finish` writes the exact number.
        if attempts >= 2 && (attempts.is_power_of_two() || attempts.is_multiple_of(16)) {
            self.report(id, Outcome::Refused { attempts });
        }
    }

    fn report(&self, id: u64, outcome: Outcome) {
        // The writer ends after the deliverers, unless it failed; then the message is delivered again after a start.
        let _ = self.commands.send(Command::Settle(Settlement { queue: self.index, id, outcome }));
    }

    /// Gives pushes on their way `grace` to end, then leaves them; what stays in the queue is stored with its attempts.
    async fn finish(mut self, grace: Duration) {
        let end = Instant::now() + grace;
        while let Ok(Some(ended)) = tokio::time::timeout_at(end, self.pushes.join_next()).await {
            self.settle(ended);
        }
        self.queue().outstanding.fetch_sub(self.pushes.len() as u64, Ordering::Relaxed);
        self.pushes.abort_all();
        for Reverse((_, id, attempts)) in &self.refused {
            self.report(*id, Outcome::Refused { attempts: *attempts });
        }
    }
}

/// `None` for a record that cannot be read.
fn body(subscription: &str, message: &Fetched) -> Option<Vec<u8>> {
    let record = Record::decode(&message.record)?;
    let push = Push {
        subscription: subscription.into(),
        message_id: message.id.to_string(),
        published_at: Some(record.published_at),
        attributes: record.attributes,
        data: record.data.to_vec().into(),
        attempt: message.attempts + 1,
    };
    Some(push.to_json())
}

/// POSTs one message; whether the answer acknowledges it.
///
/// Pub/Sub takes 102, 200, 201, 202 and 204 for an ack (<https://cloud.google.com/pubsub/docs/push#receive_push>). 102
/// is an interim answer in HTTP/1.1: the client skips it and waits for the final one.
async fn push(client: &Client, url: Url, body: Vec<u8>) -> bool {
    match client.post(url).header(CONTENT_TYPE, "application/json").body(body).send().await {
        Ok(answer) => {
            let acked = matches!(answer.status().as_u16(), 102 | 200 | 201 | 202 | 204);
            // Read to its end, so that the connection can be used again.
            let _ = answer.bytes().await;
            acked
        }
        Err(error) => {
            tracing::debug!(%error, "a push got no answer");
            false
        }
    }
}

/// The wait after the `attempts`-th refusal: doubles from `min` to `max`; of each step, between half and the whole,
/// so that messages refused together do not come back together. `random` is in 0..1.
fn backoff(min: Duration, max: Duration, attempts: u32, random: f64) -> Duration {
    let step = min.saturating_mul(2_u32.saturating_pow(attempts)).min(max);
    step.mul_f64(0.5 + random / 2.0).clamp(min.min(max), max)
}

#[cfg(test)]
mod tests {
    use shared::clock::{Clock, DAY, Micros};

    use super::super::Bus;
    use super::*;

    /// The pipeline's own subscriptions over a day in which every function answers 503, by a clock that the test moves.
    #[tokio::test]
    async fn after_a_day_of_503_every_message_is_delivered_and_none_is_a_dead_letter() {
        let folder = tempfile::tempdir().unwrap();
        let bus = Bus::open(&folder.path().join("bus.redb"), Clock::manual(0), crate::dev::topology()).unwrap();
        let broker = bus.0.broker.clone();
        let url = Url::parse("http://127.0.0.1:9/").unwrap();
        for (index, queue) in broker.queues.iter().enumerate() {
            let (commands, reported) = mpsc::channel();
            let mut deliverer = Deliverer::new(broker.clone(), commands, index, client(None).unwrap(), url.clone());
            let subscription = &queue.subscription;
            let (mut now, mut attempts): (Micros, u32) = (0, 0);
            let answer = |deliverer: &mut Deliverer, attempts, acked| {
                queue.outstanding.fetch_add(1, Ordering::Relaxed);
                deliverer.settle(Ok(Delivery { id: 1, attempts, bytes: 0, acked }));
            };
            while now < DAY {
                attempts += 1;
                answer(&mut deliverer, attempts, false);
                assert!(deliverer.refused.pop().is_some(), "{}: attempt {attempts} is the last", subscription.name);
                let wait = backoff(subscription.min_backoff, subscription.max_backoff, attempts, fastrand::f64());
                now += Micros::try_from(wait.as_micros()).unwrap();
            }
            answer(&mut deliverer, attempts + 1, true);
            let outcomes: Vec<_> = reported
                .try_iter()
                .map(|command| match command {
                    Command::Settle(settlement) => settlement.outcome,
                    _ => panic!("nothing is published"),
                })
                .collect();
            assert!(!outcomes.iter().any(|outcome| matches!(outcome, Outcome::Dead { .. })), "{}", subscription.name);
            assert!(matches!(outcomes.last(), Some(Outcome::Acked { .. })), "{}", subscription.name);
            assert!(attempts > 1_000, "{}: {attempts} attempts", subscription.name);
        }
    }

    #[test]
    fn waits_double_from_the_shortest_to_the_longest() {
        let wait = |attempts, random| {
            backoff(Duration::from_millis(100), Duration::from_mins(1), attempts, random).as_millis()
        };
        assert_eq!([1, 2, 3].map(|attempts| wait(attempts, 0.0)), [100, 200, 400]);
        assert_eq!([1, 2, 3].map(|attempts| wait(attempts, 1.0)), [200, 400, 800]);
        assert_eq!((wait(12, 0.0), wait(4_000_000_000, 1.0)), (30_000, 60_000));
    }

    #[test]
    fn a_longest_wait_below_the_shortest_wins() {
        assert_eq!(backoff(Duration::from_secs(9), Duration::from_secs(1), 3, 0.5), Duration::from_secs(1));
    }
}
