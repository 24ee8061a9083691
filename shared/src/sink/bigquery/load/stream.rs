//! The way of rows into one staging table: a pending stream for each segment of the run, several requests on their way,
//! each with the number of its first row.
//!
//! BigQuery takes a request only where the one before it ended. So after whatever went wrong all that has no answer is sent
//! again with the same numbers on a new connection, and what had arrived answers `ALREADY_EXISTS`.

use std::collections::VecDeque;
use std::sync::Arc;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::BatchCommitWriteStreamsResponse;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use tonic::Status;

use super::super::connection::{Connection, Posted, Reply};
use super::super::descriptor::{Lacking, Layout};
use super::super::encode;
use super::super::service::{Service, call};
use super::super::verdict::{Verdict, refusal, verdict};
use super::super::{MAX_REQUEST, Options, ROW_OVERHEAD};
use super::staging::Staging;
use crate::row::Value;

/// Writes to one staging table.
pub(super) struct Writer {
    service: Arc<Service>,
    options: Options,
    staging: Staging,
    layout: Layout,
    /// The field that ends each row: the segment it belongs to.
    segment: Vec<u8>,
    /// Rows of the run that are durable, or were when it was begun again.
    durable: i64,
    /// Why the run has to end: a row that can never be sent.
    fault: Option<String>,
    /// Held in memory; a request that is full, and the one after it.
    full: Vec<Request>,
    filling: Request,
    held: usize,
    /// Of the segment.
    stream: Option<String>,
    open: Option<Open>,
    /// Rows given to the stream.
    rows: i64,
    /// What has no answer yet.
    sent: VecDeque<Sent>,
    /// How often in a row something went wrong.
    tries: u32,
}

#[derive(Default)]
struct Request {
    rows: Vec<Vec<u8>>,
    bytes: usize,
}

struct Open {
    connection: Connection,
    /// What it was opened over.
    channel: u64,
    secret: Option<String>,
}

/// A request with the number of its first row in the stream.
struct Sent {
    offset: i64,
    rows: Vec<Vec<u8>>,
    /// `None` until it is on its way over the open connection.
    posted: Option<Posted>,
}

impl Writer {
    /// Nothing is asked yet. `durable` rows of the run are in the table already.
    pub(super) fn new(service: Arc<Service>, options: Options, staging: Staging, durable: i64) -> Self {
        let layout = Layout::new(&staging.columns, &Lacking::new());
        Self {
            service,
            options,
            staging,
            layout,
            segment: Vec::new(),
            durable,
            fault: None,
            full: Vec::new(),
            filling: Request::default(),
            held: 0,
            stream: None,
            open: None,
            rows: 0,
            sent: VecDeque::new(),
            tries: 0,
        }
    }

    /// Rows added from here on belong to `segment`.
    pub(super) fn begin_segment(&mut self, segment: i64) {
        let mut values = vec![Value::Null; self.staging.columns.len()];
        if let Some(last) = values.last_mut() {
            *last = Value::Int(segment);
        }
        self.segment.clear();
        // The layout is that of all columns: it lacks none.
        let _ = encode::row(&self.layout, &values, &mut self.segment);
    }

    /// Holds a row in memory.
    pub(super) fn add(&mut self, values: &[Value<'_>]) {
        let mut wire = Vec::with_capacity(self.filling.rows.last().map_or(256, Vec::len));
        let fault = match encode::row(&self.layout, values, &mut wire) {
            Err(column) => Some(format!("has no column `{column}`")),
            Ok(()) if wire.len() + self.segment.len() + ROW_OVERHEAD > MAX_REQUEST => {
                Some(format!("has {} bytes; a row of BigQuery has less than {MAX_REQUEST}", wire.len()))
            }
            Ok(()) => None,
        };
        if let Some(fault) = fault {
            let held = self.full.iter().map(|request| request.rows.len()).sum::<usize>() + self.filling.rows.len();
            let text = format!("{} {fault}", self.row(self.rows, held));
            self.fault.get_or_insert(text);
            return;
        }
        wire.extend_from_slice(&self.segment);
        let size = wire.len() + ROW_OVERHEAD;
        if self.filling.bytes + size > MAX_REQUEST {
            self.full.push(std::mem::take(&mut self.filling));
        }
        self.filling.bytes += size;
        self.filling.rows.push(wire);
        self.held += size;
    }

    /// Bytes that are not on their way yet.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Sends what is held; waits only where too much is on its way.
    pub(super) async fn flush(&mut self) -> Result<(), String> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        self.full.push(std::mem::take(&mut self.filling));
        self.held = 0;
        for Request { rows, .. } in std::mem::take(&mut self.full) {
            if rows.is_empty() {
                continue;
            }
            while self.sent.len() >= self.options.in_flight {
                self.settle().await?;
            }
            let offset = self.rows;
            self.rows += count(&rows);
            self.sent.push_back(Sent { offset, rows, posted: None });
            // What goes wrong here is what the wait for its answer ends with.
            let _ = self.post().await;
        }
        Ok(())
    }

    /// Ends the segment: all of its rows are durable in the staging table. How many rows of the run are.
    pub(super) async fn commit(&mut self) -> Result<i64, String> {
        self.flush().await?;
        while !self.sent.is_empty() {
            self.settle().await?;
        }
        self.open = None;
        if let Some(stream) = self.stream.take() {
            let rows = self.finalize(&stream).await?;
            if rows != self.rows {
                return Err(format!("{}: BigQuery has {rows} rows of {} that were sent", self.staging.of, self.rows));
            }
            self.put(&stream).await?;
        }
        self.durable += std::mem::take(&mut self.rows);
        Ok(self.durable)
    }

    /// Waits until the oldest request has landed, whatever it takes.
    async fn settle(&mut self) -> Result<(), String> {
        loop {
            let rows = self.sent.front().map_or(0, |oldest| oldest.rows.len());
            match verdict(self.reply().await, rows, true) {
                Verdict::Landed { .. } => {
                    self.sent.pop_front();
                    self.tries = 0;
                    return Ok(());
                }
                other => self.mend(other).await?,
            }
        }
    }

    async fn reply(&mut self) -> Reply {
        self.post().await?;
        let (Some(open), Some(posted)) = (&self.open, self.sent.front_mut().and_then(|oldest| oldest.posted.as_mut()))
        else {
            return Err(Status::unavailable("the connection has ended"));
        };
        let reply = open.connection.answer(posted).await;
        self.service.record(open.channel, &reply);
        reply
    }

    /// Puts on its way what is not, over a new connection and to a new stream where there is none.
    async fn post(&mut self) -> Result<(), Status> {
        let open = if let Some(open) = &self.open {
            open
        } else {
            let stream = match &self.stream {
                Some(stream) => stream,
                None => self.stream.insert(self.service.create(&self.service.table(&self.staging.name)).await?),
            };
            let held = self.service.token().await.map_err(Status::unauthenticated)?;
            let secret = held.map(|held| held.token.secret);
            let opening = call((), "write_stream", stream, secret.as_deref());
            let (client, channel) = self.service.client();
            let connection = Connection::open(client, opening, stream, self.layout.clone(), &self.options);
            self.open.insert(Open { connection, channel, secret })
        };
        for sent in self.sent.iter_mut().filter(|sent| sent.posted.is_none()) {
            sent.posted = Some(open.connection.post(sent.rows.clone(), Some(sent.offset)).await?);
        }
        Ok(())
    }

    async fn finalize(&mut self, stream: &str) -> Result<i64, String> {
        loop {
            match self.service.finalize(stream).await {
                Ok(rows) => return Ok(rows),
                Err(status) => self.mend(refusal(&status, false)).await?,
            }
        }
    }

    async fn put(&mut self, stream: &str) -> Result<(), String> {
        loop {
            match self.service.commit(&self.service.table(&self.staging.name), stream).await {
                Ok(answer) => return put_fault(&answer).map_or(Ok(()), |fault| Err(self.said(&fault))),
                Err(status) => self.mend(refusal(&status, false)).await?,
            }
        }
    }

    /// What is done about an answer that is none: a pause and a new connection, or the end of the run.
    async fn mend(&mut self, verdict: Verdict) -> Result<(), String> {
        let reason = match verdict {
            Verdict::BadRows(bad) => return Err(self.bad_rows(&bad)),
            Verdict::Refused(message) | Verdict::Lacking(message) | Verdict::Forbidden(message) => {
                return Err(self.said(&message));
            }
            Verdict::NoLogin(message) => {
                self.service.forget(self.open.as_ref().and_then(|open| open.secret.as_deref())).await;
                message
            }
            // A table that was just made is not known everywhere at once.
            Verdict::NoTable => format!("the table {} or its stream does not exist", self.staging.name),
            Verdict::TryAgain(message) => message,
            Verdict::Landed { .. } => "an answer to another question".into(),
        };
        self.open = None;
        self.sent.iter_mut().for_each(|sent| sent.posted = None);
        self.tries += 1;
        if self.tries >= self.options.tries {
            return Err(self.said(&reason));
        }
        tracing::warn!(table = self.staging.of, tries = self.tries, reason, "a load's request to be tried again");
        let pause = self.options.pause * 2_u32.saturating_pow(self.tries - 1);
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
        Ok(())
    }

    fn said(&self, message: &str) -> String {
        format!("{}: BigQuery: {message}", self.staging.of)
    }

    /// Of rows that BigQuery names as bad in the oldest request, the first.
    fn bad_rows(&self, bad: &[(usize, String)]) -> String {
        let offset = self.sent.front().map_or(0, |oldest| oldest.offset);
        let Some((position, message)) = bad.iter().min_by_key(|(position, _)| *position) else {
            return self.said("bad rows");
        };
        let others = match bad.len() - 1 {
            0 => String::new(),
            others => format!("; {others} more rows of its request are bad"),
        };
        format!("{}: BigQuery: {message}{others}", self.row(offset, *position))
    }

    /// A row by its number among all that the run has added to the table, from 1.
    fn row(&self, offset: i64, position: usize) -> String {
        let number = self.durable + offset + i64::try_from(position).unwrap_or(i64::MAX) + 1;
        format!("row {number} of {}", self.staging.of)
    }
}

fn count(rows: &[Vec<u8>]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// Why a stream was not committed. One that was before is: the answer to that was lost.
fn put_fault(answer: &BatchCommitWriteStreamsResponse) -> Option<String> {
    let is_other = |code: StorageErrorCode| code != StorageErrorCode::StreamAlreadyCommitted;
    match answer.stream_errors.first() {
        Some(error) if is_other(error.code()) => {
            Some(format!("{}: {}", error.code().as_str_name(), error.error_message))
        }
        None if answer.commit_time.is_none() => Some("the rows were not committed, and it does not say why".into()),
        _ => None,
    }
}
