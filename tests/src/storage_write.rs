//! A Storage Write server that does as it is told: BigQuery's gRPC service for default and pending streams, over the
//! tables of the built-in schemas. It reads rows by the descriptor that it was sent and keeps what has landed.

mod pending;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, stream};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::Rows;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response::{
    AppendResult, Response as Answer,
};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::table_field_schema::{
    Mode as FieldMode, Type as FieldType,
};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsRequest, AppendRowsResponse, BatchCommitWriteStreamsRequest, CreateWriteStreamRequest,
    FinalizeWriteStreamRequest, GetWriteStreamRequest, RowError, StorageError, TableFieldSchema, TableSchema,
    WriteStream,
};
use gcp_bigquery_client::google::rpc;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use prost_types::DescriptorProto;
use shared::encode;
use shared::schema::{Column, Kind, Mode, Plan, Registry};
use shared::sink::bigquery::read;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tonic::server::{Grpc, StreamingService, UnaryService};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use self::pending::Pending;
use crate::built_in;

/// The largest request that the service takes.
const MAX_REQUEST: usize = 10 << 20;

/// What becomes of one request, whatever is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// It is taken.
    Take,
    /// It is taken after a while; the requests behind it wait.
    TakeAfter(Duration),
    /// It is answered with an error inside the response.
    Refuse(Code),
    /// The stream ends with a status.
    End(Code),
    /// It is taken, and the stream ends before the answer.
    TakeAndEnd(Code),
    /// The TCP connection is gone.
    Reset,
    /// The server says goodbye to the whole connection and ends the stream.
    GoAway,
    /// Nothing is ever answered.
    Silence,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Came {
    /// How many rows it had.
    pub rows: usize,
    /// Its size in bytes.
    pub bytes: usize,
    /// Which `AppendRows` call it came on, counted from 0.
    pub call: usize,
    /// The number of its first row, where it gave one.
    pub offset: Option<i64>,
}

/// The server; it ends with the test's runtime.
pub struct StorageWrite {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    served: Arc<Served>,
}

struct Served {
    registry: Arc<Registry>,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    landed: BTreeMap<String, Vec<Bytes>>,
    came: Vec<Came>,
    calls: usize,
    acts: VecDeque<Act>,
    bad_rows: HashSet<String>,
    culprits: HashSet<String>,
    dropped_columns: HashSet<String>,
    hides_schema: bool,
    integers: HashSet<String>,
    dropped_tables: HashSet<String>,
    schema_is_new: bool,
    token: Option<String>,
    tokens_seen: Vec<Option<String>>,
    routes: Vec<String>,
    pending: BTreeMap<String, Pending>,
    lost_answers: VecDeque<Code>,
    loses_a_row: bool,
}

/// The TCP connection that a call came over.
#[derive(Default)]
struct Line {
    reset: Notify,
    go_away: Notify,
}

impl StorageWrite {
    /// Starts one that has the tables of the built-in schemas and takes everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let served = Arc::new(Served { registry: built_in(), told: Mutex::default() });
        let serving = Arc::clone(&served);
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(serve(connection, Arc::clone(&serving)));
            }
        });
        Self { url, served }
    }

    /// What becomes of the next requests, one each; all later ones are taken.
    pub fn then(&self, acts: impl IntoIterator<Item = Act>) {
        self.told().acts.extend(acts);
    }

    /// Rows with these event ids are named as bad.
    pub fn name_bad_rows(&self, ids: &[&str]) {
        self.told().bad_rows.extend(ids.iter().map(ToString::to_string));
    }

    /// A request with one of these event ids is refused as a whole.
    pub fn refuse_requests_with(&self, ids: &[&str]) {
        self.told().culprits.extend(ids.iter().map(ToString::to_string));
    }

    /// The tables lack these columns (`items.quantity`).
    pub fn drop_columns(&self, paths: &[&str]) {
        self.told().dropped_columns = paths.iter().map(ToString::to_string).collect();
    }

    /// All columns are there again; the next answer says that the table has changed.
    pub fn add_columns(&self) {
        let mut told = self.told();
        told.dropped_columns.clear();
        told.schema_is_new = true;
    }

    /// `GetWriteStream` tells the schema of before any column was dropped, as it may for minutes.
    pub fn tell_the_old_schema(&self) {
        self.told().hides_schema = true;
    }

    /// These columns are integers in the tables, whatever the schema says; rows are refused for it.
    pub fn make_integers(&self, paths: &[&str]) {
        self.told().integers = paths.iter().map(ToString::to_string).collect();
    }

    /// There is no such table (`dataset.table`).
    pub fn drop_table(&self, name: &str) {
        self.told().dropped_tables.insert(name.to_string());
    }

    /// The table is there (again), empty or not.
    pub fn create_table(&self, name: &str) {
        self.told().dropped_tables.remove(name);
    }

    /// Calls need this bearer token from now on.
    pub fn accept_only(&self, token: &str) {
        self.told().token = Some(token.to_string());
    }

    /// The rows that have landed in a plan's table, as lines of the enriched message.
    pub fn rows(&self, plan: &Plan) -> Vec<Bytes> {
        self.told().landed.get(&plan.table.full_name()).cloned().unwrap_or_default()
    }

    /// The requests that came, in their order.
    pub fn came(&self) -> Vec<Came> {
        self.told().came.clone()
    }

    /// How often `AppendRows` was called.
    pub fn calls(&self) -> usize {
        self.told().calls
    }

    /// The bearer tokens of all calls, in their order.
    pub fn tokens_seen(&self) -> Vec<Option<String>> {
        self.told().tokens_seen.clone()
    }

    /// The header `x-goog-request-params` of all calls, in their order.
    pub fn routes(&self) -> Vec<String> {
        self.told().routes.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.served.told()
    }
}

async fn serve(connection: TcpStream, served: Arc<Served>) {
    let line = Arc::new(Line::default());
    let on_line = Arc::clone(&line);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let call = Call { served: Arc::clone(&served), line: Arc::clone(&on_line) };
        async move { Ok::<_, Infallible>(call.answer(request).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        tokio::select! {
            _ = connection.as_mut() => return,
            // What is dropped here is the socket.
            () = line.reset.notified() => return,
            () = line.go_away.notified() => connection.as_mut().graceful_shutdown(),
        }
    }
}

#[derive(Clone)]
struct Call {
    served: Arc<Served>,
    line: Arc<Line>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<AppendRowsResponse, Status>> + Send>>;
type Future<T> = Pin<Box<dyn std::future::Future<Output = Result<Response<T>, Status>> + Send>>;

impl Call {
    async fn answer(self, request: http::Request<Incoming>) -> http::Response<tonic::body::Body> {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_string();
        let sizes = (Some(MAX_REQUEST), None);
        match method.as_str() {
            "AppendRows" => {
                Grpc::new(ProstCodec::default())
                    .apply_max_message_size_config(sizes.0, sizes.1)
                    .streaming(self, request)
                    .await
            }
            "GetWriteStream" => Grpc::new(ProstCodec::<_, GetWriteStreamRequest>::default()).unary(self, request).await,
            "CreateWriteStream" => {
                Grpc::new(ProstCodec::<_, CreateWriteStreamRequest>::default()).unary(self, request).await
            }
            "FinalizeWriteStream" => {
                Grpc::new(ProstCodec::<_, FinalizeWriteStreamRequest>::default()).unary(self, request).await
            }
            "BatchCommitWriteStreams" => {
                Grpc::new(ProstCodec::<_, BatchCommitWriteStreamsRequest>::default()).unary(self, request).await
            }
            _ => Status::unimplemented(method).into_http(),
        }
    }

    /// Lets a call in or not, by its token.
    fn admit<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let text = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let token = text("authorization").and_then(|value| value.strip_prefix("Bearer ")).map(str::to_string);
        let mut told = self.served.told();
        told.routes.extend(text("x-goog-request-params").map(str::to_string));
        told.tokens_seen.push(token.clone());
        match &told.token {
            Some(right) if token.as_ref() != Some(right) => {
                Err(Status::unauthenticated("Request had invalid authentication credentials."))
            }
            _ => Ok(()),
        }
    }
}

impl StreamingService<AppendRowsRequest> for Call {
    type Response = AppendRowsResponse;
    type ResponseStream = Answers;
    type Future = Future<Answers>;

    fn call(&mut self, request: Request<Streaming<AppendRowsRequest>>) -> Self::Future {
        let call = self.clone();
        Box::pin(async move {
            call.admit(&request)?;
            let (answers, mut answered) = mpsc::channel(1);
            let number = {
                let mut told = call.served.told();
                told.calls += 1;
                told.calls - 1
            };
            tokio::spawn(async move {
                let mut requests = request.into_inner();
                let mut descriptor = None;
                while let Ok(Some(request)) = requests.message().await {
                    let answer = call.one(&request, &mut descriptor, number).await;
                    let is_last = answer.is_err();
                    if answers.send(answer).await.is_err() || is_last {
                        return;
                    }
                }
            });
            let answered: Answers = Box::pin(stream::poll_fn(move |context| answered.poll_recv(context)));
            Ok(Response::new(answered))
        })
    }
}

impl UnaryService<GetWriteStreamRequest> for Call {
    type Response = WriteStream;
    type Future = Future<WriteStream>;

    fn call(&mut self, request: Request<GetWriteStreamRequest>) -> Self::Future {
        let call = self.clone();
        Box::pin(async move {
            call.admit(&request)?;
            let name = request.into_inner().name;
            let plan = call.served.plan(&name)?;
            let told = call.served.told();
            let dropped = if told.hides_schema { HashSet::new() } else { told.dropped_columns.clone() };
            let fields = fields("", &plan.columns, &dropped, &told.integers);
            Ok(Response::new(WriteStream {
                name,
                table_schema: Some(TableSchema { fields }),
                ..WriteStream::default()
            }))
        })
    }
}

impl Call {
    /// One request; an error ends the stream.
    async fn one(
        &self,
        request: &AppendRowsRequest,
        descriptor: &mut Option<DescriptorProto>,
        call: usize,
    ) -> Result<AppendRowsResponse, Status> {
        let Some(Rows::ProtoRows(data)) = &request.rows else { return Err(Status::invalid_argument("no rows")) };
        if let Some(sent) = data.writer_schema.as_ref().and_then(|schema| schema.proto_descriptor.clone()) {
            *descriptor = Some(sent);
        }
        let descriptor = descriptor.as_ref().ok_or_else(|| Status::invalid_argument("no writer schema"))?;
        let serialized = data.rows.as_ref().map_or(&[][..], |rows| &rows.serialized_rows);
        let act = {
            let mut told = self.served.told();
            let (bytes, offset) = (request.encoded_len(), request.offset);
            told.came.push(Came { rows: serialized.len(), bytes, call, offset });
            told.acts.pop_front().unwrap_or(Act::Take)
        };
        let status = |code| Status::new(code, "told to fail");
        let take = || self.served.take(&request.write_stream, request.offset, descriptor, serialized);
        match act {
            Act::Take => {}
            Act::TakeAfter(pause) => tokio::time::sleep(pause).await,
            Act::Refuse(code) => return Ok(error(code, "told to refuse", None)),
            Act::End(code) => return Err(status(code)),
            Act::TakeAndEnd(code) => {
                take()?;
                return Err(status(code));
            }
            Act::Reset => {
                self.line.reset.notify_one();
                return std::future::pending().await;
            }
            Act::GoAway => {
                self.line.go_away.notify_one();
                return Err(status(Code::Unavailable));
            }
            Act::Silence => return std::future::pending().await,
        }
        take()
    }
}

impl Served {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan of the table of a default stream.
    fn plan(&self, stream: &str) -> Result<Arc<Plan>, Status> {
        let parts: Vec<_> = stream.split('/').collect();
        let not_found = |name: &str| Status::not_found(format!("Requested entity was not found. Entity: {name}"));
        let &["projects", _, "datasets", dataset, "tables", table, "streams", "_default"] = parts.as_slice() else {
            return Err(not_found(stream));
        };
        let name = format!("{dataset}.{table}");
        let plan = self.registry.plans().find(|plan| plan.table.full_name() == name);
        match plan {
            Some(plan) if !self.told().dropped_tables.contains(&name) => Ok(Arc::clone(plan)),
            _ => Err(not_found(stream)),
        }
    }

    /// All rows of a request or none, as the service has it.
    fn take(
        &self,
        stream: &str,
        offset: Option<i64>,
        descriptor: &DescriptorProto,
        serialized: &[Vec<u8>],
    ) -> Result<AppendRowsResponse, Status> {
        if !stream.ends_with("/_default") {
            return self.take_pending(stream, offset, descriptor, serialized);
        }
        let plan = self.plan(stream)?;
        let mut told = self.told();
        let extra: Vec<_> =
            paths("", descriptor).into_iter().filter(|path| told.dropped_columns.contains(path)).collect();
        if !extra.is_empty() {
            let message = format!(
                "Input schema has more fields than BigQuery schema, extra fields: '{}' Entity: {}",
                extra.join(","),
                plan.table.full_name()
            );
            let code = StorageErrorCode::SchemaMismatchExtraFields;
            return Ok(error(Code::InvalidArgument, &message, Some(code)));
        }
        if let Some(path) = paths("", descriptor).into_iter().find(|path| told.integers.contains(path)) {
            let message = format!("The proto field mismatched with BigQuery field at {path}.");
            return Ok(error(Code::InvalidArgument, &message, None));
        }
        let mut lines = Vec::with_capacity(serialized.len());
        let mut row_errors = Vec::new();
        for (index, row) in (0..).zip(serialized) {
            let values = read::row(descriptor, &plan.columns, row).map_err(Status::invalid_argument)?;
            let mut line = Vec::new();
            encode::object(&plan.columns, &values, &mut line);
            let id = plan.identity.and_then(|column| values.get(column)?.as_text()).unwrap_or_default();
            if told.culprits.contains(id) {
                return Ok(error(Code::InvalidArgument, "Something in the request is wrong.", None));
            }
            if told.bad_rows.contains(id) {
                row_errors.push(RowError { index, code: 1, message: format!("Field event_id of {id} is bad.") });
            }
            lines.push(Bytes::from(line));
        }
        if !row_errors.is_empty() {
            let message = "Errors found while processing rows. Please refer to the row_errors field for details.";
            return Ok(AppendRowsResponse { row_errors, ..error(Code::InvalidArgument, message, None) });
        }
        told.landed.entry(plan.table.full_name()).or_default().extend(lines);
        let is_new = std::mem::take(&mut told.schema_is_new);
        let updated_schema =
            is_new.then(|| TableSchema { fields: fields("", &plan.columns, &told.dropped_columns, &told.integers) });
        Ok(AppendRowsResponse { updated_schema, ..landed(None) })
    }
}

fn landed(offset: Option<i64>) -> AppendRowsResponse {
    let result = Answer::AppendResult(AppendResult { offset });
    AppendRowsResponse { response: Some(result), ..AppendRowsResponse::default() }
}

fn error(code: Code, message: &str, storage: Option<StorageErrorCode>) -> AppendRowsResponse {
    let detail = |code: StorageErrorCode| prost_types::Any {
        type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".into(),
        value: StorageError { code: code.into(), ..StorageError::default() }.encode_to_vec(),
    };
    let details = storage.map(detail).into_iter().collect();
    let status = rpc::Status { code: code.into(), message: message.into(), details };
    AppendRowsResponse { response: Some(Answer::Error(status)), ..AppendRowsResponse::default() }
}

/// Every field of a message by its path.
fn paths(parent: &str, message: &DescriptorProto) -> Vec<String> {
    let mut all = Vec::new();
    for field in &message.field {
        let path = format!("{parent}{}", field.name());
        if let Some(nested) = message.nested_type.iter().find(|nested| nested.name() == field.type_name()) {
            all.extend(paths(&format!("{path}."), nested));
        }
        all.push(path);
    }
    all
}

/// The fields of a table as the service tells them.
fn fields(
    parent: &str,
    columns: &[Column],
    dropped: &HashSet<String>,
    integers: &HashSet<String>,
) -> Vec<TableFieldSchema> {
    let mut all = Vec::new();
    for column in columns {
        let path = format!("{parent}{}", column.name);
        if dropped.contains(&path) {
            continue;
        }
        let (kind, fields) = match &column.kind {
            _ if integers.contains(&path) => (FieldType::Int64, Vec::new()),
            Kind::Record(record) => {
                (FieldType::Struct, self::fields(&format!("{path}."), &record.columns, dropped, integers))
            }
            Kind::String => (FieldType::String, Vec::new()),
            Kind::Bytes => (FieldType::Bytes, Vec::new()),
            Kind::Integer => (FieldType::Int64, Vec::new()),
            Kind::Float => (FieldType::Double, Vec::new()),
            Kind::Numeric => (FieldType::Numeric, Vec::new()),
            Kind::BigNumeric => (FieldType::Bignumeric, Vec::new()),
            Kind::Boolean => (FieldType::Bool, Vec::new()),
            Kind::Timestamp => (FieldType::Timestamp, Vec::new()),
            Kind::Date => (FieldType::Date, Vec::new()),
            Kind::Time => (FieldType::Time, Vec::new()),
            Kind::DateTime => (FieldType::Datetime, Vec::new()),
            Kind::Json => (FieldType::Json, Vec::new()),
        };
        let mode = match column.mode {
            Mode::Nullable => FieldMode::Nullable,
            Mode::Required => FieldMode::Required,
            Mode::Repeated => FieldMode::Repeated,
        };
        let (name, kind, mode) = (column.name.clone(), kind.into(), mode.into());
        all.push(TableFieldSchema { name, r#type: kind, mode, fields, ..TableFieldSchema::default() });
    }
    all
}
