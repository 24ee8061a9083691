//! Logs: human-readable on a terminal, one JSON object a line in Cloud Logging's form elsewhere. Ids and counts, never
//! payloads, addresses or secrets.

use std::fmt;
use std::io::IsTerminal;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock::Clock;
use crate::decode::time::timestamp_text;

/// The field of a report of metrics.
const METRICS: &str = "metrics";

/// Starts logging to standard error. `filter` is in the form of `RUST_LOG` (`info`, `batcher=debug`).
pub fn init(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if std::io::stderr().is_terminal() {
        builder.with_target(false).try_init()
    } else {
        builder.event_format(CloudLogging { clock: Clock::system() }).try_init()
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
}

/// One JSON object a line: `severity`, `message`, `time`, and the event's own fields.
struct CloudLogging {
    clock: Clock,
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
