//! A Storage Write server that acknowledges what comes, after a delay if told so, and keeps nothing but counts.

use std::collections::HashSet;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::{Stream, stream};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_request::Rows;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response::{
    AppendResult, Response as Answer,
};
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{AppendRowsRequest, AppendRowsResponse};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::encoding::{WireType, decode_key, decode_varint};
use serde_json::json;
use tokio::net::TcpListener;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::Failure;

#[derive(clap::Args, Clone)]
pub struct Warehouse {
    /// Port to listen on
    #[arg(long)]
    port: u16,
    /// How long an append takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// After this long appends are acknowledged at once, in seconds
    #[arg(long)]
    delay_for_s: Option<u64>,
    /// Count distinct rows by this protobuf field, a string (`event_id` of the clickstream is 9)
    #[arg(long)]
    identity: Option<u32>,
}

#[derive(Default)]
struct Counts {
    appends: u64,
    rows: u64,
    distinct: HashSet<u64>,
}

#[derive(Clone)]
struct Served {
    args: Warehouse,
    started: tokio::time::Instant,
    counts: Arc<Mutex<Counts>>,
}

type Answers = Pin<Box<dyn Stream<Item = Result<AppendRowsResponse, Status>> + Send>>;

/// Serves until SIGTERM, then prints what came.
pub async fn serve(args: Warehouse) -> Result<(), Failure> {
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await?;
    let served = Served { args, started: tokio::time::Instant::now(), counts: Arc::default() };
    let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    loop {
        tokio::select! {
            _ = ended.recv() => break,
            accepted = listener.accept() => {
                let (connection, _) = accepted?;
                let served = served.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let served = served.clone();
                    async move {
                        let mut grpc = Grpc::new(ProstCodec::default()).apply_max_message_size_config(Some(16 << 20), None);
                        Ok::<_, Infallible>(grpc.streaming(served, request).await)
                    }
                });
                let serving = http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(connection), service);
                tokio::spawn(serving);
            }
        }
    }
    let counts = served.counts.lock().unwrap_or_else(PoisonError::into_inner);
    println!("{}", json!({"appends": counts.appends, "rows": counts.rows, "distinct": counts.distinct.len()}));
    Ok(())
}

impl StreamingService<AppendRowsRequest> for Served {
    type Response = AppendRowsResponse;
    type ResponseStream = Answers;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answers>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<AppendRowsRequest>>) -> Self::Future {
        let served = self.clone();
        let answers = stream::unfold((served, request.into_inner()), async |(served, mut requests)| {
            let request = requests.message().await.ok()??;
            let answer = served.take(&request).await;
            Some((Ok(answer), (served, requests)))
        });
        Box::pin(async move { Ok(Response::new(Box::pin(answers) as Answers)) })
    }
}

impl Served {
    async fn take(&self, request: &AppendRowsRequest) -> AppendRowsResponse {
        let is_slow = self.args.delay_for_s.is_none_or(|seconds| self.started.elapsed().as_secs() < seconds);
        if self.args.delay_ms > 0 && is_slow {
            tokio::time::sleep(Duration::from_millis(self.args.delay_ms)).await;
        }
        let Some(Rows::ProtoRows(data)) = &request.rows else { return AppendRowsResponse::default() };
        let rows = data.rows.as_ref().map_or(&[][..], |rows| &rows.serialized_rows);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.appends += 1;
        counts.rows += rows.len() as u64;
        if let Some(identity) = self.args.identity {
            counts.distinct.extend(rows.iter().filter_map(|row| hash(row, identity)));
        }
        AppendRowsResponse {
            response: Some(Answer::AppendResult(AppendResult { offset: None })),
            ..AppendRowsResponse::default()
        }
    }
}

/// A hash of the string in field `wanted`.
fn hash(mut row: &[u8], wanted: u32) -> Option<u64> {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    while !row.is_empty() {
        let (field, wire_type) = decode_key(&mut row).ok()?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut row).ok()?;
                0
            }
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => usize::try_from(decode_varint(&mut row).ok()?).ok()?,
            _ => return None,
        };
        let (value, rest) = row.split_at_checked(length)?;
        if field == wanted {
            return Some(BuildHasherDefault::<DefaultHasher>::default().hash_one(value));
        }
        row = rest;
    }
    None
}
