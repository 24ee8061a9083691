//! A signer of pushes as Google's is: RSA keys made at run time, tokens of OpenID Connect, and the address of its keys.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64_simd::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use shared::clock::{Micros, SECOND};

/// The audience of the push subscription.
pub const AUDIENCE: &str = "https://enricher.example.com";
/// The push account.
pub const ACCOUNT: &str = "push@p.iam.gserviceaccount.com";

/// An RSA key with its id.
pub struct SigningKey {
    id: String,
    pair: KeyPair,
}

impl SigningKey {
    /// A new one.
    pub fn generate(id: &str) -> Self {
        Self { id: id.to_string(), pair: KeyPair::generate(KeySize::Rsa2048).expect("an RSA key") }
    }

    /// A token as Google signs it.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_under(&json!({"alg": "RS256", "kid": self.id, "typ": "JWT"}), claims)
    }

    /// A token whose header says what it likes; the signature is RSA with SHA-256 all the same.
    pub fn sign_under(&self, header: &Value, claims: &Value) -> String {
        let message = unsigned(header, claims);
        let mut signature = vec![0; self.pair.public_modulus_len()];
        let signed = self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature);
        signed.expect("it signs");
        format!("{message}.{}", URL_SAFE_NO_PAD.encode_to_string(&signature))
    }

    /// The public key as JSON Web Key.
    pub fn public(&self) -> Value {
        let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(self.pair.public_key());
        let text = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode_to_string(bytes);
        json!({"kid": self.id, "kty": "RSA", "alg": "RS256", "use": "sig", "n": text(n), "e": text(e)})
    }
}

/// Header and claims of a token, without a signature.
pub fn unsigned(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// What a good token says: issued at `now`, for an hour.
pub fn claims(now: Micros) -> Value {
    let now = now / SECOND;
    json!({
        "aud": AUDIENCE, "azp": "1", "email": ACCOUNT, "email_verified": true, "exp": now + 3_600, "iat": now,
        "iss": "https://accounts.google.com", "sub": "1",
    })
}

/// [`claims`] with one of them changed; `null` takes it away.
pub fn claims_but(now: Micros, name: &str, value: Value) -> Value {
    let mut claims = claims(now);
    if value.is_null() {
        claims.as_object_mut().expect("an object").remove(name);
    } else {
        claims[name] = value;
    }
    claims
}

/// Where the public keys are fetched from.
pub struct KeyServer {
    /// Its address.
    pub url: String,
    keys: Arc<Mutex<Option<Vec<Value>>>>,
    fetches: Arc<AtomicUsize>,
}

impl KeyServer {
    /// Starts it, in a thread of its own; keys are good for an hour.
    pub fn start(keys: &[&SigningKey]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}/certs", listener.local_addr().expect("an address"));
        let server = Self { url, keys: Arc::default(), fetches: Arc::default() };
        server.set(keys);
        let (keys, fetches) = (Arc::clone(&server.keys), Arc::clone(&server.fetches));
        let router = Router::new().route(
            "/certs",
            get(async move || {
                fetches.fetch_add(1, Ordering::SeqCst);
                answer(keys.lock().expect("the keys").as_deref())
            }),
        );
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                listener.set_nonblocking(true).expect("a listener that tokio takes");
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener that tokio takes");
                axum::serve(listener, router).await
            })
        });
        server
    }

    /// These are its keys from now on.
    pub fn set(&self, keys: &[&SigningKey]) {
        *self.keys.lock().expect("the keys") = Some(keys.iter().map(|key| key.public()).collect());
    }

    /// It answers 500 from now on.
    pub fn take_down(&self) {
        *self.keys.lock().expect("the keys") = None;
    }

    /// How often it was asked.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn answer(keys: Option<&[Value]>) -> Response {
    match keys {
        Some(keys) => {
            ([(header::CACHE_CONTROL, "public, max-age=3600")], json!({"keys": keys}).to_string()).into_response()
        }
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
