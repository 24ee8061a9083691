//! Who asks: nobody before an emulator, else whom the environment's credentials name.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use yup_oauth2::authenticator::{
    ApplicationDefaultCredentialsTypes as Found, AuthorizedUserAuthenticator, DefaultAuthenticator,
    ExternalAccountAuthenticator, ServiceAccountAuthenticator,
};
use yup_oauth2::{ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts};

use crate::settings::Settings;

const SCOPE: &str = "https://www.googleapis.com/auth/bigquery";
/// Where `gcloud auth application-default login` leaves its file, below the home folder.
const GCLOUD_FILE: &str = ".config/gcloud/application_default_credentials.json";

/// Where tokens come from.
pub(super) enum Login {
    /// An emulator asks for none.
    Anonymous,
    /// A file of credentials, or the metadata server of a machine on Google Cloud.
    Google(DefaultAuthenticator),
}

impl Login {
    /// Reads the file that `GOOGLE_APPLICATION_CREDENTIALS` names, else the one of gcloud; without either the metadata
    /// server will be asked.
    pub(super) async fn google(settings: &Settings) -> Result<Self, String> {
        let Some(path) = file(settings) else {
            let options = ApplicationDefaultCredentialsFlowOpts::default();
            return match ApplicationDefaultCredentialsAuthenticator::builder(options).await {
                Found::InstanceMetadata(builder) => builder.build().await,
                Found::ServiceAccount(builder) => builder.build().await,
            }
            .map(Self::Google)
            .map_err(|error| error.to_string());
        };
        from_file(&path).await.map(Self::Google).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// A token that is good for some minutes more; it is kept and renewed by its age.
    pub(super) async fn token(&self) -> Result<Option<String>, String> {
        let Self::Google(authenticator) = self else { return Ok(None) };
        let token = authenticator.token(&[SCOPE]).await.map_err(|error| error.to_string())?;
        let token = token.token().ok_or("the answer holds no token")?;
        Ok(Some(token.to_string()))
    }
}

fn file(settings: &Settings) -> Option<PathBuf> {
    if let Some(path) = settings.get("GOOGLE_APPLICATION_CREDENTIALS") {
        return Some(path.into());
    }
    let path = Path::new(settings.get("HOME")?).join(GCLOUD_FILE);
    path.is_file().then_some(path)
}

async fn from_file(path: &Path) -> std::io::Result<DefaultAuthenticator> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: String,
    }
    let text = tokio::fs::read(path).await?;
    let Kind { kind } = serde_json::from_slice(&text)?;
    match kind.as_str() {
        "service_account" => ServiceAccountAuthenticator::builder(serde_json::from_slice(&text)?).build().await,
        "authorized_user" => AuthorizedUserAuthenticator::builder(serde_json::from_slice(&text)?).build().await,
        "external_account" => ExternalAccountAuthenticator::builder(serde_json::from_slice(&text)?).build().await,
        other => Err(std::io::Error::other(format!("credentials of type `{other}` are not read"))),
    }
}
