//! The wrapped push of Pub/Sub: `{"subscription", "message": {"data", "attributes", "messageId", "publishTime"}}`.

use std::borrow::Cow;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::FutureExt;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::clock::Micros;
use crate::decode::time;
use crate::decode::{Code, Problem};
use crate::metrics::Metrics;
use crate::publish::Attributes;
use crate::telemetry::{current_trace, traced};

/// The largest body of a push, in bytes: Pub/Sub's largest message (10 MB) in base64 with its envelope.
pub const MAX_BODY: usize = 16 << 20;
/// Lines of one message. Ours have 500 at most. Each bad line of a foreign message becomes a dead letter, which stays in memory
/// until all lines are read.
pub const MAX_LINES: usize = 10_000;

/// What a push is answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nothing is left to do, and what the answer vouches for is durable: 204.
    Settled,
    /// Deliver it again: 503, and why.
    TryAgain(String),
}

impl From<Result<(), String>> for Answer {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::TryAgain, |()| Self::Settled)
    }
}

/// The memory that a push may use, out of a budget that all pushes share.
pub trait MemoryPermit: Send + Sync {
    /// Grows the permit to `bytes`. `false` where the budget has no room for that now; the permit stays as it was.
    fn grow_to(&self, bytes: usize) -> bool;
}

tokio::task_local! {
    /// The permit of the push that the task answers.
    static PERMIT: Arc<dyn MemoryPermit>;
}

/// Keeps `permit` alive until the work started by [`answer`] within `work` finishes, even if the client disconnects.
pub async fn with_permit<T>(permit: Arc<dyn MemoryPermit>, work: impl Future<Output = T>) -> T {
    PERMIT.scope(permit, work).await
}

/// Claims the memory that a push takes now that it is decoded, `bytes` in all. A body that was let in by its size may
/// have become many times larger; where there is no room for that, it has to be delivered again.
pub fn claim_memory(bytes: usize) -> Result<(), String> {
    let granted = PERMIT.try_with(|permit| permit.grow_to(bytes)).unwrap_or(true);
    if granted { Ok(()) } else { Err("no memory for what the push decodes to".into()) }
}

/// Handles a push and answers with its HTTP status: 204, or 503 where it is to be delivered again.
///
/// A client that goes away leaves no work half done.
pub async fn answer(metrics: &Metrics, handle: impl Future<Output = Answer> + Send + 'static) -> StatusCode {
    let permit = PERMIT.try_with(Arc::clone).ok();
    let handle = async move {
        match permit {
            Some(permit) => with_permit(permit, handle).await,
            None => handle.await,
        }
    };
    let handle = AssertUnwindSafe(traced(current_trace(), handle)).catch_unwind();
    let answer = ToItsEnd(Some(Box::pin(handle))).await;
    metrics.report_by_age();
    match answer {
        Ok(Answer::Settled) => StatusCode::NO_CONTENT,
        Ok(Answer::TryAgain(reason)) => {
            if let Some(count) = metrics.sample(&reason) {
                tracing::warn!(reason, count, "push to be delivered again");
            }
            StatusCode::SERVICE_UNAVAILABLE
        }
        Err(_) => {
            tracing::error!("push handler ended early");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

/// Runs the work on one event. A panic is a fault that every delivery of the event would meet again, so it is the event's
/// problem: the event becomes a dead letter, and its message is not delivered for ever.
pub fn isolated<T>(work: impl FnOnce() -> T) -> Result<T, Problem> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
        tracing::error!("an event made its function panic, and becomes a dead letter");
        Problem::new(
            Code::Undeliverable,
            "the function panics on this event, which is a bug; replay it once that is fixed",
        )
    })
}

/// Work that, when nobody waits for it any more, goes on as a task of its own.
struct ToItsEnd<F: Future<Output: Send> + Send + 'static>(Option<Pin<Box<F>>>);

impl<F: Future<Output: Send> + Send + 'static> Future for ToItsEnd<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let output = ready!(work.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(output)
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for ToItsEnd<F> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}

/// One delivery of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// Full name of the subscription.
    pub subscription: String,
    /// Id that the topic gave the message; the same on every delivery.
    pub message_id: String,
    /// When the topic took the message.
    pub published_at: Option<Micros>,
    /// Attributes.
    pub attributes: Attributes,
    /// The data, decoded.
    pub data: Bytes,
    /// Which delivery this is, from 1. Pub/Sub tells it where the subscription has a dead-letter policy.
    pub attempt: u32,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    subscription: Cow<'a, str>,
    #[serde(borrow)]
    message: EnvelopeMessage<'a>,
    #[serde(default, rename = "deliveryAttempt")]
    delivery_attempt: Option<u32>,
}

// Pub/Sub sends `messageId` and `message_id` both: two fields, not an alias of one.
#[derive(Deserialize)]
struct EnvelopeMessage<'a> {
    #[serde(borrow, default)]
    data: Cow<'a, str>,
    #[serde(default)]
    attributes: Option<Attributes>,
    #[serde(borrow, default, rename = "messageId")]
    message_id: Cow<'a, str>,
    #[serde(borrow, default, rename = "publishTime")]
    publish_time: Cow<'a, str>,
}

impl Push {
    /// Reads the body of a push request.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        let bad = |message: String| Problem::new(Code::BadEnvelope, message);
        let envelope: Envelope<'_> =
            serde_json::from_slice(body).map_err(|error| bad(format!("not a Pub/Sub push: {error}")))?;
        let message = envelope.message;
        let data = base64_simd::STANDARD
            .decode_to_vec(message.data.as_bytes())
            .map_err(|_| bad("message.data is not base64".into()))?;
        Ok(Self {
            subscription: envelope.subscription.into_owned(),
            message_id: message.message_id.into_owned(),
            published_at: time::timestamp(&message.publish_time).ok(),
            attributes: message.attributes.unwrap_or_default(),
            data: data.into(),
            attempt: envelope.delivery_attempt.unwrap_or(1),
        })
    }

    /// Writes the body of a push request.
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            subscription: &'a str,
            message: Inner<'a>,
            delivery_attempt: u32,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Inner<'a> {
            data: String,
            attributes: &'a Attributes,
            message_id: &'a str,
            publish_time: String,
        }
        let message = Inner {
            data: base64_simd::STANDARD.encode_to_string(&self.data),
            attributes: &self.attributes,
            message_id: &self.message_id,
            publish_time: self.published_at.map(time::timestamp_text).unwrap_or_default(),
        };
        serde_json::to_vec(&Body { subscription: &self.subscription, message, delivery_attempt: self.attempt })
            .unwrap_or_default()
    }

    /// Why the message cannot be taken line by line.
    pub fn too_long(&self) -> Option<Problem> {
        let lines = self.lines().count();
        (lines > MAX_LINES)
            .then(|| Problem::new(Code::TooLarge, format!("{lines} lines; a message has {MAX_LINES} at most")))
    }

    /// The lines of the data, without empty ones, each with its number from 0.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        lines(&self.data)
    }
}

/// The lines of NDJSON that hold more than white space, each with its number from 0.
pub fn lines(data: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut from = 0;
    let ends = memchr::memchr_iter(b'\n', data).chain(std::iter::once(data.len()));
    let all = ends.map(move |end| {
        let line = data.get(from..end).unwrap_or_default();
        from = end + 1;
        line.trim_ascii()
    });
    all.enumerate().filter(|(_, line)| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let push = Push {
            subscription: "projects/p/subscriptions/clickstream-raw-sub".into(),
            message_id: "17".into(),
            published_at: Some(1_792_455_302_920_000),
            attributes: Attributes::from([("event_type".into(), "order".into())]),
            data: Bytes::from_static(b"{\"a\":1}\n\n {\"a\":2}\r\n"),
            attempt: 3,
        };
        assert_eq!(Push::parse(&push.to_json()).unwrap(), push);
        let lines: Vec<_> = push.lines().collect();
        assert_eq!(lines, [(0, &b"{\"a\":1}"[..]), (2, &b"{\"a\":2}"[..])]);
    }

    #[test]
    fn a_panic_is_the_problem_of_its_event() {
        assert_eq!(isolated(|| 7), Ok(7));
        assert_eq!(isolated(|| -> u8 { panic!("a bug") }).unwrap_err().code, Code::Undeliverable);
    }

    #[test]
    fn googles_own_form_is_read() {
        let body = br#"{"deliveryAttempt":5,"message":{"data":"e30=","messageId":"1","message_id":"1",
            "publishTime":"2026-10-20T00:15:02.92Z","publish_time":"2026-10-20T00:15:02.92Z"},
            "subscription":"projects\/p\/subscriptions\/s"}"#;
        let push = Push::parse(body).unwrap();
        assert_eq!((push.data.as_ref(), push.subscription.as_str()), (&b"{}"[..], "projects/p/subscriptions/s"));
        assert_eq!((push.published_at, push.attempt), (Some(1_792_455_302_920_000), 5));
    }

    #[test]
    fn a_push_without_a_message_is_refused() {
        for body in [&b""[..], b"{}", b"[]", b"{\"message\":null}", b"{\"message\":{\"data\":\"!\"}}", b"\xff"] {
            assert_eq!(Push::parse(body).unwrap_err().code, Code::BadEnvelope);
        }
    }
}
