//! What the kill-switch turns, in memory: push settings of subscriptions, the IAM policy of topics, billing accounts of
//! projects, and the backlogs that Monitoring tells. It records every request, and fails as told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use shared::clock::SECOND;
use shared::decode::time::timestamp;

use crate::topic_server::serve;

/// Bytes of a message in a backlog, and by how many seconds each makes it older.
const BYTES: u64 = 250;
const SECONDS: u64 = 3;

/// The server.
#[derive(Clone)]
pub struct GoogleServer {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    book: Arc<Mutex<Book>>,
}

#[derive(Default)]
struct Book {
    calls: Vec<Call>,
    faults: Vec<Fault>,
    push: BTreeMap<String, Value>,
    policies: BTreeMap<String, (u64, Value)>,
    accounts: BTreeMap<String, String>,
    backlogs: BTreeMap<String, u64>,
    server_errors: BTreeMap<String, u64>,
    foreign_changes: u64,
}

/// A request.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// `GET`, `POST`, `PUT`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Its JSON; null where it has none.
    pub body: Value,
}

/// How requests are answered whose method is this one and whose path ends so.
#[derive(Clone)]
struct Fault {
    method: &'static str,
    path_end: String,
    answer: Answer,
    times: usize,
}

/// A false answer.
#[derive(Clone, Copy)]
pub enum Answer {
    /// An error of this status; nothing is done.
    Status(u16),
    /// None at all.
    Silence,
    /// None, although it is done.
    DoneInSilence,
}

impl GoogleServer {
    /// Starts one that knows nothing.
    pub async fn start() -> Self {
        let book: Arc<Mutex<Book>> = Arc::default();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&book));
        Self { url: serve(router).await, book }
    }

    /// There is a subscription with these push settings.
    pub fn set_push(&self, subscription: &str, settings: Value) {
        self.book().push.insert(subscription.to_string(), settings);
    }

    /// The push settings of a subscription.
    pub fn push(&self, subscription: &str) -> Value {
        self.book().push.get(subscription).cloned().unwrap_or_default()
    }

    /// There is a topic with these bindings.
    pub fn set_bindings(&self, topic: &str, bindings: Value) {
        self.book().policies.insert(topic.to_string(), (1, bindings));
    }

    /// The bindings of a topic.
    pub fn bindings(&self, topic: &str) -> Value {
        self.book().policies.get(topic).cloned().unwrap_or_default().1
    }

    /// The next times that a policy is read, another changes it at once after.
    pub fn change_policies_meanwhile(&self, times: u64) {
        self.book().foreign_changes = times;
    }

    /// There is a project with this billing account, `billingAccounts/A` or nothing.
    pub fn set_account(&self, project: &str, account: &str) {
        self.book().accounts.insert(project.to_string(), account.to_string());
    }

    /// The billing account of a project.
    pub fn account(&self, project: &str) -> String {
        self.book().accounts.get(project).cloned().unwrap_or_default()
    }

    /// What Monitoring tells of a subscription, by its short name.
    pub fn set_backlog(&self, subscription: &str, messages: u64) {
        self.book().backlogs.insert(subscription.to_string(), messages);
    }

    /// What Monitoring tells of a service's answers with 5xx.
    pub fn set_server_errors(&self, service: &str, answers: u64) {
        self.book().server_errors.insert(service.to_string(), answers);
    }

    /// Answers the next requests of a kind falsely.
    pub fn fail(&self, method: &'static str, path_end: &str, answer: Answer, times: usize) {
        self.book().faults.push(Fault { method, path_end: path_end.to_string(), answer, times });
    }

    /// From now on all is well.
    pub fn heal(&self) {
        self.book().faults.clear();
    }

    /// Every request until now, oldest first.
    pub fn calls(&self) -> Vec<Call> {
        self.book().calls.clone()
    }

    /// Every request that changes something, as `<method> <path>`.
    pub fn changes(&self) -> Vec<String> {
        let calls = self.calls();
        calls.iter().filter(|call| call.method != "GET").map(|call| format!("{} {}", call.method, call.path)).collect()
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(State(book): State<Arc<Mutex<Book>>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let path = uri.path().to_string();
    let (fault, done) = {
        let mut book = book.lock().unwrap_or_else(PoisonError::into_inner);
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let full = uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        book.calls.push(Call { method: method.to_string(), path: full, body });
        let fault = book
            .faults
            .iter_mut()
            .find(|fault| fault.times > 0 && fault.method == method.as_str() && path.ends_with(&fault.path_end));
        let fault = fault.map(|fault| {
            fault.times -= 1;
            fault.answer
        });
        let is_done = matches!(fault, None | Some(Answer::DoneInSilence));
        let call = book.calls.last().cloned().filter(|_| is_done);
        (fault, call.map(|call| book.serve(&call.method, &path, &Query::of(&uri), &call.body)))
    };
    match (fault, done) {
        (Some(Answer::Silence | Answer::DoneInSilence), _) => {
            tokio::time::sleep(Duration::from_mins(1)).await;
            error(504)
        }
        (None, Some(Ok(json))) => axum::Json(json).into_response(),
        (Some(Answer::Status(status)), _) | (None, Some(Err(status))) => error(status),
        (None, None) => error(500),
    }
}

fn error(status: u16) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or_default();
    let body = json!({"error": {"code": status.as_u16(), "message": "as the test has told", "status": "TOLD"}});
    (status, axum::Json(body)).into_response()
}

/// What a query asks for, by its names.
struct Query(BTreeMap<String, String>);

impl Query {
    fn of(uri: &Uri) -> Self {
        let url = reqwest::Url::parse(&format!("http://server{uri}"));
        Self(url.iter().flat_map(reqwest::Url::query_pairs).map(|(name, value)| (name.into(), value.into())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl Book {
    /// As Monitoring: the newest point first, and nothing for a question that it would not answer so.
    fn time_series(&self, query: &Query) -> Result<Vec<Value>, u16> {
        let [from, to] = ["interval.startTime", "interval.endTime"].map(|name| timestamp(query.get(name)));
        let (Ok(from), Ok(to)) = (from, to) else { return Err(400) };
        let series = |label: &str, values: &BTreeMap<String, u64>, factor: u64| -> Vec<Value> {
            let of = |(name, value): (&String, &u64)| {
                let newest = (value * factor).to_string();
                let points = json!([{"value": {"int64Value": newest}}, {"value": {"int64Value": "7"}}]);
                json!({"resource": {"labels": {label: name}}, "points": points})
            };
            values.iter().map(of).collect()
        };
        let sampled = |factor| {
            let has_a_sample = to - from >= 5 * 60 * SECOND;
            Ok(if has_a_sample { series("subscription_id", &self.backlogs, factor) } else { Vec::new() })
        };
        match query.get("filter") {
            r#"metric.type = "pubsub.googleapis.com/subscription/num_undelivered_messages""# => sampled(1),
            r#"metric.type = "pubsub.googleapis.com/subscription/backlog_bytes""# => sampled(BYTES),
            r#"metric.type = "pubsub.googleapis.com/subscription/oldest_unacked_message_age""# => sampled(SECONDS),
            r#"metric.type = "run.googleapis.com/request_count" AND metric.labels.response_code_class = "5xx""# => {
                let summed = [
                    ("aggregation.alignmentPeriod", format!("{}s", (to - from) / SECOND)),
                    ("aggregation.perSeriesAligner", "ALIGN_SUM".into()),
                    ("aggregation.crossSeriesReducer", "REDUCE_SUM".into()),
                    ("aggregation.groupByFields", "resource.labels.service_name".into()),
                ];
                let is_a_sum = summed.iter().all(|(name, value)| query.get(name) == value);
                if is_a_sum { Ok(series("service_name", &self.server_errors, 1)) } else { Err(400) }
            }
            _ => Err(400),
        }
    }

    fn serve(&mut self, method: &str, path: &str, query: &Query, body: &Value) -> Result<Value, u16> {
        let path = path.trim_start_matches('/');
        if let Some(project) = path.strip_prefix("v1/projects/").and_then(|rest| rest.strip_suffix("/billingInfo")) {
            let account = self.accounts.get_mut(project).ok_or(404_u16)?;
            if method == "PUT" {
                *account = body["billingAccountName"].as_str().ok_or(400_u16)?.to_string();
            }
            return Ok(
                json!({"projectId": project, "billingAccountName": account, "billingEnabled": !account.is_empty()}),
            );
        }
        if path.ends_with("/timeSeries") {
            return self.time_series(query).map(|series| json!({"timeSeries": series}));
        }
        let name = path.strip_prefix("v1/").ok_or(404_u16)?;
        match (method, name.split_once(':').unwrap_or((name, ""))) {
            ("GET", (name, "")) => {
                let push = self.push.get(name).ok_or(404_u16)?;
                Ok(json!({"name": name, "pushConfig": push, "ackDeadlineSeconds": 60}))
            }
            ("POST", (name, "modifyPushConfig")) => {
                *self.push.get_mut(name).ok_or(404_u16)? = body["pushConfig"].clone();
                Ok(json!({}))
            }
            ("GET", (name, "getIamPolicy")) => {
                let (etag, bindings) = self.policies.get_mut(name).ok_or(404_u16)?;
                let answer = json!({"version": 3, "etag": etag.to_string(), "bindings": bindings});
                if self.foreign_changes > 0 {
                    self.foreign_changes -= 1;
                    *etag += 1;
                    bindings
                        .as_array_mut()
                        .ok_or(500_u16)?
                        .push(json!({"role": "roles/viewer", "members": [format!("user:{etag}@example.com")]}));
                }
                Ok(answer)
            }
            ("POST", (name, "setIamPolicy")) => {
                let (etag, bindings) = self.policies.get_mut(name).ok_or(404_u16)?;
                if body["policy"]["etag"].as_str().and_then(|told| told.parse().ok()) != Some(*etag) {
                    return Err(409);
                }
                *etag += 1;
                *bindings = body["policy"]["bindings"].clone();
                Ok(body["policy"].clone())
            }
            _ => Err(404),
        }
    }
}
