//! One long-lived append stream to a table: requests go out one after the other, answers come back in their order.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1 as storage;
use storage::append_rows_request::{MissingValueInterpretation, ProtoData, Rows};
use storage::big_query_write_client::BigQueryWriteClient;
use storage::{AppendRowsRequest, AppendRowsResponse, ProtoRows, ProtoSchema};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::token::Tokens;

/// Requests that may wait for their answer on one stream; past it callers wait.
const IN_FLIGHT: usize = 8;
/// An answer that takes longer than this does not come any more.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// The largest answer that is read: row errors of a whole request.
const MAX_ANSWER: usize = 16 << 20;

type Reply = oneshot::Sender<Result<AppendRowsResponse, Status>>;

/// The stream to one table, opened at the first append and again after each failure.
pub struct Connection {
    channel: Channel,
    tokens: Arc<Tokens>,
    /// `projects/P/datasets/D/tables/T/streams/_default`.
    stream: String,
    schema: ProtoSchema,
    open: tokio::sync::Mutex<Option<Open>>,
}

/// A stream that is open, as far as is known.
struct Open {
    requests: mpsc::Sender<AppendRowsRequest>,
    waiting: Arc<Waiting>,
}

/// Who waits for answers, oldest first; `None` once the stream has ended.
#[derive(Default)]
struct Waiting(Mutex<Queue>);

struct Queue(Option<VecDeque<Reply>>);

impl Default for Queue {
    fn default() -> Self {
        Self(Some(VecDeque::new()))
    }
}

impl Connection {
    /// A connection that is opened when it is needed.
    pub fn new(channel: Channel, tokens: Arc<Tokens>, stream: String, schema: ProtoSchema) -> Self {
        Self { channel, tokens, stream, schema, open: tokio::sync::Mutex::default() }
    }

    /// Sends rows in one request and waits for its answer. After an error the rows may have landed all the same.
    pub async fn append(&self, serialized_rows: Vec<Vec<u8>>) -> Result<AppendRowsResponse, Status> {
        let answer = self.send(ProtoRows { serialized_rows }).await?;
        match timeout(ANSWER_WITHIN, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Status::unavailable("the append stream ended")),
            Err(_) => {
                self.close().await;
                Err(Status::deadline_exceeded(format!("no answer within {} s", ANSWER_WITHIN.as_secs())))
            }
        }
    }

    /// The next request opens a new stream.
    pub async fn close(&self) {
        self.open.lock().await.take();
    }

    /// Puts a request on the stream. Under one lock, so that requests and those who wait stand in the same order.
    async fn send(&self, rows: ProtoRows) -> Result<oneshot::Receiver<Result<AppendRowsResponse, Status>>, Status> {
        let mut held = self.open.lock().await;
        let (open, writer_schema) = match held.take().filter(|open| !open.requests.is_closed()) {
            Some(open) => (open, None),
            // The first request of a stream tells how its rows are written.
            None => (self.open().await?, Some(self.schema.clone())),
        };
        let request = AppendRowsRequest {
            write_stream: self.stream.clone(),
            default_missing_value_interpretation: MissingValueInterpretation::DefaultValue.into(),
            rows: Some(Rows::ProtoRows(ProtoData { writer_schema, rows: Some(rows) })),
            ..AppendRowsRequest::default()
        };
        let (reply, answer) = oneshot::channel();
        let is_sent = match timeout(ANSWER_WITHIN, open.requests.reserve()).await {
            Ok(Ok(place)) if open.waiting.add(reply) => {
                place.send(request);
                true
            }
            _ => false,
        };
        if !is_sent {
            return Err(Status::unavailable("the append stream takes no request"));
        }
        *held = Some(open);
        Ok(answer)
    }

    async fn open(&self) -> Result<Open, Status> {
        let (requests, to_send) = mpsc::channel(IN_FLIGHT);
        let outgoing = stream::unfold(to_send, async |mut to_send: mpsc::Receiver<AppendRowsRequest>| {
            let request = to_send.recv().await?;
            Some((request, to_send))
        });
        let mut call = Request::new(outgoing);
        let route = format!("write_stream={}", self.stream);
        call.metadata_mut().insert(
            "x-goog-request-params",
            MetadataValue::try_from(route).map_err(|error| Status::internal(error.to_string()))?,
        );
        if let Some(token) = self.tokens.header().await.map_err(Status::unauthenticated)? {
            call.metadata_mut().insert("authorization", token);
        }
        let mut client = BigQueryWriteClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER);
        let waiting = Arc::new(Waiting::default());
        let answered = Arc::clone(&waiting);
        tokio::spawn(async move {
            // The service may answer the call itself only after the first request.
            let ended = match client.append_rows(call).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(answer)) => answered.answer(answer),
                            Ok(None) => break Status::unavailable("the service closed the append stream"),
                            Err(status) => break status,
                        }
                    }
                }
                Err(status) => status,
            };
            answered.end(&ended);
        });
        Ok(Open { requests, waiting })
    }
}

impl Waiting {
    /// `false` where the stream has ended.
    fn add(&self, reply: Reply) -> bool {
        self.lock().0.as_mut().map(|queue| queue.push_back(reply)).is_some()
    }

    fn answer(&self, answer: AppendRowsResponse) {
        let reply = self.lock().0.as_mut().and_then(VecDeque::pop_front);
        if let Some(reply) = reply {
            // Whoever asked may have gone.
            let _ = reply.send(Ok(answer));
        }
    }

    fn end(&self, status: &Status) {
        for reply in self.lock().0.take().into_iter().flatten() {
            let _ = reply.send(Err(status.clone()));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
