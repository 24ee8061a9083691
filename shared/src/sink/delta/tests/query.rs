//! SQL over the warehouse.

use super::*;

async fn three_days(root: &Path) -> DeltaSink {
    let sink = DeltaSink::open(root, Clock::system()).unwrap();
    for day in 0..3 {
        let rows = (0..10).map(|row| click(day * 86_400 + row));
        sink.append(&batch(&plan("clickstream"), rows)).await;
    }
    sink
}

#[tokio::test]
async fn a_table_that_is_not_on_disk_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::open(&folder.path().join("nothing"), &registry()).unwrap();
    for table in
        ["contextflow.clickstream_events", "orders", "v_orders", "dead_letters", "contextflow.v_events_per_city"]
    {
        assert_eq!(number(&warehouse, &format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    // And shows up when it comes.
    let sink = DeltaSink::open(&folder.path().join("nothing"), Clock::system()).unwrap();
    sink.append(&batch(&plan("order"), [r#"{"event_id":"e"}"#.to_string()])).await;
    assert_eq!(number(&warehouse, "SELECT count(*) FROM backend_events.orders").await, 1);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM v_orders").await, 1);
}

#[tokio::test]
async fn queries_see_the_schema_s_columns_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let _sink = three_days(folder.path()).await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let expected: Vec<_> = plan("clickstream").columns.iter().map(|column| column.name.clone()).collect();
    for table in ["clickstream_events", "v_clickstream_events"] {
        let answer = warehouse.sql(&format!("SELECT * FROM {table}")).await.unwrap();
        let shown: Vec<_> = answer[0].schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(shown, expected);
        assert_eq!(answer.iter().map(RecordBatch::num_rows).sum::<usize>(), 30);
    }
    let error = warehouse.sql("SELECT _partition_date FROM clickstream_events").await.unwrap_err().to_string();
    assert!(error.contains("No field named _partition_date"), "{error}");
}

#[tokio::test]
async fn files_outside_the_asked_for_time_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let _sink = three_days(folder.path()).await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    for table in ["clickstream_events", "v_clickstream_events"] {
        let condition = "event_timestamp >= TIMESTAMP '2026-10-22T00:00:00Z'";
        let query = format!("SELECT user_id FROM {table} WHERE {condition}");
        let plan = warehouse.sql(&format!("EXPLAIN ANALYZE {query}")).await.unwrap();
        let plan = plan[0].column(1).as_string::<i32>().value(0).to_string();
        assert!(plan.contains("count_files_scanned=1"), "{plan}");
        assert_eq!(number(&warehouse, &format!("SELECT count(*) FROM {table} WHERE {condition}")).await, 10);
        let query = format!("SELECT count(*) FROM {table} WHERE event_timestamp < TIMESTAMP '2026-10-20T00:15:04Z'");
        assert_eq!(number(&warehouse, &query).await, 2);
    }
}

#[tokio::test]
async fn the_view_keeps_the_earliest_copy_of_a_row() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    for (append, loaded) in [3, 1, 2].into_iter().enumerate() {
        let mut given =
            batch(&plan, (0..10).map(|row| click(row).replace("shop.example.com", &format!("{loaded}.example.com"))));
        // One row comes once only, and one with the same identity has another time.
        given.rows.push(click(100 + append).into());
        given.rows.push(click(200 + append).replace(&format!("click-{}", 200 + append), "same").into());
        given.loaded_at += i64::from(loaded);
        sink.append(&given).await;
    }
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 36);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM v_clickstream_events").await, 16);
    assert_eq!(
        number(&warehouse, "SELECT count(*) FROM v_clickstream_events WHERE page_url LIKE '%1.example%'").await,
        10
    );
    assert_eq!(
        number(&warehouse, "SELECT count(*) FROM v_clickstream_events WHERE page_url LIKE '%2.example%'").await,
        0
    );
    assert_eq!(number(&warehouse, "SELECT count(*) FROM v_clickstream_events WHERE event_id = 'same'").await, 3);
    let limited =
        warehouse.sql("SELECT * FROM v_clickstream_events ORDER BY event_timestamp, loaded_at LIMIT 12").await.unwrap();
    assert_eq!(limited.iter().map(RecordBatch::num_rows).sum::<usize>(), 12);
    let same = "SELECT count(*) FROM (SELECT *, row_number() OVER (PARTITION BY event_timestamp, event_id ORDER BY loaded_at) AS copy
                FROM clickstream_events) AS a JOIN v_clickstream_events AS b USING (event_timestamp, event_id, loaded_at) WHERE copy = 1";
    assert_eq!(number(&warehouse, same).await, 16);
}

#[tokio::test]
async fn one_id_with_different_content_is_a_conflict_of_which_the_view_shows_the_first_received() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    let event = |id: &str, day: u32, received: u32, city: &str, fingerprint: &str| {
        format!(
            r#"{{"event_id":"{id}","event_timestamp":"2026-10-{day}T00:00:00Z","received_at":"2026-10-20T00:00:0{received}Z","city":"{city}","fingerprint":{fingerprint}}}"#
        )
    };
    // The second to arrive is loaded first, and comes again.
    for rows in [
        vec![event("a", 20, 2, "Roma", "2"), event("b", 20, 1, "Berlin", "1"), event("old", 20, 1, "Paris", "null")],
        vec![event("a", 20, 2, "Roma", "2"), event("old", 20, 1, "Paris", "7")],
        vec![event("a", 20, 1, "Berlin", "1"), event("a", 21, 2, "Paris", "3")],
    ] {
        sink.append(&batch(&plan, rows)).await;
    }
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 7);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM v_clickstream_events").await, 4);
    let first = "SELECT count(*) FROM v_clickstream_events WHERE event_id = 'a' AND city IN ('Berlin', 'Paris')";
    assert_eq!(number(&warehouse, first).await, 2, "the first received at each time");
    let conflicts = "SELECT count(*) FROM v_clickstream_events_conflicts WHERE event_id = 'a'";
    assert_eq!(number(&warehouse, conflicts).await, 3);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM contextflow.v_clickstream_events_conflicts").await, 3);
    let of_a_day =
        "SELECT city FROM v_clickstream_events_conflicts WHERE event_timestamp < TIMESTAMP '2026-10-21T00:00:00Z'";
    let plan = warehouse.sql(&format!("EXPLAIN ANALYZE {of_a_day}")).await.unwrap();
    let plan = plan[0].column(1).as_string::<i32>().value(0).to_string();
    assert!(plan.contains("count_files_scanned=3"), "{plan}");
}

#[tokio::test]
async fn dead_letters_are_told_apart_by_their_own_identity() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let letter = r#"{"dead_letter_id":"d1","reason":"bad_json","stage":"enricher","raw":"{","raw_encoding":"utf8","raw_size":1,"raw_sha256":"x","failed_at":"2026-10-20T00:15:02Z","attempts":1}"#;
    for letter in [letter.to_string(), letter.to_string(), letter.replace("d1", "d2")] {
        assert_eq!(sink.append(&batch(&plan("dead_letter"), [letter])).await, [Outcome::Done]);
    }
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    assert_eq!(number(&warehouse, "SELECT count(*) FROM dead_letters").await, 3);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM v_dead_letters").await, 2);
}

#[tokio::test]
async fn events_per_city_are_those_of_the_last_seven_days() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let row = |days: i64, id: &str| {
        let time = time::timestamp_text(Clock::system().now() - days * crate::clock::DAY);
        format!(
            r#"{{"event_id":"{id}","event_timestamp":"{time}","country":"DE","city":"Berlin","event_name":"click"}}"#
        )
    };
    let twice = row(1, "twice");
    let rows = [row(8, "old"), row(6, "a"), row(6, "b"), twice.clone(), twice, row(0, "now")];
    sink.append(&batch(&plan("clickstream"), rows)).await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    assert_eq!(number(&warehouse, "SELECT sum(events) FROM v_events_per_city WHERE city = 'Berlin'").await, 4);
    let query = "SELECT * FROM contextflow.v_events_per_city ORDER BY event_date";
    let answer = warehouse.sql(query).await.unwrap();
    let names: Vec<_> = answer[0].schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["event_date", "country", "city", "event_name", "events"]);
}

#[tokio::test]
async fn only_questions_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let _sink = three_days(folder.path()).await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let target = folder.path().join("stolen.csv").display().to_string();
    for statement in [
        "DROP TABLE contextflow.clickstream_events",
        "DELETE FROM clickstream_events",
        "UPDATE clickstream_events SET city = 'x'",
        "INSERT INTO clickstream_events SELECT * FROM clickstream_events",
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW x AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SET datafusion.execution.target_partitions = 64",
        "SELECT * INTO copy FROM clickstream_events",
        "TRUNCATE TABLE clickstream_events",
        "PREPARE p AS SELECT 1",
        "EXPLAIN ANALYZE INSERT INTO clickstream_events SELECT * FROM clickstream_events",
        &format!("COPY clickstream_events TO '{target}'"),
    ] {
        let error = warehouse.sql(statement).await.unwrap_err();
        assert!(matches!(error, QueryError::Query(_)), "{statement}: {error:?}");
        assert!(error.to_string().starts_with("only questions are answered here"), "{statement}: {error}");
    }
    assert!(!Path::new(&target).exists());
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 30);
    for question in [
        "SHOW TABLES",
        "DESCRIBE clickstream_events",
        "EXPLAIN SELECT 1",
        "VALUES (1)",
        "WITH a AS (SELECT 1) SELECT * FROM a",
    ] {
        warehouse.sql(question).await.unwrap_or_else(|error| panic!("{question}: {error}"));
    }
}

#[tokio::test]
async fn errors_are_one_line_and_say_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let warehouse = Warehouse::of([&plan("inventory")], &super::folder(folder.path())).unwrap();
    let known = "backend_events.inventory, backend_events.v_inventory, backend_events.v_inventory_conflicts";
    for (query, expected) in [
        ("SELECT * FROM clicks", format!("there is no table clicks; there are: {known}")),
        ("SELECT * FROM nowhere.orders", format!("there is no table nowhere.orders; there are: {known}")),
        ("SELECT '/etc' FROM '/etc/passwd'", format!("there is no table /etc/passwd; there are: {known}")),
        ("SELECT nothing\nFROM inventory", "No field named nothing. Valid fields are inventory.inventory_id".into()),
        ("SELEC 1", "sql parser error: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1".into()),
        ("", "No SQL statements were provided".into()),
        ("SELECT 1; SELECT 2", "The context currently only supports a single SQL statement".into()),
        ("SELECT no_function(1)", "Invalid function 'no_function'".into()),
        ("SELECT 1/0", "Divide by zero error".into()),
        (
            "SELECT * FROM inventory WHERE quantity_change = 'many'",
            "Cast error: Cannot cast string 'many' to value of Int64".into(),
        ),
    ] {
        let error = warehouse.sql(query).await.unwrap_err();
        assert!(matches!(error, QueryError::Query(_)), "{query}: {error:?}");
        assert!(error.to_string().starts_with(&expected), "{query}: {error}");
        assert!(!error.to_string().contains('\n'));
    }
}

#[tokio::test]
async fn names_of_two_datasets_need_the_dataset() {
    let table = |dataset: &str| {
        let text = format!(
            r#"{{"event_type": "{dataset}", "version": "1-0-0", "ingest": "batch", "table": {{"dataset": "{dataset}", "name": "same"}},
                "columns": [{{"name": "x", "type": "STRING"}}]}}"#
        );
        Arc::new(crate::schema::compile("same.json", &text).unwrap())
    };
    let (a, b) = (table("a"), table("b"));
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    sink.append(&batch(&a, [r#"{"x":"1"}"#.to_string()])).await;
    let warehouse = Warehouse::of([&a, &b], &super::folder(folder.path())).unwrap();
    assert_eq!(number(&warehouse, "SELECT count(*) FROM a.same").await, 1);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM b.same").await, 0);
    let error = warehouse.sql("SELECT count(*) FROM same").await.unwrap_err().to_string();
    assert_eq!(error, "there is no table same; there are: a.same, b.same");
}

#[tokio::test]
async fn a_session_keeps_to_its_versions() {
    let folder = tempfile::tempdir().unwrap();
    let sink = three_days(folder.path()).await;
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    let session = warehouse.session().await.unwrap();
    sink.append(&batch(&plan("clickstream"), [click(999)])).await;
    let old = session.sql("SELECT * FROM clickstream_events").await.unwrap().count().await.unwrap();
    assert_eq!(old, 30);
    assert_eq!(number(&warehouse, "SELECT count(*) FROM clickstream_events").await, 31);
}
