//! A Pub/Sub server that takes what is published and answers as told: the gRPC method `Publish` and nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::routing::post;
use http_body_util::{BodyExt, Full};
use prost::Message as _;
use tokio::net::TcpListener;

/// What stands before every gRPC message: no compression, four bytes of length.
const FRAME: usize = 5;

/// Says no to a publish by a gRPC status and a message, or lets it in. It is given the bearer token of the call.
pub type Judge = Box<dyn Fn(Option<&str>) -> Result<(), (u16, &'static str)> + Send + Sync>;

/// The server.
pub struct TopicServer {
    /// `http://127.0.0.1:<port>`.
    pub url: String,
    state: Arc<Served>,
}

struct Served {
    judge: Judge,
    taken: Mutex<Vec<Taken>>,
}

/// A message that the server has taken.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Taken {
    /// Its data.
    #[prost(bytes = "bytes", tag = "1")]
    pub data: Bytes,
    /// Its attributes.
    #[prost(btree_map = "string, string", tag = "2")]
    pub attributes: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PublishRequest {
    #[prost(string, tag = "1")]
    topic: String,
    #[prost(message, repeated, tag = "2")]
    messages: Vec<Taken>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PublishResponse {
    #[prost(string, repeated, tag = "1")]
    message_ids: Vec<String>,
}

impl TopicServer {
    /// Starts one that takes everything.
    pub async fn start() -> Self {
        Self::judging(Box::new(|_| Ok(()))).await
    }

    /// Starts one that asks `judge` before it takes anything.
    pub async fn judging(judge: Judge) -> Self {
        let state = Arc::new(Served { judge, taken: Mutex::default() });
        let router =
            Router::new().route("/google.pubsub.v1.Publisher/Publish", post(publish)).with_state(Arc::clone(&state));
        Self { url: serve(router).await, state }
    }

    /// Everything taken until now, oldest first.
    pub fn taken(&self) -> Vec<Taken> {
        self.state.taken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves `router` on a free port until the runtime of the test ends.
pub async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("it has an address"));
    tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    url
}

async fn publish(State(served): State<Arc<Served>>, headers: HeaderMap, body: Bytes) -> Response<Body> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if let Err((status, message)) = (served.judge)(bearer) {
        return answer(Bytes::new(), status, message);
    }
    let request = PublishRequest::decode(body.slice(FRAME..)).expect("the client sends a PublishRequest");
    let mut taken = served.taken.lock().unwrap_or_else(PoisonError::into_inner);
    let message_ids = (taken.len()..).take(request.messages.len()).map(|id| id.to_string()).collect();
    taken.extend(request.messages);
    let response = PublishResponse { message_ids }.encode_to_vec();
    let length = u32::try_from(response.len()).expect("it is short");
    let framed = [&[0], &length.to_be_bytes()[..], &response].concat();
    answer(framed.into(), 0, "")
}

/// gRPC tells the status behind the body.
fn answer(body: Bytes, status: u16, message: &'static str) -> Response<Body> {
    let trailers = HeaderMap::from_iter([
        ("grpc-status".parse().expect("a name"), HeaderValue::from(status)),
        ("grpc-message".parse().expect("a name"), HeaderValue::from_static(message)),
    ]);
    let body = Full::new(body).with_trailers(async { Some(Ok(trailers)) });
    let response = Response::builder().header(header::CONTENT_TYPE, "application/grpc").body(Body::new(body));
    response.expect("a response")
}
