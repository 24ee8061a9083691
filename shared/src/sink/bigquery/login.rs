//! Access tokens: fetched when they are needed, kept until shortly before they expire.

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::timeout;
use yup_oauth2::ApplicationDefaultCredentialsAuthenticator as OfTheMachine;
use yup_oauth2::authenticator::{ApplicationDefaultCredentialsTypes, DefaultAuthenticator};

use crate::clock::{Clock, Micros, SECOND};
use crate::settings::Settings;

const SCOPE: &str = "https://www.googleapis.com/auth/bigquery";
/// A token is used for three quarters of its life, or until this long before its end. The metadata server itself hands
/// out a new one 5 minutes before the end.
const LONGEST_REST: Micros = 240 * SECOND;
/// Longest time of a fetch; two of them are made within the time of an append.
const FETCH: Duration = Duration::from_secs(3);

/// An access token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// What goes behind `Bearer`.
    pub secret: String,
    /// When it expires.
    pub expires_at: Micros,
}

/// Where tokens come from.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A token that is newly made, whatever was handed out before.
    async fn fetch(&self) -> Result<Token, String>;
}

/// The token of a process.
pub struct Tokens {
    source: Box<dyn TokenSource>,
    clock: Clock,
    held: Mutex<Option<Held>>,
}

/// A token with the time until which new connections are opened with it.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) token: Token,
    pub(super) use_until: Micros,
}

impl Tokens {
    /// Tokens of `source`; nothing is fetched yet.
    pub fn new(source: impl TokenSource + 'static, clock: Clock) -> Self {
        Self { source: Box::new(source), clock, held: Mutex::default() }
    }

    /// The token, a new one where the old one is near its end. One fetch at a time; the others wait for it.
    pub(super) async fn token(&self) -> Result<Held, String> {
        let mut held = self.held.lock().await;
        let now = self.clock.now();
        if let Some(held) = &*held
            && now < held.use_until
        {
            return Ok(held.clone());
        }
        match self.fetch().await {
            Ok(token) => {
                let life = token.expires_at - now;
                let use_until = token.expires_at - LONGEST_REST.min(life / 4);
                Ok(held.insert(Held { token, use_until }).clone())
            }
            Err(reason) => match &*held {
                // Near its end, but good.
                Some(held) if now < held.token.expires_at => Ok(held.clone()),
                _ => Err(format!("no access token for BigQuery: {reason}")),
            },
        }
    }

    /// Asks once more where no answer comes: a kept connection may have died while the process was suspended.
    async fn fetch(&self) -> Result<Token, String> {
        for _ in 0..2 {
            if let Ok(fetched) = timeout(FETCH, self.source.fetch()).await {
                return fetched;
            }
        }
        Err("no answer in time".into())
    }

    /// `secret` was refused: it is not used again.
    pub(super) async fn forget(&self, secret: &str) {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.token.secret == secret) {
            *held = None;
        }
    }
}

/// Google's own: the service account of the machine (metadata server), or the file that `GOOGLE_APPLICATION_CREDENTIALS`
/// names (a service account's key, or what `gcloud auth application-default login` writes).
pub struct Google {
    key_file: Option<String>,
    metadata_host: String,
    login: OnceCell<DefaultAuthenticator>,
}

impl Google {
    /// The login that the settings name; nothing is read or asked yet.
    pub fn new(settings: &Settings) -> Self {
        Self {
            key_file: settings.get("GOOGLE_APPLICATION_CREDENTIALS").map(str::to_string),
            metadata_host: settings.text("GCE_METADATA_HOST", "metadata.google.internal").to_string(),
            login: OnceCell::new(),
        }
    }

    async fn login(&self) -> Result<DefaultAuthenticator, String> {
        let Some(file) = &self.key_file else {
            let path = "computeMetadata/v1/instance/service-accounts/default/token";
            let metadata_url = Some(format!("http://{}/{path}", self.metadata_host));
            let options = yup_oauth2::ApplicationDefaultCredentialsFlowOpts { metadata_url };
            let login = match OfTheMachine::builder(options).await {
                ApplicationDefaultCredentialsTypes::InstanceMetadata(login) => login.build().await,
                ApplicationDefaultCredentialsTypes::ServiceAccount(login) => login.build().await,
            };
            return login.map_err(|error| error.to_string());
        };
        let unusable = |error: std::io::Error| format!("GOOGLE_APPLICATION_CREDENTIALS: {file}: {error}");
        if let Ok(key) = yup_oauth2::read_service_account_key(file).await {
            return yup_oauth2::ServiceAccountAuthenticator::builder(key).build().await.map_err(unusable);
        }
        let user = yup_oauth2::read_authorized_user_secret(file).await.map_err(unusable)?;
        yup_oauth2::AuthorizedUserAuthenticator::builder(user).build().await.map_err(unusable)
    }
}

#[async_trait]
impl TokenSource for Google {
    async fn fetch(&self) -> Result<Token, String> {
        let login = self.login.get_or_try_init(|| self.login()).await?;
        // Kept and renewed in `Tokens`; a token from the login's own cache could be near its end.
        let token = login.force_refreshed_token(&[SCOPE]).await.map_err(|error| error.to_string())?;
        let secret = token.token().ok_or("the answer holds none")?.to_string();
        let expires_at = token.expiration_time().ok_or("the answer does not say when it expires")?;
        Ok(Token { secret, expires_at: expires_at.unix_timestamp() * SECOND })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    /// Tokens that live 100 s, numbered.
    struct Numbered(Arc<AtomicI64>, Clock);

    #[async_trait]
    impl TokenSource for Numbered {
        async fn fetch(&self) -> Result<Token, String> {
            tokio::task::yield_now().await;
            match self.0.fetch_add(1, Ordering::SeqCst) {
                2.. => Err("the source is down".into()),
                number => Ok(Token { secret: format!("secret-{number}"), expires_at: self.1.now() + 100 * SECOND }),
            }
        }
    }

    #[tokio::test]
    async fn a_token_is_renewed_before_it_expires_by_one_fetch() {
        let clock = Clock::manual(0);
        let fetches = Arc::new(AtomicI64::new(0));
        let tokens = Tokens::new(Numbered(Arc::clone(&fetches), clock.clone()), clock.clone());
        let secret = async || tokens.token().await.map(|held| held.token.secret);
        let all = futures::future::join_all((0..10).map(|_| secret())).await;
        assert!(all.iter().all(|secret| secret == &Ok("secret-0".into())), "{all:?}");
        clock.set(75 * SECOND);
        let all = futures::future::join_all((0..10).map(|_| secret())).await;
        assert!(all.iter().all(|secret| secret == &Ok("secret-1".into())), "{all:?}");
        assert_eq!(fetches.load(Ordering::SeqCst), 2);
        // The source is down: the old one is used to its end.
        clock.set(160 * SECOND);
        assert_eq!(secret().await, Ok("secret-1".into()));
        clock.set(175 * SECOND);
        assert_eq!(secret().await, Err("no access token for BigQuery: the source is down".into()));
    }

    #[tokio::test]
    async fn a_refused_token_is_not_used_again() {
        let clock = Clock::manual(0);
        let tokens = Tokens::new(Numbered(Arc::default(), clock.clone()), clock);
        tokens.forget("another").await;
        assert_eq!(tokens.token().await.map(|held| held.token.secret), Ok("secret-0".into()));
        tokens.forget("secret-0").await;
        assert_eq!(tokens.token().await.map(|held| held.token.secret), Ok("secret-1".into()));
    }
}
