//! Pending streams: rows are numbered and kept, and are in their table once the stream is ended and committed.
//!
//! A stream may belong to a staging table, `dataset.table__run`: it has the columns of `dataset.table` and a segment.

use std::sync::Arc;

use bytes::Bytes;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{
    AppendRowsResponse, BatchCommitWriteStreamsRequest, BatchCommitWriteStreamsResponse, CreateWriteStreamRequest,
    FinalizeWriteStreamRequest, FinalizeWriteStreamResponse, RowError, StorageError, WriteStream,
};
use prost_types::{DescriptorProto, Timestamp};
use shared::encode;
use shared::row::Value;
use shared::schema::{Column, Fill, Kind, Mode, Plan};
use shared::sink::bigquery::read;
use tonic::server::UnaryService;
use tonic::{Code, Request, Response, Status};

use super::{Call, Future, Served, StorageWrite, error, landed};

/// A pending stream.
pub(super) struct Pending {
    table: String,
    rows: Vec<Bytes>,
    is_ended: bool,
    is_committed: bool,
}

impl StorageWrite {
    /// The next calls beside `AppendRows` do their work, and their answer is lost: the call ends with a status.
    pub fn lose_answers(&self, codes: impl IntoIterator<Item = Code>) {
        self.told().lost_answers.extend(codes);
    }

    /// Ended streams have one row fewer than they were given.
    pub fn lose_a_row(&self) {
        self.told().loses_a_row = true;
    }

    /// The rows that were committed to `dataset.table`, as lines of the enriched message.
    pub fn committed(&self, table: &str) -> Vec<Bytes> {
        self.told().landed.get(table).cloned().unwrap_or_default()
    }
}

impl Served {
    /// The plan of a staging table, and its columns.
    fn staged(&self, table: &str) -> Result<(Arc<Plan>, Vec<Column>), Status> {
        let of = table.split_once("__").map_or(table, |(of, _)| of);
        let plan = self.registry.plans().find(|plan| plan.table.full_name() == of);
        let plan = plan.ok_or_else(|| Status::not_found(format!("Not found: Table {table}")))?;
        let segment = Column {
            name: "load_segment".into(),
            kind: Kind::Integer,
            mode: Mode::Required,
            max_length: None,
            max_elements: usize::MAX,
            description: None,
            fill: Fill::System,
        };
        Ok((Arc::clone(plan), plan.columns.iter().cloned().chain([segment]).collect()))
    }

    /// All rows of a request or none, if it goes on where the last one ended.
    pub(super) fn take_pending(
        &self,
        stream: &str,
        offset: Option<i64>,
        descriptor: &DescriptorProto,
        serialized: &[Vec<u8>],
    ) -> Result<AppendRowsResponse, Status> {
        let mut told = self.told();
        let not_found = || Status::not_found(format!("Requested entity was not found. Entity: {stream}"));
        let (table, next) =
            told.pending.get(stream).map(|known| (known.table.clone(), known.rows.len())).ok_or_else(not_found)?;
        let (plan, columns) = self.staged(&table)?;
        let (offset, next) = (offset.unwrap_or_default(), i64::try_from(next).unwrap_or_default());
        if offset < next {
            let code = Some(StorageErrorCode::OffsetAlreadyExists);
            return Ok(error(Code::AlreadyExists, "The offset is within stream, expected offset", code));
        }
        if offset > next {
            let code = Some(StorageErrorCode::OffsetOutOfRange);
            return Ok(error(Code::OutOfRange, "The offset is beyond stream, expected offset", code));
        }
        let mut lines = Vec::with_capacity(serialized.len());
        let mut row_errors = Vec::new();
        for (index, row) in (0..).zip(serialized) {
            let values = read::row(descriptor, &columns, row).map_err(Status::invalid_argument)?;
            if values.iter().filter_map(Value::as_text).any(|text| told.bad_rows.contains(text)) {
                row_errors.push(RowError { index, code: 1, message: "Field session_id is bad.".into() });
            }
            let mut line = Vec::new();
            encode::object(&plan.columns, &values, &mut line);
            lines.push(Bytes::from(line));
        }
        if !row_errors.is_empty() {
            let message = "Errors found while processing rows. Please refer to the row_errors field for details.";
            return Ok(AppendRowsResponse { row_errors, ..error(Code::InvalidArgument, message, None) });
        }
        if let Some(known) = told.pending.get_mut(stream).filter(|known| !known.is_ended) {
            known.rows.extend(lines);
            return Ok(landed(Some(offset)));
        }
        Ok(error(Code::InvalidArgument, "Stream is finalized", Some(StorageErrorCode::StreamFinalized)))
    }
}

impl Call {
    /// Does the work of a call, and answers unless the answer is to be lost.
    fn unary<Q, A: 'static + Send>(
        &self,
        request: Request<Q>,
        work: impl FnOnce(&Served, Q) -> Result<A, Status>,
    ) -> Future<A> {
        let answer = self.admit(&request).and_then(|()| work(&self.served, request.into_inner()));
        let lost = self.served.told().lost_answers.pop_front();
        let answer = match lost {
            Some(code) => Err(Status::new(code, "told to lose it")),
            None => answer.map(Response::new),
        };
        Box::pin(std::future::ready(answer))
    }
}

impl UnaryService<CreateWriteStreamRequest> for Call {
    type Response = WriteStream;
    type Future = Future<WriteStream>;

    fn call(&mut self, request: Request<CreateWriteStreamRequest>) -> Self::Future {
        self.unary(request, |served, request| {
            let parts: Vec<_> = request.parent.split('/').collect();
            let &["projects", _, "datasets", dataset, "tables", table] = parts.as_slice() else {
                return Err(Status::invalid_argument(request.parent));
            };
            let table = format!("{dataset}.{table}");
            served.staged(&table)?;
            let mut told = served.told();
            let name = format!("{}/streams/{}", request.parent, told.pending.len());
            let stream = Pending { table, rows: Vec::new(), is_ended: false, is_committed: false };
            told.pending.insert(name.clone(), stream);
            Ok(WriteStream { name, ..request.write_stream.unwrap_or_default() })
        })
    }
}

impl UnaryService<FinalizeWriteStreamRequest> for Call {
    type Response = FinalizeWriteStreamResponse;
    type Future = Future<FinalizeWriteStreamResponse>;

    fn call(&mut self, request: Request<FinalizeWriteStreamRequest>) -> Self::Future {
        self.unary(request, |served, request| {
            let mut told = served.told();
            let lost = i64::from(told.loses_a_row);
            let stream = told.pending.get_mut(&request.name).ok_or_else(|| Status::not_found(request.name))?;
            stream.is_ended = true;
            let rows = i64::try_from(stream.rows.len()).unwrap_or_default();
            Ok(FinalizeWriteStreamResponse { row_count: rows - lost })
        })
    }
}

impl UnaryService<BatchCommitWriteStreamsRequest> for Call {
    type Response = BatchCommitWriteStreamsResponse;
    type Future = Future<BatchCommitWriteStreamsResponse>;

    fn call(&mut self, request: Request<BatchCommitWriteStreamsRequest>) -> Self::Future {
        self.unary(request, |served, request| {
            let mut told = served.told();
            let mut stream_errors = Vec::new();
            let mut committed = Vec::new();
            for entity in request.write_streams {
                let code = match told.pending.get_mut(&entity) {
                    None => StorageErrorCode::StreamNotFound,
                    Some(stream) if stream.is_committed => StorageErrorCode::StreamAlreadyCommitted,
                    Some(stream) if !stream.is_ended => StorageErrorCode::InvalidStreamState,
                    Some(stream) => {
                        stream.is_committed = true;
                        committed.push((stream.table.clone(), stream.rows.clone()));
                        continue;
                    }
                };
                stream_errors.push(StorageError { code: code.into(), entity, error_message: "told so".into() });
            }
            for (table, rows) in committed {
                told.landed.entry(table).or_default().extend(rows);
            }
            let commit_time = stream_errors.is_empty().then(Timestamp::default);
            Ok(BatchCommitWriteStreamsResponse { commit_time, stream_errors })
        })
    }
}
