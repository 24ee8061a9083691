//! `BigQuery` through its Storage Write API: one long-lived stream a table, rows as protocol buffers.
//!
//! Rows go to the table's default stream: they can be queried once they are acknowledged, at least once. What BigQuery
//! answers decides for each row:
//!
//! - a row that it names as bad is `Poison` with its words, the others of the request are sent again at once;
//! - a request that it refuses as a whole is halved until the culprit stands alone;
//! - a column that the table lacks costs the rows that have a value in it (`Poison`, to be replayed after
//!   `contextflow schema apply`); the others are sent without the column;
//! - a table that is not there, or that the account may not write to, is for an operator to mend: `Retry`;
//! - everything else is tried again on a new connection, a few times, then `Retry`.

mod connection;
mod descriptor;
mod encode;
pub mod load;
mod login;
#[cfg(any(test, feature = "contract"))]
pub mod read;
mod service;
mod verdict;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use tokio::time::timeout;
use tonic::{Code as GrpcCode, Status};

use self::connection::Connection;
use self::descriptor::Lacking;
pub use self::descriptor::Layout;
pub use self::login::{Google, Token, TokenSource, Tokens};
use self::service::{Service, call};
use self::verdict::{Verdict, verdict};
use super::{Batch, Outcome, Sink};
use crate::clock::{Clock, Micros, SECOND};
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::problem::Code;
use crate::row::{Row, Value};
use crate::schema::{DEAD_LETTER, Plan, Registry};
use crate::settings::Settings;

/// Requests stay below this; BigQuery takes 10 MB with everything around the rows.
const MAX_REQUEST: usize = 9_000_000;
/// What a row takes in a request besides its own bytes, at most.
const ROW_OVERHEAD: usize = 6;
/// How long the sink believes that a table lacks a column before it asks again.
const LACKING_FOR: Micros = 60 * SECOND;
const MEND: &str = "run `contextflow schema apply`";

/// How patient the sink, or a load, is.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Requests on their way to one table at the same time; further ones wait.
    pub in_flight: usize,
    /// A connection that answers nothing for so long is given up.
    pub answer_within: Duration,
    /// How often rows are sent within one append, or in vain within a load.
    pub tries: u32,
    /// Pause before the second try; it doubles from try to try, with jitter.
    pub pause: Duration,
    /// Longest time of one append; what is not acknowledged by then is `Retry`. A load has no such limit.
    pub give_up_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            in_flight: 8,
            answer_within: Duration::from_secs(10),
            tries: 5,
            pause: Duration::from_millis(100),
            give_up_after: Duration::from_secs(15),
        }
    }
}

/// Appends to the tables of one project; see [`Sink`].
pub struct BigQuerySink {
    service: Service,
    clock: Clock,
    options: Options,
    tables: Mutex<HashMap<String, Arc<Table>>>,
    /// The table that every installation has.
    probe: String,
}

/// A table with the connection to it.
struct Table {
    /// `dataset.table`.
    name: String,
    /// Its default stream.
    stream: String,
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    lacking: Lacking,
    lacking_since: Micros,
}

/// The connection of a table, with what it was opened for.
struct Open {
    connection: Arc<Connection>,
    plan: Arc<Plan>,
    secret: Option<String>,
    use_until: Micros,
}

impl BigQuerySink {
    /// The sink that the settings name: the tables of `GOOGLE_CLOUD_PROJECT`, with Google's own login, or without any on
    /// the emulator at `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`). Inside a tokio runtime; connects on first use.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, String> {
        Self::on(Service::new(settings, &clock)?, Options::default(), clock)
    }

    /// [`BigQuerySink::new`] with other tokens and options than the usual.
    pub fn with(settings: &Settings, tokens: Option<Tokens>, options: Options, clock: Clock) -> Result<Self, String> {
        Self::on(Service::with(settings, tokens)?, options, clock)
    }

    fn on(service: Service, options: Options, clock: Clock) -> Result<Self, String> {
        let registry = Registry::built_in().map_err(|error| error.to_string())?;
        let probe = registry.get(DEAD_LETTER).map(|plan| plan.table.full_name()).unwrap_or_default();
        Ok(Self { service, clock, options, tables: Mutex::default(), probe })
    }

    fn table(&self, plan: &Plan) -> Arc<Table> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(&plan.event_type) {
            return Arc::clone(table);
        }
        let name = plan.table.full_name();
        let table = Arc::new(Table { stream: self.stream_of(&name), name, state: tokio::sync::Mutex::default() });
        tables.insert(plan.event_type.clone(), Arc::clone(&table));
        table
    }

    /// The default stream of `dataset.table`.
    fn stream_of(&self, name: &str) -> String {
        format!("{}/streams/_default", self.service.table(name))
    }

    /// The connection to the table; a new one where there is none, it was opened for another plan, its token is near
    /// its end, or columns that the table lacked may have been added since.
    async fn connection(&self, table: &Table, plan: &Arc<Plan>) -> Result<Arc<Connection>, String> {
        let mut state = table.state.lock().await;
        let now = self.clock.now();
        if !state.lacking.is_empty() && now - state.lacking_since > LACKING_FOR {
            state.open = None;
            state.lacking.clear();
        }
        let serves = |open: &&Open| {
            open.connection.is_open() && now < open.use_until && (Arc::ptr_eq(&open.plan, plan) || open.plan == *plan)
        };
        if let Some(open) = state.open.as_ref().filter(serves) {
            return Ok(Arc::clone(&open.connection));
        }
        let held = self.service.token().await?;
        let use_until = held.as_ref().map_or(Micros::MAX, |held| held.use_until);
        let secret = held.map(|held| held.token.secret);
        let opening = call((), "write_stream", &table.stream, secret.as_deref());
        let layout = Layout::new(&plan.columns, &state.lacking);
        let client = self.service.client.clone();
        let connection = Arc::new(Connection::open(client, opening, &table.stream, layout, &self.options));
        // The one before, if any, ends when those who wait on it have their answers.
        state.open = Some(Open { connection: Arc::clone(&connection), plan: Arc::clone(plan), secret, use_until });
        Ok(connection)
    }
}

#[async_trait]
impl Sink for BigQuerySink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        let table = self.table(&batch.plan);
        let outcomes = Mutex::new(vec![None; batch.rows.len()]);
        let append = Append { sink: self, table: &table, batch, outcomes: &outcomes };
        let all = (0..batch.rows.len()).collect();
        // What has landed by then has landed; what has not may still land, and comes again.
        let _ = timeout(self.options.give_up_after, append.land(all, 1)).await;
        let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let late = || Outcome::Retry(format!("{}: no answer in time", table.name));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect()
    }

    async fn ready(&self) -> Result<(), String> {
        let stream = self.stream_of(&self.probe);
        match timeout(self.options.answer_within, self.service.fields(&stream)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) if status.code() == GrpcCode::NotFound => Err(no_table(&self.probe)),
            Ok(Err(status)) => Err(format!("BigQuery, table {}: {}", self.probe, words(&status))),
            Err(_) => Err(format!("BigQuery has not answered for {} s", self.options.answer_within.as_secs())),
        }
    }
}

/// One append on its way.
struct Append<'a> {
    sink: &'a BigQuerySink,
    table: &'a Table,
    batch: &'a Batch,
    outcomes: &'a Mutex<Vec<Option<Outcome>>>,
}

/// Rows of one request, by their position in the batch.
#[derive(Default)]
struct Encoded {
    rows: Vec<usize>,
    wire: Vec<Vec<u8>>,
    bytes: usize,
}

impl Append<'_> {
    /// Sends rows and settles each, whatever it takes. `tries` counts this one.
    fn land(&self, rows: Vec<usize>, tries: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let connection = match self.sink.connection(self.table, &self.batch.plan).await {
                Ok(connection) => connection,
                Err(reason) => return self.again(rows, tries, &reason).await,
            };
            let requests = self.encode(&connection.layout, &rows);
            join_all(requests.into_iter().map(|request| self.send(&connection, request, tries))).await;
        })
    }

    async fn send(&self, connection: &Arc<Connection>, Encoded { rows, wire, .. }: Encoded, tries: u32) {
        match verdict(connection.send(wire).await, rows.len()) {
            Verdict::Landed { new_schema } => {
                self.settle(rows, &Outcome::Done);
                if new_schema {
                    self.table.schema_has_changed().await;
                }
            }
            Verdict::BadRows(bad) => {
                let mut rest = rows;
                for (position, message) in bad.into_iter().rev() {
                    if position < rest.len() {
                        self.refuse(vec![rest.remove(position)], &format!("BigQuery: {message}"));
                    }
                }
                self.land(rest, tries).await;
            }
            Verdict::Refused(message) if rows.len() == 1 => self.refuse(rows, &format!("BigQuery: {message}")),
            Verdict::Refused(_) => {
                self.table.discard(connection).await;
                let (first, second) = rows.split_at(rows.len() / 2);
                futures::future::join(self.land(first.to_vec(), tries), self.land(second.to_vec(), tries)).await;
            }
            Verdict::Lacking(message) => self.without_columns(connection, rows, tries, &message).await,
            Verdict::NoTable => {
                self.table.discard(connection).await;
                self.settle(rows, &Outcome::Retry(no_table(&self.table.name)));
            }
            Verdict::NoLogin(message) => {
                self.forget_login(connection).await;
                self.again(rows, tries, &message).await;
            }
            Verdict::Forbidden(message) => {
                self.forget_login(connection).await;
                self.settle(rows, &Outcome::Retry(format!("{}: {message}", self.table.name)));
            }
            Verdict::TryAgain(message) => {
                self.table.discard(connection).await;
                self.again(rows, tries, &message).await;
            }
        }
    }

    /// After a pause on another connection, if tries are left.
    async fn again(&self, rows: Vec<usize>, tries: u32, reason: &str) {
        let Options { pause, tries: most, .. } = self.sink.options;
        if tries >= most {
            return self.settle(rows, &Outcome::Retry(format!("{}: {reason}", self.table.name)));
        }
        tracing::warn!(table = self.table.name, rows = rows.len(), tries, reason, "append to be tried again");
        let pause = pause * 2_u32.saturating_pow(tries - 1);
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        self.land(rows, tries + 1).await;
    }

    /// The table lacks columns: from here on rows are sent without them.
    async fn without_columns(&self, connection: &Arc<Connection>, rows: Vec<usize>, tries: u32, message: &str) {
        let columns = &self.batch.plan.columns;
        let lacking = match self.sink.service.fields(&self.table.stream).await {
            Ok(fields) => descriptor::lacking(columns, &fields),
            Err(_) => verdict::named_columns(message).collect(),
        };
        if lacking.is_empty() {
            // It has them all by its own word: they were added just now.
            self.table.discard(connection).await;
            return self.again(rows, tries, message).await;
        }
        if Layout::new(columns, &lacking) == connection.layout {
            let detail = format!("BigQuery: {message}; {MEND}, then replay");
            return self.settle(rows, &Outcome::Poison(Reason { code: Code::MissingColumn, detail }));
        }
        let columns: Vec<_> = lacking.iter().map(String::as_str).collect();
        tracing::error!(table = self.table.name, columns = columns.join(", "), "the table lacks columns; {MEND}");
        self.table.lacks(lacking, connection, self.sink.clock.now()).await;
        self.land(rows, tries).await;
    }

    async fn forget_login(&self, connection: &Arc<Connection>) {
        let secret = self.table.discard(connection).await;
        self.sink.service.forget(secret.as_deref()).await;
    }

    /// Requests with the rows that can be sent; the others are settled.
    fn encode(&self, layout: &Layout, rows: &[usize]) -> Vec<Encoded> {
        let plan = &*self.batch.plan;
        let mut requests = Vec::new();
        let mut request = Encoded::default();
        let mut row = Row::default();
        let mut wire = Vec::new();
        for (&index, line) in rows.iter().filter_map(|index| Some((index, self.batch.rows.get(*index)?))) {
            let fault = match decode::row(plan, line, &mut row) {
                Ok(()) => reason_of(&row.problems),
                Err(problem) => Some(Reason::from(&problem)),
            };
            if let Some(reason) = fault {
                self.settle(vec![index], &Outcome::Poison(reason));
                continue;
            }
            if let Some(system) = plan.system {
                row.set(system.loaded_at, Value::Timestamp(self.batch.loaded_at));
            }
            wire.clear();
            if let Err(column) = encode::row(layout, &row.values, &mut wire) {
                let table = &self.table.name;
                let detail = format!("the table {table} lacks the column `{column}`; {MEND}, then replay");
                self.settle(vec![index], &Outcome::Poison(Reason { code: Code::MissingColumn, detail }));
                continue;
            }
            let size = wire.len() + ROW_OVERHEAD;
            if size > MAX_REQUEST {
                let detail = format!("{size} bytes; a row of BigQuery has less than {MAX_REQUEST}");
                self.settle(vec![index], &Outcome::Poison(Reason { code: Code::TooLarge, detail }));
                continue;
            }
            if request.bytes + size > MAX_REQUEST {
                requests.push(std::mem::take(&mut request));
            }
            request.rows.push(index);
            request.wire.push(wire.as_slice().to_vec());
            request.bytes += size;
        }
        if !request.rows.is_empty() {
            requests.push(request);
        }
        requests
    }

    fn refuse(&self, rows: Vec<usize>, detail: &str) {
        self.settle(rows, &Outcome::Poison(Reason { code: Code::Refused, detail: detail.into() }));
    }

    fn settle(&self, rows: Vec<usize>, outcome: &Outcome) {
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        for index in rows {
            if let Some(slot) = outcomes.get_mut(index) {
                *slot = Some(outcome.clone());
            }
        }
    }
}

impl Table {
    /// The connection is not used again; the secret that it was opened with, where it was the current one.
    async fn discard(&self, connection: &Arc<Connection>) -> Option<String> {
        let mut state = self.state.lock().await;
        let open = state.open.take_if(|open| Arc::ptr_eq(&open.connection, connection))?;
        open.secret
    }

    /// Rows are sent without these columns from now on; what was learned over another connection stands.
    async fn lacks(&self, lacking: Lacking, learned_on: &Arc<Connection>, now: Micros) {
        let mut state = self.state.lock().await;
        if state.open.as_ref().is_some_and(|open| !Arc::ptr_eq(&open.connection, learned_on)) {
            return;
        }
        *state = State { open: None, lacking, lacking_since: now };
    }

    /// Columns that were lacking may be there now.
    async fn schema_has_changed(&self) {
        let mut state = self.state.lock().await;
        if !state.lacking.is_empty() {
            *state = State::default();
        }
    }
}

fn no_table(name: &str) -> String {
    format!("the table {name} does not exist; {MEND}")
}

fn words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
