//! A file of credentials: the one that `GOOGLE_APPLICATION_CREDENTIALS` names, or gcloud's own.

use std::path::Path;

use async_trait::async_trait;
use google_cloud_auth::credentials::{Builder, CacheableResource, Credentials};
use http::Extensions;

use super::by_age::{Issued, TokenError, TokenSource};
use crate::clock::{Clock, Micros, SECOND};
use crate::settings::Settings;

/// Where `gcloud auth application-default login` leaves its file, below the home folder.
const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";
/// How long a token is used. Those of every kind of file live an hour.
const LIFE: Micros = 1_800 * SECOND;

/// Credentials of google-cloud-auth, made anew for each token: its own cache renews from a task in the background.
pub struct CredentialsFile {
    clock: Clock,
}

impl CredentialsFile {
    /// Reads the file, to find faults early; none where there is no file. Inside a tokio runtime.
    pub fn find(settings: &Settings, clock: Clock) -> Result<Option<Self>, String> {
        let of_gcloud = || settings.get("HOME").is_some_and(|home| Path::new(home).join(GCLOUD_FILE).is_file());
        if settings.get("GOOGLE_APPLICATION_CREDENTIALS").is_none() && !of_gcloud() {
            return Ok(None);
        }
        build().map_err(|error| error.reason)?;
        Ok(Some(Self { clock }))
    }
}

#[async_trait]
impl TokenSource for CredentialsFile {
    async fn issue(&self) -> Result<Issued, TokenError> {
        let expires_at = self.clock.now() + LIFE;
        match build()?.headers(Extensions::new()).await {
            Ok(CacheableResource::New { data, .. }) => Ok(Issued { headers: data, expires_at }),
            Ok(CacheableResource::NotModified) => Err(TokenError::lasting("new credentials hold no token".into())),
            Err(error) => Err(TokenError { transient: error.is_transient(), reason: error.to_string() }),
        }
    }
}

fn build() -> Result<Credentials, TokenError> {
    Builder::default().build().map_err(|error| TokenError::lasting(error.to_string()))
}
