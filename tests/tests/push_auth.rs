//! Who may push, shown with tokens of our own signer: the push account and nobody else.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::LazyLock;

use axum::body::Body;
use axum::http::Request;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use futures::future::join_all;
use pipeline_tests::signer::{ACCOUNT, AUDIENCE, KeyServer, SigningKey, claims, claims_but, unsigned};
use pipeline_tests::{EnricherFixture, NOW, push};
use serde_json::{Value, json};
use shared::clock::{Clock, Micros, SECOND};
use shared::serve::Guard;
use shared::settings::Settings;

/// Longer than the least time between two fetches of keys.
const PAST_FLOOR: Micros = 10 * SECOND;
/// Longer than the keys are good for.
const PAST_AGE: Micros = 3_601 * SECOND;

/// RSA keys take a while to make: one set for all tests.
static KEYS: LazyLock<[SigningKey; 2]> = LazyLock::new(|| ["first", "second"].map(SigningKey::generate));

/// The enricher behind its guard.
struct Guarded {
    enricher: EnricherFixture,
    guard: Guard,
    clock: Clock,
    keys: KeyServer,
}

impl Guarded {
    /// `PUSH_AUTH=oidc` before a key server that has the first key.
    async fn start() -> Self {
        let keys = KeyServer::start(&[&KEYS[0]]);
        let url = keys.url.clone();
        Self::with(keys, &[("PUSH_AUTH", "oidc"), ("PUSH_KEYS_URL", &url)]).await
    }

    async fn with(keys: KeyServer, variables: &[(&str, &str)]) -> Self {
        let expected = [("PUSH_AUDIENCE", AUDIENCE), ("PUSH_SERVICE_ACCOUNT", ACCOUNT)];
        let settings: Settings = variables.iter().copied().chain(expected).collect();
        let clock = Clock::manual(NOW);
        let guard = Guard::read(&settings, clock.clone()).expect("settings that can be used");
        Self { enricher: EnricherFixture::start().await, guard, clock, keys }
    }

    /// A push with that `Authorization`; the status.
    async fn push(&self, authorization: Option<&str>) -> u16 {
        let mut request = Request::post("/");
        if let Some(text) = authorization {
            request = request.header(AUTHORIZATION, text);
        }
        let body = push("1", &[], br#"{"event_timestamp": "2026-10-20T00:15:00Z"}"#);
        let answer = self.guard.answer(&self.enricher.router, request.body(Body::from(body)).unwrap()).await;
        assert_eq!(answer.headers().contains_key(WWW_AUTHENTICATE), answer.status() == 401);
        answer.status().as_u16()
    }

    async fn push_token(&self, token: &str) -> u16 {
        self.push(Some(&format!("Bearer {token}"))).await
    }

    fn pass(&self, time: Micros) {
        self.clock.set(self.clock.now() + time);
    }

    /// How many pushes came through to the function.
    fn handled(&self) -> usize {
        self.enricher.rows().len()
    }
}

/// A good token of a key, issued at [`NOW`].
fn token(key: &SigningKey) -> String {
    key.sign(&claims(NOW))
}

#[tokio::test]
async fn the_push_account_is_let_in_by_either_issuer() {
    let guarded = Guarded::start().await;
    for issuer in ["https://accounts.google.com", "accounts.google.com"] {
        let token = KEYS[0].sign(&claims_but(NOW, "iss", issuer.into()));
        assert_eq!(guarded.push_token(&token).await, 204, "{issuer}");
    }
    assert_eq!((guarded.handled(), guarded.keys.fetches()), (2, 1));
}

#[tokio::test]
async fn whoever_else_is_not() {
    let guarded = Guarded::start().await;
    let good = token(&KEYS[0]);
    let seconds = NOW / SECOND;
    let under = |header: Value| KEYS[0].sign_under(&header, &claims(NOW));
    let but = |name: &str, value: Value| KEYS[0].sign(&claims_but(NOW, name, value));
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let other_body = unsigned(&json!({}), &claims_but(NOW, "exp", (seconds + 86_400).into()));
    let impostor = SigningKey::generate("first");
    let bad = [
        ("no text", String::new()),
        ("words", "letmein".into()),
        ("two parts", format!("{head}.{body}")),
        ("four parts", format!("{good}.{signature}")),
        ("no signature", format!("{head}.{body}.")),
        ("another body under the signature", format!("{head}.{}.{signature}", other_body.split_once('.').unwrap().1)),
        ("what Cloud Run leaves of a signature", format!("{head}.{body}.SIGNATURE_REMOVED_BY_GOOGLE")),
        ("alg none", format!("{}.", unsigned(&json!({"alg": "none", "kid": "first"}), &claims(NOW)))),
        ("alg none with a signature", under(json!({"alg": "none", "kid": "first"}))),
        ("HS256 keyed with the public key", keyed_with_the_public_key()),
        ("alg RS384", under(json!({"alg": "RS384", "kid": "first"}))),
        ("alg PS256", under(json!({"alg": "PS256", "kid": "first"}))),
        ("no alg", under(json!({"kid": "first"}))),
        ("no key id", under(json!({"alg": "RS256"}))),
        ("a key that nobody knows", token(&KEYS[1])),
        ("another key under a known id", token(&impostor)),
        ("a key that the token brings along", under(json!({"alg": "RS256", "kid": "x", "jwk": KEYS[0].public()}))),
        ("a key at an address of the token's", under(json!({"alg": "RS256", "kid": "x", "jku": guarded.keys.url}))),
        ("another audience", but("aud", "https://batcher.example.com".into())),
        ("an audience with more behind it", but("aud", format!("{AUDIENCE}/").into())),
        ("several audiences", but("aud", json!([AUDIENCE, "https://other.example.com"]))),
        ("no audience", but("aud", Value::Null)),
        ("another issuer", but("iss", "https://accounts.google.com.example.com".into())),
        ("an issuer over http", but("iss", "http://accounts.google.com".into())),
        ("no issuer", but("iss", Value::Null)),
        ("another account", but("email", "other@p.iam.gserviceaccount.com".into())),
        ("no account", but("email", Value::Null)),
        ("an account that is not verified", but("email_verified", false.into())),
        ("an account that is verified in words", but("email_verified", "true".into())),
        ("an account of which nothing is said", but("email_verified", Value::Null)),
        ("expired now", but("exp", seconds.into())),
        ("no end", but("exp", Value::Null)),
        ("an end in words", but("exp", (seconds + 60).to_string().into())),
        ("issued in the future", but("iat", (seconds + 120).into())),
        ("valid in the future", but("nbf", (seconds + 120).into())),
    ];
    for (what, token) in bad {
        assert_eq!(guarded.push_token(&token).await, 401, "{what}");
    }
    assert_eq!(guarded.push(None).await, 401, "no header");
    assert_eq!(guarded.push(Some(&format!("Basic {good}"))).await, 401, "another scheme");
    assert_eq!(guarded.handled(), 0);
    assert_eq!(guarded.push_token(&good).await, 204, "the same token, not spoilt");
    assert_eq!(guarded.handled(), 1);
}

/// The old trick: where a check takes the algorithm from the token, the public key serves as HMAC's secret.
fn keyed_with_the_public_key() -> String {
    use aws_lc_rs::hmac;
    let message = unsigned(&json!({"alg": "HS256", "kid": "first"}), &claims(NOW));
    let secret = base64_simd::URL_SAFE_NO_PAD.decode_to_vec(KEYS[0].public()["n"].as_str().unwrap()).unwrap();
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), message.as_bytes());
    format!("{message}.{}", base64_simd::URL_SAFE_NO_PAD.encode_to_string(signature.as_ref()))
}

#[tokio::test]
async fn only_pushes_are_checked() {
    let guarded = Guarded::start().await;
    for path in ["/health", "/ready", "/metrics"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        assert_eq!(guarded.guard.answer(&guarded.enricher.router, request).await.status(), 200, "{path}");
    }
    for path in ["/", "/health", "/nowhere"] {
        let request = Request::post(path).body(Body::empty()).unwrap();
        assert_eq!(guarded.guard.answer(&guarded.enricher.router, request).await.status(), 401, "{path}");
    }
}

#[tokio::test]
async fn pushes_that_come_together_fetch_the_keys_once() {
    let guarded = Guarded::start().await;
    let token = token(&KEYS[0]);
    let answers = join_all((0..100).map(|_| guarded.push_token(&token))).await;
    assert_eq!(answers, [204; 100]);
    assert_eq!(guarded.keys.fetches(), 1);
}

#[tokio::test]
async fn a_new_key_is_fetched_and_tokens_of_nobody_make_no_load() {
    let guarded = Guarded::start().await;
    assert_eq!(guarded.push_token(&token(&KEYS[0])).await, 204);
    let nobody = token(&SigningKey::generate("nobody"));
    let flood = async || join_all((0..50).map(|_| guarded.push_token(&nobody))).await;
    assert_eq!((flood().await, guarded.keys.fetches()), (vec![401; 50], 1), "the keys are of a moment ago");
    guarded.pass(PAST_FLOOR);
    assert_eq!((flood().await, guarded.keys.fetches()), (vec![401; 50], 2));

    guarded.keys.set(&[&KEYS[0], &KEYS[1]]);
    assert_eq!(guarded.push_token(&token(&KEYS[1])).await, 401, "the keys are of a moment ago");
    guarded.pass(PAST_FLOOR);
    assert_eq!((guarded.push_token(&token(&KEYS[1])).await, guarded.keys.fetches()), (204, 3));
}

#[tokio::test]
async fn keys_that_are_withdrawn_go_out_with_their_age() {
    let guarded = Guarded::start().await;
    assert_eq!(guarded.push_token(&token(&KEYS[0])).await, 204);
    guarded.keys.set(&[&KEYS[1]]);
    guarded.pass(PAST_AGE);
    let of = |key: &SigningKey| key.sign(&claims(guarded.clock.now()));
    assert_eq!(guarded.push_token(&of(&KEYS[0])).await, 401);
    assert_eq!((guarded.push_token(&of(&KEYS[1])).await, guarded.keys.fetches()), (204, 2));
}

#[tokio::test]
async fn without_keys_a_push_is_to_come_again() {
    let guarded = Guarded::start().await;
    guarded.keys.take_down();
    let token = token(&KEYS[0]);
    let answers = join_all((0..20).map(|_| guarded.push_token(&token))).await;
    assert_eq!((answers, guarded.keys.fetches()), (vec![503; 20], 1));
    assert_eq!(guarded.push_token("letmein").await, 401, "what is no token needs no key");

    guarded.keys.set(&[&KEYS[0]]);
    assert_eq!(guarded.push_token(&token).await, 503, "tried a moment ago");
    guarded.pass(PAST_FLOOR);
    assert_eq!((guarded.push_token(&token).await, guarded.handled()), (204, 1));
}

#[tokio::test]
async fn keys_stay_in_force_while_their_source_is_down() {
    let guarded = Guarded::start().await;
    assert_eq!(guarded.push_token(&token(&KEYS[0])).await, 204);
    guarded.keys.take_down();
    guarded.pass(PAST_AGE);
    let of = |key: &SigningKey| key.sign(&claims(guarded.clock.now()));
    assert_eq!((guarded.push_token(&of(&KEYS[0])).await, guarded.keys.fetches()), (204, 2));
    assert_eq!(guarded.push_token(&of(&KEYS[1])).await, 503, "it may be a new key of Google's");
}

#[tokio::test]
async fn a_verified_token_is_remembered_until_it_expires() {
    let guarded = Guarded::start().await;
    let token = token(&KEYS[0]);
    assert_eq!(guarded.push_token(&token).await, 204);
    // With other keys and none to be had, only memory lets it in.
    guarded.keys.set(&[&KEYS[1]]);
    guarded.pass(PAST_FLOOR);
    assert_eq!(guarded.push_token(&KEYS[1].sign(&claims(NOW))).await, 204);
    guarded.keys.take_down();
    guarded.pass(3_599 * SECOND - PAST_FLOOR);
    assert_eq!(guarded.push_token(&token).await, 204);
    let fetches = guarded.keys.fetches();
    guarded.pass(SECOND);
    assert_eq!(guarded.push_token(&token).await, 503, "its key is gone, and none can be fetched");
    assert_eq!(guarded.keys.fetches(), fetches + 1);
    guarded.keys.set(&[&KEYS[0]]);
    guarded.pass(PAST_FLOOR);
    assert_eq!(guarded.push_token(&token).await, 401, "expired");
}

#[tokio::test]
async fn behind_cloud_runs_front_door_the_claims_alone_are_checked() {
    let keys = KeyServer::start(&[]);
    let guarded = Guarded::with(keys, &[("PUSH_AUTH", "iam"), ("K_SERVICE", "enricher")]).await;
    let stripped = |claims: &Value| {
        format!(
            "{}.SIGNATURE_REMOVED_BY_GOOGLE",
            unsigned(&json!({"alg": "RS256", "kid": "first", "typ": "JWT"}), claims)
        )
    };
    assert_eq!(guarded.push_token(&stripped(&claims(NOW))).await, 204);
    let bad = [
        ("aud", json!("https://batcher.example.com")),
        ("iss", json!("https://accounts.example.com")),
        ("email", json!("other@p.iam.gserviceaccount.com")),
        ("email_verified", json!(false)),
        ("exp", json!(NOW / SECOND)),
        ("exp", Value::Null),
    ];
    for (name, value) in bad {
        assert_eq!(guarded.push_token(&stripped(&claims_but(NOW, name, value))).await, 401, "{name}");
    }
    assert_eq!(guarded.push(None).await, 401);
    guarded.pass(3_600 * SECOND);
    assert_eq!(guarded.push_token(&stripped(&claims(NOW))).await, 401, "remembered no longer than it lives");
    assert_eq!((guarded.handled(), guarded.keys.fetches()), (1, 0));
}

#[tokio::test]
async fn off_lets_everybody_in() {
    let guarded = Guarded::with(KeyServer::start(&[]), &[("PUSH_AUTH", "off")]).await;
    assert_eq!(guarded.push(None).await, 204);
}
