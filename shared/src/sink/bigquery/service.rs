//! The Storage Write service of one project, and who asks it.

use std::fmt::Write as _;
use std::time::Duration;

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::big_query_write_client::BigQueryWriteClient;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::write_stream::Type;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    BatchCommitWriteStreamsRequest, BatchCommitWriteStreamsResponse, CreateWriteStreamRequest,
    FinalizeWriteStreamRequest, GetWriteStreamRequest, TableFieldSchema, WriteStream, WriteStreamView,
};
use tokio::time::timeout;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::login::{Google, Held, Tokens};
use crate::clock::Clock;
use crate::settings::{Settings, fault};

const SERVICE: &str = "https://bigquerystorage.googleapis.com";
/// Longest time of a call that is no append; a commit of many rows takes its time.
const CALL: Duration = Duration::from_mins(1);

/// The service; connects on first use.
pub(super) struct Service {
    project: String,
    pub(super) client: BigQueryWriteClient<Channel>,
    /// `None` on an emulator.
    tokens: Option<Tokens>,
}

impl Service {
    /// The project `GOOGLE_CLOUD_PROJECT`, asked with Google's own login, or without any on the emulator at
    /// `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`). Inside a tokio runtime.
    pub(super) fn new(settings: &Settings, clock: &Clock) -> Result<Self, String> {
        let is_service = settings.get("BIGQUERY_GRPC_ENDPOINT").is_none();
        Self::with(settings, is_service.then(|| Tokens::new(Google::new(settings), clock.clone())))
    }

    /// [`Service::new`] with other tokens than the usual.
    pub(super) fn with(settings: &Settings, tokens: Option<Tokens>) -> Result<Self, String> {
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
        Ok(Self { project, client: BigQueryWriteClient::new(endpoint.connect_lazy()), tokens })
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
        let answer = self.within(self.client.clone().get_write_stream(request), secret).await?;
        Ok(answer.table_schema.unwrap_or_default().fields)
    }

    /// Makes a pending stream to a table (its resource name); the stream's name.
    pub(super) async fn create(&self, table: &str) -> Result<String, Status> {
        let stream = WriteStream { r#type: Type::Pending.into(), ..WriteStream::default() };
        let request = CreateWriteStreamRequest { parent: table.into(), write_stream: Some(stream) };
        let (request, secret) = self.request(request, "parent", table).await?;
        Ok(self.within(self.client.clone().create_write_stream(request), secret).await?.name)
    }

    /// Ends a stream, which may be ended already; how many rows it has.
    pub(super) async fn finalize(&self, stream: &str) -> Result<i64, Status> {
        let (request, secret) =
            self.request(FinalizeWriteStreamRequest { name: stream.into() }, "name", stream).await?;
        Ok(self.within(self.client.clone().finalize_write_stream(request), secret).await?.row_count)
    }

    /// Puts the rows of an ended stream into its table.
    pub(super) async fn commit(&self, table: &str, stream: &str) -> Result<BatchCommitWriteStreamsResponse, Status> {
        let request = BatchCommitWriteStreamsRequest { parent: table.into(), write_streams: vec![stream.into()] };
        let (request, secret) = self.request(request, "parent", table).await?;
        self.within(self.client.clone().batch_commit_write_streams(request), secret).await
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
        asking: impl Future<Output = Result<Response<T>, Status>> + Send,
        secret: Option<String>,
    ) -> Result<T, Status> {
        let silent = |_| Status::deadline_exceeded(format!("no answer for {} s", CALL.as_secs()));
        let answer = timeout(CALL, asking).await.map_err(silent).flatten();
        if answer.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated) {
            self.forget(secret.as_deref()).await;
        }
        answer.map(Response::into_inner)
    }
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
