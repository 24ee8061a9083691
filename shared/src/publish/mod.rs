//! The port to a topic, and its adapters.

pub mod limits;
#[cfg(feature = "pubsub")]
pub mod pubsub;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;

/// Attributes of a message, sorted by key.
pub type Attributes = BTreeMap<String, String>;

/// The largest number of events in one message.
pub const MAX_EVENTS: usize = 500;
/// The largest data of one message, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The largest event that can become a row, in bytes, unless `MAX_EVENT_BYTES` says otherwise. It is lower than the
/// largest body, so that an event over it costs no other event.
pub const MAX_EVENT_BYTES: usize = 256 << 10;
/// The attribute of a message from a public publisher whose types are not checked: only those that anyone may send count.
pub const PUBLIC: (&str, &str) = ("ingest", "public");

/// What goes to a topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// One JSON object or NDJSON of several.
    pub data: Bytes,
    /// Pub/Sub attributes.
    pub attributes: Attributes,
}

/// Why a message was not acknowledged by its topic. The message may have been stored all the same.
#[derive(Debug, Clone, thiserror::Error)]
#[error("publish to {topic}: {reason}")]
pub struct PublishError {
    /// The topic's name.
    pub topic: String,
    /// What the service said.
    pub reason: String,
}

/// One topic.
///
/// `publish` answers one result a message, aligned by position. `Ok` carries the message id and means that the
/// topic has the message for good; it is never given before. A call is one publish request: [`limits::check`] says what
/// it may contain, and [`publish_each`] splits what is more.
#[async_trait]
pub trait Publisher: Send + Sync {
    /// Publishes all messages, each on its own.
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>>;
}

/// Publishes one message.
pub async fn publish_one(publisher: &dyn Publisher, message: Message) -> Result<String, PublishError> {
    publisher
        .publish(vec![message])
        .await
        .pop()
        .unwrap_or_else(|| Err(PublishError { topic: String::new(), reason: "the publisher answered nothing".into() }))
}

/// Publishes messages in as many requests as Pub/Sub's limits call for; one result a message, in their order.
pub async fn publish_each(publisher: &dyn Publisher, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
    let requests = limits::requests(messages).into_iter().map(|request| publisher.publish(request));
    join_all(requests).await.concat()
}

/// Publishes all messages; the ids come back in their order. The first message that was not acknowledged is the error,
/// and a topic that answers too little has acknowledged nothing of the rest.
pub async fn publish_all(publisher: &dyn Publisher, messages: Vec<Message>) -> Result<Vec<String>, PublishError> {
    let expected = messages.len();
    let ids = publish_each(publisher, messages).await.into_iter().collect::<Result<Vec<_>, _>>()?;
    if ids.len() < expected {
        let reason = format!("{} of {expected} messages were answered", ids.len());
        return Err(PublishError { topic: String::new(), reason });
    }
    Ok(ids)
}

/// A topic in memory, for tests and measurements: keeps what it is given within Pub/Sub's limits, fails while told to.
#[derive(Debug, Default)]
pub struct MemoryTopic {
    messages: Mutex<Vec<Message>>,
    down: AtomicBool,
}

impl MemoryTopic {
    /// All messages so far, oldest first.
    pub fn messages(&self) -> Vec<Message> {
        self.messages.lock().map(|held| held.clone()).unwrap_or_default()
    }

    /// While `down`, every publish fails.
    pub fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

#[async_trait]
impl Publisher for MemoryTopic {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let error = |reason: &str| PublishError { topic: "memory".into(), reason: reason.into() };
        if let Err(reason) = limits::check(&messages) {
            return messages.iter().map(|_| Err(error(&reason))).collect();
        }
        let failed = || error("the topic is down");
        let Ok(mut held) = self.messages.lock() else {
            return messages.iter().map(|_| Err(failed())).collect();
        };
        messages
            .into_iter()
            .map(|message| {
                if self.down.load(Ordering::Relaxed) {
                    return Err(failed());
                }
                held.push(message);
                Ok(held.len().to_string())
            })
            .collect()
    }
}
