//! A topic of Google Cloud Pub/Sub.
//!
//! Functions are suspended between requests, and a connection may die meanwhile without a sign. So a channel that has been
//! idle for 4 minutes is not used again, and an attempt is short: one that gets no answer is repeated on a new channel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use google_cloud_auth::credentials::Credentials;
use google_cloud_gax::error::Error;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_policy::{LimitedElapsedTime, RetryPolicy, RetryPolicyExt};
use google_cloud_gax::retry_result::RetryResult;
use google_cloud_gax::retry_state::RetryState;
use google_cloud_gax::throttle_result::ThrottleResult;
use google_cloud_pubsub::client::{BasePublisher, Publisher as Client};
use google_cloud_pubsub::error::PublishError as ClientError;
use google_cloud_pubsub::model::Message as PubSubMessage;
use google_cloud_pubsub::retry_policy::RetryableErrors;
use http::Extensions;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout_at};

use super::{Message, PublishError, Publisher};
use crate::clock::{Clock, Micros, SECOND};
use crate::settings::{Settings, fault};

/// Attempt limit for a function, whose requests are small and whose network is fast.
pub const ATTEMPT: Duration = Duration::from_secs(2);
/// Channels idle for longer are replaced before use. Load balancers and NAT gateways drop idle connections after 4 to 10
/// minutes, some without a reset.
const MAX_IDLE: Micros = 240 * SECOND;

/// Pause before a login that failed is tried again.
const PAUSE: Duration = Duration::from_millis(100);

/// How messages are gathered into requests and how long a request is tried.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the client waits for further messages of the same request.
    pub wait: Duration,
    /// Longest time of one attempt; at most half of `give_up_after` is used. The next attempt gets a new channel.
    pub attempt: Duration,
    /// After this long a publish that was not acknowledged is given up; the messages may have arrived all the same.
    pub give_up_after: Duration,
}

/// The connection that all topics of a process share.
pub struct PubSub {
    connection: Arc<Connection>,
}

impl PubSub {
    /// Makes the client. `PUBSUB_ENDPOINT` names an emulator (`http://host:port`). Nothing is sent yet.
    pub async fn new(
        settings: &Settings,
        credentials: Credentials,
        options: Options,
        clock: Clock,
    ) -> Result<Self, String> {
        let endpoint = settings.get("PUBSUB_ENDPOINT").map(str::to_string);
        let options = Options { attempt: options.attempt.min(options.give_up_after / 2), ..options };
        let connection = Connection { endpoint, credentials, options, clock, channel: Mutex::default() };
        connection.channel().await.map_err(|error| fault("PUBSUB_ENDPOINT", error).to_string())?;
        Ok(Self { connection: Arc::new(connection) })
    }

    /// The topic `projects/<project>/topics/<topic>`.
    pub fn topic(&self, name: &str) -> PubSubTopic {
        PubSubTopic { name: name.to_string(), connection: Arc::clone(&self.connection) }
    }
}

/// The current channel, and what the next one is made from.
struct Connection {
    endpoint: Option<String>,
    credentials: Credentials,
    options: Options,
    clock: Clock,
    channel: Mutex<Option<Channel>>,
}

/// A client with its own channel.
struct Channel {
    client: BasePublisher,
    /// One batching client a topic.
    topics: HashMap<String, Client>,
    /// When Pub/Sub last answered, or the channel was made: by the wall clock, which goes on while a machine is suspended,
    /// and by the monotonic one, which nobody sets back.
    used: (Micros, Instant),
    id: u64,
}

impl Connection {
    async fn channel(&self) -> Result<Channel, String> {
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_delay(Duration::from_millis(50))
            .with_maximum_delay(Duration::from_secs(2))
            .build()
            .map_err(|error| error.to_string())?;
        let mut builder = BasePublisher::builder()
            .with_credentials(self.credentials.clone())
            .with_retry_policy(WithinAttempt(RetryableErrors.with_time_limit(self.options.attempt)))
            .with_backoff_policy(backoff);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        let client = builder.build().await.map_err(|error| whole(&error))?;
        Ok(Channel { client, topics: HashMap::new(), used: self.now(), id: fastrand::u64(..) })
    }

    /// The client of a topic, with the id of its channel; on a new channel where the last one was idle or discarded.
    async fn client(&self, topic: &str) -> Result<(Client, u64), String> {
        let mut current = self.channel.lock().await;
        let (wall, monotonic) = self.now();
        let is_fresh = |channel: &Channel| {
            let (used_wall, used_monotonic) = channel.used;
            let idle = Micros::try_from((monotonic - used_monotonic).as_micros()).unwrap_or(Micros::MAX);
            wall - used_wall <= MAX_IDLE && idle <= MAX_IDLE
        };
        let channel = match current.take() {
            Some(channel) if is_fresh(&channel) => channel,
            _ => self.channel().await?,
        };
        let channel = current.insert(channel);
        let wait = self.options.wait;
        let make = || channel.client.publisher(topic).set_delay_threshold(wait).build();
        let client = channel.topics.entry(topic.to_string()).or_insert_with(make).clone();
        Ok((client, channel.id))
    }

    /// Records the outcome of an attempt: a channel that left messages without an answer is not used again.
    async fn record(&self, id: u64, answered: bool) {
        let mut current = self.channel.lock().await;
        let Some(channel) = current.as_mut().filter(|channel| channel.id == id) else { return };
        if answered {
            channel.used = self.now();
        } else {
            *current = None;
        }
    }

    fn now(&self) -> (Micros, Instant) {
        (self.clock.now(), Instant::now())
    }
}

/// Retries passing errors for as long as the attempt lasts, and marks the last one as `exhausted`.
#[derive(Debug)]
struct WithinAttempt(LimitedElapsedTime<RetryableErrors>);

impl RetryPolicy for WithinAttempt {
    fn on_error(&self, state: &RetryState, error: Error) -> RetryResult {
        match self.0.on_error(state, error) {
            RetryResult::Exhausted(error) => RetryResult::Exhausted(Error::exhausted(error)),
            result => result,
        }
    }

    fn on_throttle(&self, state: &RetryState, error: Error) -> ThrottleResult {
        self.0.on_throttle(state, error)
    }

    fn remaining_time(&self, state: &RetryState) -> Option<Duration> {
        self.0.remaining_time(state)
    }
}

/// One topic; see [`Publisher`].
pub struct PubSubTopic {
    name: String,
    connection: Arc<Connection>,
}

#[async_trait]
impl Publisher for PubSubTopic {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let message = |message: Message| PubSubMessage::new().set_data(message.data).set_attributes(message.attributes);
        let messages: Vec<_> = messages.into_iter().map(message).collect();
        let deadline = Instant::now() + self.connection.options.give_up_after;
        let mut answers: Vec<Result<String, String>> = vec![Err("not sent".into()); messages.len()];
        let mut pending: Vec<_> = (0..messages.len()).collect();
        while !pending.is_empty() {
            pending = self.attempt(&messages, pending, &mut answers, deadline).await;
            if Instant::now() >= deadline {
                break;
            }
        }
        let error = |reason| PublishError { topic: self.name.clone(), reason };
        answers.into_iter().map(|answer| answer.map_err(error)).collect()
    }
}

impl PubSubTopic {
    /// Sends the pending messages once and records their answers; returns those worth another attempt.
    async fn attempt(
        &self,
        messages: &[PubSubMessage],
        pending: Vec<usize>,
        answers: &mut [Result<String, String>],
        deadline: Instant,
    ) -> Vec<usize> {
        // Ahead of the attempt, since a login may take longer than one.
        let client = match self.connection.credentials.headers(Extensions::new()).await {
            Ok(_) => self.connection.client(&self.name).await.map_err(|reason| (reason, false)),
            Err(error) => Err((format!("no credentials for Google Cloud: {}", whole(&error)), error.is_transient())),
        };
        let (client, id) = match client {
            Ok(client) => client,
            Err((reason, is_passing)) => {
                for &index in &pending {
                    answers[index] = Err(reason.clone());
                }
                if !is_passing {
                    return Vec::new();
                }
                tokio::time::sleep(PAUSE).await;
                return pending;
            }
        };
        let until = deadline.min(Instant::now() + self.connection.options.attempt);
        let sent = pending.iter().map(|&index| timeout_at(until, client.publish(messages[index].clone())));
        let results = join_all(sent).await;
        let mut unanswered = Vec::new();
        for (index, result) in pending.into_iter().zip(results) {
            let is_passing = match &result {
                Ok(Err(ClientError::Rpc(error))) => error.is_exhausted(),
                Ok(_) => false,
                Err(_) => true,
            };
            if is_passing {
                unanswered.push(index);
            }
            answers[index] = match result {
                Ok(answer) => answer.map_err(|error| whole(&error)),
                Err(_) => Err(format!("no answer within {} ms", self.connection.options.attempt.as_millis())),
            };
        }
        self.connection.record(id, unanswered.is_empty()).await;
        if let Some(Err(reason)) = unanswered.first().map(|&index| &answers[index]) {
            let messages = unanswered.len();
            tracing::warn!(topic = self.name, messages, reason, "publish attempt failed, opening a new connection");
        }
        unanswered
    }
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
