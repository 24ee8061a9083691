//! Credentials for Google Cloud: a workload identity on AWS, anonymous before an emulator, else those of the environment.

mod by_age;
mod federation;

pub use google_cloud_auth::credentials::Credentials;
use google_cloud_auth::credentials::{Builder, CacheableResource, anonymous};
use http::{Extensions, HeaderMap};

use crate::clock::Clock;
use crate::settings::Settings;
use by_age::ByAge;
use federation::Federation;

/// The credentials that the environment stands for.
///
/// | variable | meaning |
/// |---|---|
/// | `WORKLOAD_IDENTITY_AUDIENCE` | `//iam.googleapis.com/projects/N/locations/global/workloadIdentityPools/P/providers/X`: log in with the AWS role of this process |
/// | `IMPERSONATE_SERVICE_ACCOUNT` | e-mail address of the service account to act as; without it the role itself acts |
/// | `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION` | the role; AWS Lambda sets them |
/// | `STS_ENDPOINT`, `IAM_CREDENTIALS_ENDPOINT` | servers in place of Google's (`http://host:port`) |
/// | `PUBSUB_ENDPOINT` | an emulator, which needs no credentials |
pub fn google(settings: &Settings) -> Result<Credentials, String> {
    let clock = Clock::system();
    if let Some(federation) = Federation::read(settings, clock.clone())? {
        return Ok(Credentials::from(ByAge::new(federation, clock)));
    }
    if settings.get("PUBSUB_ENDPOINT").is_some() {
        return Ok(anonymous::Builder::new().build());
    }
    Builder::default().build().map_err(|error| format!("no credentials for Google Cloud: {error}"))
}

/// The headers that a request to Google Cloud carries, for those that no client makes.
pub async fn headers(credentials: &Credentials) -> Result<HeaderMap, String> {
    match credentials.headers(Extensions::new()).await {
        Ok(CacheableResource::New { data, .. }) => Ok(data),
        Ok(CacheableResource::NotModified) => Ok(HeaderMap::new()),
        Err(error) => Err(format!("no credentials for Google Cloud: {error}")),
    }
}
