//! Who may push: Pub/Sub signs its pushes with a token of OpenID Connect, which names the push account.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use jsonwebtoken::dangerous::insecure_decode_claims;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::keys::Keys;
use crate::clock::{Clock, SECOND};
use crate::settings::{SettingError, Settings, fault};

/// Where Google has the keys of its tokens.
const GOOGLE_KEYS: &str = "https://www.googleapis.com/oauth2/v3/certs";
/// Who signs Google's tokens.
const ISSUERS: [&str; 2] = ["https://accounts.google.com", "accounts.google.com"];
/// How far a token's clock may be ahead of ours, in seconds. Its end is exact.
const MAX_SKEW: i64 = 60;
/// How long a verified token is remembered at most, in seconds: as long as Google's tokens live.
const MAX_MEMORY: i64 = 3_600;
/// How many verified tokens are remembered. Pub/Sub uses one an hour for each subscription.
const MAX_REMEMBERED: usize = 1_024;

/// The check of every push.
pub(super) enum PushAuth {
    /// None.
    Off,
    /// By the token of its `Authorization` header.
    Token(Box<TokenCheck>),
}

/// What a token must be and say.
pub(super) struct TokenCheck {
    audience: String,
    account: String,
    /// None: the signature was checked, and taken away, by Cloud Run's front door.
    keys: Option<Keys>,
    clock: Clock,
    /// Verified tokens by SHA-256, with the second at which they end.
    remembered: RwLock<HashMap<[u8; 32], i64>>,
}

/// Why a push is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// It does not come from the push account, for this reason: 401.
    Token(&'static str),
    /// Its token cannot be checked, since no keys can be had: 503.
    NoKeys,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Claims {
    aud: String,
    iss: String,
    email: String,
    email_verified: bool,
    exp: i64,
    iat: i64,
    nbf: i64,
}

impl PushAuth {
    /// As `PUSH_AUTH` says; `PUSH_AUDIENCE` and `PUSH_SERVICE_ACCOUNT` are what a token must say.
    pub(super) fn read(settings: &Settings, clock: Clock) -> Result<Self, SettingError> {
        let keys = match settings.required("PUSH_AUTH", "oidc, iam (on Cloud Run) or off")? {
            "oidc" => Some(keys(settings, clock.clone())?),
            "iam" if settings.get("K_SERVICE").is_none() => {
                let reason = "iam trusts that Cloud Run's front door has checked the signature, and this is not Cloud Run \
                              (K_SERVICE is not set); use oidc";
                return Err(fault("PUSH_AUTH", reason));
            }
            "iam" => None,
            "off" => {
                tracing::warn!("PUSH_AUTH=off: whoever reaches this port may push");
                return Ok(Self::Off);
            }
            other => return Err(fault("PUSH_AUTH", format!("`{other}` is none of oidc, iam, off"))),
        };
        let audience = settings.required("PUSH_AUDIENCE", "the audience of the push subscription")?.to_string();
        let account = settings.required("PUSH_SERVICE_ACCOUNT", "the e-mail of the push account")?.to_string();
        Ok(Self::Token(Box::new(TokenCheck { audience, account, keys, clock, remembered: RwLock::default() })))
    }

    /// Lets a request in or not.
    pub(super) async fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        match self {
            Self::Off => Ok(()),
            Self::Token(check) => check.check(headers).await,
        }
    }
}

/// Google's keys. Whoever says where keys come from says who may push, so `PUSH_KEYS_URL` is for tests: an address of
/// this machine.
fn keys(settings: &Settings, clock: Clock) -> Result<Keys, SettingError> {
    let name = "PUSH_KEYS_URL";
    let url = settings.text(name, GOOGLE_KEYS);
    if url != GOOGLE_KEYS {
        let parsed = reqwest::Url::parse(url).map_err(|error| fault(name, format!("`{url}`: {error}")))?;
        if !matches!(parsed.host_str(), Some("127.0.0.1" | "[::1]" | "localhost")) {
            return Err(fault(name, format!("`{url}`: for tests only, on this machine (http://127.0.0.1:port/path)")));
        }
    }
    Keys::new(url, clock).map_err(|error| fault(name, error))
}

impl TokenCheck {
    async fn check(&self, headers: &HeaderMap) -> Result<(), Denied> {
        let token = bearer(headers).ok_or(Denied::Token("no bearer token"))?;
        let hash: [u8; 32] = Sha256::digest(token).into();
        let now = self.clock.now() / SECOND;
        let remembered = self.remembered.read().unwrap_or_else(PoisonError::into_inner).get(&hash).copied();
        if remembered.is_some_and(|end| now < end) {
            return Ok(());
        }
        let claims = match &self.keys {
            Some(keys) => verified(token, keys).await?,
            None => insecure_decode_claims(token).map_err(|_| Denied::Token("not a token"))?,
        };
        self.check_claims(&claims, now)?;
        self.remember(hash, claims.exp.min(now + MAX_MEMORY), now);
        Ok(())
    }

    fn check_claims(&self, claims: &Claims, now: i64) -> Result<(), Denied> {
        let wanted = [
            (claims.aud == self.audience, "another audience"),
            (ISSUERS.contains(&claims.iss.as_str()), "another issuer"),
            (claims.email == self.account, "another account"),
            (claims.email_verified, "an account that is not verified"),
            (now < claims.exp, "expired"),
            (claims.iat.max(claims.nbf) <= now.saturating_add(MAX_SKEW), "not valid yet"),
        ];
        wanted.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, reason)| Err(Denied::Token(reason)))
    }

    fn remember(&self, hash: [u8; 32], end: i64, now: i64) {
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.retain(|_, end| now < *end);
        }
        if remembered.len() < MAX_REMEMBERED {
            remembered.insert(hash, end);
        }
    }
}

/// The token of `Authorization: Bearer <token>`.
pub fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// The claims of a token that one of `keys` has signed, by RS256 alone.
async fn verified(token: &[u8], keys: &Keys) -> Result<Claims, Denied> {
    let head = decode_header(token).map_err(|_| Denied::Token("not a token"))?;
    if head.alg != Algorithm::RS256 {
        return Err(Denied::Token("not signed by RS256"));
    }
    let id = head.kid.ok_or(Denied::Token("names no key"))?;
    let key = keys.get(&id).await.map_err(|_| Denied::NoKeys)?.ok_or(Denied::Token("signed with an unknown key"))?;
    // Only the signature: the claims are checked by one rule for all ways, and by the clock that was handed in.
    let mut signature = Validation::new(Algorithm::RS256);
    signature.required_spec_claims.clear();
    (signature.validate_exp, signature.validate_aud) = (false, false);
    decode(token, &key, &signature).map(|token| token.claims).map_err(|_| Denied::Token("not what its key has signed"))
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        match self {
            Self::Token(reason) => {
                tracing::warn!(reason, "push not let in");
                let scheme = HeaderValue::from_static("Bearer");
                (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, scheme)]).into_response()
            }
            Self::NoKeys => {
                tracing::warn!("push not checked for want of keys, to be delivered again");
                StatusCode::SERVICE_UNAVAILABLE.into_response()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> String {
        let settings: Settings = variables.iter().copied().collect();
        PushAuth::read(&settings, Clock::manual(0)).map_or_else(|error| error.to_string(), |_| "read".into())
    }

    #[test]
    fn without_a_usable_setting_nothing_is_let_in() {
        assert_eq!(read(&[]), "PUSH_AUTH: not set; give oidc, iam (on Cloud Run) or off");
        assert_eq!(read(&[("PUSH_AUTH", "none")]), "PUSH_AUTH: `none` is none of oidc, iam, off");
        assert!(read(&[("PUSH_AUTH", "iam")]).contains("not Cloud Run"));
        assert!(read(&[("PUSH_AUTH", "oidc")]).starts_with("PUSH_AUDIENCE: not set"));
        assert!(read(&[("PUSH_AUTH", "oidc"), ("PUSH_AUDIENCE", "a")]).starts_with("PUSH_SERVICE_ACCOUNT: not set"));
        assert_eq!(read(&[("PUSH_AUTH", "off")]), "read");
    }

    #[test]
    fn keys_come_from_google_or_from_this_machine() {
        let with = |url| {
            read(&[
                ("PUSH_AUTH", "oidc"),
                ("PUSH_AUDIENCE", "a"),
                ("PUSH_SERVICE_ACCOUNT", "b"),
                ("PUSH_KEYS_URL", url),
            ])
        };
        for url in ["", GOOGLE_KEYS, "http://127.0.0.1:80/certs", "http://localhost/", "http://[::1]:1/"] {
            assert_eq!(with(url), "read", "{url}");
        }
        for url in ["http://keys.example", "https://127.0.0.1.example/", "http://localhost@keys.example/", "certs"] {
            assert!(with(url).starts_with("PUSH_KEYS_URL: `"), "{url}: {}", with(url));
        }
    }

    #[test]
    fn a_bearer_token_is_found_whatever_the_case_of_its_scheme() {
        let of = |text| {
            bearer(&HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(text))])).map(<[u8]>::to_vec)
        };
        assert_eq!(of("Bearer a.b.c").as_deref(), Some(&b"a.b.c"[..]));
        assert_eq!(of("bearer  a.b.c").as_deref(), Some(&b"a.b.c"[..]));
        for none in ["", "Bearer", "Basic a.b.c", "a.b.c"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
