//! How a pipeline is, at a glance: what waits, what landed last, what could not be used, what stops the spending.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use shared::clock::{DAY, Micros, SECOND};
use shared::decode::time::{timestamp, timestamp_text};
use shared::schema::{Kind, Plan, Registry};

use crate::dead_letters::{Group, Selection, Source, groups};
use crate::error::Failure;

const HOUR: Micros = 3_600 * SECOND;

/// All of it.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Which pipeline, and whether it runs.
    pub pipeline: String,
    /// One a subscription.
    pub subscriptions: Vec<Backlog>,
    /// One a streaming table; none where the warehouse does not say.
    pub tables: Vec<Rows>,
    /// Those of the last 24 hours that were not replayed, by stage and reason; none where the warehouse does not say.
    pub dead_letters: Option<Vec<Group>>,
    /// Requests that the services answered with 5xx in the last hour; none where nothing counts them.
    pub server_errors: Option<BTreeMap<String, u64>>,
    /// What stops the spending, in words.
    pub kill_switch: String,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

/// What waits in a subscription.
#[derive(Debug, Serialize, Deserialize)]
pub struct Backlog {
    /// The subscription.
    pub name: String,
    /// Messages without an acknowledgement; none where it is not known.
    pub waiting: Option<u64>,
    /// When the oldest of them was published, RFC 3339.
    pub oldest_published_at: Option<String>,
    /// Whether messages are pushed, which they are not after a brake; none where it is not known.
    pub is_pushed: Option<bool>,
}

/// The rows of a table.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rows {
    /// `dataset.table`.
    pub table: String,
    /// Rows whose own time lies in the last 24 hours.
    pub day: u64,
    /// Those of them that were received in the last hour.
    pub hour: Option<u64>,
    /// When the last of them was written, RFC 3339.
    pub last_loaded_at: Option<String>,
}

impl Status {
    /// What a warehouse tells, and what it does not; the rest is to be filled in.
    pub async fn of(source: &dyn Source, registry: &Registry, now: Micros) -> Self {
        let since = format!("failed_at >= TIMESTAMP '{}'", timestamp_text(now - DAY));
        let selection = Selection { condition: Some(since), ..Selection::default() };
        let mut unknown = Vec::new();
        let tables = tables(source, registry, now).await;
        let tables = tables.inspect_err(|error| unknown.push(format!("the tables: {error}"))).unwrap_or_default();
        let dead_letters = groups(source, &selection, false).await;
        let dead_letters = dead_letters.inspect_err(|error| unknown.push(format!("dead letters: {error}"))).ok();
        Self {
            pipeline: String::new(),
            subscriptions: Vec::new(),
            tables,
            dead_letters,
            server_errors: None,
            kill_switch: String::new(),
            unknown,
        }
    }

    /// For people. Ages are relative to `now`.
    pub fn print(&self, now: Micros) {
        println!("{}\n", self.pipeline);
        println!("{:36} {:>10}  oldest", "subscription", "waiting");
        for backlog in &self.subscriptions {
            let waiting = backlog.waiting.map_or("?".into(), |waiting| waiting.to_string());
            let held = if backlog.is_pushed == Some(false) { "  held back: nothing is pushed" } else { "" };
            println!("{:36} {waiting:>10}  {}{held}", backlog.name, age(backlog.oldest_published_at.as_deref(), now));
        }
        if !self.tables.is_empty() {
            println!("\n{:36} {:>10} {:>10}  last row", "table", "1 hour", "24 hours");
        }
        for rows in &self.tables {
            let (hour, last) = (rows.hour.unwrap_or(0), age(rows.last_loaded_at.as_deref(), now));
            println!("{:36} {hour:>10} {:>10}  {last}", rows.table, rows.day);
        }
        match self.dead_letters.as_deref() {
            None => {}
            Some([]) => println!("\nno dead letters in 24 hours"),
            Some(groups) => {
                println!("\n{:36} {:>10}  last", "dead letters of 24 hours", "letters");
                for group in groups {
                    let name = format!("{}: {}", group.stage, group.reason);
                    println!("{name:36} {:>10}  {}", group.letters, age(Some(&group.last_seen), now));
                }
                println!("see them with `contextflow dead-letters list`");
            }
        }
        if let Some(errors) = &self.server_errors {
            let counts: Vec<_> = errors.iter().map(|(service, count)| format!("{service} {count}")).collect();
            let counts = if counts.is_empty() { "none".to_string() } else { counts.join(", ") };
            println!("\nanswers with 5xx in 1 hour: {counts}");
        }
        println!("\nkill-switch: {}", self.kill_switch);
        for unknown in &self.unknown {
            println!("not known: {unknown}");
        }
    }
}

async fn tables(source: &dyn Source, registry: &Registry, now: Micros) -> Result<Vec<Rows>, Failure> {
    let rows = source.rows(&rows_query(registry, now)).await?.into_iter();
    rows.map(|row| serde_json::from_value(Value::Object(row)).map_err(Failure::work)).collect()
}

/// Rows of the last day by table, in SQL that both engines understand. Only the partitions of that day are read.
fn rows_query(registry: &Registry, now: Micros) -> String {
    let of_table = |plan: &Plan| {
        let (day, hour) = (timestamp_text(now - DAY), timestamp_text(now - HOUR));
        let condition = plan.partition_column().map_or("TRUE".to_string(), |column| match column.kind {
            Kind::Timestamp => format!("{} >= TIMESTAMP '{day}'", column.name),
            _ => format!("{} >= DATE '{}'", column.name, day.get(..10).unwrap_or(&day)),
        });
        let table = plan.table.full_name();
        format!(
            "SELECT '{table}' AS table, COUNT(*) AS day, SUM(CASE WHEN received_at >= TIMESTAMP '{hour}' THEN 1 ELSE 0 END) \
             AS hour, MAX(loaded_at) AS last_loaded_at FROM {table} WHERE {condition}"
        )
    };
    let streaming = registry.plans().filter(|plan| plan.system.is_some()).map(|plan| of_table(plan));
    format!("SELECT * FROM ({}) ORDER BY 1", streaming.collect::<Vec<_>>().join(" UNION ALL "))
}

/// `12 s ago`, or `-` where there is no time.
fn age(at: Option<&str>, now: Micros) -> String {
    let Some(at) = at.and_then(|text| timestamp(text).ok()) else { return "-".into() };
    match (now - at).max(0) / SECOND {
        seconds @ 0..120 => format!("{seconds} s ago"),
        seconds @ 120..7_200 => format!("{} min ago", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h ago", seconds / 3_600),
        seconds => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_has_the_unit_that_fits() {
        let now = timestamp("2026-11-27T12:00:00Z").unwrap();
        let cases = [
            (Some("2026-11-27T11:59:48.9Z"), "11 s ago"),
            (Some("2026-11-27T12:00:05Z"), "0 s ago"),
            (Some("2026-11-27T11:30:00Z"), "30 min ago"),
            (Some("2026-11-27T02:00:00Z"), "10 h ago"),
            (Some("2026-11-20T12:00:00Z"), "7 days ago"),
            (None, "-"),
        ];
        for (at, expected) in cases {
            assert_eq!(age(at, now), expected);
        }
    }

    #[test]
    fn only_the_partitions_of_a_day_are_read() {
        let now = timestamp("2026-11-27T12:00:00Z").unwrap();
        let sql = rows_query(&Registry::built_in().unwrap(), now);
        assert!(
            sql.contains(
                "FROM contextflow.clickstream_events WHERE event_timestamp >= TIMESTAMP '2026-11-26T12:00:00Z'"
            )
        );
        assert!(!sql.contains("TRUE") && !sql.contains("dead_letters"), "{sql}");
    }
}
