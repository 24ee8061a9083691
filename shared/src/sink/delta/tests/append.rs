//! Appends: the contract, refusals, reopening, other writers.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn it_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_path_buf();
    let sink = Arc::new(DeltaSink::open_with(&root, Clock::system(), eager()).unwrap());
    let read = move |plan: Arc<Plan>| {
        let root = root.clone();
        async move { read_back(&root, &plan).await }
    };
    crate::sink::contract::holds(Arc::clone(&sink) as _, read).await;
    sink.settle().await;
}

#[tokio::test]
async fn it_works_on_a_runtime_of_one_thread() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    for number in 0..25 {
        assert_eq!(sink.append(&batch(&plan("clickstream"), [click(number)])).await, [Outcome::Done]);
    }
    sink.settle().await;
    assert_eq!(read_back(folder.path(), &plan("clickstream")).await.len(), 25);
}

#[tokio::test]
async fn loaded_at_is_the_batch_s_and_each_append_is_one_version() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    for number in 0..3 {
        let mut given = batch(&plan, (0..10).map(|row| click(number * 86_400 * 10 + row * 40_000)));
        given.loaded_at += SECOND * i64::try_from(number).unwrap();
        assert_eq!(sink.append(&given).await, vec![Outcome::Done; 10]);
        let log = folder.path().join("contextflow/clickstream_events/_delta_log");
        assert!(log.join(format!("{:020}.json", number + 1)).exists());
        assert!(!log.join(format!("{:020}.json", number + 2)).exists());
    }
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let count = "SELECT count(*) FROM clickstream_events WHERE loaded_at = TIMESTAMP '2026-10-20T00:15:03.920Z'";
    assert_eq!(number(&warehouse, count).await, 10);
}

#[tokio::test]
async fn a_reopened_warehouse_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let plan = plan("clickstream");
    for round in 0..5 {
        let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
        for append in 0..5 {
            let rows = (0..4).map(|row| click(round * 20 + append * 4 + row));
            assert_eq!(sink.append(&batch(&plan, rows)).await, vec![Outcome::Done; 4]);
        }
        sink.settle().await;
    }
    let all: Vec<_> = (0..100).map(|number| Bytes::from(click(number))).collect();
    assert_eq!(values(&plan, &read_back(folder.path(), &plan).await), values(&plan, &all));
}

#[tokio::test]
async fn a_second_writer_is_refused_until_the_first_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let first = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let refused = DeltaSink::open(folder.path(), Clock::system()).unwrap_err().to_string();
    assert!(refused.contains("another process writes to this warehouse"), "{refused}");
    drop(first);
    DeltaSink::open(folder.path(), Clock::system()).unwrap();
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_an_error_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = DeltaSink::open(&file.join("warehouse"), Clock::system()).unwrap_err().to_string();
    assert!(error.contains("creating the warehouse"), "{error}");
}

#[tokio::test]
async fn a_disk_that_fails_means_try_again_and_heals() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let given = batch(&plan("clickstream"), [click(1)]);
    // A file where the dataset's folder belongs: no permission to take away when tests run as root.
    let in_the_way = folder.path().join("contextflow");
    std::fs::write(&in_the_way, "").unwrap();
    let outcomes = sink.append(&given).await;
    assert!(matches!(&outcomes[..], [Outcome::Retry(reason)] if reason.contains("clickstream_events")), "{outcomes:?}");
    std::fs::remove_file(&in_the_way).unwrap();
    assert_eq!(sink.append(&given).await, [Outcome::Done]);
    std::fs::remove_dir_all(folder.path()).unwrap();
    assert!(sink.ready().await.is_err());
}

#[tokio::test]
async fn a_folder_removed_under_a_running_sink_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let given = batch(&plan("clickstream"), [click(1)]);
    assert_eq!(sink.append(&given).await, [Outcome::Done]);
    std::fs::remove_dir_all(folder.path().join("contextflow")).unwrap();
    assert!(matches!(sink.append(&given).await[..], [Outcome::Retry(_)]));
    assert_eq!(sink.append(&given).await, [Outcome::Done]);
    assert_eq!(read_back(folder.path(), &plan("clickstream")).await.len(), 1);
}

#[tokio::test]
async fn another_engine_s_commit_is_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    assert_eq!(sink.append(&batch(&plan, [click(1)])).await, [Outcome::Done]);

    let url =
        deltalake::ensure_table_uri(folder.path().join("contextflow/clickstream_events").to_string_lossy()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let (table, _) = table.delete().with_predicate("event_id = 'click-1'").await.unwrap();
    assert_eq!(table.version(), Some(2));

    assert_eq!(sink.append(&batch(&plan, [click(2)])).await, [Outcome::Done]);
    let rows = read_back(folder.path(), &plan).await;
    assert_eq!(values(&plan, &rows), values(&plan, &[Bytes::from(click(2))]));
}

#[tokio::test]
async fn a_table_whose_creation_was_cut_short_is_created() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("contextflow/clickstream_events/_delta_log");
    std::fs::create_dir_all(&log).unwrap();
    std::fs::write(log.join("_commit_0.json.tmp"), "{").unwrap();
    assert_eq!(read_back(folder.path(), &plan("clickstream")).await, Vec::<Bytes>::new());
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    assert_eq!(sink.append(&batch(&plan("clickstream"), [click(1)])).await, [Outcome::Done]);
    assert_eq!(read_back(folder.path(), &plan("clickstream")).await.len(), 1);
}

#[tokio::test]
async fn rows_of_many_days_are_one_version_of_many_files() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    let given = batch(&plan, (0..200).map(|day| click(day * 86_400)));
    assert_eq!(sink.append(&given).await, vec![Outcome::Done; 200]);
    assert_eq!(parquet_files(folder.path()).len(), 200);
    assert_eq!(values(&plan, &read_back(folder.path(), &plan).await), values(&plan, &given.rows));
}

#[tokio::test]
async fn a_dropped_append_lands_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let sink = Arc::new(DeltaSink::open(folder.path(), Clock::system()).unwrap());
    let plan = plan("clickstream");
    for append in 0..20_usize {
        let given = batch(&plan, (0..10).map(|row| click(append * 10 + row)));
        let patience = std::time::Duration::from_micros(u64::try_from(append).unwrap() * 500);
        let _ = tokio::time::timeout(patience, sink.append(&given)).await;
    }
    assert_eq!(sink.append(&batch(&plan, (0..10).map(click))).await, vec![Outcome::Done; 10]);
    assert_eq!(read_back(folder.path(), &plan).await.len() % 10, 0);
}
