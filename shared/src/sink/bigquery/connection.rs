//! One long-lived `AppendRows` stream: requests go out as they come, answers come back in the same order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::{
    MissingValueInterpretation, ProtoData, Rows,
};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, ProtoRows, ProtoSchema,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::Options;
use super::descriptor::Layout;
use super::service::silence;

/// What came of one request: the response, or how the stream ended.
pub(super) type Reply = Result<AppendRowsResponse, Status>;

/// A stream to one table; it ends when it is dropped.
pub(super) struct Connection {
    /// How its rows are encoded.
    pub(super) layout: Layout,
    stream_name: String,
    requests: mpsc::UnboundedSender<AppendRowsRequest>,
    room: Arc<Semaphore>,
    line: Arc<Mutex<Line>>,
    answer_within: Duration,
    reader: AbortHandle,
}

/// A request on its way.
pub(super) struct Posted {
    answered: oneshot::Receiver<Reply>,
    until: Instant,
}

/// Who waits for an answer, in the order of the requests.
struct Line {
    waiting: VecDeque<(oneshot::Sender<Reply>, OwnedSemaphorePermit)>,
    /// The schema has been sent.
    introduced: bool,
    /// The stream takes nothing more.
    ended: bool,
    /// When an answer came last.
    last_answer: Instant,
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Opens the stream `stream_name` with the metadata of `opening`; inside a tokio runtime. What goes wrong is the
    /// reply to the first request.
    pub(super) fn open(
        mut client: BigQueryWriteClient<Channel>,
        opening: Request<()>,
        stream_name: &str,
        layout: Layout,
        options: &Options,
    ) -> Self {
        let (requests, mut outgoing) = mpsc::unbounded_channel();
        let outgoing = stream::poll_fn(move |context| outgoing.poll_recv(context));
        let (metadata, extensions, ()) = opening.into_parts();
        let request = Request::from_parts(metadata, extensions, outgoing);
        let line = Arc::new(Mutex::new(Line {
            waiting: VecDeque::new(),
            introduced: false,
            ended: false,
            last_answer: Instant::now(),
        }));
        let answered = Arc::clone(&line);
        let reading = async move {
            let status = match client.append_rows(request).await {
                Ok(response) => read(response.into_inner(), &answered).await,
                Err(status) => status,
            };
            end(&answered, status);
        };
        Self {
            layout,
            stream_name: stream_name.to_string(),
            requests,
            room: Arc::new(Semaphore::new(options.in_flight)),
            line,
            answer_within: options.answer_within,
            reader: tokio::spawn(reading).abort_handle(),
        }
    }

    /// Whether requests can still be sent.
    pub(super) fn is_open(&self) -> bool {
        !lock(&self.line).ended
    }

    /// Sends encoded rows and waits for their answer; first for room, where many are on their way.
    pub(super) async fn send(&self, rows: Vec<Vec<u8>>) -> Reply {
        let mut posted = self.post(rows, None).await?;
        self.answer(&mut posted).await
    }

    /// Sends encoded rows once there is room; where the stream counts its rows, with the number of the first.
    pub(super) async fn post(&self, rows: Vec<Vec<u8>>, offset: Option<i64>) -> Result<Posted, Status> {
        let Ok(room) = Arc::clone(&self.room).acquire_owned().await else { return Err(gone()) };
        let (answer, answered) = oneshot::channel();
        let mut line = lock(&self.line);
        if line.ended || self.requests.send(self.request(rows, offset, !line.introduced)).is_err() {
            return Err(gone());
        }
        line.introduced = true;
        line.waiting.push_back((answer, room));
        Ok(Posted { answered, until: Instant::now() + self.answer_within })
    }

    /// Waits for the answer to a request.
    pub(super) async fn answer(&self, posted: &mut Posted) -> Reply {
        loop {
            if let Ok(answer) = timeout_at(posted.until, &mut posted.answered).await {
                return answer.unwrap_or_else(|_| Err(gone()));
            }
            // While those before it are answered, it has its turn still to come.
            let next = lock(&self.line).last_answer + self.answer_within;
            if next <= posted.until {
                end(&self.line, silence(self.answer_within));
                return Err(silence(self.answer_within));
            }
            posted.until = next;
        }
    }

    fn request(&self, serialized_rows: Vec<Vec<u8>>, offset: Option<i64>, introduce: bool) -> AppendRowsRequest {
        let schema = || ProtoSchema { proto_descriptor: Some(self.layout.descriptor()) };
        AppendRowsRequest {
            write_stream: self.stream_name.clone(),
            offset,
            trace_id: if introduce { "contextflow".into() } else { String::new() },
            rows: Some(Rows::ProtoRows(ProtoData {
                writer_schema: introduce.then(schema),
                rows: Some(ProtoRows { serialized_rows }),
            })),
            default_missing_value_interpretation: MissingValueInterpretation::DefaultValue.into(),
            ..AppendRowsRequest::default()
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn gone() -> Status {
    Status::unavailable("the connection has ended")
}

/// Hands answers to those who wait until the stream ends; how it ended.
async fn read(mut answers: tonic::Streaming<AppendRowsResponse>, line: &Mutex<Line>) -> Status {
    loop {
        match answers.message().await {
            Ok(Some(response)) => {
                let mut line = lock(line);
                line.last_answer = Instant::now();
                if let Some((waiting, _room)) = line.waiting.pop_front() {
                    // Who has given up waiting needs no answer.
                    let _ = waiting.send(Ok(response));
                }
            }
            Ok(None) => return Status::unavailable("BigQuery has closed the connection"),
            Err(status) => return status,
        }
    }
}

/// The status is about the first in line; the others only stood behind it.
fn end(line: &Mutex<Line>, status: Status) {
    let mut line = lock(line);
    line.ended = true;
    let mut status = Some(status);
    for (waiting, _room) in line.waiting.drain(..) {
        let behind = || Status::unavailable("the connection ended before the answer");
        let _ = waiting.send(Err(status.take().unwrap_or_else(behind)));
    }
}
