//! Bulk loads: the contract, the switch as readers see it, and what is left where one ends in the middle.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value as Json;

use super::*;
use crate::decode;
use crate::load::{Load, Loader as _, Mode};
use crate::row::Row;
use crate::schema::compile;

/// The tables of most loads here: a partitioned one between two others, as they are switched in this order.
fn visit_plans() -> Vec<Arc<Plan>> {
    ["session", "purchase_event", "visit"].map(plan).to_vec()
}

/// A row a table that names its load everywhere.
fn lines(load: &str, number: usize) -> [String; 3] {
    let day = 1 + number % 28;
    let session = format!(r#""session_id":"{load}","user_id":"u{number}","device_type":"mobile""#);
    [
        format!(r#"{{"session_key":"{load}",{session}}}"#),
        format!(r#"{{"session_key":"{load}","timestamp":"2024-07-{day:02}T09:00:00Z","amount":1.5}}"#),
        format!("{{{session}}}"),
    ]
}

fn add(load: &mut dyn Load, table: usize, plan: &Plan, line: &str) {
    let mut row = Row::default();
    decode::row(plan, line.as_bytes(), &mut row).unwrap();
    assert_eq!(*row.problems, [], "{line}");
    load.add(table, &row.values);
}

fn add_rows(load: &mut dyn Load, name: &str, rows: usize) {
    for number in 0..rows {
        for (table, (plan, line)) in visit_plans().iter().zip(lines(name, number)).enumerate() {
            add(load, table, plan, &line);
        }
    }
}

async fn begin(sink: &DeltaSink, run: &str, mode: Mode, checkpoint: Option<&Json>) -> Box<dyn Load> {
    sink.begin(run, &visit_plans(), mode, checkpoint).await.unwrap()
}

/// Replaces the rows of all tables by as many that name the run.
async fn replace(sink: &DeltaSink, run: &str, rows: usize) {
    let mut load = begin(sink, run, Mode::Replace, None).await;
    add_rows(&mut *load, run, rows);
    load.publish().await.unwrap();
}

/// Which loads the tables have rows of and how many, of all tables in one query.
async fn shown(warehouse: &Warehouse) -> Vec<(String, i64)> {
    let query = "SELECT load, count(*) AS rows FROM (
        SELECT session_id AS load FROM sessions UNION ALL
        SELECT session_key FROM purchase_events UNION ALL
        SELECT session_id FROM visits) GROUP BY load ORDER BY load";
    let mut loads = Vec::new();
    for batch in warehouse.sql(query).await.unwrap() {
        let (names, rows) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        loads.extend((0..batch.num_rows()).map(|row| (names.value(row).to_string(), rows.value(row))));
    }
    loads
}

async fn shown_in(root: &Path) -> Vec<(String, i64)> {
    shown(&Warehouse::open(root, &registry()).unwrap()).await
}

fn all_of(load: &str, rows: i64) -> Vec<(String, i64)> {
    vec![(load.to_string(), 3 * rows)]
}

/// The folder of the table at `index` of [`visit_plans`].
fn folder_of(root: &Path, index: usize) -> std::path::PathBuf {
    let plans = visit_plans();
    root.join(&plans[index].table.dataset).join(&plans[index].table.name)
}

async fn keeps_the_contract(sink: &DeltaSink, place: &Place) {
    let rows = async |plan: &Plan| {
        let lines = read_from(place, &Arc::new(plan.clone())).await;
        lines.iter().map(|line| serde_json::from_slice(line).unwrap()).collect()
    };
    crate::load::contract::suite(sink, rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract_of_loads() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(root.path(), Clock::system(), eager()).unwrap();
    keeps_the_contract(&sink, &folder(root.path())).await;
}

#[tokio::test]
async fn a_bucket_keeps_the_contract_of_loads() {
    let store = Arc::new(object_store::memory::InMemory::new());
    let location = crate::bucket::Location { store, path: "lake".into(), uri: "memory:///lake".into() };
    let options = Options { commit_interval: 1_000, ..eager() };
    let sink = DeltaSink::open_bucket(location.clone(), "test", Clock::system(), options).await.unwrap();
    keeps_the_contract(&sink, &Place::bucket(location).unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_never_sees_two_loads_at_once() {
    const LOADS: usize = 25;
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(root.path(), Clock::system(), eager()).unwrap();
    replace(&sink, "load_0", 10).await;
    let written = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (root, written) = (root.path().to_path_buf(), Arc::clone(&written));
            tokio::spawn(async move {
                let kept = Warehouse::open(&root, &registry()).unwrap();
                let mut seen = std::collections::BTreeSet::new();
                while !written.load(Ordering::Acquire) {
                    for loads in [shown(&kept).await, shown_in(&root).await] {
                        assert!(matches!(&loads[..], [(_, 30)]), "{loads:?}");
                        seen.insert(loads[0].0.clone());
                    }
                }
                seen
            })
        })
        .collect();
    for load in 1..LOADS {
        replace(&sink, &format!("load_{load}"), 10).await;
    }
    written.store(true, Ordering::Release);
    for reader in readers {
        let seen = reader.await.unwrap();
        assert!(seen.len() > 1, "{seen:?}");
    }
    assert_eq!(shown_in(root.path()).await, all_of(&format!("load_{}", LOADS - 1), 10));
}

/// Fills the tables, begins to show a second load and stops where the table at `index` gets its version.
async fn stop_in_the_middle(root: &Path, index: usize) -> Json {
    let sink = DeltaSink::open(root, Clock::system()).unwrap();
    replace(&sink, "old", 5).await;
    let mut load = begin(&sink, "new", Mode::Replace, None).await;
    add_rows(&mut *load, "new", 7);
    let checkpoint = load.checkpoint().await.unwrap();
    std::fs::create_dir(in_the_way(root, index)).unwrap();
    let error = load.publish().await.unwrap_err();
    assert!(error.starts_with("load new: table ") && error.contains("readers see the tables as they were"), "{error}");
    // As a crash here leaves it.
    drop(sink);
    checkpoint
}

/// What stands where version 2 of the table belongs.
fn in_the_way(root: &Path, index: usize) -> std::path::PathBuf {
    folder_of(root, index).join(format!("_delta_log/{:020}.json", 2))
}

#[tokio::test]
async fn a_switch_that_stops_between_tables_leaves_readers_where_they_were() {
    for index in 0..3 {
        let root = tempfile::tempdir().unwrap();
        let kept = Warehouse::open(root.path(), &registry()).unwrap();
        assert_eq!(shown(&kept).await, []);
        let checkpoint = stop_in_the_middle(root.path(), index).await;
        assert_eq!(shown(&kept).await, all_of("old", 5), "table {index}");
        assert_eq!(shown_in(root.path()).await, all_of("old", 5), "table {index}");

        // It stays so as long as it cannot go on, and nothing else is written.
        let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
        let click = batch(&plan("clickstream"), [click(1)]);
        assert!(matches!(&sink.append(&click).await[..], [Outcome::Retry(reason)] if reason.starts_with("load new: ")));
        assert!(sink.begin("other", &visit_plans(), Mode::Replace, None).await.is_err());
        assert_eq!(shown(&kept).await, all_of("old", 5), "table {index}");

        std::fs::remove_dir(in_the_way(root.path(), index)).unwrap();
        begin(&sink, "new", Mode::Replace, Some(&checkpoint)).await.publish().await.unwrap();
        assert_eq!(shown(&kept).await, all_of("new", 7), "table {index}");
        assert_eq!(shown_in(root.path()).await, all_of("new", 7), "table {index}");
        assert!((0..3).all(|table| !folder_of(root.path(), table).join("_load").exists()));
    }
}

#[tokio::test]
async fn whoever_writes_next_completes_a_switch() {
    for mode in [None, Some(Mode::Replace), Some(Mode::Append)] {
        let root = tempfile::tempdir().unwrap();
        stop_in_the_middle(root.path(), 1).await;
        std::fs::remove_dir(in_the_way(root.path(), 1)).unwrap();
        let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
        match mode {
            None => assert_eq!(sink.append(&batch(&plan("clickstream"), [click(1)])).await, [Outcome::Done]),
            Some(mode) => drop(begin(&sink, "other", mode, None).await),
        }
        assert_eq!(shown_in(root.path()).await, all_of("new", 7), "{mode:?}");
    }
}

#[tokio::test]
async fn a_switch_that_stops_before_its_last_step_is_completed_once() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = stop_in_the_middle(root.path(), 2).await;
    std::fs::remove_dir(in_the_way(root.path(), 2)).unwrap();
    let pointer = root.path().join(".published.json");
    let switching = std::fs::read(&pointer).unwrap();
    for _ in 0..2 {
        // Every table has its version and the pointer does not say so.
        let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
        begin(&sink, "new", Mode::Replace, Some(&checkpoint)).await.publish().await.unwrap();
        drop(sink);
        std::fs::write(&pointer, &switching).unwrap();
        assert_eq!(shown_in(root.path()).await, all_of("old", 5));
    }
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    let row = batch(&plan("session"), [lines("stream", 1)[0].clone()]);
    assert_eq!(sink.append(&row).await, [Outcome::Done]);
    assert_eq!(shown_in(root.path()).await, [("new".to_string(), 21), ("stream".to_string(), 1)]);
    assert!(!in_the_way(root.path(), 1).with_file_name(format!("{:020}.json", 3)).exists());
}

#[tokio::test]
async fn rows_after_the_last_checkpoint_of_a_published_run_do_not_come_twice() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    let mut load = begin(&sink, "run", Mode::Append, None).await;
    add_rows(&mut *load, "run", 3);
    let checkpoint = load.checkpoint().await.unwrap();
    add_rows(&mut *load, "run", 2);
    load.publish().await.unwrap();
    let mut load = begin(&sink, "run", Mode::Append, Some(&checkpoint)).await;
    add_rows(&mut *load, "run", 2);
    assert_eq!(load.held(), 0);
    load.publish().await.unwrap();
    assert_eq!(shown_in(root.path()).await, all_of("run", 5));
}

#[tokio::test]
async fn a_stream_goes_on_beside_loads() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(root.path(), Clock::system(), eager()).unwrap();
    let stream = async |number| {
        let row = batch(&plan("session"), [lines("stream", number)[0].clone()]);
        assert_eq!(sink.append(&row).await, [Outcome::Done]);
    };
    stream(0).await;
    let mut load = begin(&sink, "appended", Mode::Append, None).await;
    add_rows(&mut *load, "appended", 2);
    for number in 1..10 {
        stream(number).await;
    }
    sink.settle().await;
    load.publish().await.unwrap();
    stream(10).await;
    assert_eq!(shown_in(root.path()).await, [("appended".to_string(), 6), ("stream".to_string(), 11)]);
    let mut load = begin(&sink, "replaced", Mode::Replace, None).await;
    add_rows(&mut *load, "replaced", 2);
    stream(11).await;
    load.publish().await.unwrap();
    stream(12).await;
    sink.settle().await;
    assert_eq!(shown_in(root.path()).await, [("replaced".to_string(), 6), ("stream".to_string(), 1)]);
}

#[tokio::test]
async fn a_disk_that_fails_ends_the_load_and_nothing_else() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    replace(&sink, "old", 5).await;
    let mut load = begin(&sink, "new", Mode::Replace, None).await;
    add_rows(&mut *load, "new", 7);
    // A file where the folder of staged files belongs.
    let in_the_way = folder_of(root.path(), 1).join("_load");
    std::fs::write(&in_the_way, "").unwrap();
    let error = load.checkpoint().await.unwrap_err();
    assert!(error.contains("clickstream_dw.purchase_events: writing"), "{error}");
    std::fs::remove_file(&in_the_way).unwrap();
    let error = load.checkpoint().await.unwrap_err();
    assert!(error.contains("a former step of it failed"), "{error}");
    load.abandon().await.unwrap();
    assert_eq!(shown_in(root.path()).await, all_of("old", 5));
    assert!(!folder_of(root.path(), 0).join("_load").exists());
}

#[tokio::test]
async fn what_a_killed_run_has_staged_goes_with_the_next() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    let mut load = begin(&sink, "killed", Mode::Replace, None).await;
    add_rows(&mut *load, "killed", 5);
    let checkpoint = load.checkpoint().await.unwrap();
    drop((load, sink));
    assert_eq!(parquet_files(root.path()).len(), 3);

    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    // A stream does not take it for a leftover.
    let row = batch(&plan("session"), [lines("stream", 0)[0].clone()]);
    assert_eq!(sink.append(&row).await, [Outcome::Done]);
    assert_eq!(parquet_files(root.path()).len(), 4);
    let load = begin(&sink, "next", Mode::Append, None).await;
    assert_eq!(parquet_files(root.path()).len(), 1);
    load.abandon().await.unwrap();
    let error = sink.begin("killed", &visit_plans(), Mode::Replace, Some(&checkpoint)).await.err().unwrap();
    assert!(error.starts_with("load killed: staged files of clickstream_dw.sessions are gone"), "{error}");
}

#[tokio::test]
async fn files_that_a_load_replaced_go_after_the_retention() {
    let root = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    for load in 0..4 {
        // A process of its own each, shorter than the retention.
        let sink = DeltaSink::open_with(root.path(), clock.clone(), eager()).unwrap();
        replace(&sink, &format!("load_{load}"), 3).await;
        drop(sink);
        clock.set(clock.now() + 660 * SECOND);
    }
    assert_eq!(shown_in(root.path()).await, all_of("load_3", 3));
    // Those of the last two loads.
    assert_eq!(parquet_files(root.path()).len(), 6);
}

#[tokio::test]
async fn a_table_partitioned_by_month_has_one_folder_a_month() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    let mut load = begin(&sink, "months", Mode::Replace, None).await;
    for number in 0..100 {
        let line = lines("months", number)[1].replace("2024-07", ["2024-07", "2023-12"][number % 2]);
        add(&mut *load, 1, &plan("purchase_event"), &line);
        load.flush().await.unwrap();
    }
    load.publish().await.unwrap();
    let mut folders: Vec<_> = parquet_files(&folder_of(root.path(), 1))
        .iter()
        .map(|path| path.parent().unwrap().file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    folders.sort();
    assert_eq!(folders, ["_partition_date=2023-12-01", "_partition_date=2024-07-01"]);
    let warehouse = Warehouse::open(root.path(), &registry()).unwrap();
    let count = "SELECT count(*) FROM purchase_events WHERE timestamp < TIMESTAMP '2024-01-01T00:00:00Z'";
    assert_eq!(number(&warehouse, count).await, 50);
}

#[tokio::test]
async fn a_table_made_anew_may_be_quite_another() {
    let root = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(root.path(), Clock::system()).unwrap();
    let plan = |columns: &str, partitioning: &str| {
        let text = format!(
            r#"{{"event_type": "anew", "version": "1-0-0", "ingest": "batch",
                "table": {{"dataset": "test", "name": "anew"{partitioning}}}, "columns": [{columns}]}}"#
        );
        Arc::new(compile("anew.json", &text).unwrap())
    };
    let by_day = r#", "time_partitioning": {"type": "DAY", "field": "at"}"#;
    let old = plan(r#"{"name": "id", "type": "INTEGER"}, {"name": "gone", "type": "STRING"}"#, "");
    let new = plan(r#"{"name": "id", "type": "STRING"}, {"name": "at", "type": "DATETIME"}"#, by_day);
    let kept = Warehouse::of([&new], &folder(root.path())).unwrap();
    for (run, plan, line) in [
        ("first", &old, r#"{"id":1,"gone":"x"}"#),
        ("second", &new, r#"{"id":"a","at":"2024-07-01T00:00:00"}"#),
        ("third", &old, r#"{"id":2,"gone":"y"}"#),
        ("fourth", &new, r#"{"id":"b","at":"2024-07-02T00:00:00"}"#),
    ] {
        let refused = sink.begin("refused", std::slice::from_ref(plan), Mode::Replace, None).await.is_err();
        assert_eq!(refused, run != "first");
        let mut load = sink.begin(run, std::slice::from_ref(plan), Mode::Recreate, None).await.unwrap();
        add(&mut *load, 0, plan, line);
        load.publish().await.unwrap();
        assert_eq!(values(plan, &read_back(root.path(), plan).await), values(plan, &[Bytes::from(line)]));
        // And streamed into.
        assert_eq!(sink.append(&batch(plan, [line.to_string()])).await, [Outcome::Done]);
        assert_eq!(number(&kept, "SELECT count(*) FROM anew").await, 2);
    }
}
