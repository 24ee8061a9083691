//! `BigQuery` through its Storage Write API: rows as protobuf on the default stream of each table.
//!
//! The default stream is at least once: a request whose answer was lost is sent again, and the deduplicated view of the
//! table hides what came twice. Every answer is read to its end, and one bad row costs one row:
//!
//! | the service says | then |
//! |---|---|
//! | row errors | those rows are poison with its own words, the others are sent again at once |
//! | INVALID_ARGUMENT for a whole request | the request is halved until the culprit stands alone |
//! | a column that the table lacks | poison that names `contextflow schema apply`; it can be replayed afterwards |
//! | no such table | retry, with the same advice |
//! | UNAUTHENTICATED, PERMISSION_DENIED | a new token, a new stream, the same rows |
//! | anything else, a reset, no answer | a new stream after a pause, the same rows, for a bounded time; then retry |

mod connection;
mod descriptor;
mod encode;
mod token;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1 as storage;
use storage::append_rows_response::Response;
use storage::{ProtoSchema, RowError};
use tokio::time::Instant;
use tonic::Code as Grpc;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use self::connection::Connection;
use self::token::Tokens;
use super::{Batch, Outcome, Sink};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::problem::Code;
use crate::row::{Row, Value};
use crate::schema::Plan;
use crate::settings::{Settings, fault};

/// Largest request: the service takes under 10 MB.
const MAX_REQUEST: usize = 9_000_000;
/// What a row needs in its request beside its own bytes, at most.
const KEY_AND_LENGTH: usize = 6;
/// What the service can spend on trying again inside one append; the caller has a budget of its own.
const TRY_FOR: Duration = Duration::from_secs(10);
/// First pause before rows are sent again; it doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// What to do about a table that does not fit.
const ADVICE: &str = "run `contextflow schema apply`";

/// The tables of one project.
pub struct BigQuerySink {
    project: String,
    endpoint: Endpoint,
    channel: Channel,
    tokens: Arc<Tokens>,
    /// By event type.
    tables: Mutex<HashMap<String, Arc<Connection>>>,
}

impl BigQuerySink {
    /// The tables of `GOOGLE_CLOUD_PROJECT`. `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`) names an emulator, which is
    /// asked without credentials. Nothing is connected yet.
    pub fn new(settings: &Settings) -> Result<Self, String> {
        let project = settings.project().map_err(|error| error.to_string())?.to_string();
        let name = "BIGQUERY_GRPC_ENDPOINT";
        let address = settings.text(name, "https://bigquerystorage.googleapis.com").to_string();
        let is_plain = address.starts_with("http://");
        let mut endpoint = Endpoint::from_shared(address).map_err(|error| fault(name, error).to_string())?;
        if !is_plain {
            let tls = ClientTlsConfig::new().with_native_roots();
            endpoint = endpoint.tls_config(tls).map_err(|error| fault(name, error).to_string())?;
        }
        let endpoint = endpoint.connect_timeout(Duration::from_secs(10)).tcp_nodelay(true).http2_adaptive_window(true);
        let tokens = Arc::new(Tokens::read(settings));
        Ok(Self { project, channel: endpoint.connect_lazy(), endpoint, tokens, tables: Mutex::default() })
    }

    fn table(&self, plan: &Plan) -> Arc<Connection> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let open = || {
            let (project, of) = (&self.project, &plan.table);
            let stream = format!("projects/{project}/datasets/{}/tables/{}/streams/_default", of.dataset, of.name);
            let schema = ProtoSchema { proto_descriptor: Some(descriptor::message("Row", &plan.columns)) };
            Arc::new(Connection::new(self.channel.clone(), Arc::clone(&self.tokens), stream, schema))
        };
        Arc::clone(tables.entry(plan.event_type.clone()).or_insert_with(open))
    }

    /// Sends rows until each has its outcome. `encoded` is the rows in wire form for the first try; later ones encode
    /// them again, which is rare and spares a copy of each.
    fn deliver<'a>(
        &'a self,
        batch: &'a Batch,
        rows: Vec<usize>,
        encoded: Vec<Vec<u8>>,
        until: Instant,
    ) -> Delivery<'a> {
        Box::pin(async move {
            let table = self.table(&batch.plan);
            let (mut open, mut encoded) = (rows, Some(encoded));
            let mut outcomes = Vec::with_capacity(open.len());
            let mut pause = PAUSE;
            while !open.is_empty() {
                let encoded = encoded.take().unwrap_or_else(|| encode_again(batch, &open));
                let fault = match self.send(&table, encoded).await {
                    Answer::Landed => return settled(outcomes, &open, &Outcome::Done),
                    Answer::BadRows(bad) => {
                        let before = open.len();
                        open = set_bad_aside(open, &bad, &mut outcomes);
                        if open.len() < before {
                            continue;
                        }
                        "BigQuery: errors for rows that were not sent".to_string()
                    }
                    Answer::Refused(detail) if open.len() == 1 => {
                        let refused = Outcome::Poison(Reason { code: Code::Refused, detail });
                        return settled(outcomes, &open, &refused);
                    }
                    Answer::Refused(_) => {
                        let second = open.split_off(open.len() / 2);
                        for half in [open, second] {
                            let encoded = encode_again(batch, &half);
                            outcomes.extend(self.deliver(batch, half, encoded, until).await);
                        }
                        return outcomes;
                    }
                    Answer::MissingColumn(message) => {
                        let detail = format!("{message}; {ADVICE} and replay");
                        let poison = Outcome::Poison(Reason { code: Code::MissingColumn, detail });
                        return settled(outcomes, &open, &poison);
                    }
                    Answer::MissingTable(message) => {
                        return settled(outcomes, &open, &Outcome::Retry(format!("{message}; {ADVICE}")));
                    }
                    Answer::Failed(message) => message,
                };
                let jittered = pause.mul_f64(0.5 + fastrand::f64());
                if Instant::now() + jittered >= until {
                    return settled(outcomes, &open, &Outcome::Retry(fault));
                }
                let pause_ms = jittered.as_millis();
                tracing::warn!(rows = open.len(), reason = fault, pause_ms, "append to be sent again");
                tokio::time::sleep(jittered).await;
                pause = (pause * 2).min(MAX_PAUSE);
            }
            outcomes
        })
    }

    /// Sends one request and reads its answer to the end.
    async fn send(&self, table: &Connection, rows: Vec<Vec<u8>>) -> Answer {
        let (code, message) = match table.append(rows).await {
            Ok(answer) if !answer.row_errors.is_empty() => {
                let named = |error: RowError| Some((usize::try_from(error.index).ok()?, error.message));
                return Answer::BadRows(answer.row_errors.into_iter().filter_map(named).collect());
            }
            Ok(answer) => match answer.response {
                Some(Response::AppendResult(_)) => return Answer::Landed,
                Some(Response::Error(status)) => (Grpc::from_i32(status.code), status.message),
                None => (Grpc::Internal, "neither a result nor an error".to_string()),
            },
            Err(status) => (status.code(), status.message().to_string()),
        };
        if matches!(code, Grpc::Unauthenticated | Grpc::PermissionDenied) {
            self.tokens.refused().await;
        }
        let answer = classify(code, &message);
        if matches!(answer, Answer::Failed(_)) {
            table.close().await;
        }
        answer
    }
}

/// Rows by their position in the batch, with what became of them.
type Outcomes = Vec<(usize, Outcome)>;
/// A delivery that may halve itself.
type Delivery<'a> = BoxFuture<'a, Outcomes>;

/// What became of a request.
enum Answer {
    Landed,
    /// Positions in the request with the service's words; nothing of it landed.
    BadRows(HashMap<usize, String>),
    /// Something in the request can never be taken.
    Refused(String),
    MissingColumn(String),
    MissingTable(String),
    /// It may work later.
    Failed(String),
}

/// What an error means for the rows of its request.
fn classify(code: Grpc, message: &str) -> Answer {
    let lower = message.to_ascii_lowercase();
    let is_about_columns = ["extra field", "more fields", "schema mismatch"].iter().any(|words| lower.contains(words));
    let message = format!("BigQuery: {code:?}: {message}");
    match code {
        Grpc::InvalidArgument if is_about_columns => Answer::MissingColumn(message),
        Grpc::InvalidArgument | Grpc::OutOfRange => Answer::Refused(message),
        Grpc::NotFound => Answer::MissingTable(message),
        _ => Answer::Failed(message),
    }
}

fn settled(mut outcomes: Outcomes, rows: &[usize], outcome: &Outcome) -> Outcomes {
    outcomes.extend(rows.iter().map(|&at| (at, outcome.clone())));
    outcomes
}

/// Takes out the rows that the service named by their place in the request; what is left is to be sent again.
fn set_bad_aside(open: Vec<usize>, bad: &HashMap<usize, String>, outcomes: &mut Outcomes) -> Vec<usize> {
    let mut left = Vec::with_capacity(open.len());
    for (place, at) in open.into_iter().enumerate() {
        match bad.get(&place) {
            Some(message) => {
                let detail = format!("BigQuery: {message}");
                outcomes.push((at, Outcome::Poison(Reason { code: Code::Refused, detail })));
            }
            None => left.push(at),
        }
    }
    left
}

/// Each row in wire form, or why it is none.
fn encode<'b>(batch: &'b Batch, lines: impl Iterator<Item = &'b Bytes>) -> Vec<Result<Vec<u8>, Reason>> {
    let plan = &batch.plan;
    let mut row = Row::default();
    let one = |line: &'b Bytes| {
        decode::row(plan, line, &mut row).map_err(|problem| Reason::from(&problem))?;
        if let Some(reason) = reason_of(&row.problems) {
            return Err(reason);
        }
        if let Some(system) = plan.system {
            row.set(system.loaded_at, Value::Timestamp(batch.loaded_at));
        }
        // The wire form is shorter than JSON: one allocation a row.
        let mut wire = Vec::with_capacity(line.len());
        encode::row(&plan.columns, &row.values, &mut wire);
        if wire.len() + KEY_AND_LENGTH > MAX_REQUEST {
            let detail = format!("a row of {} bytes; the warehouse takes {MAX_REQUEST} a request", wire.len());
            return Err(Reason { code: Code::TooLarge, detail });
        }
        Ok(wire)
    };
    lines.map(one).collect()
}

/// Rows that were encoded before.
fn encode_again(batch: &Batch, rows: &[usize]) -> Vec<Vec<u8>> {
    let lines = rows.iter().filter_map(|&at| batch.rows.get(at));
    encode(batch, lines).into_iter().filter_map(Result::ok).collect()
}

/// Splits rows into requests of at most `MAX_REQUEST` bytes.
fn requests(rows: Vec<(usize, Vec<u8>)>) -> Vec<(Vec<usize>, Vec<Vec<u8>>)> {
    let mut requests: Vec<(Vec<usize>, Vec<Vec<u8>>)> = Vec::new();
    let mut bytes = MAX_REQUEST;
    for (at, row) in rows {
        let size = row.len() + KEY_AND_LENGTH;
        if bytes + size > MAX_REQUEST {
            requests.push(Default::default());
            bytes = 0;
        }
        bytes += size;
        if let Some((positions, encoded)) = requests.last_mut() {
            positions.push(at);
            encoded.push(row);
        }
    }
    requests
}

#[async_trait]
impl Sink for BigQuerySink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        let mut outcomes = vec![Outcome::Done; batch.rows.len()];
        let mut good = Vec::with_capacity(batch.rows.len());
        for (at, encoded) in encode(batch, batch.rows.iter()).into_iter().enumerate() {
            match encoded {
                Ok(row) => good.push((at, row)),
                Err(reason) => outcomes[at] = Outcome::Poison(reason),
            }
        }
        let until = Instant::now() + TRY_FOR;
        let delivered = requests(good).into_iter().map(|(rows, encoded)| self.deliver(batch, rows, encoded, until));
        for (at, outcome) in join_all(delivered).await.into_iter().flatten() {
            outcomes[at] = outcome;
        }
        outcomes
    }

    /// There is an access token and the service takes a connection; whether it takes rows shows with the first.
    async fn ready(&self) -> Result<(), String> {
        self.tokens.header().await?;
        self.endpoint.connect().await.map(drop).map_err(|error| format!("{}: {error}", self.endpoint.uri()))
    }
}
