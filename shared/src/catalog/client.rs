//! A client of BigQuery's REST API, in BigQuery's own JSON.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::Value as Json;

use super::login::Login;
use crate::settings::{Settings, fault};

const SERVICE: &str = "https://bigquery.googleapis.com";
/// A query is given ten seconds before it is asked for again, so an answer that takes longer is none.
const TIMEOUT: Duration = Duration::from_mins(1);
/// Pauses before a request is tried again. BigQuery takes five changes of a table in ten seconds.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
];
/// Reasons of BigQuery's that pass.
const PASSING: [&str; 4] = ["backendError", "internalError", "jobRateLimitExceeded", "rateLimitExceeded"];

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No token could be had.
    #[error("no credentials for BigQuery: {0}; run `gcloud auth application-default login`")]
    Login(String),
    /// No answer, or one that is not BigQuery's.
    #[error("BigQuery at {0} cannot be reached: {1}")]
    Unreachable(String, String),
    /// BigQuery refuses; the message is its own.
    #[error("{message}")]
    Refused {
        /// HTTP status; 200 where a query failed.
        status: u16,
        /// BigQuery's code, `notFound`, `invalidQuery`, …
        reason: String,
        /// BigQuery's words.
        message: String,
    },
}

impl ApiError {
    /// Whether what was asked for does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { status: 404, .. })
    }

    fn passes(&self) -> bool {
        match self {
            Self::Login(_) => false,
            Self::Unreachable(..) => true,
            Self::Refused { status, reason, .. } => {
                matches!(status, 429 | 500 | 502 | 503 | 504) || PASSING.contains(&reason.as_str())
            }
        }
    }

    /// The error that an answer, or one entry of its `errors`, stands for.
    pub(super) fn of(status: u16, error: &Json) -> Self {
        let text = |json: &Json, name: &str| json[name].as_str().map(str::to_string);
        let reason = text(error, "reason").or_else(|| text(&error["errors"][0], "reason"));
        let message = text(error, "message").unwrap_or_else(|| format!("HTTP status {status}"));
        Self::Refused { status, reason: reason.unwrap_or_default(), message }
    }
}

/// One project of BigQuery.
pub struct BigQuery {
    client: Client,
    endpoint: String,
    login: Login,
    /// The project's id.
    pub project: String,
    /// Where datasets are made and queries run; BigQuery's own choice unless given.
    pub location: Option<String>,
}

impl BigQuery {
    /// Prepares the client; nothing is sent yet. `BIGQUERY_REST_ENDPOINT` names an emulator (`http://host:port`), which
    /// is asked without credentials.
    pub async fn new(settings: &Settings, project: &str, location: Option<String>) -> Result<Self, ApiError> {
        let endpoint = settings.text("BIGQUERY_REST_ENDPOINT", SERVICE).trim_end_matches('/').to_string();
        let wrong = |reason: String| ApiError::Login(fault("BIGQUERY_REST_ENDPOINT", reason).to_string());
        Url::parse(&endpoint).map_err(|error| wrong(error.to_string()))?;
        let login = if endpoint == SERVICE {
            Login::google(settings).await.map_err(ApiError::Login)?
        } else {
            Login::Anonymous
        };
        let client = Client::builder().timeout(TIMEOUT).build();
        let client = client.map_err(|error| ApiError::Unreachable(endpoint.clone(), error.to_string()))?;
        Ok(Self { client, endpoint, login, project: project.to_string(), location })
    }

    /// Asks for something below the project (`datasets/d/tables/t`), or has it changed. What passes is tried again, for
    /// half a minute; so a request must be one that may arrive twice.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Result<Json, ApiError> {
        let mut pauses = PAUSES.iter();
        loop {
            let error = match self.once(method.clone(), path, parameters, body).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = pauses.next().filter(|_| error.passes()) else { return Err(error) };
            tracing::debug!(%error, path, "request to be tried again");
            tokio::time::sleep(*pause).await;
        }
    }

    async fn once(
        &self,
        method: Method,
        path: &str,
        parameters: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Result<Json, ApiError> {
        let unreachable = |reason: String| ApiError::Unreachable(self.endpoint.clone(), reason);
        let url = format!("{}/bigquery/v2/projects/{}/{path}", self.endpoint, self.project);
        let url = Url::parse_with_params(&url, parameters).map_err(|error| unreachable(error.to_string()))?;
        let mut request = self.client.request(method, url);
        if let Some(token) = self.login.token().await.map_err(ApiError::Login)? {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.map_err(|error| unreachable(whole(&error)))?;
        let status = answer.status();
        let json = json_of(answer).await;
        if status.is_success() {
            return json.map_err(unreachable);
        }
        Err(ApiError::of(status.as_u16(), &json.unwrap_or_default()["error"]))
    }
}

async fn json_of(answer: Response) -> Result<Json, String> {
    if answer.status() == StatusCode::NO_CONTENT {
        return Ok(Json::Null);
    }
    let bytes = answer.bytes().await.map_err(|error| whole(&error))?;
    serde_json::from_slice(&bytes).map_err(|error| format!("the answer is not JSON: {error}"))
}

/// An error with its innermost cause, which says what happened.
fn whole(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
