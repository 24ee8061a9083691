//! Every column type and mode on its way to disk and back, and tables whose schemas change.

use proptest::prelude::*;

use super::*;
use crate::schema::compile;

fn schema(columns: &str, version: &str) -> Arc<Plan> {
    let text = format!(
        r#"{{"event_type": "types", "version": "{version}", "ingest": "internal", "identity": "id",
            "description": "It's \"all\" types",
            "table": {{"dataset": "test", "name": "types",
                      "time_partitioning": {{"type": "DAY", "field": "at"}}, "clustering": ["i", "id"]}},
            "columns": [{{"name": "id", "type": "STRING", "mode": "REQUIRED", "description": "Ω identity"}},
                        {{"name": "at", "type": "DATETIME"}}, {columns}]}}"#
    );
    Arc::new(compile("types.json", &text).unwrap())
}

const SCALARS: [(&str, &str); 12] = [
    ("s", "STRING"),
    ("b", "BYTES"),
    ("i", "INTEGER"),
    ("f", "FLOAT"),
    ("n", "NUMERIC"),
    ("bn", "BIGNUMERIC"),
    ("t", "BOOLEAN"),
    ("ts", "TIMESTAMP"),
    ("d", "DATE"),
    ("dt", "DATETIME"),
    ("tm", "TIME"),
    ("j", "JSON"),
];

fn all_types() -> Arc<Plan> {
    let columns = |mode: &str| {
        let column = |(name, kind): &(&str, &str)| {
            let suffix = if mode == "REPEATED" { "_many" } else { "" };
            format!(r#"{{"name": "{name}{suffix}", "type": "{kind}", "mode": "{mode}"}}"#)
        };
        SCALARS.iter().map(column).collect::<Vec<_>>().join(", ")
    };
    let (one, many, must) = (columns("NULLABLE"), columns("REPEATED"), columns("REQUIRED"));
    schema(
        &format!(
            r#"{one}, {many},
            {{"name": "r", "type": "RECORD", "fields": [
                {{"name": "must", "type": "RECORD", "fields": [{must}]}}, {many},
                {{"name": "deep", "type": "RECORD", "mode": "REPEATED", "fields": [
                    {{"name": "x", "type": "INTEGER", "mode": "REQUIRED"}},
                    {{"name": "y", "type": "STRING", "mode": "REPEATED"}}]}}]}},
            {{"name": "r_many", "type": "RECORD", "mode": "REPEATED", "fields": [{one}]}}"#
        ),
        "1-0-0",
    )
}

fn scalars(suffix: &str, around: fn(&str) -> String) -> String {
    let values = [
        r#""näive 'quoted' \"text\"""#,
        r#""AAECf/8=""#,
        "-9223372036854775808",
        "-1.7976931348623157e308",
        "-99999999999999999999999999999.999999999",
        "-99999999999999999999999999999999999999.99999999999999999999999999999999999999",
        "true",
        r#""0001-01-01T00:00:00.000001Z""#,
        r#""9999-12-31""#,
        r#""2026-10-20T23:59:59.999999""#,
        r#""00:15:02.920""#,
        r#"{"a": [1.10, null, "x"]}"#,
    ];
    let pairs = SCALARS.iter().zip(values);
    pairs.map(|((name, _), value)| format!(r#""{name}{suffix}":{}"#, around(value))).collect::<Vec<_>>().join(",")
}

#[tokio::test]
async fn every_type_and_mode_comes_back_as_it_was() {
    let plan = all_types();
    let one = scalars("", str::to_string);
    let many = scalars("_many", |value| format!("[{value},{value}]"));
    let rows = [
        format!(
            r#"{{"id":"full","at":"2026-10-20T00:15:02",{one},{many},
                "r":{{"must":{{{one}}},{many},"deep":[{{"x":1,"y":["a",""]}},{{"x":2}}]}},
                "r_many":[{{{one}}},{{}}]}}"#
        ),
        r#"{"id":"empty"}"#.to_string(),
        r#"{"id":"hollow","at":"0001-01-01T00:00:00","r":{},"r_many":[]}"#.to_string(),
        r#"{"id":"late","at":"9999-12-31T23:59:59.999999","r":{"must":null,"deep":[]}}"#.to_string(),
    ];
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    let mut given = Vec::new();
    for _ in 0..5 {
        let rows = batch(&plan, rows.clone());
        assert_eq!(sink.append(&rows).await, vec![Outcome::Done; 4]);
        given.extend(rows.rows);
    }
    assert_eq!(values(&plan, &read_back(folder.path(), &plan).await), values(&plan, &given));
    sink.settle().await;
    // Merged, and from a checkpoint.
    for _ in 0..10 {
        let rows = batch(&plan, rows.clone());
        assert_eq!(sink.append(&rows).await, vec![Outcome::Done; 4]);
        given.extend(rows.rows);
    }
    sink.settle().await;
    assert_eq!(values(&plan, &read_back(folder.path(), &plan).await), values(&plan, &given));
}

#[tokio::test]
async fn naughty_strings_come_back_as_they_were() {
    let naughty = [
        "\u{0}",
        "a\u{0}b",
        "\u{202e}RTL\u{202c}",
        "'\"`;DROP TABLE x;--",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\u{feff}BOM",
        "\\n\n\r\t\u{7f}\u{85}\u{2028}",
        "__HIVE_DEFAULT_PARTITION__",
        "%2F../../etc/passwd",
        "\u{10ffff}",
        "",
        " ",
        "null",
        "NaN",
    ];
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let plan = plan("clickstream");
    // In the clustering columns as well, whose extremes stand in the log.
    let row = |text: &str| {
        let text = serde_json::to_string(text).unwrap();
        format!(
            r#"{{"event_id":"e","event_timestamp":"2026-10-20T00:15:02Z","user_id":{text},"country":{text},"event_name":{text}}}"#
        )
    };
    let long = "\u{10ffff}".repeat(40);
    let given = batch(&plan, naughty.into_iter().chain([long.as_str(), &"é".repeat(40)]).map(row));
    for line in &given.rows {
        let one = batch(&plan, [String::from_utf8(line.to_vec()).unwrap()]);
        assert_eq!(sink.append(&one).await, [Outcome::Done]);
    }
    assert_eq!(values(&plan, &read_back(folder.path(), &plan).await), values(&plan, &given.rows));
    let warehouse = Warehouse::open(folder.path(), &registry()).unwrap();
    for text in naughty.into_iter().chain([long.as_str(), &"é".repeat(40)]).filter(|text| !text.contains('\u{0}')) {
        let quoted = text.replace('\'', "''");
        let count = format!("SELECT count(*) FROM clickstream_events WHERE country = '{quoted}'");
        assert_eq!(number(&warehouse, &count).await, 1, "{text:?}");
    }
}

#[tokio::test]
async fn a_table_gains_the_columns_that_its_schema_gains() {
    let folder = tempfile::tempdir().unwrap();
    let old = schema(
        r#"{"name": "i", "type": "INTEGER", "mode": "REQUIRED"},
        {"name": "r", "type": "RECORD", "fields": [{"name": "x", "type": "STRING"}]}"#,
        "1-0-0",
    );
    let new = schema(
        r#"{"name": "i", "type": "INTEGER"}, {"name": "more", "type": "TIMESTAMP"}, {"name": "many", "type": "DATE", "mode": "REPEATED"},
        {"name": "r", "type": "RECORD", "fields": [{"name": "x", "type": "STRING"}, {"name": "y", "type": "BYTES"}]}"#,
        "1-0-1",
    );
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    for _ in 0..3 {
        let given = batch(&old, [r#"{"id":"a","i":1,"r":{"x":"old"}}"#.to_string()]);
        assert_eq!(sink.append(&given).await, [Outcome::Done]);
    }
    drop(sink);
    let sink = DeltaSink::open_with(folder.path(), Clock::system(), eager()).unwrap();
    for _ in 0..2 {
        let given = batch(
            &new,
            [r#"{"id":"b","more":"2026-10-20T00:00:00Z","many":["2026-10-20"],"r":{"y":"AA=="}}"#.to_string()],
        );
        assert_eq!(sink.append(&given).await, [Outcome::Done]);
    }
    // What only knows the old schema may go on.
    assert_eq!(sink.append(&batch(&old, [r#"{"id":"c","i":3}"#.to_string()])).await, [Outcome::Done]);
    for _ in 0..2 {
        let warehouse = Warehouse::of([&new], &super::folder(folder.path())).unwrap();
        assert_eq!(number(&warehouse, "SELECT count(*) FROM types").await, 6);
        assert_eq!(number(&warehouse, "SELECT count(*) FROM types WHERE more IS NOT NULL").await, 2);
        assert_eq!(number(&warehouse, "SELECT count(*) FROM types WHERE r['x'] = 'old'").await, 3);
        assert_eq!(
            number(&warehouse, "SELECT count(*) FROM types WHERE r['y'] IS NOT NULL AND many[1] = DATE '2026-10-20'")
                .await,
            2
        );
        sink.settle().await;
    }
}

#[tokio::test]
async fn a_schema_that_does_not_fit_the_table_is_refused_with_the_column() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    let old = schema(r#"{"name": "i", "type": "INTEGER"}"#, "1-0-0");
    let new = schema(r#"{"name": "i", "type": "STRING"}"#, "2-0-0");
    sink.ensure(&old).await.unwrap();
    let error = sink.ensure(&new).await.unwrap_err().to_string();
    assert!(error.starts_with("table test.types: column i is Int64 on disk and Utf8 in the schema"), "{error}");
    assert!(matches!(sink.append(&batch(&new, [r#"{"id":"a"}"#.to_string()])).await[..], [Outcome::Retry(_)]));
    assert_eq!(sink.append(&batch(&old, [r#"{"id":"a"}"#.to_string()])).await, [Outcome::Done]);
}

#[tokio::test]
async fn the_table_on_disk_says_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let sink = DeltaSink::open(folder.path(), Clock::system()).unwrap();
    sink.ensure(&all_types()).await.unwrap();
    let url = deltalake::ensure_table_uri(folder.path().join("test/types").to_string_lossy()).unwrap();
    let table = deltalake::open_table(url).await.unwrap();
    let metadata = table.snapshot().unwrap().metadata();
    assert_eq!((metadata.name(), metadata.description()), (Some("types"), Some("It's \"all\" types")));
    assert_eq!(metadata.partition_columns(), &["_partition_date"]);
    let schema = table.snapshot().unwrap().schema();
    let id = schema.field("id").unwrap();
    assert!(!id.is_nullable());
    assert_eq!(id.metadata["comment"].to_string(), "Ω identity");
    assert!(schema.field("s").unwrap().is_nullable());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rows_become_one_batch(rows in prop::collection::vec((any::<Option<String>>(), any::<Option<i64>>(), prop::collection::vec(any::<i64>(), 0..4)), 0..50)) {
        let plan = schema(r#"{"name": "i", "type": "INTEGER"}, {"name": "many", "type": "INTEGER", "mode": "REPEATED"}"#, "1-0-0");
        let mut builder = crate::sink::delta::arrow::RowsBuilder::new(&plan.columns, rows.len());
        for (text, number, many) in &rows {
            let id = Value::Text(text.clone().unwrap_or_default().into());
            let number = number.map_or(Value::Null, Value::Int);
            builder.push(&[id, Value::Null, number, Value::Repeated(many.iter().copied().map(Value::Int).collect())]);
        }
        let batch = builder.finish().unwrap();
        prop_assert_eq!(batch.num_rows(), rows.len());
        for (row, (text, number, many)) in rows.iter().enumerate() {
            prop_assert_eq!(batch.column(0).as_string::<i32>().value(row), text.as_deref().unwrap_or_default());
            let cell = scalar(&Kind::Integer, batch.column(2), row);
            prop_assert_eq!(cell, number.map_or(Value::Null, Value::Int));
            let list = batch.column(3).as_list::<i32>().value(row);
            let list = list.as_primitive::<Int64Type>().values().to_vec();
            prop_assert_eq!(&list, many);
        }
    }
}
