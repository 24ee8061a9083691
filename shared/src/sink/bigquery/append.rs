//! The way of one batch into its table.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use futures::future::{BoxFuture, join, join_all};

use super::descriptor::{self, Layout};
use super::verdict::{self, Verdict, verdict};
use super::{BigQuerySink, GRACE, MAX_REQUEST, MEND, Open, Options, ROW_OVERHEAD, Table, encode, no_table, words};
use crate::clock::Micros;
use crate::dead_letter::{Reason, reason_of};
use crate::decode;
use crate::problem::Code;
use crate::push::isolated;
use crate::row::{Row, Value};
use crate::sink::{Batch, Outcome};

/// So many requests are refused as a whole before it is the table's fault, unless it takes a row.
const MAX_REFUSALS: usize = 64;

/// One append on its way.
pub(super) struct Append<'a> {
    sink: &'a BigQuerySink,
    table: &'a Table,
    batch: &'a Batch,
    outcomes: Mutex<Vec<Option<Outcome>>>,
    /// Rows that were refused alone, with BigQuery's words: at fault, if the table takes others.
    suspects: Mutex<Vec<(usize, String)>>,
    /// Requests that were refused as a whole although the table has the schema's form.
    refusals: AtomicUsize,
    /// The table has taken a row.
    takes_rows: AtomicBool,
}

/// Rows of one request, by their position in the batch.
#[derive(Default)]
struct Encoded {
    rows: Vec<usize>,
    wire: Vec<Vec<u8>>,
    bytes: usize,
}

impl<'a> Append<'a> {
    pub(super) fn new(sink: &'a BigQuerySink, table: &'a Table, batch: &'a Batch) -> Self {
        Self {
            sink,
            table,
            batch,
            outcomes: Mutex::new(vec![None; batch.rows.len()]),
            suspects: Mutex::default(),
            refusals: AtomicUsize::new(0),
            takes_rows: AtomicBool::new(false),
        }
    }

    /// The outcome of each row. A suspect is a bad row if the table takes others; else the fault may be the table's.
    pub(super) async fn finish(self) -> Vec<Outcome> {
        let suspects = self.suspects.lock().map(|mut suspects| std::mem::take(&mut *suspects)).unwrap_or_default();
        if !suspects.is_empty() {
            let now = self.sink.clock.now();
            let is_alone = self.batch.rows.len() == 1;
            let is_bad = self.takes_rows.load(Relaxed) || self.table.takes_others(now, is_alone).await;
            for (row, message) in suspects {
                if is_bad {
                    self.refuse(vec![row], &format!("BigQuery: {message}"));
                } else {
                    self.settle(vec![row], &Outcome::Retry(self.refuses_every_row(&message)));
                }
            }
        }
        let outcomes = self.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
        let late = || Outcome::Retry(format!("{}: no answer in time", self.table.name));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(late)).collect()
    }

    /// Sends rows and settles each, whatever it takes. `tries` counts this one.
    pub(super) fn land(&self, rows: Vec<usize>, tries: u32) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let open = match self.sink.open(self.table, &self.batch.plan).await {
                Ok(open) => open,
                Err(reason) => return self.again(rows, tries, &reason).await,
            };
            let requests = self.encode(&open, &rows);
            join_all(requests.into_iter().map(|request| self.send(&open, request, tries))).await;
        })
    }

    async fn send(&self, open: &Arc<Open>, Encoded { rows, wire, .. }: Encoded, tries: u32) {
        let reply = open.connection.send(wire).await;
        self.sink.service.record(open.channel, &reply);
        match verdict(reply, rows.len(), false) {
            Verdict::Landed { new_schema } => {
                self.settle(rows, &Outcome::Done);
                self.takes_rows.store(true, Relaxed);
                self.table.has_taken(open, new_schema).await;
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
            Verdict::Refused(message) => self.refused(open, rows, tries, message).await,
            Verdict::Lacking(message) => self.without_columns(open, rows, tries, &message).await,
            Verdict::NoTable => {
                self.table.discard(open).await;
                self.settle(rows, &Outcome::Retry(no_table(&self.table.name)));
            }
            Verdict::NoLogin(message) => {
                self.forget_login(open).await;
                self.again(rows, tries, &message).await;
            }
            Verdict::Forbidden(message) => {
                self.forget_login(open).await;
                self.settle(rows, &Outcome::Retry(format!("{}: {message}", self.table.name)));
            }
            Verdict::TryAgain(message) => {
                self.table.discard(open).await;
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

    /// A request was refused as a whole: because of the table, or of a row in it.
    async fn refused(&self, open: &Arc<Open>, rows: Vec<usize>, tries: u32, message: String) {
        self.table.discard(open).await;
        let refusals = self.refusals.load(Relaxed);
        if refusals == 0 {
            let fields = match self.sink.service.fields(&self.table.stream).await {
                Ok(fields) => fields,
                Err(status) => return self.again(rows, tries, &words(&status)).await,
            };
            let columns = &self.batch.plan.columns;
            let lacking = descriptor::lacking(columns, &fields);
            if Layout::new(columns, &lacking) != open.connection.layout {
                return self.land_without(open, rows, tries, lacking).await;
            }
            if let Some(difference) = descriptor::difference(columns, &fields) {
                let reason = format!("{difference}; see `contextflow schema diff` (BigQuery: {message})");
                return self.again(rows, tries, &reason).await;
            }
        }
        match self.refusals.fetch_add(1, Relaxed) {
            // On a new connection, which may know a schema that has just changed.
            0 => self.land(rows, tries).await,
            MAX_REFUSALS.. if !self.takes_rows.load(Relaxed) => {
                self.settle(rows, &Outcome::Retry(self.refuses_every_row(&message)));
            }
            _ if rows.len() == 1 => {
                let mut suspects = self.suspects.lock().unwrap_or_else(PoisonError::into_inner);
                suspects.extend(rows.into_iter().map(|row| (row, message.clone())));
            }
            _ => {
                let (first, second) = rows.split_at(rows.len() / 2);
                join(self.land(first.to_vec(), tries), self.land(second.to_vec(), tries)).await;
            }
        }
    }

    fn refuses_every_row(&self, message: &str) -> String {
        format!("{}: BigQuery takes no row: {message}; see `contextflow schema diff`", self.table.name)
    }

    /// The table lacks columns: from here on rows are sent without them. After a change of the schema what BigQuery tells of
    /// the table may be older than what it refuses by, so both count.
    async fn without_columns(&self, open: &Arc<Open>, rows: Vec<usize>, tries: u32, message: &str) {
        let columns = &self.batch.plan.columns;
        let mut lacking = descriptor::named(columns, &verdict::named_columns(message).collect::<Vec<_>>());
        lacking.extend(open.noticed.keys().cloned());
        if let Ok(fields) = self.sink.service.fields(&self.table.stream).await {
            lacking.extend(descriptor::lacking(columns, &fields));
        }
        if lacking.is_empty() || Layout::new(columns, &lacking) == open.connection.layout {
            // By its own word it has them all, or they were left out: the schema is just changing.
            self.table.discard(open).await;
            return self.again(rows, tries, &format!("{message}; {MEND}")).await;
        }
        self.land_without(open, rows, tries, lacking).await;
    }

    async fn land_without(&self, open: &Arc<Open>, rows: Vec<usize>, tries: u32, lacking: descriptor::Lacking) {
        let columns: Vec<_> = lacking.iter().map(String::as_str).collect();
        tracing::error!(table = self.table.name, columns = columns.join(", "), "the table lacks columns; {MEND}");
        self.table.lacks(lacking, open, self.sink.clock.now()).await;
        self.land(rows, tries).await;
    }

    async fn forget_login(&self, open: &Arc<Open>) {
        let secret = self.table.discard(open).await;
        self.sink.service.forget(secret.as_deref()).await;
    }

    /// Requests with the rows that can be sent; the others are settled.
    fn encode(&self, open: &Open, rows: &[usize]) -> Vec<Encoded> {
        let plan = &*self.batch.plan;
        let mut requests = Vec::new();
        let mut request = Encoded::default();
        let mut row = Row::default();
        let mut wire = Vec::new();
        for (&index, line) in rows.iter().filter_map(|index| Some((index, self.batch.rows.get(*index)?))) {
            let fault = match isolated(|| decode::row(plan, line, &mut row)).flatten() {
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
            if let Err(column) = encode::row(&open.connection.layout, &row.values, &mut wire) {
                let noticed = open.noticed.get(column).copied();
                self.settle(vec![index], &self.missing_column(column, noticed));
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

    /// The outcome of a row with a value in a column that the table lacks.
    fn missing_column(&self, column: &str, noticed: Option<Micros>) -> Outcome {
        let table = &self.table.name;
        let now = self.sink.clock.now();
        if now - noticed.unwrap_or(now) < GRACE {
            return Outcome::Retry(format!("the table {table} lacks the column `{column}`; {MEND}"));
        }
        let detail = format!("the table {table} lacks the column `{column}`; {MEND}, then replay");
        Outcome::Poison(Reason { code: Code::MissingColumn, detail })
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
