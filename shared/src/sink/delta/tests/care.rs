//! Merges, checkpoints and removal of old files while the table is read and written.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const DAY: i64 = 86_400 * SECOND;
const HOUR: i64 = 3_600 * SECOND;

fn table(root: &Path) -> std::path::PathBuf {
    root.join("contextflow/clickstream_events")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reader_sees_whole_appends_only_while_files_are_merged() {
    const APPENDS: usize = 120;
    const ROWS: usize = 20;
    let folder = tempfile::tempdir().unwrap();
    let options = Options { merge_at: 3, log_retention: 0, ..eager() };
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), options).unwrap();
    let written = Arc::new(AtomicBool::new(false));
    let reader = {
        let (root, written) = (folder.path().to_path_buf(), Arc::clone(&written));
        tokio::spawn(async move {
            let warehouse = Warehouse::open(&root, &registry()).unwrap();
            let (mut before, mut reads) = (0, 0);
            while !written.load(Ordering::Acquire) {
                let query = "SELECT count(*), count(DISTINCT event_id) FROM clickstream_events";
                let answer = warehouse.sql(query).await.unwrap();
                let cell = |column| answer[0].column(column).as_primitive::<Int64Type>().value(0);
                assert_eq!(cell(0), cell(1), "a row is there twice");
                assert_eq!(cell(0) % i64::try_from(ROWS).unwrap(), 0, "a part of an append is there");
                assert!(cell(0) >= before, "rows were lost: {before} before, now {}", cell(0));
                (before, reads) = (cell(0), reads + 1);
            }
            (before, reads)
        })
    };
    let plan = plan("clickstream");
    for append in 0..APPENDS {
        // Over three days, so that an append is several files.
        let rows = (0..ROWS).map(|row| click((append * ROWS + row) * 100));
        assert_eq!(sink.append(&batch(&plan, rows)).await, vec![Outcome::Done; ROWS]);
    }
    written.store(true, Ordering::Release);
    let (last, reads) = reader.await.unwrap();
    assert!(last <= i64::try_from(APPENDS * ROWS).unwrap() && reads > 3, "{reads} reads");
    sink.settle().await;
    assert_eq!(read_back(folder.path(), &plan).await.len(), APPENDS * ROWS);
}

#[tokio::test]
async fn merging_keeps_every_row_and_few_files() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    let plan = plan("clickstream");
    let all: Vec<_> = (0..600).map(|number| Bytes::from(click(number * 300))).collect();
    for rows in all.chunks(7) {
        let rows = rows.iter().map(|row| String::from_utf8(row.to_vec()).unwrap());
        assert!(sink.append(&batch(&plan, rows)).await.iter().all(|outcome| *outcome == Outcome::Done));
    }
    sink.settle().await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let read = lines(&plan, &warehouse.sql("SELECT * FROM clickstream_events").await.unwrap());
    assert_eq!(values(&plan, &read), values(&plan, &all));
    let live = live_files(folder.path()).await;
    // 86 appends over three days; classes of 4, 16 and 64 rows and more with less than four files each.
    assert!(live < 3 * 4 * 4, "{live} files");
}

#[tokio::test]
async fn short_runs_get_their_checkpoint_too() {
    let folder = tempfile::tempdir().unwrap();
    for run in 0..4 {
        let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
        for append in 0..4 {
            sink.append(&batch(&plan("clickstream"), [click(run * 4 + append)])).await;
        }
        sink.settle().await;
    }
    assert!(table(folder.path()).join("_delta_log/_last_checkpoint").exists());
    assert_eq!(read_back(folder.path(), &plan("clickstream")).await.len(), 16);
}

async fn live_files(root: &Path) -> usize {
    let url = deltalake::ensure_table_uri(table(root).to_string_lossy()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    table.snapshot().unwrap().log_data().num_files()
}

#[tokio::test]
async fn files_are_sorted_by_the_clustering_columns() {
    use deltalake::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    let plan = plan("clickstream");
    let names = ["scroll", "click", "page_view"];
    for append in 0..9 {
        let row = |number: usize| click(append * 50 + number).replace("page_view", names[number % 3]);
        sink.append(&batch(&plan, (0..50).map(row))).await;
    }
    sink.settle().await;
    let mut sizes = Vec::new();
    for path in parquet_files(&table(folder.path())) {
        let file = std::fs::File::open(path).unwrap();
        let rows = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let rows: Vec<RecordBatch> = rows.map(Result::unwrap).collect();
        let names: Vec<_> = rows
            .iter()
            .flat_map(|rows| rows.column_by_name("event_name").unwrap().as_string::<i32>().iter())
            .map(|name| name.unwrap().to_string())
            .collect();
        assert!(names.is_sorted());
        sizes.push(names.len());
    }
    assert!(sizes.contains(&200), "{sizes:?}");
}

#[tokio::test]
async fn old_files_go_after_the_retention_and_no_sooner() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    let plan = plan("clickstream");
    for number in 0..8 {
        sink.append(&batch(&plan, [click(number)])).await;
    }
    sink.settle().await;
    let before = parquet_files(&table(folder.path())).len();
    assert_eq!(live_files(folder.path()).await, 2);
    assert_eq!(before, 8 + 2);

    clock.set(clock.now() + 599 * SECOND);
    sink.settle().await;
    assert_eq!(parquet_files(&table(folder.path())).len(), before);
    clock.set(clock.now() + 2 * SECOND);
    sink.settle().await;
    assert_eq!(parquet_files(&table(folder.path())).len(), 2);
    assert_eq!(read_back(folder.path(), &plan).await.len(), 8);
}

#[tokio::test]
async fn what_a_crash_left_behind_goes_too() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let plan = plan("clickstream");
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    sink.append(&batch(&plan, [click(1)])).await;
    drop(sink);
    let stray = table(folder.path()).join("_partition_date=2026-10-20/part-0.zstd.parquet");
    std::fs::write(&stray, "half a file").unwrap();

    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    sink.append(&batch(&plan, [click(2)])).await;
    clock.set(clock.now() + 601 * SECOND);
    sink.settle().await;
    assert!(!stray.exists());
    assert_eq!(read_back(folder.path(), &plan).await.len(), 2);
}

#[tokio::test]
async fn a_partition_that_rests_becomes_few_files() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let options = Options { merge_at: 100, ..eager() };
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), options).unwrap();
    let plan = plan("clickstream");
    for number in 0..9 {
        sink.append(&batch(&plan, [click(number)])).await;
    }
    sink.settle().await;
    assert_eq!(live_files(folder.path()).await, 9);
    clock.set(clock.now() + HOUR);
    sink.settle().await;
    assert_eq!(live_files(folder.path()).await, 1);
    assert_eq!(read_back(folder.path(), &plan).await.len(), 9);
}

#[tokio::test]
async fn exact_copies_go_from_closed_partitions_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    // The partitions are 2026-10-20 and the day after; the second is not closed three days later.
    let clock = Clock::manual(crate::decode::time::timestamp("2026-10-21T12:00:00Z").unwrap());
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    let plan = plan("clickstream");
    let row = |number: usize, fingerprint: &str, received: &str| {
        click(number)
            .replace(r#""schema_version""#, &format!(r#""fingerprint":{fingerprint},"schema_version""#))
            .replace("Berlin", received)
    };
    for append in 0..3 {
        let rows = (0..10).map(|number| row(number, "1", &format!("Berlin {append}")));
        let others = [row(0, "2", "conflict"), row(1, "null", "old"), row(86_400, "1", "open")];
        let mut given = batch(&plan, rows.chain(others));
        given.loaded_at += 10 - append;
        assert!(sink.append(&given).await.iter().all(|outcome| *outcome == Outcome::Done));
    }
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let count = async |condition: &str| {
        number(&warehouse, &format!("SELECT count(*) FROM clickstream_events WHERE {condition}")).await
    };
    let shown = "SELECT event_id, city, fingerprint, loaded_at FROM v_clickstream_events ORDER BY event_id";
    let text = async || format!("{:?}", warehouse.sql(shown).await.unwrap());
    sink.settle().await;
    assert_eq!(count("true").await, 39, "no partition is closed yet");
    let before = text().await;

    clock.set(clock.now() + DAY);
    sink.settle().await;

    // 10 of 30, 1 of 3 conflicts, 3 rows without a fingerprint, 3 of a partition that is open.
    assert_eq!(count("true").await, 10 + 1 + 3 + 3);
    assert_eq!(count("city LIKE 'Berlin%' AND city <> 'Berlin 2'").await, 0, "the first loaded stays");
    assert_eq!(text().await, before);
    let versions = || std::fs::read_dir(table(folder.path()).join("_delta_log")).unwrap().count();
    let known = versions();
    sink.settle().await;
    drop(sink);
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    sink.ensure(&plan).await.unwrap();
    sink.settle().await;
    assert_eq!(versions(), known, "there is nothing more to remove");
    // A late copy into the closed partition.
    sink.append(&batch(&plan, [row(3, "1", "late")])).await;
    clock.set(clock.now() + HOUR);
    sink.settle().await;
    assert_eq!(count("true").await, 17);
}

#[tokio::test]
async fn the_log_stays_short_and_can_still_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Clock::manual(Clock::system().now());
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    let plan = plan("clickstream");
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    sink.append(&batch(&plan, [click(0)])).await;
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 1);
    for number in 1..40 {
        // Ahead of the files' own times, so that each is old.
        clock.set(clock.now() + HOUR);
        sink.append(&batch(&plan, [click(number)])).await;
        sink.settle().await;
    }
    let log = table(folder.path()).join("_delta_log");
    let entries = std::fs::read_dir(&log).unwrap().count();
    assert!(entries < 30, "{entries} entries");
    assert!(!log.join(format!("{:020}.json", 1)).exists());
    // Both who knew a version whose successors are gone, and who comes new.
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 40);
    assert_eq!(read_back(folder.path(), &plan).await.len(), 40);
    drop(sink);
    let sink = DeltaSink::open_with(folder.path(), clock.clone(), eager()).unwrap();
    assert_eq!(sink.append(&batch(&plan, [click(40)])).await, [Outcome::Done]);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 41);
}
