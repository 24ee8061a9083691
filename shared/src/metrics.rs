//! Counts and distributions of a function: as Prometheus text, and as one structured log line from which cloud metrics
//! are made.
//!
//! Between requests there is no CPU, so nothing here needs a timer: the line is written by a request that passes when the
//! last one is old enough.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::local::LocalHistogram;
use prometheus::proto::{Bucket, LabelPair, MetricType};
use prometheus::{Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder};
use serde_json::{Map, Value as Json, json};

use crate::clock::{Clock, Micros, SECOND};

/// How old the last line is when the next is written.
const REPORT_EVERY: Micros = 60 * SECOND;
/// How old the last line about something is when the next is written; see [`Metrics::sample`].
const SAMPLE_EVERY: Micros = 60 * SECOND;
/// How many things are sampled each for itself; further ones share a sample.
const MAX_SAMPLED: usize = 64;

/// Milliseconds, from a window to a budget.
const MILLIS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0, 500.0, 750.0, 1_000.0, 1_500.0, 2_000.0, 3_000.0, 5_000.0,
    10_000.0, 30_000.0, 60_000.0,
];
/// Rows of a request.
const ROWS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 300.0, 400.0, 500.0, 1_000.0, 5_000.0];

/// What a function counts. A function leaves at zero what does not happen in it.
pub struct Metrics {
    registry: Registry,
    clock: Clock,
    reported: Mutex<Reported>,
    sampled: Mutex<BTreeMap<String, Sample>>,
    /// Events or rows that came in.
    pub received: IntCounter,
    /// Events or rows that are where they belong: in the next topic, in the table.
    pub landed: IntCounter,
    /// Rows that came again and were dropped.
    pub duplicates: IntCounter,
    /// Rows that landed beside another with their id and other content.
    pub conflicts: IntCounter,
    /// Rows tried again.
    pub retries: IntCounter,
    /// Rows written to the archive.
    pub archived: IntCounter,
    dead_lettered: IntCounterVec,
    refused: IntCounterVec,
    /// Rows of one append or one message.
    pub batch_rows: Histogram,
    /// How long an append or a publish took, in milliseconds.
    pub append_millis: Histogram,
    /// From the receipt of an event to its row in the table, in milliseconds.
    pub received_to_loaded_millis: Histogram,
}

/// The latencies of rows that landed together; they count when it is dropped.
pub struct ReceivedToLoaded {
    millis: LocalHistogram,
    loaded_at: Micros,
}

impl ReceivedToLoaded {
    /// Notes a row by when it was received.
    pub fn of(&self, received_at: Micros) {
        #[expect(clippy::cast_precision_loss, reason = "a time between two points of it")]
        self.millis.observe((self.loaded_at - received_at) as f64 / 1_000.0);
    }
}

/// Occurrences of something since its last line in the log.
#[derive(Default)]
struct Sample {
    logged_at: Option<Micros>,
    count: u64,
}

#[derive(Default)]
struct Reported {
    at: Option<Micros>,
    counters: BTreeMap<String, u64>,
    buckets: BTreeMap<String, Vec<u64>>,
}

impl Metrics {
    /// All at zero.
    ///
    /// # Panics
    /// Never: the names are distinct and well formed, which a test shows.
    pub fn new(clock: Clock) -> Self {
        let registry = Registry::new();
        let register = |collector: Box<dyn prometheus::core::Collector>| {
            if let Err(error) = registry.register(collector) {
                tracing::error!(%error, "a metric is not exported");
            }
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("contextflow_{name}_total"), help).expect("a metric's name");
            register(Box::new(counter.clone()));
            counter
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(format!("contextflow_{name}"), help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(options).expect("a metric's name and buckets");
            register(Box::new(histogram.clone()));
            histogram
        };
        let by_reason = |name: &str, help: &str| {
            let options = Opts::new(format!("contextflow_{name}_total"), help);
            let counter = IntCounterVec::new(options, &["reason"]).expect("a metric's name");
            register(Box::new(counter.clone()));
            counter
        };
        Self {
            received: counter("received", "Events or rows that came in"),
            landed: counter("landed", "Events or rows that are where they belong"),
            duplicates: counter("duplicates", "Rows that came again and were dropped"),
            conflicts: counter("conflicts", "Rows with the id of another row and other content"),
            retries: counter("retries", "Rows tried again"),
            archived: counter("archived", "Rows written to the archive"),
            batch_rows: histogram("batch_rows", "Rows of one append or message", ROWS),
            append_millis: histogram("append_millis", "Duration of an append or publish, milliseconds", MILLIS),
            received_to_loaded_millis: histogram(
                "received_to_loaded_millis",
                "From receipt to the row in the table, milliseconds",
                MILLIS,
            ),
            dead_lettered: by_reason("dead_lettered", "Dead letters by reason"),
            refused: by_reason("refused", "Budget notices refused by reason"),
            clock,
            reported: Mutex::default(),
            sampled: Mutex::default(),
            registry,
        }
    }

    /// Counts a dead letter.
    pub fn dead_letter(&self, reason: &str) {
        self.dead_lettered.with_label_values(&[reason]).inc();
    }

    /// Counts a budget notice that was refused.
    pub fn refused(&self, reason: &str) {
        self.refused.with_label_values(&[reason]).inc();
    }

    /// Notes an append, or a publish, of `rows` rows.
    pub fn append(&self, rows: usize, took: Duration) {
        #[expect(clippy::cast_precision_loss, reason = "rows of one request")]
        self.batch_rows.observe(rows as f64);
        self.append_millis.observe(took.as_secs_f64() * 1_000.0);
    }

    /// Notes rows that can be queried since `loaded_at`.
    pub fn received_to_loaded(&self, loaded_at: Micros) -> ReceivedToLoaded {
        ReceivedToLoaded { millis: self.received_to_loaded_millis.local(), loaded_at }
    }

    /// Counts an occurrence of what is logged at most once a minute, so that no sender fills the log. `Some` where a line
    /// is due: the occurrences since the last one.
    pub fn sample(&self, key: &str) -> Option<u64> {
        let now = self.clock.now();
        let mut sampled = self.sampled.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if sampled.len() < MAX_SAMPLED || sampled.contains_key(key) { key } else { "" };
        let sample = sampled.entry(key.to_string()).or_default();
        sample.count += 1;
        let is_due = sample.logged_at.is_none_or(|at| now - at >= SAMPLE_EVERY);
        is_due.then(|| {
            sample.logged_at = Some(now);
            std::mem::take(&mut sample.count)
        })
    }

    /// All of it as Prometheus text, since the start of the process.
    pub fn text(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "metrics could not be written");
        }
        String::from_utf8(text).unwrap_or_default()
    }

    /// Writes what was counted since the last line, if that is a minute old. Call it on the way of a request.
    pub fn report_by_age(&self) {
        let now = self.clock.now();
        let is_due = |reported: &Reported| reported.at.is_none_or(|at| now - at >= REPORT_EVERY);
        let line = match self.reported.try_lock() {
            Ok(mut reported) if is_due(&reported) => {
                reported.at = Some(now);
                self.since(&mut reported)
            }
            _ => return,
        };
        if !line.is_empty() {
            tracing::info!(metrics = %Json::Object(line), "counts");
        }
    }

    /// Writes what was counted since the last line, whatever its age: the process is to end.
    pub fn report(&self) {
        let line = self.reported.lock().map(|mut reported| self.since(&mut reported)).unwrap_or_default();
        if !line.is_empty() {
            tracing::info!(metrics = %Json::Object(line), "counts");
        }
    }

    /// What changed since `reported`, which is brought up to date.
    fn since(&self, reported: &mut Reported) -> Map<String, Json> {
        let mut line = Map::new();
        for family in self.registry.gather() {
            let name = family.name().trim_start_matches("contextflow_").trim_end_matches("_total");
            for metric in family.get_metric() {
                let labels: Vec<_> = metric.get_label().iter().map(LabelPair::value).collect();
                let key = [&[name], &labels[..]].concat().join(".");
                if family.get_field_type() == MetricType::HISTOGRAM {
                    let histogram = metric.get_histogram();
                    let bounds: Vec<_> = histogram.get_bucket().iter().map(Bucket::upper_bound).collect();
                    let mut counts: Vec<_> = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
                    counts.push(histogram.get_sample_count());
                    let before = reported.buckets.insert(key.clone(), counts.clone()).unwrap_or_default();
                    let new: Vec<_> = counts
                        .iter()
                        .enumerate()
                        .map(|(index, count)| count - before.get(index).unwrap_or(&0))
                        .collect();
                    if let Some(&count) = new.last().filter(|&&count| count > 0) {
                        let at = |share| quantile(&bounds, &new, share);
                        line.insert(key, json!({"count": count, "p50": at(0.5), "p99": at(0.99)}));
                    }
                } else {
                    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole")]
                    let value = metric.get_counter().get_value() as u64;
                    let before = reported.counters.insert(key.clone(), value).unwrap_or(0);
                    if value > before {
                        // The sum of all labels has a member of its own: a cloud metric is made of one.
                        let sum = line.get(name).and_then(Json::as_u64).unwrap_or(0) + value - before;
                        line.insert(name.into(), sum.into());
                        line.insert(key, (value - before).into());
                    }
                }
            }
        }
        line
    }
}

/// The upper bound of the bucket in which the share lies; the last bound stands for everything above.
fn quantile(bounds: &[f64], cumulative: &[u64], share: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts of one minute")]
    let wanted = cumulative.last().copied().unwrap_or(0) as f64 * share;
    #[expect(clippy::cast_precision_loss, reason = "counts of one minute")]
    let found = cumulative.iter().position(|&count| count as f64 >= wanted).unwrap_or(0);
    bounds.get(found).or(bounds.last()).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_holds_what_is_new() {
        let metrics = Metrics::new(Clock::manual(0));
        metrics.received.inc_by(3);
        for reason in ["bad_json", "wrong_type", "bad_json"] {
            metrics.dead_letter(reason);
        }
        for millis in [3.0, 4.0, 40.0] {
            metrics.append_millis.observe(millis);
        }
        let mut reported = Reported::default();
        let first = Json::Object(metrics.since(&mut reported));
        metrics.received.inc();
        metrics.append_millis.observe(900.0);
        let second = Json::Object(metrics.since(&mut reported));
        let expected = json!({
            "received": 3,
            "dead_lettered": 3,
            "dead_lettered.bad_json": 2,
            "dead_lettered.wrong_type": 1,
            "append_millis": {"count": 3, "p50": 5.0, "p99": 50.0},
        });
        assert_eq!(first, expected);
        assert_eq!(second, json!({"received": 1, "append_millis": {"count": 1, "p50": 1000.0, "p99": 1000.0}}));
        assert!(metrics.since(&mut reported).is_empty());
    }

    #[test]
    fn what_occurs_often_is_logged_once_a_minute_with_its_count() {
        let clock = Clock::manual(0);
        let metrics = Metrics::new(clock.clone());
        let samples = |key: &str| (0..3).map(|_| metrics.sample(key)).collect::<Vec<_>>();
        assert_eq!(samples("bad_json"), [Some(1), None, None]);
        assert_eq!(samples("wrong_type"), [Some(1), None, None]);
        clock.set(SAMPLE_EVERY);
        assert_eq!(samples("bad_json"), [Some(3), None, None]);
        (0..100).for_each(|key| _ = metrics.sample(&key.to_string()));
        assert_eq!(metrics.sampled.lock().unwrap().len(), MAX_SAMPLED + 1);
    }

    #[test]
    fn prometheus_reads_the_whole() {
        let metrics = Metrics::new(Clock::manual(0));
        metrics.landed.inc_by(500);
        metrics.dead_letter("wrong_type");
        let text = metrics.text();
        assert!(text.contains("\ncontextflow_landed_total 500\n"), "{text}");
        assert!(text.contains("contextflow_dead_lettered_total{reason=\"wrong_type\"} 1\n"), "{text}");
        assert!(text.contains("contextflow_append_millis_bucket{le=\"+Inf\"} 0\n"), "{text}");
    }
}
