//! The one way in which connections are accepted, bounded and ended: of every function and of `contextflow dev`.

use std::collections::HashMap;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{AbortHandle, Id, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tower::ServiceExt;

use super::limits::Limits;
use super::progress::{Observed, Phase, Progress, TimedBody};

/// The largest head of a request, and the largest part of its body that a connection holds on its own; beyond it, a body
/// waits in the network until there is room for it ([`Guard`](super::Guard)).
const BUFFER: usize = 16 << 10;
/// Header fields of one request.
const MAX_HEADERS: usize = 100;
/// How long, and for how many bytes, a closed connection is read on: a reset, which unread bytes cause, could overtake
/// the response.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 1 << 20;
/// At the limit of connections one in so many is closed at once, so that looking for the longest idle is rare.
const EVICTED_SHARE: usize = 16;
/// At the limit of connections a body that takes longer may be cut off.
const SLOW_BODY: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted, or found no idle one to take the place of.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// Serves `router` until `ended`; then nothing more is accepted, and requests in progress have `grace` to be answered.
///
/// A request carries its peer's address as [`ConnectInfo<SocketAddr>`](ConnectInfo). Connections are held to `limits`:
/// a slow head or body is answered 408, a head over 16 KiB or 100 fields 431. At the limit of connections those that have
/// waited longest for a request are closed, then those whose body comes slowly; where there are none, new ones stay in the
/// backlog.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    ended: impl Future<Output = ()>,
    grace: Duration,
) {
    let (end, ending) = watch::channel(());
    let permits = Arc::new(Semaphore::new(limits.connections));
    let mut connections = Connections::default();
    let mut waiting: Option<(TcpStream, SocketAddr)> = None;
    let mut is_failing = false;
    let mut ended = pin!(ended);
    loop {
        let (stream, peer, permit) = tokio::select! {
            () = &mut ended => break,
            Some(closed) = connections.tasks.join_next_with_id() => {
                let id = closed.map_or_else(|error| error.id(), |(id, ())| id);
                connections.open.remove(&id);
                continue;
            }
            Ok(permit) = Arc::clone(&permits).acquire_owned(), if waiting.is_some() => {
                let Some((stream, peer)) = waiting.take() else { continue };
                (stream, peer, permit)
            }
            () = sleep(RETRY_AFTER), if waiting.is_some() => {
                connections.evict();
                continue;
            }
            accepted = listener.accept(), if waiting.is_none() => match accepted {
                Ok((stream, peer)) => {
                    is_failing = false;
                    let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                        connections.evict();
                        waiting = Some((stream, peer));
                        continue;
                    };
                    (stream, peer, permit)
                }
                Err(error) => {
                    // Out of file descriptors, most likely: they come back with the connections that end.
                    if !is_failing {
                        tracing::warn!(%error, open = connections.open.len(), "connection not accepted");
                    }
                    is_failing = true;
                    sleep(RETRY_AFTER).await;
                    continue;
                }
            },
        };
        let progress = Arc::new(Progress::new(limits));
        let work = connection(stream, peer, router.clone(), Arc::clone(&progress), ending.clone(), permit);
        let task = connections.tasks.spawn(work);
        connections.open.insert(task.id(), (progress, task));
    }
    drop((listener, waiting));
    drop(end);
    let all = async { while connections.tasks.join_next().await.is_some() {} };
    if timeout(grace, all).await.is_err() {
        tracing::error!(connections = connections.tasks.len(), "requests not answered in time");
    }
}

/// The open connections of a listener.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, (Arc<Progress>, AbortHandle)>,
}

impl Connections {
    /// Closes those that have waited longest for a request; where none waits, those whose body has taken longer than
    /// [`SLOW_BODY`]; and none whose request has been read.
    fn evict(&mut self) {
        let since = |since: fn(&Progress) -> Option<Instant>| -> Vec<_> {
            self.open.iter().filter_map(|(id, (progress, _))| Some((since(progress)?, *id))).collect()
        };
        let mut waiting = since(Progress::waiting_since);
        if waiting.is_empty() {
            waiting = since(Progress::receiving_since);
            waiting.retain(|(since, _)| since.elapsed() > SLOW_BODY);
        }
        let count = (self.open.len() / EVICTED_SHARE).max(1).min(waiting.len());
        if count == 0 {
            return;
        }
        waiting.select_nth_unstable_by_key(count - 1, |(since, _)| *since);
        for (_, id) in &waiting[..count] {
            if let Some((_, task)) = self.open.remove(id) {
                task.abort();
            }
        }
        tracing::debug!(closed = count, "connection limit reached, slowest connections closed");
    }
}

/// Serves one connection to its end. The permit is returned when its socket is closed.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    progress: Arc<Progress>,
    mut ending: watch::Receiver<()>,
    _permit: OwnedSemaphorePermit,
) {
    // Responses are small and whole: nothing is gained by waiting for more, nor by writing head and body apart.
    let _ = stream.set_nodelay(true);
    let answer = service_fn(|request: Request<Incoming>| {
        progress.enter(Phase::Work);
        let body = progress.clone();
        let mut request = request.map(|incoming| Body::new(TimedBody::new(incoming, body)));
        request.extensions_mut().insert(ConnectInfo(peer));
        let (router, progress) = (router.clone(), &progress);
        async move {
            let response = router.oneshot(request).await;
            progress.enter(Phase::Write);
            response
        }
    });
    let io = TokioIo::new(Observed::new(stream, Arc::clone(&progress)));
    let mut builder = http1::Builder::new();
    builder
        .max_buf_size(BUFFER)
        .max_header_size(BUFFER)
        .max_headers(MAX_HEADERS)
        .header_read_timeout(None)
        .writev(false);
    let mut connection = builder.serve_connection(io, answer);
    let ended = tokio::select! {
        biased;
        ended = until_late(Pin::new(&mut connection), &progress) => ended,
        _ = ending.changed() => {
            Pin::new(&mut connection).graceful_shutdown();
            until_late(Pin::new(&mut connection), &progress).await
        }
    };
    let late = match ended {
        Ok(late) => late,
        Err(error) => {
            tracing::debug!(%error, "connection ended early");
            None
        }
    };
    close(connection.into_parts().io.into_inner().into_inner(), late).await;
}

/// Polls a connection until it has ended, or until its request is late: then in which phase that is.
async fn until_late<C>(mut connection: Pin<&mut C>, progress: &Progress) -> hyper::Result<Option<Phase>>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut timer = pin!(sleep_until(progress.deadline()));
    poll_fn(|context| {
        if let Poll::Ready(ended) = connection.as_mut().poll(context) {
            return Poll::Ready(ended.map(|()| None));
        }
        loop {
            let deadline = progress.deadline();
            // A deadline that has moved on is seen when the timer fires, so most requests set no timer.
            if deadline < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(deadline);
            }
            if timer.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if let Some(phase) = progress.late() {
                return Poll::Ready(Ok(Some(phase)));
            }
        }
    })
    .await
}

/// Tells the client of a late request so, and closes the connection without losing what was written to it.
async fn close(mut stream: TcpStream, late: Option<Phase>) {
    if let Some(Phase::Head | Phase::Body) = late {
        let response = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let _ = stream.try_write(response);
    }
    if late.is_some_and(|phase| phase == Phase::Write) || stream.shutdown().await.is_err() {
        return;
    }
    let mut rest = stream.take(LINGER_BYTES);
    let _ = timeout(LINGER, async {
        let mut buffer = [0; 4 << 10];
        while rest.read(&mut buffer).await? > 0 {}
        io::Result::Ok(())
    })
    .await;
}
