//! What every loader keeps: one suite of checks, run on each adapter.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value as Json;

use super::{Load, Loader, Mode};
use crate::decode;
use crate::row::Row;
use crate::schema::{Plan, Registry, compile};
use crate::sink::contract::values;

/// Runs the suite on tables without rows. `rows` answers all rows of a plan's table, in any order, as objects that
/// [`decode::row`] takes; the tables are those of the visits, and `load_contract` and
/// `load_days` of `clickstream_dw`.
pub async fn suite(loader: &dyn Loader, rows: impl AsyncFn(&Plan) -> Vec<Json>) {
    let suite = Suite { loader, tables: tables(), rows };
    suite.what_is_staged_is_seen_once_it_is_published().await;
    suite.append_adds_and_replace_takes_the_place_of_all().await;
    suite.abandoned_rows_are_gone().await;
    suite.what_came_after_the_checkpoint_is_forgotten().await;
    suite.a_repeated_publish_changes_nothing(Mode::Append).await;
    suite.a_repeated_publish_changes_nothing(Mode::Replace).await;
    suite.a_table_without_rows_in_the_run_is_emptied().await;
    suite.recreate_follows_the_schema().await;
    suite.of_days_the_others_stay().await;
}

struct Suite<'l, R> {
    loader: &'l dyn Loader,
    tables: Vec<Arc<Plan>>,
    rows: R,
}

/// The plans that [`lines`] has rows for, in its order.
fn tables() -> Vec<Arc<Plan>> {
    let registry = Registry::built_in().unwrap();
    ["visit", "session", "purchase_event"].map(|name| Arc::clone(registry.get(name).unwrap())).to_vec()
}

/// One row a table, of two months and with every kind of value that visits have.
fn lines(number: usize) -> [String; 3] {
    let session = format!(r#""session_id":"s{number}","user_id":"u{number}","device_type":"mobile""#);
    let month = 7 + number % 2;
    let item = format!(r#"{{"quantity":{number},"price":1929.97,"product_name":"Käse \"{number}\""}}"#);
    let items = vec![item; number % 3].join(",");
    [
        format!(
            r#"{{{session},"geolocation":"-45.9,-129.7","events":[
                {{"event":{{"event_type":"page_view","timestamp":"2024-0{month}-01T09:00:00.000001Z","details":{{"page_url":"/{number}"}}}}}},
                {{"event":{{"event_type":"purchase","timestamp":"2024-0{month}-01T09:00:01Z","details":{{"amount":3859.94,"items":[{items}]}}}}}}]}}"#
        ),
        format!(r#"{{"session_key":"k{number}",{session}}}"#),
        format!(
            r#"{{"session_key":"k{number}","timestamp":"2024-0{month}-01T09:00:01Z","amount":3859.94,"items":[{items}]}}"#
        ),
    ]
}

fn add(load: &mut dyn Load, table: usize, plan: &Plan, line: &str) {
    let mut row = Row::default();
    decode::row(plan, line.as_bytes(), &mut row).unwrap();
    assert_eq!(*row.problems, [], "{line}");
    load.add(table, &row.values);
}

impl<R: AsyncFn(&Plan) -> Vec<Json>> Suite<'_, R> {
    async fn begin(&self, run: &str, mode: Mode, checkpoint: Option<&Json>) -> Box<dyn Load> {
        self.loader.begin(run, &self.tables, mode, checkpoint).await.unwrap()
    }

    fn add(&self, load: &mut dyn Load, numbers: impl IntoIterator<Item = usize>) {
        for number in numbers {
            for (table, line) in lines(number).iter().enumerate() {
                add(load, table, &self.tables[table], line);
            }
        }
    }

    /// Loads rows `numbers` in one go.
    async fn load(&self, run: &str, mode: Mode, numbers: impl IntoIterator<Item = usize>) {
        let mut load = self.begin(run, mode, None).await;
        self.add(&mut *load, numbers);
        load.publish().await.unwrap();
    }

    /// Every table has the rows `numbers` and no others.
    async fn shows(&self, numbers: impl IntoIterator<Item = usize> + Clone) {
        for (table, plan) in self.tables.iter().enumerate() {
            let given: Vec<_> =
                numbers.clone().into_iter().map(|number| Bytes::from(lines(number)[table].clone())).collect();
            assert_eq!(self.read(plan).await, values(plan, &given), "{}", plan.table.full_name());
        }
    }

    async fn read(&self, plan: &Plan) -> Vec<String> {
        let rows: Vec<Bytes> = (self.rows)(plan).await.iter().map(|row| row.to_string().into()).collect();
        values(plan, &rows)
    }

    async fn what_is_staged_is_seen_once_it_is_published(&self) {
        let mut load = self.begin("staged", Mode::Replace, None).await;
        self.add(&mut *load, 0..10);
        assert!(load.held() > 0);
        load.flush().await.unwrap();
        self.shows([]).await;
        self.add(&mut *load, 10..20);
        load.checkpoint().await.unwrap();
        self.add(&mut *load, 20..25);
        self.shows([]).await;
        load.publish().await.unwrap();
        self.shows(0..25).await;
    }

    async fn append_adds_and_replace_takes_the_place_of_all(&self) {
        self.load("replaced", Mode::Replace, 100..110).await;
        self.shows(100..110).await;
        self.load("appended", Mode::Append, 110..115).await;
        self.shows(100..115).await;
        self.load("replaced_again", Mode::Replace, 0..3).await;
        self.shows(0..3).await;
    }

    async fn abandoned_rows_are_gone(&self) {
        let mut load = self.begin("abandoned", Mode::Replace, None).await;
        self.add(&mut *load, 200..210);
        load.checkpoint().await.unwrap();
        load.abandon().await.unwrap();
        self.shows(0..3).await;
    }

    async fn what_came_after_the_checkpoint_is_forgotten(&self) {
        let mut load = self.begin("resumed", Mode::Replace, None).await;
        self.add(&mut *load, 300..310);
        let first = load.checkpoint().await.unwrap();
        self.add(&mut *load, 310..320);
        load.checkpoint().await.unwrap();
        self.add(&mut *load, 320..330);
        load.flush().await.unwrap();
        drop(load);
        self.shows(0..3).await;
        let mut load = self.begin("resumed", Mode::Replace, Some(&first)).await;
        self.add(&mut *load, 330..340);
        let second = load.checkpoint().await.unwrap();
        drop(load);
        let mut load = self.begin("resumed", Mode::Replace, Some(&second)).await;
        self.add(&mut *load, 340..345);
        load.publish().await.unwrap();
        self.shows((300..310).chain(330..345)).await;
    }

    async fn a_repeated_publish_changes_nothing(&self, mode: Mode) {
        let [before, run] = match mode {
            Mode::Append => ["before_append", "twice_append"],
            _ => ["before_replace", "twice_replace"],
        };
        self.load(before, Mode::Replace, 0..3).await;
        let mut load = self.begin(run, mode, None).await;
        self.add(&mut *load, 400..410);
        let checkpoint = load.checkpoint().await.unwrap();
        load.publish().await.unwrap();
        self.begin(run, mode, Some(&checkpoint)).await.publish().await.unwrap();
        // All of it anew, by whoever does not know how far it came.
        let mut load = self.begin(run, mode, None).await;
        self.add(&mut *load, 400..410);
        let checkpoint = load.checkpoint().await.unwrap();
        drop(load);
        self.begin(run, mode, Some(&checkpoint)).await.publish().await.unwrap();
        let before = if mode == Mode::Append { 0..3 } else { 0..0 };
        self.shows(before.chain(400..410)).await;
    }

    async fn a_table_without_rows_in_the_run_is_emptied(&self) {
        let mut load = self.begin("sessions_alone", Mode::Replace, None).await;
        add(&mut *load, 1, &self.tables[1], &lines(500)[1]);
        load.publish().await.unwrap();
        for (table, plan) in self.tables.iter().enumerate() {
            assert_eq!(self.read(plan).await.len(), usize::from(table == 1), "{}", plan.table.full_name());
        }
    }

    async fn of_days_the_others_stay(&self) {
        let text = r#"{"event_type": "load_days", "version": "1-0-0", "ingest": "batch", "table": {"dataset": "clickstream_dw",
            "name": "load_days", "time_partitioning": {"type": "DAY", "field": "at"}},
            "columns": [{"name": "at", "type": "TIMESTAMP"}, {"name": "number", "type": "INTEGER"}]}"#;
        let plan = Arc::new(compile("load_days.json", text).unwrap());
        let line = |day: u32, number: u32| format!(r#"{{"at":"1970-01-0{day}T23:59:59Z","number":{number}}}"#);
        let load = async |run: &str, mode: Mode, rows: &[(u32, u32)]| {
            let mut load = self.loader.begin(run, std::slice::from_ref(&plan), mode, None).await.unwrap();
            for (day, number) in rows {
                add(&mut *load, 0, &plan, &line(*day, *number));
            }
            load.publish().await.unwrap();
        };
        load("all_days", Mode::Replace, &[(1, 1), (2, 1), (3, 1), (4, 1)]).await;
        load("two_days", Mode::ReplaceDays { first: 1, last: 2 }, &[(3, 2)]).await;
        let expected = [(1, 1), (3, 2), (4, 1)].map(|(day, number)| Bytes::from(line(day, number)));
        assert_eq!(self.read(&plan).await, values(&plan, &expected));

        let mode = Mode::ReplaceDays { first: 1, last: 2 };
        assert!(self.loader.begin("no_days", &self.tables, mode, None).await.is_err(), "they have no days");
    }

    async fn recreate_follows_the_schema(&self) {
        let plan = |column: &str| {
            let text = format!(
                r#"{{"event_type": "load_contract", "version": "1-0-0", "ingest": "batch",
                    "table": {{"dataset": "clickstream_dw", "name": "load_contract"}}, "columns": [{column}]}}"#
            );
            Arc::new(compile("load_contract.json", &text).unwrap())
        };
        let load = async |run: &str, plan: &Arc<Plan>, line: &str| {
            let mut load = self.loader.begin(run, std::slice::from_ref(plan), Mode::Recreate, None).await.unwrap();
            add(&mut *load, 0, plan, line);
            load.publish().await.unwrap();
            assert_eq!(self.read(plan).await, values(plan, &[Bytes::from(line.to_string())]));
        };
        load("recreate", &plan(r#"{"name": "number", "type": "INTEGER"}"#), r#"{"number":1}"#).await;
        load("recreate_anew", &plan(r#"{"name": "number", "type": "STRING"}"#), r#"{"number":"one"}"#).await;
    }
}
