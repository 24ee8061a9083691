//! `BigQuery` through its Storage Write API: one long-lived stream a table, rows as protocol buffers.
//!
//! Rows go to the table's default stream: they can be queried once they are acknowledged, at least once. What BigQuery
//! answers decides for each row:
//!
//! - a row that it names as bad is `Poison` with its words, the others of the request are sent again at once;
//! - a request that it refuses as a whole is compared with the table's schema: where that explains it, the rows are `Retry`;
//!   else they are sent once more on a new connection, then halved until the culprit stands alone. It is `Poison` once the
//!   table takes other rows, in the same append or after it; a batch of one row also once the table has refused for
//!   [`GRACE`]. Until then it is `Retry`;
//! - a column that the table lacks costs the rows that have a value in it, the others are sent without the column. Those
//!   rows are `Retry` for the [`GRACE`] in which a change of the schema spreads, then `Poison`, to be replayed after
//!   `contextflow schema apply`;
//! - a table that is not there, or that the account may not write to, is for an operator to mend: `Retry`;
//! - everything else is tried again on a new connection, a few times, then `Retry`.

mod append;
mod connection;
mod descriptor;
mod encode;
pub mod load;
mod login;
#[cfg(any(test, feature = "contract"))]
pub mod read;
mod service;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;
use tonic::{Code as GrpcCode, Status};

use self::append::Append;
use self::connection::Connection;
use self::descriptor::Lacking;
pub use self::descriptor::Layout;
pub use self::login::{Google, Token, TokenSource, Tokens};
use self::service::{Service, call};
use super::{Batch, Outcome, Sink};
use crate::clock::{Clock, Micros, SECOND};
use crate::schema::{DEAD_LETTER, Plan, Registry};
use crate::settings::Settings;

/// Requests stay below this; BigQuery takes 10 MB with everything around the rows.
const MAX_REQUEST: usize = 9_000_000;
/// What a row takes in a request besides its own bytes, at most.
const ROW_OVERHEAD: usize = 6;
/// How long the sink believes that a table lacks a column before it asks again.
const LACKING_FOR: Micros = 60 * SECOND;
/// How long a missing column, or the refusal of a lone row, is taken for a schema change on its way: BigQuery's front ends
/// learn of one minutes apart.
const GRACE: Micros = 600 * SECOND;
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
    /// By `dataset.table`.
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
    open: Option<Arc<Open>>,
    lacking: Lacking,
    lacking_since: Micros,
    /// When each of the missing columns was noticed first.
    noticed: BTreeMap<String, Micros>,
    refusals: Option<Refusals>,
}

/// Rows that the table has refused although it has the schema's form.
#[derive(Clone, Copy)]
struct Refusals {
    first: Micros,
    last: Micros,
    /// Whether the table has taken other rows since.
    takes_others: bool,
}

/// The connection of a table, with what it was opened for.
struct Open {
    connection: Connection,
    plan: Arc<Plan>,
    secret: Option<String>,
    use_until: Micros,
    /// The channel that it was opened over.
    channel: u64,
    /// When each column that it is sent without was noticed first.
    noticed: BTreeMap<String, Micros>,
}

impl BigQuerySink {
    /// The sink that the settings name: the tables of `GOOGLE_CLOUD_PROJECT`, with Google's own login, or without any on
    /// the emulator at `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`). Inside a tokio runtime; connects on first use.
    pub fn new(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let options = Options::default();
        Self::on(Service::new(settings, &clock, options.answer_within)?, options, clock)
    }

    /// [`BigQuerySink::new`] with other tokens and options than the usual.
    pub fn with(settings: &Settings, tokens: Option<Tokens>, options: Options, clock: Clock) -> Result<Self, String> {
        Self::on(Service::with(settings, tokens, &clock, options.answer_within)?, options, clock)
    }

    fn on(service: Service, options: Options, clock: Clock) -> Result<Self, String> {
        let registry = Registry::built_in().map_err(|error| error.to_string())?;
        let probe = registry.get(DEAD_LETTER).map(|plan| plan.table.full_name()).unwrap_or_default();
        Ok(Self { service, clock, options, tables: Mutex::default(), probe })
    }

    fn table(&self, plan: &Plan) -> Arc<Table> {
        let name = plan.table.full_name();
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let table = tables.entry(name).or_insert_with_key(|name| {
            let stream = self.stream_of(name);
            Arc::new(Table { name: name.clone(), stream, state: tokio::sync::Mutex::default() })
        });
        Arc::clone(table)
    }

    /// The default stream of `dataset.table`.
    fn stream_of(&self, name: &str) -> String {
        format!("{}/streams/_default", self.service.table(name))
    }

    /// The connection to the table; a new one where there is none, it was opened for another plan or over another channel,
    /// its token is near its end, or columns that the table lacked may have been added since.
    async fn open(&self, table: &Table, plan: &Arc<Plan>) -> Result<Arc<Open>, String> {
        let mut state = table.state.lock().await;
        let now = self.clock.now();
        if !state.lacking.is_empty() && now - state.lacking_since > LACKING_FOR {
            state.open = None;
            state.lacking.clear();
        }
        let (client, channel) = self.service.client();
        let serves = |open: &&Arc<Open>| {
            let is_of_plan = Arc::ptr_eq(&open.plan, plan) || open.plan == *plan;
            open.connection.is_open() && now < open.use_until && open.channel == channel && is_of_plan
        };
        if let Some(open) = state.open.as_ref().filter(serves) {
            return Ok(Arc::clone(open));
        }
        let held = self.service.token().await?;
        let use_until = held.as_ref().map_or(Micros::MAX, |held| held.use_until);
        let secret = held.map(|held| held.token.secret);
        let opening = call((), "write_stream", &table.stream, secret.as_deref());
        let layout = Layout::new(&plan.columns, &state.lacking);
        let connection = Connection::open(client, opening, &table.stream, layout, &self.options);
        let mut noticed = state.noticed.clone();
        noticed.retain(|column, _| state.lacking.contains(column));
        let open = Open { connection, plan: Arc::clone(plan), secret, use_until, channel, noticed };
        // The one before, if any, ends when those who wait on it have their answers.
        Ok(Arc::clone(state.open.insert(Arc::new(open))))
    }
}

#[async_trait]
impl Sink for BigQuerySink {
    async fn append(&self, batch: &Batch) -> Vec<Outcome> {
        let table = self.table(&batch.plan);
        let append = Append::new(self, &table, batch);
        let all = (0..batch.rows.len()).collect();
        // What has landed by then has landed; what has not may still land, and comes again.
        let _ = timeout(self.options.give_up_after, append.land(all, 1)).await;
        append.finish().await
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

impl Table {
    /// The connection is not used again; the secret that it was opened with, where it was the current one.
    async fn discard(&self, open: &Arc<Open>) -> Option<String> {
        let mut state = self.state.lock().await;
        state.open.take_if(|current| Arc::ptr_eq(current, open))?.secret.clone()
    }

    /// Rows are sent without these columns from now on; what was learned over another connection stands.
    async fn lacks(&self, lacking: Lacking, learned_on: &Arc<Open>, now: Micros) {
        let mut state = self.state.lock().await;
        if state.open.as_ref().is_some_and(|open| !Arc::ptr_eq(open, learned_on)) {
            return;
        }
        let since = |column: &String| state.noticed.get(column).copied().unwrap_or(now);
        state.noticed = lacking.iter().map(|column| (column.clone(), since(column))).collect();
        (state.open, state.lacking, state.lacking_since) = (None, lacking, now);
    }

    /// The table takes rows, and has all columns where the connection lacks none. With `new_schema`, columns that were
    /// lacking may be there now.
    async fn has_taken(&self, open: &Open, new_schema: bool) {
        let mut state = self.state.lock().await;
        if let Some(refusals) = &mut state.refusals {
            refusals.takes_others = true;
        }
        if open.noticed.is_empty() {
            state.noticed.clear();
        }
        if new_schema && !state.lacking.is_empty() {
            (state.open, state.lacking) = (None, Lacking::new());
        }
    }

    /// Whether rows that are refused now are at fault: the table has taken others since it first refused some, or has
    /// refused for [`GRACE`] and this row `is_alone`.
    async fn takes_others(&self, now: Micros, is_alone: bool) -> bool {
        let mut state = self.state.lock().await;
        let known = state.refusals.take().filter(|refusals| now - refusals.last < 2 * GRACE);
        let Refusals { first, takes_others, .. } =
            known.unwrap_or(Refusals { first: now, last: now, takes_others: false });
        if takes_others {
            return true;
        }
        state.refusals = Some(Refusals { first, last: now, takes_others });
        is_alone && now - first >= GRACE
    }
}

fn no_table(name: &str) -> String {
    format!("the table {name} does not exist; {MEND}")
}

fn words(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
