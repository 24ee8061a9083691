//! Google's token service as workload identity federation from AWS needs it. The signed request of a caller goes to moto,
//! which checks the signature as AWS would.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Form, Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use shared::clock::{Clock, Micros};
use shared::decode::time::timestamp_text;

use crate::parts::Server;
use crate::topic_server::serve;

/// The pool's provider that tokens are issued for.
pub const AUDIENCE: &str =
    "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/aws/providers/lambda";
/// The region of the role.
pub const REGION: &str = "eu-central-1";
const ROLE: &str = "arn:aws:iam::123456789012:role/publisher";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";

/// Credentials of an AWS role, as a Lambda has them in its environment.
#[derive(Debug, Clone)]
pub struct Role {
    /// `AWS_ACCESS_KEY_ID`.
    pub key: String,
    /// `AWS_SECRET_ACCESS_KEY`.
    pub secret: String,
    /// `AWS_SESSION_TOKEN`.
    pub session: String,
}

impl Role {
    /// Assumes a role at a moto that checks every other request.
    pub async fn assume(moto: &Server) -> Self {
        let client = reqwest::Client::new();
        // The next request is let through unsigned: nobody has a key to sign it with.
        client.post(format!("{}/moto-api/reset-auth", moto.url)).body("1").send().await.expect("moto answers");
        let scope = format!("AWS4-HMAC-SHA256 Credential=none/20261120/{REGION}/sts/aws4_request");
        let form =
            [("Action", "AssumeRole"), ("Version", "2011-06-15"), ("RoleArn", ROLE), ("RoleSessionName", "publisher")];
        let request = client.post(&moto.url).header(header::AUTHORIZATION, scope).form(&form);
        let xml = request.send().await.expect("moto answers").text().await.expect("moto answers text");
        let element = |name: &str| {
            let text = xml.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once('<'));
            text.unwrap_or_else(|| panic!("no {name}: {xml}")).0.to_string()
        };
        Self { key: element("AccessKeyId"), secret: element("SecretAccessKey"), session: element("SessionToken") }
    }
}

/// The token service, and that of service accounts beside it.
#[derive(Clone)]
pub struct Sts {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    state: Arc<Issuer>,
}

struct Issuer {
    moto: String,
    life: Duration,
    book: Mutex<Book>,
}

/// What was asked for and issued.
#[derive(Default)]
struct Book {
    exchanges: Vec<Exchange>,
    impersonated: Vec<Token>,
}

/// One exchange.
#[derive(Clone)]
pub struct Exchange {
    /// The form that came in.
    pub form: BTreeMap<String, String>,
    /// What was issued; none where it was refused.
    pub token: Option<Token>,
}

/// A token.
#[derive(Clone)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// When it is worth nothing any more.
    pub ends: Instant,
}

impl Sts {
    /// Starts it before a moto that checks signatures; its tokens live as long as given.
    pub async fn start(moto: &Server, life: Duration) -> Self {
        let state = Arc::new(Issuer { moto: moto.url.clone(), life, book: Mutex::default() });
        let router = Router::new()
            .route("/v1/token", post(exchange))
            .route("/v1/projects/-/serviceAccounts/{call}", post(impersonate))
            .with_state(Arc::clone(&state));
        Self { url: serve(router).await, state }
    }

    /// The variables of a process that logs in here with a role.
    pub fn environment(&self, role: &Role) -> Vec<(&'static str, String)> {
        vec![
            ("WORKLOAD_IDENTITY_AUDIENCE", AUDIENCE.into()),
            ("STS_ENDPOINT", self.url.clone()),
            ("IAM_CREDENTIALS_ENDPOINT", self.url.clone()),
            ("AWS_REGION", REGION.into()),
            ("AWS_ACCESS_KEY_ID", role.key.clone()),
            ("AWS_SECRET_ACCESS_KEY", role.secret.clone()),
            ("AWS_SESSION_TOKEN", role.session.clone()),
        ]
    }

    /// All exchanges until now, oldest first.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.state.book().exchanges.clone()
    }

    /// Whether a token of the pool is good now.
    pub fn accepts(&self, token: &str) -> bool {
        let book = self.state.book();
        book.exchanges.iter().filter_map(|exchange| exchange.token.as_ref()).any(|issued| issued.is(token))
    }

    /// Whether a token of the service account is good now.
    pub fn accepts_impersonated(&self, token: &str) -> bool {
        self.state.book().impersonated.iter().any(|issued| issued.is(token))
    }

    /// Asks for a token as a client does; whether it was issued.
    pub async fn exchange(&self, form: &BTreeMap<String, String>) -> bool {
        let request = reqwest::Client::new().post(format!("{}/v1/token", self.url)).form(form);
        request.send().await.expect("it answers").status().is_success()
    }
}

impl Token {
    fn is(&self, token: &str) -> bool {
        self.text == token && Instant::now() < self.ends
    }
}

impl Issuer {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(&self, kind: &str, number: usize) -> Token {
        Token { text: format!("ya29.{kind}-{number}-nobody-may-read-this"), ends: Instant::now() + self.life }
    }
}

async fn exchange(State(issuer): State<Arc<Issuer>>, Form(form): Form<BTreeMap<String, String>>) -> Response {
    let checked = check(&issuer, &form).await;
    let mut book = issuer.book();
    let token = checked.is_ok().then(|| issuer.issue("federated", book.exchanges.len()));
    book.exchanges.push(Exchange { form, token: token.clone() });
    match (checked, token) {
        (Ok(()), Some(token)) => Json(json!({
            "access_token": token.text,
            "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "token_type": "Bearer",
            "expires_in": issuer.life.as_secs(),
        }))
        .into_response(),
        (refused, _) => {
            let error = json!({"error": "invalid_grant", "error_description": refused.err()});
            (StatusCode::BAD_REQUEST, Json(error)).into_response()
        }
    }
}

/// The form of the exchange by <https://google.aip.dev/auth/4117>, then the signature.
async fn check(issuer: &Issuer, form: &BTreeMap<String, String>) -> Result<(), String> {
    let must = [
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", AUDIENCE),
        ("scope", SCOPE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token_type", "urn:ietf:params:aws:token-type:aws4_request"),
    ];
    for (name, value) in must {
        if form.get(name).is_none_or(|given| given != value) {
            return Err(format!("{name} is not {value}"));
        }
    }
    let subject = form.get("subject_token").ok_or("no subject_token")?;
    let json = percent_decode_str(subject).decode_utf8().map_err(|error| error.to_string())?;
    let request: Value = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    let query = "?Action=GetCallerIdentity&Version=2011-06-15";
    if request["url"] != format!("https://sts.{REGION}.amazonaws.com/{query}") || request["method"] != "POST" {
        return Err("the signed request is not GetCallerIdentity".into());
    }
    let mut headers = HeaderMap::new();
    for header in request["headers"].as_array().into_iter().flatten() {
        let (Some(key), Some(value)) = (header["key"].as_str(), header["value"].as_str()) else {
            return Err("a header is not key and value".into());
        };
        let (Ok(key), Ok(value)) = (key.parse::<HeaderName>(), value.parse::<HeaderValue>()) else {
            return Err("a header is none of HTTP".into());
        };
        headers.insert(key, value);
    }
    if headers.get("x-goog-cloud-target-resource").is_none_or(|resource| resource != AUDIENCE) {
        return Err("the signed request is for another audience".into());
    }
    let request = reqwest::Client::new().post(format!("{}/{query}", issuer.moto)).headers(headers.clone()).body("");
    let answer = request.send().await.map_err(|error| error.to_string())?;
    let is_ok = answer.status().is_success();
    let xml = answer.text().await.map_err(|error| error.to_string())?;
    if is_ok && xml.contains(":assumed-role/publisher/") {
        return Ok(());
    }
    // As AWS does, which quotes what was signed.
    let session = headers.get("x-amz-security-token").and_then(|value| value.to_str().ok()).unwrap_or_default();
    Err(format!("The request signature we calculated does not match.\n\nx-amz-security-token:{session}\n{xml}"))
}

async fn impersonate(
    State(issuer): State<Arc<Issuer>>,
    Path(call): Path<String>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Response {
    let mut book = issuer.book();
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    let mut federated = book.exchanges.iter().filter_map(|exchange| exchange.token.as_ref());
    let is_allowed = bearer.is_some_and(|bearer| federated.any(|token| token.is(bearer)));
    if !is_allowed
        || call != "publisher@p.iam.gserviceaccount.com:generateAccessToken"
        || body["scope"] != json!([SCOPE])
    {
        let error = json!({"error": {"code": 403, "status": "PERMISSION_DENIED", "message": "Permission denied"}});
        return (StatusCode::FORBIDDEN, Json(error)).into_response();
    }
    let token = issuer.issue("impersonated", book.impersonated.len());
    book.impersonated.push(token.clone());
    let life = Micros::try_from(issuer.life.as_micros()).unwrap_or(Micros::MAX);
    Json(json!({"accessToken": token.text, "expireTime": timestamp_text(Clock::system().now() + life)})).into_response()
}
