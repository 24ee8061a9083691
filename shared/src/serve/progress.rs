//! How far a connection's request is, and until when its client has time for the next step.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::limits::{FOREVER, Limits};

/// What a connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The client, to send a head. A new connection is here.
    Head,
    /// The client, to send the body.
    Body,
    /// The handler.
    Work,
    /// The client, to take the response.
    Write,
    /// The client, to send another request.
    Idle,
}

/// The phase of a connection and when it began.
#[derive(Debug)]
pub(super) struct Progress {
    limits: Limits,
    state: Mutex<(Phase, Instant)>,
}

impl Progress {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, state: Mutex::new((Phase::Head, Instant::now())) }
    }

    fn state(&self) -> (Phase, Instant) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn enter(&self, phase: Phase) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (phase, Instant::now());
    }

    /// Enters `to` where the connection is in `from`.
    fn advance(&self, from: Phase, to: Phase) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == from {
            *state = (to, Instant::now());
        }
    }

    /// When the phase must have ended. The handler keeps its own time.
    pub(super) fn deadline(&self) -> Instant {
        let (phase, since) = self.state();
        since
            + match phase {
                Phase::Head => self.limits.header,
                Phase::Body | Phase::Write => self.limits.body,
                Phase::Idle => self.limits.idle,
                Phase::Work => FOREVER,
            }
    }

    /// The phase, where it is over its deadline.
    pub(super) fn late(&self) -> Option<Phase> {
        (self.deadline() <= Instant::now()).then(|| self.state().0)
    }

    /// Since when the connection has been without a whole head.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let (phase, since) = self.state();
        matches!(phase, Phase::Head | Phase::Idle).then_some(since)
    }

    /// Since when the connection has been without the rest of a body.
    pub(super) fn receiving_since(&self) -> Option<Instant> {
        let (phase, since) = self.state();
        (phase == Phase::Body).then_some(since)
    }
}

/// A socket that notes when a request begins to come and when a response has left.
pub(super) struct Observed {
    stream: TcpStream,
    progress: Arc<Progress>,
}

impl Observed {
    pub(super) fn new(stream: TcpStream, progress: Arc<Progress>) -> Self {
        Self { stream, progress }
    }

    pub(super) fn into_inner(self) -> TcpStream {
        self.stream
    }
}

impl AsyncRead for Observed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.progress.advance(Phase::Idle, Phase::Head);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Observed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    /// Called by hyper once it has written everything that it had.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.progress.advance(Phase::Write, Phase::Idle);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A body whose client is on time from the first read to the last.
pub(super) struct TimedBody {
    incoming: Incoming,
    progress: Arc<Progress>,
}

impl TimedBody {
    pub(super) fn new(incoming: Incoming, progress: Arc<Progress>) -> Self {
        Self { incoming, progress }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(context) else {
            self.progress.advance(Phase::Work, Phase::Body);
            return Poll::Pending;
        };
        if self.incoming.is_end_stream() || !matches!(frame, Some(Ok(_))) {
            self.progress.advance(Phase::Body, Phase::Work);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Drop for TimedBody {
    /// A handler that needs no more of the body goes on without it.
    fn drop(&mut self) {
        self.progress.advance(Phase::Body, Phase::Work);
    }
}
