//! A topic of Google Cloud Pub/Sub.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use google_cloud_auth::credentials::Credentials;
use google_cloud_gax::exponential_backoff::ExponentialBackoffBuilder;
use google_cloud_gax::retry_policy::RetryPolicyExt;
use google_cloud_pubsub::client::{BasePublisher, Publisher as Client};
use google_cloud_pubsub::model::Message as PubSubMessage;
use google_cloud_pubsub::retry_policy::RetryableErrors;

use super::{Message, PublishError, Publisher};
use crate::settings::{Settings, fault};

/// How messages are gathered into requests and how long a request is tried.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How long the client waits for further messages of the same request.
    pub wait: Duration,
    /// After this long a publish that was not acknowledged is given up; the messages may have arrived all the same.
    pub give_up_after: Duration,
}

/// The connection that all topics of a process share.
pub struct PubSub {
    client: BasePublisher,
    options: Options,
}

impl PubSub {
    /// Makes the client. `PUBSUB_ENDPOINT` names an emulator (`http://host:port`). Nothing is sent yet.
    pub async fn new(settings: &Settings, credentials: Credentials, options: Options) -> Result<Self, String> {
        // Shorter than a request's time, so that a slow answer is asked for once more.
        let backoff = ExponentialBackoffBuilder::new()
            .with_initial_delay(Duration::from_millis(50))
            .with_maximum_delay(Duration::from_secs(2))
            .build()
            .map_err(|error| error.to_string())?;
        let mut builder = BasePublisher::builder()
            .with_credentials(credentials)
            .with_retry_policy(RetryableErrors.with_time_limit(options.give_up_after))
            .with_backoff_policy(backoff);
        if let Some(endpoint) = settings.get("PUBSUB_ENDPOINT") {
            builder = builder.with_endpoint(endpoint);
        }
        let client = builder.build().await.map_err(|error| fault("PUBSUB_ENDPOINT", error).to_string())?;
        Ok(Self { client, options })
    }

    /// The topic `projects/<project>/topics/<topic>`.
    pub fn topic(&self, name: &str) -> PubSubTopic {
        let client = self.client.publisher(name).set_delay_threshold(self.options.wait).build();
        PubSubTopic { name: name.to_string(), client }
    }
}

/// One topic; see [`Publisher`].
pub struct PubSubTopic {
    name: String,
    client: Client,
}

#[async_trait]
impl Publisher for PubSubTopic {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let sent: Vec<_> = messages
            .into_iter()
            .map(|message| {
                let message = PubSubMessage::new().set_data(message.data).set_attributes(message.attributes);
                self.client.publish(message)
            })
            .collect();
        let answers = join_all(sent).await;
        let refused = |error: &dyn std::error::Error| PublishError { topic: self.name.clone(), reason: whole(error) };
        answers.into_iter().map(|answer| answer.map_err(|error| refused(&error))).collect()
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
