//! The embedded bus: topics and push subscriptions with Pub/Sub's semantics, durable in one file.
//!
//! A publish is answered after its messages are on disk for every subscription of the topic. Each subscription has a
//! queue of its own, so that subscriptions never wait for each other. Delivery is at least once, in no promised order:
//! a real HTTP POST of the wrapped push JSON, acknowledged by status, redelivered with backoff, forwarded to a
//! dead-letter topic after too many attempts. After a crash everything unacknowledged is delivered again.
//!
//! ```text
//! publishers ──► writer (one thread, one commit a group) ──► redb file ──► deliverer per subscription ──► HTTP POST
//!                   ▲                                                             │
//!                   └──────────── acks, attempts, dead letters ◄──────────────────┘
//! ```
//!
//! Memory holds no body that waits: a deliverer keeps a cursor into its queue, and what was refused as (time, id).

mod deliver;
mod record;
mod store;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use async_trait::async_trait;
use shared::clock::{Clock, Micros};
use shared::publish::{Message, PublishError, Publisher, limits};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use deliver::Deliverer;
use record::Record;
use store::{OpenDatabase, Store};
use writer::{Command, Publish, Writer};

/// The project in full names of subscriptions.
const PROJECT: &str = "local";

/// What the bus consists of.
#[derive(Debug, Clone)]
pub struct Config {
    /// Every topic, also those without a subscription (what they are sent is accepted and dropped).
    pub topics: Vec<String>,
    /// Every subscription. One that is new to the file gets what is published from now on; the queue of one that is
    /// no longer named stays in the file, untouched.
    pub subscriptions: Vec<Subscription>,
    /// Memory that the database may use for pages, in bytes.
    pub cache_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { topics: Vec::new(), subscriptions: Vec::new(), cache_bytes: 16 << 20 }
    }
}

/// A push subscription.
#[derive(Debug, Clone)]
pub struct Subscription {
    /// Short name; pushes carry `projects/local/subscriptions/<name>`.
    pub name: String,
    /// The topic it reads.
    pub topic: String,
    /// Where to POST: a URL, or a path under the base URL given to [`Bus::start`].
    pub push_endpoint: String,
    /// No answer within this time is a refusal.
    pub ack_deadline: Duration,
    /// The shortest wait before a redelivery.
    pub min_backoff: Duration,
    /// The longest wait before a redelivery.
    pub max_backoff: Duration,
    /// After so many deliveries a message goes to the dead-letter topic.
    pub max_attempts: u32,
    /// Where a message goes after `max_attempts`; without it a message is retried for ever.
    pub dead_letter_topic: Option<String>,
    /// How many pushes may wait for their answers at once. Each holds a connection, that is two file descriptors
    /// where the endpoint is in this process.
    pub max_outstanding: usize,
}

impl Subscription {
    /// A subscription with the defaults of local work: 60 s to answer, backoff 100 ms to 60 s, 100 attempts, no
    /// dead-letter topic, 100 pushes at once.
    pub fn new(name: &str, topic: &str, push_endpoint: &str) -> Self {
        Self {
            name: name.into(),
            topic: topic.into(),
            push_endpoint: push_endpoint.into(),
            ack_deadline: Duration::from_mins(1),
            min_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_mins(1),
            max_attempts: 100,
            dead_letter_topic: None,
            max_outstanding: 100,
        }
    }
}

/// The state of the bus at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stats {
    /// Transactions committed since the bus was opened.
    pub commits: u64,
    /// One entry a subscription, in the order of [`Config::subscriptions`].
    pub subscriptions: Vec<SubscriptionStats>,
}

/// The backlog of one subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionStats {
    /// Short name of the subscription.
    pub name: String,
    /// Messages that are neither acknowledged nor on their way, those in backoff included.
    pub waiting: u64,
    /// Pushes without an answer yet.
    pub outstanding: u64,
    /// When the oldest unacknowledged message was published.
    pub oldest_published_at: Option<Micros>,
}

/// The embedded bus. Clones share it.
#[derive(Clone)]
pub struct Bus(Arc<Inner>);

struct Inner {
    broker: Arc<Broker>,
    commands: mpsc::Sender<Command>,
    /// Set once, to the time that pushes on their way may still take.
    stopping: watch::Sender<Option<Duration>>,
    deliverers: Mutex<Option<Vec<JoinHandle<()>>>>,
}

/// What publishers, writer and deliverers share.
struct Broker {
    store: Store,
    clock: Clock,
    /// The subscriptions of each topic, as indices of `queues`.
    topics: HashMap<String, Vec<usize>>,
    queues: Vec<Queue>,
    /// Unacknowledged messages of all queues. One number, so that it is never 0 while a message moves from one queue
    /// to the next: the publish that a handler makes is counted before the ack it then gives.
    unacked: AtomicU64,
    commits: AtomicU64,
    /// Why the last commit failed; none where it succeeded.
    failure: Mutex<Option<String>>,
}

struct Queue {
    subscription: Subscription,
    /// Names of the tables: messages by id, and attempts by id.
    messages_table: String,
    attempts_table: String,
    /// Messages in the table, as of the last commit.
    unacked: AtomicU64,
    outstanding: AtomicU64,
    /// Rings when a commit brought messages.
    arrived: Notify,
}

impl Bus {
    /// Opens the file at `path`, or creates it, and starts the writer thread. Publishing works from here on,
    /// deliveries begin with [`Bus::start`].
    ///
    /// After a crash the file is checked before use, which reads it once (about a second per GB).
    pub fn open(path: &Path, clock: Clock, config: Config) -> Result<Self> {
        let cache_bytes = config.cache_bytes;
        let file = path.to_path_buf();
        let open = move || redb::Database::builder().set_cache_size(cache_bytes).create(&file);
        let bus = Self::open_with(Box::new(open), clock, config).map_err(|error| explained(error, path))?;
        bus.0.broker.store.stay_at(path).with_context(|| format!("failed to sync {}", path.display()))?;
        Ok(bus)
    }

    /// What waits in the file at `path` while no bus has it open; nothing where there is no file.
    pub fn at_rest(path: &Path, config: Config) -> Result<Vec<SubscriptionStats>> {
        if !path.exists() {
            return Ok(Vec::new());
        }
        let file = path.to_path_buf();
        let (_, queues) = declare(config)?;
        let store = Store::open(Box::new(move || redb::Database::open(&file)), &queues)
            .map_err(|error| explained(error, path))?;
        let of_queue = |queue: Queue| {
            let (waiting, oldest_published_at) = (store.count(&queue)?, store.oldest(&queue)?);
            Ok(SubscriptionStats { name: queue.subscription.name, waiting, outstanding: 0, oldest_published_at })
        };
        queues.into_iter().map(of_queue).collect()
    }

    fn open_with(open: OpenDatabase, clock: Clock, config: Config) -> Result<Self> {
        let (topics, queues) = declare(config)?;
        let store = Store::open(open, &queues)?;
        let (unacked, commits) = (AtomicU64::new(0), AtomicU64::new(0));
        let failure = Mutex::default();
        let broker = Arc::new(Broker { store, clock, topics, queues, unacked, commits, failure });
        broker.recount();
        let writer = Writer::new(broker.clone())?;
        let (commands, received) = mpsc::channel();
        std::thread::Builder::new()
            .name("bus-writer".into())
            .spawn(move || writer.run(&received))
            .context("failed to start the writer thread")?;
        let stopping = watch::Sender::new(None);
        Ok(Self(Arc::new(Inner { broker, commands, stopping, deliverers: Mutex::new(None) })))
    }

    /// The port to a topic. Publishing to a topic that was not declared fails.
    pub fn publisher(&self, topic: &str) -> TopicPublisher {
        TopicPublisher { topic: topic.into(), broker: self.0.broker.clone(), commands: self.0.commands.clone() }
    }

    /// Starts delivering, on the current tokio runtime. `base_url` (`http://127.0.0.1:8080`) is what endpoints given
    /// as paths stand under; pushes carry `token` as their bearer token.
    pub fn start(&self, base_url: &str, token: Option<&str>) -> Result<()> {
        let base = reqwest::Url::parse(base_url).with_context(|| format!("{base_url:?} is not a URL"))?;
        let client = deliver::client(token)?;
        let mut deliverers = self.0.deliverers.lock().unwrap_or_else(PoisonError::into_inner);
        ensure!(deliverers.is_none(), "the bus delivers already");
        let mut tasks = Vec::new();
        for (index, queue) in self.0.broker.queues.iter().enumerate() {
            let endpoint = &queue.subscription.push_endpoint;
            let url = base.join(endpoint).with_context(|| format!("push endpoint {endpoint:?} is not a URL"))?;
            let (broker, commands) = (self.0.broker.clone(), self.0.commands.clone());
            tasks.push((Deliverer::new(broker, commands, index, client.clone(), url), self.0.stopping.subscribe()));
        }
        let tasks = tasks.into_iter().map(|(deliverer, stopping)| tokio::spawn(deliverer.run(stopping)));
        *deliverers = Some(tasks.collect());
        Ok(())
    }

    /// Waits until every queue is empty; `false` if `timeout` has passed before.
    pub async fn drain(&self, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        while self.0.broker.unacked.load(Ordering::Acquire) > 0 {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    /// Ends the bus: no new deliveries, pushes on their way get `grace` to be answered (publishes still work
    /// meanwhile), and a last commit stores what is settled and how often the rest was tried. Publishing fails from
    /// then on.
    pub async fn stop(&self, grace: Duration) {
        self.0.stopping.send_replace(Some(grace));
        let deliverers = self.0.deliverers.lock().unwrap_or_else(PoisonError::into_inner).take();
        for deliverer in deliverers.into_iter().flatten() {
            if let Err(error) = deliverer.await {
                tracing::error!(%error, "a deliverer did not end well");
            }
        }
        let (stopped, wait) = oneshot::channel();
        if self.0.commands.send(Command::Stop(stopped)).is_ok() {
            // An error means that the writer had ended before.
            let _ = wait.await;
        }
    }

    /// Whether publishes can be stored, as far as is known: the last commit succeeded and the file is where it was.
    pub fn ready(&self) -> Result<(), String> {
        let broker = &self.0.broker;
        broker.store.verify().map_err(|error| error.to_string())?;
        broker.failure.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// Backlog of every subscription. Reads one page of the file for each that is not empty.
    pub fn stats(&self) -> Stats {
        let broker = &self.0.broker;
        let of_queue = |queue: &Queue| {
            let outstanding = queue.outstanding.load(Ordering::Relaxed);
            let unacked = queue.unacked.load(Ordering::Relaxed);
            SubscriptionStats {
                name: queue.subscription.name.clone(),
                waiting: unacked.saturating_sub(outstanding),
                outstanding,
                oldest_published_at: if unacked == 0 { None } else { broker.store.oldest(queue).ok().flatten() },
            }
        };
        Stats {
            commits: broker.commits.load(Ordering::Relaxed),
            subscriptions: broker.queues.iter().map(of_queue).collect(),
        }
    }
}

impl Broker {
    /// Takes the numbers of messages from the file.
    fn recount(&self) {
        let mut total = 0;
        for queue in &self.queues {
            match self.store.count(queue) {
                Ok(messages) => queue.unacked.store(messages, Ordering::Relaxed),
                Err(error) => tracing::error!(error = format!("{error:#}"), "failed to count a queue"),
            }
            total += queue.unacked.load(Ordering::Relaxed);
        }
        self.unacked.store(total, Ordering::Release);
    }
}

/// An error of opening the file at `path`, with what to do.
fn explained(error: anyhow::Error, path: &Path) -> anyhow::Error {
    match error.downcast::<redb::DatabaseError>() {
        Ok(error) => store::explain(error, path),
        Err(error) => error.context(format!("failed to open {}", path.display())),
    }
}

type Topics = HashMap<String, Vec<usize>>;

fn declare(config: Config) -> Result<(Topics, Vec<Queue>)> {
    let mut topics: Topics = config.topics.into_iter().map(|topic| (topic, Vec::new())).collect();
    let mut queues: Vec<Queue> = Vec::new();
    for subscription in config.subscriptions {
        let name = &subscription.name;
        if queues.iter().any(|queue| queue.subscription.name == *name) {
            bail!("subscription {name} is declared twice");
        }
        ensure!(subscription.max_outstanding > 0, "subscription {name} may have no push outstanding");
        if let Some(topic) = &subscription.dead_letter_topic {
            ensure!(topics.contains_key(topic), "dead-letter topic {topic} of subscription {name} is not declared");
        }
        let topic = &subscription.topic;
        let readers =
            topics.get_mut(topic).with_context(|| format!("topic {topic} of subscription {name} is not declared"))?;
        readers.push(queues.len());
        queues.push(Queue {
            messages_table: format!("messages/{name}"),
            attempts_table: format!("attempts/{name}"),
            unacked: AtomicU64::new(0),
            outstanding: AtomicU64::new(0),
            arrived: Notify::new(),
            subscription,
        });
    }
    Ok((topics, queues))
}

/// The port to one topic of the bus.
///
/// `Ok` means that the message is on disk for every subscription. A call over Pub/Sub's limits is refused, and nothing of
/// it is stored. The messages of one call succeed or fail together; those of a failed call are as a rule not stored, but may be (a sync that failed after the write).
#[derive(Clone)]
pub struct TopicPublisher {
    topic: String,
    broker: Arc<Broker>,
    commands: mpsc::Sender<Command>,
}

impl TopicPublisher {
    /// Answers the id of the first message; the others follow it.
    async fn store(&self, messages: &[Message]) -> Result<u64, String> {
        limits::check(messages)?;
        let readers = self.broker.topics.get(&self.topic).ok_or("there is no such topic")?.clone();
        let published_at = self.broker.clock.now();
        let records = messages.iter().map(|message| Record::encode(published_at, &message.attributes, &message.data));
        let (answer, answered) = oneshot::channel();
        let publish = Publish { readers, records: records.collect(), answer };
        let stopped = "the bus has stopped";
        self.commands.send(Command::Publish(publish)).map_err(|_| stopped)?;
        answered.await.map_err(|_| stopped)?
    }
}

#[async_trait]
impl Publisher for TopicPublisher {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        if messages.is_empty() {
            return Vec::new();
        }
        let stored = self.store(&messages).await;
        (0..messages.len() as u64)
            .map(|position| match &stored {
                Ok(first) => Ok((first + position).to_string()),
                Err(reason) => Err(PublishError { topic: self.topic.clone(), reason: reason.clone() }),
            })
            .collect()
    }
}
