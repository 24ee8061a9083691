//! Schema files: refused with file, field and reason, said in `BigQuery`'s words, and added at run time without a build.

use axum::http::StatusCode;
use pipeline_tests::{
    BatcherFixture, ENRICHED_SUB, EnricherFixture, PublisherFixture, RAW_SUB, built_in, delivery, json_lines,
    quick_batcher, registry_with,
};
use serde_json::{Value, json};
use shared::enrich::address::Anonymise;
use shared::schema::{Registry, compile, ddl};
use shared::sink::MemorySink;

/// A schema file that compiles, with one part replaced.
fn broken(part: &str, replacement: &str) -> String {
    let sound = r#"{
        "event_type": "visit", "version": "1-0-0", "ingest": "public",
        "table": {"dataset": "lab", "name": "visits", "time_partitioning": {"type": "DAY", "field": "at"}, "clustering": ["page"]},
        "accepts": {"past_days": 30},
        "columns": [
            {"name": "at", "type": "TIMESTAMP"},
            {"name": "page", "type": "STRING", "maxLength": "100"},
            {"name": "size", "type": "FLOAT"},
            {"name": "place", "type": "RECORD", "mode": "REPEATED", "fields": [{"name": "x", "type": "INTEGER"}]}
        ],
        "enrichments": [{"enrichment": "geo", "from": "page", "into": {}}],
        "aliases": {"page": ["url"]}
    }"#;
    assert_eq!(sound.matches(part).count(), 1, "{part} stands once");
    sound.replace(part, replacement)
}

#[test]
fn wrong_schema_files_are_refused_with_file_field_and_reason() {
    compile("sound.json", &broken("visits", "visits")).expect("only the replacements are at fault");
    let deep = (0..15).fold(r#"{"name":"x","type":"STRING"}"#.to_string(), |inner, _| {
        format!(r#"{{"name":"r","type":"RECORD","fields":[{inner}]}}"#)
    });
    let files = [
        ("no JSON", broken(r#""public","#, r#""public""#)),
        ("unknown member", broken(r#""accepts""#, r#""accept""#)),
        ("missing member", broken(r#""version": "1-0-0","#, "")),
        ("event type as a path", broken(r#""visit","#, r#""../visit","#)),
        ("event type in capitals", broken(r#""visit","#, r#""Visit","#)),
        ("version", broken("1-0-0", "1.0.0")),
        ("ingest", broken(r#""public""#, r#""private""#)),
        ("dataset", broken(r#""lab""#, r#""my-lab""#)),
        ("table", broken(r#""visits""#, r#""visits`; DROP TABLE x""#)),
        ("partition field", broken(r#""field": "at""#, r#""field": "when""#)),
        ("partition type", broken(r#""field": "at""#, r#""field": "page""#)),
        ("partition width", broken(r#""DAY""#, r#""WEEK""#)),
        (
            "filter of no partition",
            broken(r#""time_partitioning": {"type": "DAY", "field": "at"}"#, r#""require_partition_filter": true"#),
        ),
        ("clustering column", broken(r#"["page"]}"#, r#"["pages"]}"#)),
        ("clustering type", broken(r#"["page"]}"#, r#"["size"]}"#)),
        ("five clustering columns", broken(r#"["page"]}"#, r#"["page","page","page","page","page"]}"#)),
        ("column name", broken(r#""name": "size""#, r#""name": "1st size""#)),
        ("column type", broken(r#""FLOAT""#, r#""GEOGRAPHY""#)),
        ("column mode", broken(r#""REPEATED""#, r#""OPTIONAL""#)),
        ("column member", broken(r#""type": "FLOAT""#, r#""type": "FLOAT", "lenght": 3"#)),
        ("column without a type", broken(r#", "type": "FLOAT""#, "")),
        ("a column twice", broken(r#""name": "size""#, r#""name": "PAGE""#)),
        ("two columns for one key", broken(r#""name": "size""#, r#""name": "p_age""#).replace("\"page\"", "\"pAge\"")),
        ("a system column", broken(r#""name": "size""#, r#""name": "event_id""#)),
        ("maxLength", broken(r#""100""#, r#""a hundred""#)),
        ("maxLength of nothing", broken(r#""100""#, "0")),
        ("maxLength of a FLOAT", broken(r#""FLOAT""#, r#""FLOAT", "maxLength": "3""#)),
        ("fields of a FLOAT", broken(r#""FLOAT""#, r#""FLOAT", "fields": []"#)),
        ("RECORD without fields", broken(r#"[{"name": "x", "type": "INTEGER"}]"#, "[]")),
        ("a nested type", broken(r#""INTEGER""#, r#""INTERVAL""#)),
        ("too deep", broken(r#"{"name": "x", "type": "INTEGER"}"#, &deep)),
        ("enrichment", broken(r#""geo""#, r#""weather""#)),
        ("enrichment source", broken(r#""from": "page""#, r#""from": "size""#)),
        ("enrichment output", broken(r#""into": {}"#, r#""into": {"planet": "page"}"#)),
        ("enrichment target", broken(r#""into": {}"#, r#""into": {"country": "planet"}"#)),
        ("alias of nothing", broken(r#"{"page": ["url"]}"#, r#"{"pages": ["url"]}"#)),
        ("alias that is a column", broken(r#"["url"]"#, r#"["size"]"#)),
        ("identity", broken(r#""accepts""#, r#""identity": "page", "accepts""#)),
        ("a version that is a number", broken(r#""1-0-0""#, "1")),
        ("something after it", broken(r#"{"page": ["url"]}"#, r#"{}} {"x": {}"#)),
        (
            "no column",
            r#"{"event_type":"x","version":"1-0-0","ingest":"batch","table":{"dataset":"d","name":"t"},"columns":[]}"#
                .into(),
        ),
    ];

    let told = files.map(|(name, text)| match compile("lab/visit.json", &text) {
        Ok(_) => format!("{name}:\n    ACCEPTED\n"),
        Err(error) => format!("{name}:\n    {error}\n"),
    });

    assert!(told.iter().all(|one| one.contains("\n    schema file lab/visit.json: ")), "{told:#?}");
    insta::assert_snapshot!(told.concat());
}

#[test]
fn a_type_or_a_table_belongs_to_one_schema() {
    let mut registry = Registry::built_in().unwrap();
    let schema = |kind: &str, table: &str| {
        format!(
            r#"{{"event_type":"{kind}","version":"1-0-0","ingest":"public","table":{{"dataset":"contextflow","name":"{table}"}},
                "columns":[{{"name":"x","type":"STRING"}}]}}"#
        )
    };

    registry.add("mended.json", &schema("order", "elsewhere")).unwrap();
    let taken_type = registry.add("a.json", &schema("order", "elsewhere")).unwrap_err();
    let of_the_pipeline = registry.add("c.json", &schema("dead_letter", "mine")).unwrap_err();
    let taken_table = registry.add("b.json", &schema("search", "clickstream_events")).unwrap_err();

    assert_eq!(taken_type.to_string(), "schema file a.json: event_type: `order` is taken by another schema");
    assert!(of_the_pipeline.to_string().contains("`dead_letter` is taken"), "{of_the_pipeline}");
    assert_eq!(
        registry.get("order").unwrap().table.full_name(),
        "contextflow.elsewhere",
        "a built-in type may be changed"
    );
    let expected = "schema file b.json: table: `contextflow.clickstream_events` belongs to `clickstream`";
    assert_eq!(taken_table.to_string(), expected);
    assert!(registry.get("search").is_none());
}

#[test]
fn a_folder_of_schemas_is_read_and_a_wrong_file_named() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("search.json"), broken(r#""visit""#, r#""search""#)).unwrap();
    std::fs::write(folder.path().join("README.md"), "no schema").unwrap();
    assert!(Registry::with_folder(folder.path()).unwrap().get("search").is_some());

    std::fs::write(folder.path().join("wrong.json"), "{").unwrap();
    let error = Registry::with_folder(folder.path()).unwrap_err();
    assert!(error.file.ends_with("wrong.json"), "{error}");

    let missing = Registry::with_folder(&folder.path().join("nowhere")).unwrap_err();
    assert!(missing.file.ends_with("nowhere"), "{missing}");
}

#[test]
fn built_in_tables_in_googlesql() {
    let registry = built_in();

    let ddl: Vec<_> = registry.plans().map(|plan| ddl::create_table(plan)).collect();

    insta::assert_snapshot!(ddl.join("\n"));
}

#[test]
fn built_in_tables_for_bq_mk() {
    let registry = built_in();

    let columns: Vec<_> = registry
        .plans()
        .map(|plan| json!({"table": plan.table.full_name(), "columns": ddl::columns_json(plan)}))
        .collect();

    insta::with_settings!({sort_maps => true}, { insta::assert_json_snapshot!(columns) });
}

#[test]
fn every_type_and_width_has_its_googlesql() {
    let file = |width: &str, kind: &str, name: &str| {
        format!(
            r#"{{"event_type":"{name}","version":"1-0-0","ingest":"batch","description":"Says \"hi\" \\ and\nmore",
                "table":{{"dataset":"lab","name":"{name}","time_partitioning":{{"type":"{width}","field":"at"}}}},
                "columns":[{{"name":"at","type":"{kind}","mode":"REQUIRED"}},{{"name":"s","type":"STRING","maxLength":"7"}},
                    {{"name":"b","type":"BYTES","maxLength":8,"mode":"REPEATED"}},{{"name":"i","type":"INT64"}},{{"name":"f","type":"FLOAT"}},
                    {{"name":"n","type":"DECIMAL"}},{{"name":"g","type":"BIGNUMERIC"}},{{"name":"o","type":"BOOL"}},
                    {{"name":"d","type":"DATE"}},{{"name":"dt","type":"DATETIME"}},{{"name":"t","type":"TIME"}},{{"name":"j","type":"JSON"}},
                    {{"name":"r","type":"STRUCT","mode":"REPEATED","fields":[{{"name":"x","type":"STRING","mode":"REQUIRED","description":"X"}},
                        {{"name":"y","type":"RECORD","fields":[{{"name":"z","type":"INTEGER","mode":"REPEATED"}}]}}]}}]}}"#
        )
    };
    let widths = [("HOUR", "TIMESTAMP"), ("DAY", "DATE"), ("MONTH", "DATE"), ("YEAR", "DATETIME"), ("DAY", "DATETIME")];
    let statements = widths.map(|(width, kind)| {
        let plan = compile("lab.json", &file(width, kind, "everything")).unwrap();
        ddl::create_table(&plan)
    });

    let partitions: Vec<_> =
        statements.iter().map(|ddl| ddl.lines().find(|line| line.starts_with("PARTITION BY")).unwrap()).collect();

    let expected =
        ["TIMESTAMP_TRUNC(`at`, HOUR)", "`at`", "DATE_TRUNC(`at`, MONTH)", "DATETIME_TRUNC(`at`, YEAR)", "DATE(`at`)"];
    assert_eq!(partitions, expected.map(|by| format!("PARTITION BY {by}")));
    insta::assert_snapshot!(statements[0]);
}

#[test]
fn what_bq_show_prints_can_be_pasted() {
    let shown = r#"[
        {"name": "at", "type": "TIMESTAMP", "mode": "REQUIRED"},
        {"name": "code", "type": "STRING", "mode": "NULLABLE", "maxLength": "40", "description": "Code"},
        {"name": "price", "type": "NUMERIC", "mode": "NULLABLE"},
        {"name": "is_new", "type": "BOOLEAN", "mode": "NULLABLE"},
        {"fields": [{"mode": "NULLABLE", "name": "x", "type": "FLOAT"}], "mode": "REPEATED", "name": "points", "type": "RECORD"}
    ]"#;
    let file = format!(
        r#"{{"event_type":"pasted","version":"1-0-0","ingest":"batch","table":{{"dataset":"d","name":"t"}},"columns":{shown}}}"#
    );

    let plan = compile("pasted.json", &file).unwrap();

    assert_eq!(ddl::columns_json(&plan), serde_json::from_str::<Value>(shown).unwrap(), "and comes back as it was");
}

#[tokio::test]
async fn a_new_event_type_is_one_file_from_the_button_to_the_table() {
    let schema = r#"{"event_type":"rating","version":"3-0-1","ingest":"public",
        "table":{"dataset":"shop","name":"ratings","time_partitioning":{"type":"DAY","field":"rated_at"},"clustering":["product_id"]},
        "columns":[{"name":"product_id","type":"STRING","mode":"REQUIRED"},{"name":"stars","type":"INTEGER"},
            {"name":"rated_at","type":"TIMESTAMP","mode":"REQUIRED"},{"name":"address","type":"STRING"},{"name":"country","type":"STRING"}],
        "enrichments":[{"enrichment":"geo","from":"address","into":{"country":"country"}}],
        "aliases":{"product_id":["sku"]}}"#;
    let registry = || registry_with(&[schema]);
    let publisher = PublisherFixture::with(registry(), Anonymise::Off);
    let enricher = EnricherFixture::with(registry(), enricher::Config::default()).await;
    let batcher = BatcherFixture::<MemorySink>::with(registry(), &quick_batcher());
    let body = r#"[{"eventType":"rating","event_id":"r-1","sku":"p-1","stars":5,"ratedAt":"2026-10-20T02:15:00+02:00"},
        {"event_type":"rating","event_id":"r-2","product_id":"p-2","stars":4.5,"rated_at":1792455300},
        {"event_type":"rating","event_id":"r-3","productId":"p-3"}]"#;

    let answer = publisher.publish_from([8, 8, 8, 8].into(), &[], body).await;
    assert_eq!(answer.status, StatusCode::OK);
    for message in publisher.topic.messages() {
        assert_eq!(enricher.push(delivery(RAW_SUB, "1", &message)).await.status, StatusCode::NO_CONTENT);
    }
    for message in enricher.enriched.messages() {
        assert_eq!(batcher.push("/", delivery(ENRICHED_SUB, "2", &message)).await.status, StatusCode::NO_CONTENT);
    }

    let expected = [
        json!({"product_id": "p-1", "stars": 5, "rated_at": "2026-10-20T00:15:00Z", "address": "8.8.8.8", "country": "US",
            "event_id": "r-1", "received_at": "2026-10-20T00:15:02.920Z", "schema_version": "3-0-1"}),
        json!({"product_id": "p-3", "rated_at": "2026-10-20T00:15:02.920Z", "address": "8.8.8.8", "country": "US",
            "event_id": "r-3", "received_at": "2026-10-20T00:15:02.920Z", "schema_version": "3-0-1"}),
    ];
    let mut rows: Vec<_> = batcher.sink.rows("rating").iter().flat_map(|row| json_lines(row)).collect();
    for row in &mut rows {
        assert!(row.as_object_mut().unwrap().remove("fingerprint").is_some_and(|fingerprint| fingerprint.is_i64()));
    }
    assert_eq!(rows, expected);
    let letters = enricher.letters();
    assert_eq!(
        (letters.len(), &letters[0]["event_id"], &letters[0]["reason"]),
        (1, &json!("r-2"), &json!("wrong_type"))
    );
}
