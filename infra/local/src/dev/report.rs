//! What the page shows: figures asked of the warehouse itself, so that they are what `contextflow query` says.

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Map, Value, json};
use shared::clock::Clock;
use shared::decode::time::timestamp_text;
use shared::schema::{DEAD_LETTER, Registry};
use tokio::sync::Mutex;

use super::trace::Traces;
use crate::bus::Bus;
use crate::commands::query::rows_of;
use crate::cost::prices::PriceTable;
use crate::cost::{Bill, Load};
use crate::dead_letters::{Group, Local, Selection, groups};

/// A report is at least this old before a new one is made, and four times the time that one takes.
const MIN_AGE: Duration = Duration::from_secs(1);
const PER_SECOND: &str = "SELECT CAST(date_trunc('second', received_at) AS VARCHAR) AS second, count(*) AS events \
    FROM contextflow.clickstream_events WHERE received_at >= now() - INTERVAL '120 seconds' GROUP BY 1 ORDER BY 1";
const PER_CITY: &str = "SELECT country, city, CAST(sum(events) AS BIGINT) AS events FROM contextflow.v_events_per_city \
    GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT 15";
const LAST_ROWS: &str = "SELECT event_id, event_timestamp, event_name, user_id, page_url, country, city, received_at, \
    loaded_at FROM contextflow.clickstream_events ORDER BY received_at DESC LIMIT 20";

/// Makes reports, one at a time.
pub struct Report {
    letters: Local,
    /// The folder of the pipeline's data.
    folder: PathBuf,
    bus: Bus,
    counts: String,
    traces: Arc<Traces>,
    prices: Option<PriceTable>,
    clock: Clock,
    last: Mutex<Option<Made>>,
}

struct Made {
    at: Instant,
    took: Duration,
    report: Value,
}

impl Report {
    /// Reports on the tables of `registry`.
    pub fn new(
        letters: Local,
        folder: PathBuf,
        bus: Bus,
        registry: &Registry,
        traces: Arc<Traces>,
        clock: Clock,
    ) -> Self {
        let prices = PriceTable::built_in();
        let prices = prices.inspect_err(|error| tracing::warn!(error, "no price table")).ok();
        Self { letters, folder, bus, counts: counts_query(registry), traces, prices, clock, last: Mutex::new(None) }
    }

    async fn current(&self) -> Value {
        let mut last = self.last.lock().await;
        if let Some(made) = last.as_ref()
            && made.at.elapsed() < MIN_AGE.max(made.took * 4)
        {
            return made.report.clone();
        }
        let started = Instant::now();
        let report = self.make().await;
        *last = Some(Made { at: Instant::now(), took: started.elapsed(), report: report.clone() });
        report
    }

    async fn make(&self) -> Value {
        json!({
            "data_dir": self.folder,
            "now": timestamp_text(self.clock.now()),
            "counts": self.rows(&self.counts).await.into_iter().next().map_or(Value::Null, Value::Object),
            "latency_ms": self.traces.received_to_queryable.percentiles(),
            "events_per_second": self.rows(PER_SECOND).await,
            "events_per_city": self.rows(PER_CITY).await,
            "last_rows": self.rows(LAST_ROWS).await,
            "dead_letters": self.dead_letters().await,
            "subscriptions": self.subscriptions(),
            "cost": self.cost().map(|(load, bill)| json!({"load": load, "usd_per_million": bill.million.list})),
        })
    }

    async fn dead_letters(&self) -> Vec<Group> {
        groups(&self.letters, &Selection::default(), false).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "report query failed");
            Vec::new()
        })
    }

    /// What waits on the bus; a figure of its own process, so it is not asked of the warehouse.
    fn subscriptions(&self) -> Vec<Value> {
        let subscriptions = self.bus.stats().subscriptions.into_iter();
        let one = |stats: crate::bus::SubscriptionStats| {
            let oldest = stats.oldest_published_at.map(timestamp_text);
            json!({"name": stats.name, "waiting": stats.waiting, "outstanding": stats.outstanding, "oldest_published_at": oldest})
        };
        subscriptions.map(one).collect()
    }

    async fn rows(&self, sql: &str) -> Vec<Map<String, Value>> {
        let answer = self.letters.warehouse.sql(sql).await.map_err(|error| error.to_string());
        match answer.and_then(|batches| rows_of(&batches).map_err(|error| error.to_string())) {
            Ok(rows) => rows,
            Err(error) => {
                tracing::warn!(error, "report query failed");
                Vec::new()
            }
        }
    }

    /// The load of this process so far, and what it would cost on the clouds.
    fn cost(&self) -> Option<(Load, Bill)> {
        let load = self.traces.traffic.load()?;
        let bill = Bill::of(load, self.prices.as_ref()?);
        Some((load, bill.inspect_err(|error| tracing::warn!(error, "no bill")).ok()?))
    }

    /// One line for the end, and one of costs.
    pub async fn summary(&self) -> String {
        let counts = self.rows(&self.counts).await.into_iter().next().unwrap_or_default();
        let count = |name: &str| counts.get(name).cloned().unwrap_or_default();
        let latency = self.traces.received_to_queryable.percentiles();
        let millis = |value: Option<usize>| value.map_or("-".to_string(), |value| format!("{value} ms"));
        let mut summary = format!(
            "{} landed, {} dead letters, {} duplicates in all; this run {} rows, received to queryable p50 {}, p99 {}",
            count("landed"),
            count("dead_lettered"),
            count("duplicates"),
            latency.samples,
            millis(latency.p50),
            millis(latency.p99),
        );
        if let Some((load, bill)) = self.cost() {
            let _ = write!(
                summary,
                "\non the clouds {:.2} USD a million events, at {:.0} a second of {:.0} bytes, {:.1} a request (`contextflow cost`)",
                bill.million.list, load.rps, load.event_bytes, load.batch,
            );
        }
        summary
    }
}

/// Landed (deduplicated) and duplicate rows over all streaming tables, and dead letters.
fn counts_query(registry: &Registry) -> String {
    let mut rows = Vec::new();
    let mut distinct = Vec::new();
    let mut dead = "0".to_string();
    for plan in registry.plans() {
        let table = plan.table.full_name();
        let view = format!("{}.v_{}", plan.table.dataset, plan.table.name);
        if plan.event_type == DEAD_LETTER {
            // What was replayed counts as what it has become.
            dead = format!(
                "(SELECT count(*) FROM {view} WHERE dead_letter_id NOT IN \
                 (SELECT dead_letter_id FROM contextflow.dead_letter_replays))"
            );
        } else if plan.system.is_some() {
            rows.push(format!("(SELECT count(*) FROM {table})"));
            distinct.push(format!("(SELECT count(*) FROM {view})"));
        }
    }
    let (rows, distinct) = (rows.join(" + "), distinct.join(" + "));
    format!("SELECT {distinct} AS landed, {dead} AS dead_lettered, ({rows}) - ({distinct}) AS duplicates")
}

/// `GET /api/report`.
pub fn router(report: Arc<Report>) -> Router {
    Router::new()
        .route("/api/report", get(async |State(report): State<Arc<Report>>| Json(report.current().await)))
        .with_state(report)
}
