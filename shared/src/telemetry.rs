//! Logs: human-readable on a terminal, one JSON object a line in Cloud Logging's form elsewhere. Ids and counts, never
//! payloads, addresses or secrets. A line that is written while a request is handled carries the request's trace. A field
//! `severity` takes the place of the level's: `severity = "CRITICAL"` is for what nobody may miss.

use std::fmt;
use std::future::Future;
use std::io::IsTerminal;

use http::{HeaderMap, HeaderValue};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::prelude::*;
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;
use crate::decode::time::timestamp_text;
use crate::settings::{SettingError, fault};

/// The field of a report of metrics.
const METRICS: &str = "metrics";

tokio::task_local! {
    /// The trace of the request that the task works for.
    static TRACE: Option<Trace>;
}

/// Starts logging to standard error. `filter` is in the form of `RUST_LOG` (`info`, `batcher=debug`); `project` is the
/// one that traces belong to. A filter that cannot be read is told as the error; then logging starts with `info`.
pub fn init(filter: &str, project: Option<&str>) -> Result<(), SettingError> {
    // The Delta library logs what it returns as an error too, with a backtrace.
    let read: Result<Targets, _> = format!("buoyant_kernel=off,{filter}").parse();
    let told = read.as_ref().map(drop).map_err(|error| fault("RUST_LOG", format!("`{filter}`: {error}")));
    let filter = read.unwrap_or_else(|_| Targets::new().with_default(Level::INFO));
    let (registry, lines) =
        (tracing_subscriber::registry().with(filter), tracing_subscriber::fmt::layer().with_writer(std::io::stderr));
    let started = if std::io::stderr().is_terminal() {
        registry.with(lines.with_target(false)).try_init()
    } else {
        let form = CloudLogging { clock: Clock::system(), project: project.map(str::to_string) };
        registry.with(lines.event_format(form)).try_init()
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    told
}

/// What a request's headers say of its trace. They are read only where a line is written.
#[derive(Debug, Clone)]
pub enum Trace {
    /// `traceparent`: <https://www.w3.org/TR/trace-context/>.
    W3c(HeaderValue),
    /// `X-Cloud-Trace-Context`: `<trace>/<span in decimal>;o=1`.
    Google(HeaderValue),
}

impl Trace {
    /// The trace that a request belongs to.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let w3c = headers.get("traceparent").cloned().map(Self::W3c);
        w3c.or_else(|| headers.get("x-cloud-trace-context").cloned().map(Self::Google))
    }

    /// Trace (32 hexadecimal digits) and span (16); none where a header has another form, so that nothing else that a
    /// client writes there gets into a log.
    fn ids(&self) -> Option<(&str, Option<String>)> {
        let hex = |text: &&str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match self {
            Self::W3c(header) => {
                let mut parts = header.to_str().ok()?.split('-').skip(1);
                let trace = parts.next().filter(|text| hex(text, 32))?;
                Some((trace, parts.next().filter(|text| hex(text, 16)).map(str::to_string)))
            }
            Self::Google(header) => {
                let mut parts = header.to_str().ok()?.split(['/', ';']);
                let trace = parts.next().filter(|text| hex(text, 32))?;
                let span: Option<u64> = parts.next().and_then(|text| text.parse().ok());
                Some((trace, span.map(|span| format!("{span:016x}"))))
            }
        }
    }
}

/// Does `work` for the request of `trace`.
pub fn traced<F: Future>(trace: Option<Trace>, work: F) -> impl Future<Output = F::Output> {
    TRACE.scope(trace, work)
}

/// The trace of the request that this task works for, to be handed to another task.
pub fn current_trace() -> Option<Trace> {
    TRACE.try_with(Clone::clone).ok().flatten()
}

/// One JSON object a line: `severity`, `message`, `time`, and the event's own fields.
struct CloudLogging {
    clock: Clock,
    project: Option<String>,
}

impl<S, N> FormatEvent<S, N> for CloudLogging
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut record = Fields(Map::new());
        record.0.insert("severity".into(), severity(*event.metadata().level()).into());
        record.0.insert("time".into(), timestamp_text(self.clock.now()).into());
        event.record(&mut record);
        record.0.insert("target".into(), event.metadata().target().into());
        if let Some((trace, span)) = current_trace().as_ref().and_then(Trace::ids) {
            let name = self.project.as_ref().map_or_else(|| trace.into(), |id| format!("projects/{id}/traces/{trace}"));
            record.0.insert("logging.googleapis.com/trace".into(), name.into());
            record.0.extend(span.map(|span| ("logging.googleapis.com/spanId".into(), span.into())));
        }
        writeln!(writer, "{}", Value::Object(record.0))
    }
}

fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // A report of metrics is written as JSON, so that cloud metrics can be made of its members.
        let report = (field.name() == METRICS).then(|| serde_json::from_str(&text).ok()).flatten();
        self.0.insert(field.name().into(), report.unwrap_or_else(|| text.into()));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(name: &'static str, value: &'static str) -> Option<(String, Option<String>)> {
        let headers = HeaderMap::from_iter([(http::HeaderName::from_static(name), HeaderValue::from_static(value))]);
        let trace = Trace::of(&headers)?;
        trace.ids().map(|(trace, span)| (trace.to_string(), span))
    }

    #[test]
    fn both_forms_of_a_trace_are_read() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736".to_string();
        let expected = Some((trace.clone(), Some("00f067aa0ba902b7".to_string())));
        assert_eq!(ids("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), expected);
        assert_eq!(ids("x-cloud-trace-context", "4bf92f3577b34da6a3ce929d0e0e4736/67667974448284343;o=1"), expected);
        assert_eq!(ids("x-cloud-trace-context", "4bf92f3577b34da6a3ce929d0e0e4736"), Some((trace, None)));
    }

    #[test]
    fn what_is_no_trace_stays_out_of_the_log() {
        for value in ["", "00", "00-jane@example.com-00f067aa0ba902b7-01", "00-4bf92f3577b34da6a3ce929d0e0e473-1-01"] {
            assert_eq!(ids("traceparent", value), None, "{value}");
            assert_eq!(ids("x-cloud-trace-context", value), None, "{value}");
        }
    }

    #[tokio::test]
    async fn a_trace_is_that_of_the_work_it_was_given_to() {
        let trace =
            || Some(Trace::W3c(HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")));
        let inside = traced(trace(), async {
            let handed_on = traced(current_trace(), async { current_trace().is_some() });
            (current_trace().is_some(), tokio::spawn(handed_on).await.unwrap())
        });
        assert_eq!((inside.await, current_trace().is_some()), ((true, true), false));
    }
}
