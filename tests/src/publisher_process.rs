//! The publisher's binary as deployed, serving plain HTTP or run by a Lambda runtime.

use std::process::Command;

use reqwest::{Client, Response};
use serde_json::Value;

use crate::binary::{PATIENCE, binary_beside};
use crate::parts::{Process, free_port};

/// A running publisher.
pub struct PublisherProcess {
    /// Its process.
    pub process: Process,
    url: String,
    client: Client,
}

impl PublisherProcess {
    /// Starts it before the Pub/Sub server at `pubsub`, with further variables, and waits until it serves.
    pub fn start(pubsub: &str, variables: &[(&str, String)]) -> Self {
        let port = free_port();
        let mut command = command(pubsub, variables);
        command.env("PORT", port.to_string());
        let mut process = Process::start("publisher", command);
        process.wait_for_port(port);
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Self { process, url: format!("http://127.0.0.1:{port}"), client }
    }

    /// `POST /publish` with one event.
    pub async fn publish(&self, event: &Value) -> Response {
        let request = self.client.post(format!("{}/publish", self.url)).json(event);
        request.send().await.expect("the publisher answers")
    }
}

/// The binary with nothing in its environment but what is given here.
pub fn command(pubsub: &str, variables: &[(&str, String)]) -> Command {
    let mut command = Command::new(binary_beside("publisher"));
    command.env_clear().env("GOOGLE_CLOUD_PROJECT", crate::pubsub::PROJECT).env("PUBSUB_ENDPOINT", pubsub);
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    command
}
