//! What a source can be.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

mod fixture;

use backfill::Request;
use fixture::{Fixture, gzip, lines};
use shared::load::Mode;

async fn visits(fixture: &Fixture, source: &str) -> u64 {
    let source = fixture.source().join(source).to_string_lossy().into_owned();
    let report = fixture.run(Request { source, ..fixture.request() }).await.expect("a source that can be loaded");
    assert_eq!(report.tally.buried(), 0);
    report.tally.rows[0]
}

#[tokio::test]
async fn a_file_a_folder_and_a_pattern_are_sources_packed_or_not() {
    let fixture = Fixture::new();
    fixture.write("a.jsonl", lines(0..1));
    // Two members, as of files that were joined.
    fixture.write("b.jsonl.gz", [gzip(lines(1..3).as_bytes()), gzip(lines(3..4).as_bytes())].concat());
    fixture.write("2024/07/c.ndjson.zst", zstd::encode_all(lines(4..8).as_bytes(), 1).unwrap());
    fixture.write("2024/08/d e.jsonl", lines(8..16));
    fixture.write("expected.json", "{}\n");
    fixture.write("note.txt", lines(0..1));

    for (source, expected) in [
        ("", 16),
        ("a.jsonl", 1),
        ("note.txt", 1),
        ("b.jsonl.gz", 3),
        ("2024", 12),
        ("2024/07/../08", 8),
        ("*.jsonl*", 4),
        ("*/*/*.jsonl", 8),
        ("**/*.zst", 4),
        ("2024/0[78]/?*", 12),
    ] {
        assert_eq!(visits(&fixture, source).await, expected, "{source}");
    }
    let report = fixture.run(fixture.request()).await.unwrap();
    let passed: Vec<_> = report.remarks.iter().map(|remark| remark.rsplit_once('/').unwrap().1).collect();
    assert!(passed[0].starts_with("expected.json: passed over") && passed[1].starts_with("note.txt: passed over"));
    assert_eq!(report.files, 4);
}

#[tokio::test]
async fn a_folder_of_json_files_alone_is_one_of_lines() {
    let fixture = Fixture::new();
    fixture.write("a.json", lines(0..2));
    assert_eq!(visits(&fixture, "").await, 2);
}

#[tokio::test]
async fn an_append_passes_over_what_the_tables_hold() {
    let fixture = Fixture::new();
    let append = || Request { mode: Mode::Append, ..fixture.request() };
    fixture.write("a.jsonl", lines(0..1));
    fixture.run(append()).await.unwrap();
    fixture.write("b.jsonl", lines(1..3));
    fixture.write("copy of a.jsonl", lines(0..1));

    let report = fixture.run(append()).await.unwrap();
    assert_eq!((report.files, report.tally.rows[0]), (1, 2));
    assert!(report.remarks[0].ends_with("a.jsonl: skipped, these tables hold it already"), "{:?}", report.remarks);
    assert_eq!((report.remarks.len(), fixture.rows("visit").len()), (2, 3));

    let report = fixture.run(append()).await.unwrap();
    assert_eq!((report.files, report.failure, fixture.rows("visit").len()), (0, None, 3));

    // What takes their place is what they hold from then on.
    let only = fixture.source().join("b.jsonl").to_string_lossy().into_owned();
    fixture.run(Request { source: only, ..fixture.request() }).await.unwrap();
    let report = fixture.run(append()).await.unwrap();
    assert_eq!((report.tally.rows[0], fixture.rows("visit").len()), (1, 3));
}
