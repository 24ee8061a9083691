//! The Storage Write service of one project, and who asks it.

use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::write_stream::Type;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    BatchCommitWriteStreamsRequest, BatchCommitWriteStreamsResponse, CreateWriteStreamRequest,
    FinalizeWriteStreamRequest, GetWriteStreamRequest, TableFieldSchema, WriteStream, WriteStreamView,
};
use tokio::time::{Instant, timeout};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::login::{Google, Held, Tokens};
use crate::clock::{Clock, Micros, SECOND};
use crate::settings::{Settings, fault};

const SERVICE: &str = "https://bigquerystorage.googleapis.com";

/// A channel idle for longer is replaced before use: it may have died without a sign while the process was suspended.
const MAX_IDLE: Micros = 240 * SECOND;

/// The service; connects on first use.
pub(super) struct Service {
    project: String,
    endpoint: Endpoint,
    line: Mutex<Line>,
    clock: Clock,
    /// `None` on an emulator.
    tokens: Option<Tokens>,
    /// Longest time of a call that is no append.
    patience: Duration,
}

/// The channel in use.
struct Line {
    channel: Channel,
    id: u64,
    /// When BigQuery last answered over it, or it was made: by the wall clock, which goes on while a machine is suspended,
    /// and by the monotonic one, which nobody sets back.
    used: (Micros, Instant),
}

impl Service {
    /// The project `GOOGLE_CLOUD_PROJECT`, asked with Google's own login, or without any on the emulator at
    /// `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`). Inside a tokio runtime.
    pub(super) fn new(settings: &Settings, clock: &Clock, patience: Duration) -> Result<Self, String> {
        let is_service = settings.get("BIGQUERY_GRPC_ENDPOINT").is_none();
        let tokens = is_service.then(|| Tokens::new(Google::new(settings), clock.clone()));
        Self::with(settings, tokens, clock, patience)
    }

    /// [`Service::new`] with other tokens than the usual.
    pub(super) fn with(
        settings: &Settings,
        tokens: Option<Tokens>,
        clock: &Clock,
        patience: Duration,
    ) -> Result<Self, String> {
        let project = settings.project().map_err(|error| error.to_string())?.to_string();
        let address = settings.text("BIGQUERY_GRPC_ENDPOINT", SERVICE);
        let unusable = |error: tonic::transport::Error| fault("BIGQUERY_GRPC_ENDPOINT", whole(&error)).to_string();
        let mut endpoint = Endpoint::from_shared(address.to_string())
            .map_err(unusable)?
            .connect_timeout(Duration::from_secs(5))
            // A connection that died while the process slept is found out before its answers are overdue.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(5));
        if address.starts_with("https:") {
            endpoint = endpoint.tls_config(ClientTlsConfig::new().with_native_roots()).map_err(unusable)?;
        }
        let used = (clock.now(), Instant::now());
        let line = Mutex::new(Line { channel: endpoint.connect_lazy(), id: 0, used });
        Ok(Self { project, endpoint, line, clock: clock.clone(), tokens, patience })
    }

    /// A client on the current channel, with the channel's id; on a new channel where the last one was idle for long.
    pub(super) fn client(&self) -> (BigQueryWriteClient<Channel>, u64) {
        let mut line = self.line();
        let (wall, monotonic) = line.used;
        let idle = Micros::try_from(monotonic.elapsed().as_micros()).unwrap_or(Micros::MAX);
        if idle > MAX_IDLE || self.clock.now() - wall > MAX_IDLE {
            self.renew(&mut line);
        }
        (BigQueryWriteClient::new(line.channel.clone()), line.id)
    }

    /// Records what came of a call over the channel `id`. One that has left a call without an answer is not used again.
    pub(super) fn record<T>(&self, id: u64, outcome: &Result<T, Status>) {
        let mut line = self.line();
        if line.id != id {
            return;
        }
        match outcome {
            Err(status) if status.code() == Code::DeadlineExceeded => {
                tracing::warn!("BigQuery does not answer, opening a new connection");
                self.renew(&mut line);
            }
            Err(_) => {}
            Ok(_) => line.used = (self.clock.now(), Instant::now()),
        }
    }

    fn renew(&self, line: &mut Line) {
        let used = (self.clock.now(), Instant::now());
        *line = Line { channel: self.endpoint.connect_lazy(), id: line.id + 1, used };
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The resource name of `dataset.table`.
    pub(super) fn table(&self, name: &str) -> String {
        let (dataset, table) = name.split_once('.').unwrap_or_default();
        format!("projects/{}/datasets/{dataset}/tables/{table}", self.project)
    }

    /// The token to ask with; none on an emulator.
    pub(super) async fn token(&self) -> Result<Option<Held>, String> {
        match &self.tokens {
            Some(tokens) => tokens.token().await.map(Some),
            None => Ok(None),
        }
    }

    /// `secret` was refused: it is not used again.
    pub(super) async fn forget(&self, secret: Option<&str>) {
        if let (Some(tokens), Some(secret)) = (&self.tokens, secret) {
            tokens.forget(secret).await;
        }
    }

    /// What BigQuery says of a stream: the fields of its table.
    pub(super) async fn fields(&self, stream: &str) -> Result<Vec<TableFieldSchema>, Status> {
        let request = GetWriteStreamRequest { name: stream.into(), view: WriteStreamView::Full.into() };
        let (request, secret) = self.request(request, "name", stream).await?;
        let (mut client, id) = self.client();
        let answer = self.within(id, client.get_write_stream(request), secret).await?;
        Ok(answer.table_schema.unwrap_or_default().fields)
    }

    /// Makes a pending stream to a table (its resource name); the stream's name.
    pub(super) async fn create(&self, table: &str) -> Result<String, Status> {
        let stream = WriteStream { r#type: Type::Pending.into(), ..WriteStream::default() };
        let request = CreateWriteStreamRequest { parent: table.into(), write_stream: Some(stream) };
        let (request, secret) = self.request(request, "parent", table).await?;
        let (mut client, id) = self.client();
        Ok(self.within(id, client.create_write_stream(request), secret).await?.name)
    }

    /// Ends a stream, which may be ended already; how many rows it has.
    pub(super) async fn finalize(&self, stream: &str) -> Result<i64, Status> {
        let (request, secret) =
            self.request(FinalizeWriteStreamRequest { name: stream.into() }, "name", stream).await?;
        let (mut client, id) = self.client();
        Ok(self.within(id, client.finalize_write_stream(request), secret).await?.row_count)
    }

    /// Puts the rows of an ended stream into its table.
    pub(super) async fn commit(&self, table: &str, stream: &str) -> Result<BatchCommitWriteStreamsResponse, Status> {
        let request = BatchCommitWriteStreamsRequest { parent: table.into(), write_streams: vec![stream.into()] };
        let (request, secret) = self.request(request, "parent", table).await?;
        let (mut client, id) = self.client();
        self.within(id, client.batch_commit_write_streams(request), secret).await
    }

    async fn request<T>(
        &self,
        message: T,
        parameter: &str,
        resource: &str,
    ) -> Result<(Request<T>, Option<String>), Status> {
        let held = self.token().await.map_err(Status::unauthenticated)?;
        let secret = held.map(|held| held.token.secret);
        Ok((call(message, parameter, resource, secret.as_deref()), secret))
    }

    async fn within<T>(
        &self,
        id: u64,
        asking: impl Future<Output = Result<Response<T>, Status>> + Send,
        secret: Option<String>,
    ) -> Result<T, Status> {
        let silent = |_| silence(self.patience);
        let answer = timeout(self.patience, asking).await.map_err(silent).flatten();
        self.record(id, &answer);
        if answer.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated) {
            self.forget(secret.as_deref()).await;
        }
        answer.map(Response::into_inner)
    }
}

/// What stands for an answer that did not come in time.
pub(super) fn silence(patience: Duration) -> Status {
    Status::deadline_exceeded(format!("no answer for {} s", patience.as_secs()))
}

/// A request with the token and the header by which Google's front end finds the resource.
pub(super) fn call<T>(message: T, parameter: &str, resource: &str, secret: Option<&str>) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    if let Ok(routing) = format!("{parameter}={}", percent_encoded(resource)).parse() {
        metadata.insert("x-goog-request-params", routing);
    }
    let bearer = |secret| format!("Bearer {secret}").parse::<AsciiMetadataValue>().ok();
    if let Some(mut bearer) = secret.and_then(bearer) {
        bearer.set_sensitive(true);
        metadata.insert("authorization", bearer);
    }
    request
}

fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// An error with its causes.
fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let _ = write!(text, ": {inner}");
        cause = inner.source();
    }
    text
}
