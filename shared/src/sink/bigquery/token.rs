//! The access token for `BigQuery`, looked at by age on the way of a request: nothing relies on a timer.

use tonic::metadata::{Ascii, MetadataValue};
use yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};
use yup_oauth2::{
    ApplicationDefaultCredentialsAuthenticator, ApplicationDefaultCredentialsFlowOpts, ServiceAccountAuthenticator,
};

use crate::settings::{Settings, fault};

/// What the Storage Write API and the REST API ask for.
const SCOPES: &[&str] = &["https://www.googleapis.com/auth/bigquery"];

/// Where tokens come from.
pub enum Tokens {
    /// An emulator, which asks for none.
    Anonymous,
    /// Google Cloud: the metadata server, or the key that `GOOGLE_APPLICATION_CREDENTIALS` names. It keeps a token until
    /// it is about to expire, and fetches one at a time.
    Google(tokio::sync::Mutex<Option<DefaultAuthenticator>>, Option<String>),
}

impl Tokens {
    /// Those that the environment stands for; nothing is asked for yet.
    pub fn read(settings: &Settings) -> Self {
        if settings.get("BIGQUERY_GRPC_ENDPOINT").is_some() {
            return Self::Anonymous;
        }
        let key = settings.get("GOOGLE_APPLICATION_CREDENTIALS").map(str::to_string);
        Self::Google(tokio::sync::Mutex::default(), key)
    }

    /// `Bearer …` for a request that is made now.
    pub async fn header(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let Self::Google(authenticator, key) = self else { return Ok(None) };
        let mut held = authenticator.lock().await;
        if held.is_none() {
            *held = Some(login(key.as_deref()).await?);
        }
        let Some(authenticator) = held.as_ref() else { return Ok(None) };
        let token = authenticator.token(SCOPES).await.map_err(|error| format!("no access token: {error}"))?;
        let token = token.token().ok_or("the access token is empty")?;
        let mut header: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| "the access token is no header value")?;
        header.set_sensitive(true);
        Ok(Some(header))
    }

    /// The service refused the token: the next one is fetched anew.
    pub async fn refused(&self) {
        if let Self::Google(authenticator, _) = self {
            *authenticator.lock().await = None;
        }
    }
}

async fn login(key: Option<&str>) -> Result<DefaultAuthenticator, String> {
    let name = "GOOGLE_APPLICATION_CREDENTIALS";
    if let Some(path) = key {
        let key = yup_oauth2::read_service_account_key(path).await.map_err(|error| fault(name, error).to_string())?;
        return ServiceAccountAuthenticator::builder(key).build().await.map_err(|error| fault(name, error).to_string());
    }
    let options = ApplicationDefaultCredentialsFlowOpts::default();
    let built = match ApplicationDefaultCredentialsAuthenticator::builder(options).await {
        ApplicationDefaultCredentialsTypes::InstanceMetadata(builder) => builder.build().await,
        ApplicationDefaultCredentialsTypes::ServiceAccount(builder) => builder.build().await,
    };
    built.map_err(|error| format!("no credentials for Google Cloud: {error}"))
}
