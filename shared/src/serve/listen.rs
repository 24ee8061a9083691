//! Connections: accepted until the end is asked for, then brought to theirs.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::Guard;

/// The largest part of a request that a connection holds on its own; beyond it, a body waits in the network until there
/// is room for it ([`Guard`]).
const BUFFER: usize = 16 << 10;

/// Serves `router` behind `guard` until `ended`; then nothing more is accepted, and what is under way has `patience` to
/// be answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    guard: Arc<Guard>,
    ended: impl Future<Output = ()>,
    patience: Duration,
) {
    let (end, ending) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut ended = pin!(ended);
    loop {
        tokio::select! {
            () = &mut ended => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, router.clone(), Arc::clone(&guard), ending.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: they come back with the connections that end.
                    tracing::warn!(%error, "connection not accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    drop(end);
    let all = async { while connections.join_next().await.is_some() {} };
    if timeout(patience, all).await.is_err() {
        tracing::error!(connections = connections.len(), "not answered in time");
    }
}

async fn connection(stream: TcpStream, router: Router, guard: Arc<Guard>, mut ending: watch::Receiver<()>) {
    // Answers are small and whole: nothing is gained by waiting for more, nor by writing head and body apart.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request: Request<Incoming>| {
        let request = request.map(Body::new);
        async { Ok::<_, Infallible>(guard.answer(&router, request).await) }
    });
    let mut connection =
        pin!(http1::Builder::new().max_buf_size(BUFFER).writev(false).serve_connection(TokioIo::new(stream), answer));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        _ = ending.changed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended early");
    }
}
