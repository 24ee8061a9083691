//! Credentials for Google Cloud: anonymous before an emulator, a workload identity on AWS, else those of the environment.

use google_cloud_auth::credentials::{Builder, Credentials, anonymous};

use crate::settings::Settings;

/// The credentials that the environment stands for.
pub fn google(settings: &Settings) -> Result<Credentials, String> {
    if settings.get("PUBSUB_ENDPOINT").is_some() {
        return Ok(anonymous::Builder::new().build());
    }
    Builder::default().build().map_err(|error| format!("no credentials for Google Cloud: {error}"))
}
