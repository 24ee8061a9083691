//! The controls of Google Cloud, over REST.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::redirect::Policy;
use reqwest::{Client, Method, Url};
use serde_json::{Value, json};
use shared::clock::{Micros, SECOND};
use shared::credentials::{self, Credentials};
use shared::decode::time::timestamp_text;
use shared::settings::{SettingError, Settings, fault};
use tokio::time::Instant;

use super::{ControlError, Controls};
use crate::state::PushSettings;

/// Pauses before a call is tried again.
const PAUSES: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(1)];
/// How long a call may take. One that took it is not tried again here: that is for the next delivery of the notice.
const TIMEOUT: Duration = Duration::from_secs(6);
/// How far back a backlog is looked for: Monitoring samples once a minute and shows it minutes later.
const SAMPLED_WITHIN: Micros = 600 * SECOND;
/// How far back failed requests are counted.
const HOUR: Micros = 3_600 * SECOND;
/// How much of a service's own words is told.
const MAX_WORDS: usize = 300;

/// The services.
pub struct Rest {
    client: Client,
    timeout: Duration,
    pubsub: Service,
    billing: Service,
    monitoring: Service,
}

struct Service {
    url: String,
    /// None before a server in Google's place.
    credentials: Option<Credentials>,
}

/// What waits in a subscription.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Age of the oldest, in seconds.
    pub oldest_seconds: u64,
}

impl Rest {
    /// Prepares the clients; nothing is sent yet. `PUBSUB_ENDPOINT`, `BILLING_ENDPOINT` and `MONITORING_ENDPOINT` name
    /// servers in place of Google's (`http://host:port`), which are asked without credentials.
    pub fn new(settings: &Settings) -> Result<Self, SettingError> {
        Self::with_timeout(settings, TIMEOUT)
    }

    /// The same with another limit of a call's time.
    pub fn with_timeout(settings: &Settings, timeout: Duration) -> Result<Self, SettingError> {
        // A kept connection may have died while the process was suspended.
        let client = Client::builder().timeout(timeout).pool_max_idle_per_host(0).redirect(Policy::none()).build();
        let client = client.map_err(|error| fault("PUBSUB_ENDPOINT", error))?;
        let mut google = None;
        let mut service = |variable: &str, google_url: &str| {
            if let Some(url) = settings.get(variable) {
                Url::parse(url).map_err(|error| fault(variable, format!("`{url}`: {error}")))?;
                return Ok(Service { url: url.trim_end_matches('/').to_string(), credentials: None });
            }
            if google.is_none() {
                let credentials = credentials::google(&settings.clone().with("PUBSUB_ENDPOINT", ""));
                google = Some(credentials.map_err(|error| fault("GOOGLE_APPLICATION_CREDENTIALS", error))?);
            }
            Ok(Service { url: google_url.to_string(), credentials: google.clone() })
        };
        Ok(Self {
            pubsub: service("PUBSUB_ENDPOINT", "https://pubsub.googleapis.com")?,
            billing: service("BILLING_ENDPOINT", "https://cloudbilling.googleapis.com")?,
            monitoring: service("MONITORING_ENDPOINT", "https://monitoring.googleapis.com")?,
            client,
            timeout,
        })
    }

    /// What waits in the subscriptions of a project, by their short names, as Cloud Monitoring last saw it.
    pub async fn backlogs(&self, project: &str, now: Micros) -> Result<BTreeMap<String, Backlog>, ControlError> {
        let mut backlogs: BTreeMap<String, Backlog> = BTreeMap::new();
        for (metric, value) in [
            ("num_undelivered_messages", (|backlog| &mut backlog.messages) as fn(&mut Backlog) -> &mut u64),
            ("backlog_bytes", |backlog| &mut backlog.bytes),
            ("oldest_unacked_message_age", |backlog| &mut backlog.oldest_seconds),
        ] {
            let filter = format!(r#"metric.type = "pubsub.googleapis.com/subscription/{metric}""#);
            let query = [
                ("filter", filter.as_str()),
                ("interval.startTime", &timestamp_text(now - SAMPLED_WITHIN)),
                ("interval.endTime", &timestamp_text(now)),
            ];
            let path = format!("v3/projects/{project}/timeSeries");
            let answer = self.send(&self.monitoring, Method::GET, &path, &query, None).await?;
            for series in answer["timeSeries"].as_array().into_iter().flatten() {
                let name = series["resource"]["labels"]["subscription_id"].as_str();
                // The newest point is the first.
                let newest = series["points"][0]["value"]["int64Value"].as_str().and_then(|text| text.parse().ok());
                if let (Some(name), Some(newest)) = (name, newest) {
                    *value(backlogs.entry(name.to_string()).or_default()) = newest;
                }
            }
        }
        Ok(backlogs)
    }

    /// How many requests the services of a project answered with 5xx in the last hour; services without any are left out.
    pub async fn server_errors(&self, project: &str, now: Micros) -> Result<BTreeMap<String, u64>, ControlError> {
        let filter =
            r#"metric.type = "run.googleapis.com/request_count" AND metric.labels.response_code_class = "5xx""#;
        let query = [
            ("filter", filter),
            ("interval.startTime", &timestamp_text(now - HOUR)),
            ("interval.endTime", &timestamp_text(now)),
            ("aggregation.alignmentPeriod", "3600s"),
            ("aggregation.perSeriesAligner", "ALIGN_SUM"),
            ("aggregation.crossSeriesReducer", "REDUCE_SUM"),
            ("aggregation.groupByFields", "resource.labels.service_name"),
        ];
        let path = format!("v3/projects/{project}/timeSeries");
        let answer = self.send(&self.monitoring, Method::GET, &path, &query, None).await?;
        let count = |series: &Value| {
            let name = series["resource"]["labels"]["service_name"].as_str()?;
            let count: u64 = series["points"][0]["value"]["int64Value"].as_str()?.parse().ok()?;
            (count > 0).then(|| (name.to_string(), count))
        };
        Ok(answer["timeSeries"].as_array().into_iter().flatten().filter_map(count).collect())
    }

    /// Asks a service, a few times where there is hope.
    async fn send(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, ControlError> {
        let (mut pauses, started) = (PAUSES.iter(), Instant::now());
        loop {
            let failed = match self.once(service, method.clone(), path, query, body).await {
                Ok(answer) => return Ok(answer),
                Err(Failed { passes: false, error }) => return Err(error),
                Err(failed) => failed,
            };
            let Some(pause) = pauses.next().filter(|_| started.elapsed() < self.timeout) else {
                return Err(failed.error);
            };
            tracing::warn!(reason = %failed.error, "call to be tried again");
            tokio::time::sleep(*pause).await;
        }
    }

    async fn once(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Failed> {
        let what = format!("{method} {}/{path}", service.url);
        let url = match query {
            [] => Url::parse(&format!("{}/{path}", service.url)),
            query => Url::parse_with_params(&format!("{}/{path}", service.url), query),
        };
        let url = url.map_err(|error| Failed::for_good(&what, &error.to_string()))?;
        let mut request = self.client.request(method, url);
        if let Some(credentials) = &service.credentials {
            let headers = credentials::headers(credentials).await;
            request = request.headers(headers.map_err(|reason| Failed::passing(&what, &reason))?);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| Failed::passing(&what, &innermost(&error)))?;
        let status = answer.status().as_u16();
        let bytes = answer.bytes().await.map_err(|error| Failed::passing(&what, &innermost(&error)))?;
        let json: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let words: String = json["error"]["message"].as_str().unwrap_or_default().chars().take(MAX_WORDS).collect();
        let said = format!("HTTP status {status}: {words}");
        match status {
            200..=299 => Ok(json),
            404 => Err(Failed { passes: false, error: ControlError::NotFound(format!("{what}: {said}")) }),
            409 => Err(Failed { passes: false, error: ControlError::Conflict(format!("{what}: {said}")) }),
            429 | 500.. => Err(Failed::passing(&what, &said)),
            _ => Err(Failed::for_good(&what, &said)),
        }
    }
}

/// One call that did not succeed.
struct Failed {
    passes: bool,
    error: ControlError,
}

impl Failed {
    fn passing(what: &str, reason: &str) -> Self {
        Self { passes: true, error: ControlError::Failed(format!("{what}: {reason}")) }
    }

    fn for_good(what: &str, reason: &str) -> Self {
        Self { passes: false, error: ControlError::Failed(format!("{what}: {reason}")) }
    }
}

/// The innermost cause of an error, which says what happened.
fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[async_trait]
impl Controls for Rest {
    async fn push_settings(&self, subscription: &str) -> Result<PushSettings, ControlError> {
        let found = self.send(&self.pubsub, Method::GET, &format!("v1/{subscription}"), &[], None).await?;
        Ok(found["pushConfig"].as_object().cloned().unwrap_or_default())
    }

    async fn set_push_settings(&self, subscription: &str, settings: &PushSettings) -> Result<(), ControlError> {
        let body = json!({"pushConfig": settings});
        let path = format!("v1/{subscription}:modifyPushConfig");
        self.send(&self.pubsub, Method::POST, &path, &[], Some(&body)).await.map(drop)
    }

    async fn policy(&self, topic: &str) -> Result<Value, ControlError> {
        // Below version 3 the conditions of bindings are left out, and would be lost when the policy is set.
        let version = [("options.requestedPolicyVersion", "3")];
        self.send(&self.pubsub, Method::GET, &format!("v1/{topic}:getIamPolicy"), &version, None).await
    }

    async fn set_policy(&self, topic: &str, policy: &Value) -> Result<(), ControlError> {
        let body = json!({"policy": policy});
        self.send(&self.pubsub, Method::POST, &format!("v1/{topic}:setIamPolicy"), &[], Some(&body)).await.map(drop)
    }

    async fn billing_account(&self, project: &str) -> Result<String, ControlError> {
        let path = format!("v1/projects/{project}/billingInfo");
        let found = self.send(&self.billing, Method::GET, &path, &[], None).await?;
        Ok(found["billingAccountName"].as_str().unwrap_or_default().to_string())
    }

    async fn detach(&self, project: &str) -> Result<(), ControlError> {
        let path = format!("v1/projects/{project}/billingInfo");
        let body = json!({"billingAccountName": ""});
        self.send(&self.billing, Method::PUT, &path, &[], Some(&body)).await.map(drop)
    }
}
