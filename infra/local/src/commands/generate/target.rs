//! Where events are sent: a publisher's address, or a topic by the publisher's own code.

use std::sync::Arc;
use std::time::{Duration, Instant};

use publisher::StreamTypes;
use publisher::handler::{self, Deps, Media};
use serde::Deserialize;
use shared::clock::Clock;
use shared::enrich::address::Anonymise;
use shared::publish::MAX_EVENT_BYTES;
use shared::schema::Schemas;

use crate::commands::{self, cloud};
use crate::error::Failure;

/// First pause before a request is tried again; it doubles up to the last.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Where requests go.
#[derive(Clone)]
pub enum Target {
    /// A publisher behind an address.
    Address(reqwest::Client, String),
    /// The publisher's own code before a topic, so that a message is what the publisher makes of a request.
    Topic(Arc<Deps>),
}

impl Target {
    /// What `to` names: `pubsub://PROJECT/TOPIC`, or a publisher's address. A topic is given up after `patience`.
    pub async fn open(to: &str, patience: Duration) -> Result<Self, Failure> {
        if !to.starts_with("pubsub://") {
            let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().map_err(Failure::work)?;
            return Ok(Self::Address(client, publish_url(to)));
        }
        let topic = cloud::topic(to, patience).await?;
        Ok(Self::Topic(Arc::new(Deps {
            schemas: Arc::new(Schemas::fixed(commands::registry(None)?)),
            topic,
            clock: Clock::system(),
            anonymise: Anonymise::Off,
            // Whoever may publish to the topic may send every type.
            stream_types: StreamTypes::All,
            max_event_bytes: MAX_EVENT_BYTES,
            synthetic_events: false,
        })))
    }
}

fn publish_url(to: &str) -> String {
    let base = to.trim_end_matches('/');
    if base.ends_with("/publish") { base.to_string() } else { format!("{base}/publish") }
}

/// Events to be sent together.
pub struct Request {
    /// Where to.
    pub target: Target,
    /// NDJSON.
    pub body: String,
    /// How many there are.
    pub events: u64,
}

#[derive(Deserialize)]
struct Answer {
    accepted: Vec<Accepted>,
    rejected: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Accepted {
    event_id: String,
}

impl From<handler::Receipt> for Answer {
    fn from(receipt: handler::Receipt) -> Self {
        let accepted = receipt.accepted.into_iter().map(|event| Accepted { event_id: event.event_id }).collect();
        Self { accepted, rejected: receipt.rejected.into_iter().map(|event| event.message.into()).collect() }
    }
}

impl Request {
    /// Sends the same events with the same ids until they are answered for good. Answers the accepted ids and the
    /// number of rejected events.
    pub async fn until_answered(&self, retry_for: Duration) -> (Vec<String>, u64) {
        let started = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match self.once().await {
                Ok(answer) => {
                    let ids = answer.accepted.into_iter().map(|accepted| accepted.event_id).collect();
                    return (ids, answer.rejected.len() as u64);
                }
                // A topic's client has tried for as long by itself.
                Err(reason) if matches!(self.target, Target::Topic(_)) || started.elapsed() + pause >= retry_for => {
                    tracing::warn!(reason, events = self.events, "request given up");
                    return (Vec::new(), 0);
                }
                Err(reason) => tracing::debug!(reason, "request to be tried again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn once(&self) -> Result<Answer, String> {
        let (client, url) = match &self.target {
            Target::Address(client, url) => (client, url),
            Target::Topic(deps) => {
                let receipt = handler::publish(deps, Media::Lines, self.body.as_bytes(), None).await;
                return receipt.map(Answer::from).map_err(|refusal| refusal.to_string());
            }
        };
        let request = client.post(url).header("content-type", "application/x-ndjson").body(self.body.clone());
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(|error| error.to_string())?;
        if status.is_success() || status == reqwest::StatusCode::BAD_REQUEST {
            return serde_json::from_slice(&body).map_err(|_| format!("{status} with an answer of another form"));
        }
        if status == reqwest::StatusCode::PAYLOAD_TOO_LARGE {
            tracing::warn!(bytes = self.body.len(), "request too large for this publisher; give a smaller --batch");
            let rejected = (0..self.events).map(|_| serde_json::Value::Null).collect();
            return Ok(Answer { accepted: Vec::new(), rejected });
        }
        Err(status.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_publisher_is_found_below_any_address() {
        assert_eq!(publish_url("http://127.0.0.1:8080/"), "http://127.0.0.1:8080/publish");
        assert_eq!(publish_url("https://x.example/stage/publish"), "https://x.example/stage/publish");
    }
}
