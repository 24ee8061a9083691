//! Credentials for Google Cloud: a workload identity on AWS, anonymous before an emulator, a file, or the metadata server.
//!
//! Every token is renewed by its age when a request asks for it. No task in the background does that: a function has no CPU
//! between its requests.

mod by_age;
mod federation;
mod file;
mod metadata;

use std::time::Duration;

pub use google_cloud_auth::credentials::Credentials;
use google_cloud_auth::credentials::{CacheableResource, anonymous};
use http::{Extensions, HeaderMap};
use reqwest::{Client, RequestBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::clock::Clock;
use crate::settings::Settings;
use by_age::{ByAge, TokenError};
use federation::Federation;
use file::CredentialsFile;
use metadata::Metadata;

/// The longest part of what a server said that is passed on.
const MAX_REASON: usize = 200;

/// The credentials that the environment stands for.
///
/// | variable | meaning |
/// |---|---|
/// | `WORKLOAD_IDENTITY_AUDIENCE` | `//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/X`: log in with the AWS role of this process |
/// | `IMPERSONATE_SERVICE_ACCOUNT` | e-mail address of the service account to act as; without it the role itself acts |
/// | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` | the role; AWS Lambda sets them |
/// | `STS_ENDPOINT`, `IAM_CREDENTIALS_ENDPOINT` | servers in place of Google's (`http://host:port`) |
/// | `PUBSUB_ENDPOINT` | an emulator, which needs no credentials |
/// | `GOOGLE_APPLICATION_CREDENTIALS` | a file of credentials; without it gcloud's own file, if there is one |
/// | `GCE_METADATA_HOST` | the metadata server, asked where there is no file (`metadata.google.internal`) |
pub fn google(settings: &Settings) -> Result<Credentials, String> {
    with_clock(settings, Clock::system())
}

/// [`google`] with another clock.
pub fn with_clock(settings: &Settings, clock: Clock) -> Result<Credentials, String> {
    if let Some(federation) = Federation::read(settings, clock.clone())? {
        return Ok(Credentials::from(ByAge::new(federation, clock)));
    }
    if settings.get("PUBSUB_ENDPOINT").is_some() {
        return Ok(anonymous::Builder::new().build());
    }
    let unusable = |reason| format!("no credentials for Google Cloud: {reason}");
    if let Some(file) = CredentialsFile::find(settings, clock.clone()).map_err(unusable)? {
        return Ok(Credentials::from(ByAge::new(file, clock)));
    }
    let metadata = Metadata::new(settings, clock.clone()).map_err(unusable)?;
    Ok(Credentials::from(ByAge::new(metadata, clock)))
}

/// The headers that a request to Google Cloud carries, for those that no client makes.
pub async fn headers(credentials: &Credentials) -> Result<HeaderMap, String> {
    match credentials.headers(Extensions::new()).await {
        Ok(CacheableResource::New { data, .. }) => Ok(data),
        Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
        Err(error) => Err(format!("no credentials for Google Cloud: {error}")),
    }
}

/// A client for servers that are asked once in a token's life: none of its connections is kept, since one may die while
/// the process is suspended.
fn http_client(timeout: Duration) -> Result<Client, String> {
    let client = Client::builder().timeout(timeout).pool_max_idle_per_host(0).build();
    client.map_err(|error| format!("no HTTPS client: {error}"))
}

/// The JSON that a request is answered with; `what` it is for stands in the error.
async fn answer_of<T: DeserializeOwned>(what: &str, request: RequestBuilder) -> Result<T, TokenError> {
    let failed = |error: reqwest::Error| TokenError { transient: true, reason: format!("{what}: {}", whole(&error)) };
    let response = request.send().await.map_err(failed)?;
    let status = response.status();
    let body = response.bytes().await.map_err(failed)?;
    if !status.is_success() {
        let transient = status.is_server_error() || status.as_u16() == 429;
        return Err(TokenError { transient, reason: format!("{what}: {status}{}", said(&body)) });
    }
    // A parser's message could quote the token.
    serde_json::from_slice(&body).map_err(|_| TokenError::lasting(format!("{what}: {status} without a token in it")))
}

/// What the server said in refusal. One line: AWS quotes in further lines what was signed, the session token with it.
fn said(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let texts = [&body["error"], &body["error_description"], &body["error"]["status"], &body["error"]["message"]];
    let lines = texts.iter().filter_map(|text| text.as_str()?.lines().next());
    lines.flat_map(|line| ": ".chars().chain(line.chars().take(MAX_REASON))).collect()
}

/// An error with its causes, without the address asked.
fn whole(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "no answer in time".to_string() } else { error.to_string() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_refusal_one_line_is_passed_on() {
        let sts = json!({"error": "invalid_grant", "error_description": "The signature does not match.\nx-amz-security-token:secret"});
        assert_eq!(said(sts.to_string().as_bytes()), ": invalid_grant: The signature does not match.");
        let iam = json!({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "Permission denied"}});
        assert_eq!(said(iam.to_string().as_bytes()), ": PERMISSION_DENIED: Permission denied");
        assert_eq!(said(b"<html>"), "");
    }
}
