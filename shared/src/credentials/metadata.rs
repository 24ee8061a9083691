//! The service account of a function or machine on Google Cloud, from its metadata server.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::Client;
use serde::Deserialize;

use super::by_age::{Issued, TokenError, TokenSource};
use super::{answer_of, http_client};
use crate::clock::{Clock, SECOND};
use crate::settings::Settings;

/// Of one request to a server that is beside the process.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The metadata server.
pub struct Metadata {
    url: String,
    client: Client,
    clock: Clock,
}

impl Metadata {
    /// The server of this machine, or the one that `GCE_METADATA_HOST` names. Nothing is sent yet.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let host = settings.text("GCE_METADATA_HOST", "metadata.google.internal");
        let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        Ok(Self { url, client: http_client(TIMEOUT)?, clock })
    }
}

#[async_trait]
impl TokenSource for Metadata {
    async fn issue(&self) -> Result<Issued, TokenError> {
        let asked_at = self.clock.now();
        let request = self.client.get(&self.url).header("Metadata-Flavor", "Google");
        let answer: Answer = answer_of("metadata server", request).await?;
        Issued::bearer(&answer.access_token, asked_at + answer.expires_in.saturating_mul(SECOND))
    }
}

#[derive(Deserialize)]
struct Answer {
    access_token: String,
    /// Seconds.
    expires_in: i64,
}
