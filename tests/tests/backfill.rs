//! `contextflow backfill` into the local warehouse, asked by SQL: the figures, what a kill leaves, what readers see.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pipeline_tests::binary::{Dev, binary, program_in_path, run, text};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const TABLES: [&str; 5] = [
    "clickstream_lake.visits",
    "clickstream_dw.sessions",
    "clickstream_dw.pageview_events",
    "clickstream_dw.addtocart_events",
    "clickstream_dw.purchase_events",
];

/// 20 visits of our own making, with their figures.
fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/visits")
}

/// 7,318 real visits, where they are at hand.
fn real() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/visits");
    if !folder.is_dir() {
        println!("skipped: no {}", folder.display());
    }
    folder.is_dir().then_some(folder)
}

/// A local pipeline's data.
struct Warehouse(TempDir);

impl Warehouse {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn arguments(&self, source: &Path, more: &[&str]) -> Vec<String> {
        let (source, data) = (source.display().to_string(), self.0.path().display().to_string());
        let own = ["backfill", "--json", "--source", &source, "--data-dir", &data];
        own.iter().chain(more).map(ToString::to_string).collect()
    }

    fn backfill(&self, source: &Path, more: &[&str]) -> Output {
        run(self.arguments(source, more))
    }

    fn start(&self, source: &Path, more: &[&str]) -> Child {
        let mut command = Command::new(binary());
        command.args(self.arguments(source, more)).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// The report of a load that succeeded.
    fn load(&self, source: &Path, more: &[&str]) -> Value {
        let output = self.backfill(source, more);
        assert!(output.status.success(), "{}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn query(&self, sql: &str) -> Vec<Value> {
        let output = run(["query", "--json", "--data-dir", &self.0.path().display().to_string(), sql]);
        assert!(output.status.success(), "{sql}: {}", text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn one(&self, sql: &str) -> Value {
        self.query(sql)[0]["a"].clone()
    }

    /// Groups as `{key: value}`.
    fn groups(&self, sql: &str) -> Value {
        self.query(sql).iter().map(|row| (row["k"].as_str().unwrap().to_string(), row["a"].clone())).collect()
    }

    /// The rows of each table, in one look.
    fn counts(&self) -> Vec<i64> {
        let counts = TABLES.map(|table| format!("(SELECT count(*) FROM {table}) AS \"{table}\"")).join(", ");
        let row = self.query(&format!("SELECT {counts}")).remove(0);
        TABLES.iter().map(|table| row[*table].as_i64().unwrap()).collect()
    }

    /// What the rows of all tables come to, whatever their order.
    fn fingerprint(&self) -> Vec<Value> {
        let columns = [
            "count(*) AS n, count(DISTINCT session_id) AS keys, sum(cardinality(events)) AS a",
            "count(*) AS n, count(DISTINCT session_key) AS keys, min(session_key) AS low, max(session_key) AS high",
            "count(*) AS n, count(DISTINCT session_key) AS keys, sum(length(page_url)) AS a, max(\"timestamp\") AS last",
            "count(*) AS n, count(DISTINCT session_key) AS keys, sum(price * quantity) AS a, max(\"timestamp\") AS last",
            "count(*) AS n, count(DISTINCT session_key) AS keys, sum(amount) AS a, max(\"timestamp\") AS last",
        ];
        TABLES
            .iter()
            .zip(columns)
            .flat_map(|(table, sums)| self.query(&format!("SELECT {sums} FROM {table}")))
            .collect()
    }
}

/// Every figure of an `expected.json`, by SQL.
fn check_figures(warehouse: &Warehouse, expected: &Value) {
    for (name, rows) in expected["rows"].as_object().unwrap() {
        let table = TABLES.iter().find(|table| table.ends_with(&format!(".{name}")));
        let sql = match (table, name.as_str()) {
            (Some(table), _) => format!("SELECT count(*) AS a FROM {table}"),
            (None, "purchase_items") => {
                "SELECT count(*) AS a FROM (SELECT unnest(items) FROM clickstream_dw.purchase_events)".into()
            }
            _ => continue,
        };
        assert_eq!(warehouse.one(&sql), *rows, "{name}");
    }
    let keys = warehouse.query("SELECT session_key AS a FROM clickstream_dw.sessions ORDER BY session_key");
    let keys: Vec<_> = keys.iter().map(|row| row["a"].as_str().unwrap()).collect();
    let sha256 = shared::event::hex(&Sha256::digest(keys.join("\n")));
    assert_eq!(sha256, expected["sha256_of_sorted_session_keys"]);
    let money = |sum: &str| format!("CAST(CAST({sum} AS DECIMAL(38, 2)) AS VARCHAR)");
    let purchases = "FROM clickstream_dw.purchase_events";
    let items = format!("FROM (SELECT unnest(items) AS item {purchases})");
    let events = ["pageview", "addtocart", "purchase"]
        .map(|name| format!("SELECT \"timestamp\" AS t FROM clickstream_dw.{name}_events"))
        .join(" UNION ALL ");
    let time = |of: &str| format!("SELECT CAST({of}(t) AS VARCHAR) AS a FROM ({events})");
    let seconds = |value: Value| value.as_str().unwrap()[..19].replace(' ', "T");
    assert_eq!(
        warehouse.one("SELECT count(DISTINCT session_key) AS a FROM clickstream_dw.sessions"),
        expected["distinct_session_keys"]
    );
    assert_eq!(
        warehouse.one(&format!("SELECT {} AS a {purchases}", money("sum(amount)"))),
        expected["sum_purchase_amount"]
    );
    // To the cent: there is nothing below it.
    assert_eq!(
        warehouse.one(&format!("SELECT count(*) AS a {purchases} WHERE amount <> CAST(amount AS DECIMAL(38, 2))")),
        0
    );
    assert_eq!(
        warehouse.one("SELECT sum(quantity) AS a FROM clickstream_dw.addtocart_events"),
        expected["sum_cart_quantity"]
    );
    assert_eq!(seconds(warehouse.one(&time("min"))), expected["first_event"].as_str().unwrap());
    assert_eq!(seconds(warehouse.one(&time("max"))), expected["last_event"].as_str().unwrap());
    let groups = [
        (
            "visits_by_device_type",
            "SELECT device_type AS k, count(*) AS a FROM clickstream_dw.sessions GROUP BY 1".to_string(),
        ),
        (
            "page_views_by_url",
            "SELECT page_url AS k, count(*) AS a FROM clickstream_dw.pageview_events GROUP BY 1".into(),
        ),
        (
            "sales_by_category",
            format!(
                "SELECT item['category'] AS k, {} AS a {items} GROUP BY 1",
                money("sum(item['price'] * item['quantity'])")
            ),
        ),
    ];
    for (name, sql) in groups {
        assert_eq!(warehouse.groups(&sql), expected[name], "{name}");
    }
    if let Some(as_it_came) = expected["sum_purchase_amount_as_in_the_input"].as_str() {
        let amounts = warehouse.query(
            "SELECT CAST(amount AS VARCHAR) AS a FROM (SELECT e['event']['details']['amount'] AS amount
                FROM (SELECT unnest(events) AS e FROM clickstream_lake.visits)) WHERE amount IS NOT NULL",
        );
        let sum: i128 = amounts.iter().map(|row| scaled(row["a"].as_str().unwrap())).sum();
        assert_eq!(sum, scaled(as_it_came));
    }
}

/// A decimal number times 10^20.
fn scaled(number: &str) -> i128 {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    format!("{whole}{decimals:0<20}").parse().unwrap()
}

fn expected(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap()
}

#[test]
fn every_expected_figure_is_met() {
    for folder in [Some(sample()), real()].into_iter().flatten() {
        let warehouse = Warehouse::new();
        let expected = expected(&folder);

        let report = warehouse.load(&folder, &[]);

        for (name, rows) in report["rows"].as_object().unwrap() {
            assert_eq!(*rows, expected["rows"][name], "{name}");
        }
        assert_eq!(report["rows"].as_object().unwrap().len(), 5);
        assert_eq!(report["dead_letters"], 0);
        assert_eq!(report["findings"].get("amount_differs"), None, "{report}");
        assert!(report["seconds"].as_f64().unwrap() > 0.0);
        check_figures(&warehouse, &expected);

        // Once more: the rows take the place of those that are there.
        warehouse.load(&folder, &["--force-recreate"]);
        check_figures(&warehouse, &expected);
    }
}

#[test]
fn a_run_that_fails_leaves_the_tables_and_says_why() {
    let warehouse = Warehouse::new();
    warehouse.load(&sample(), &[]);
    let before = warehouse.fingerprint();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let line = std::fs::read_to_string(sample().join("visits-2025-01-31.jsonl")).unwrap();
    let cases: [(PathBuf, &[&str], i32, &str); 6] = [
        (folder.path().join("nothing"), &[], 2, "nothing was changed"),
        (file("empty.jsonl", ""), &[], 2, "is empty"),
        (file("bad.jsonl", "nonsense\n"), &[], 1, "not one of 1 lines could be used"),
        (
            file("some.jsonl", &format!("{line}nonsense\n")),
            &["--max-dead-letters", "0"],
            1,
            "1 dead letters of 11 lines",
        ),
        (sample(), &["--resume"], 2, "no run that was stopped"),
        (sample(), &["--max-dead-letters", "some"], 2, "give a number, or a share"),
    ];
    for (source, more, code, reason) in cases {
        let output = warehouse.backfill(&source, more);
        let error = text(&output.stderr);
        assert_eq!((output.status.code(), error.contains(reason)), (Some(code), true), "{source:?}: {error}");
    }
    assert_eq!(warehouse.fingerprint(), before);

    let report = warehouse.load(&folder.path().join("some.jsonl"), &["--append"]);
    assert_eq!((&report["dead_letters"], &report["rows"]["visits"]), (&json!(1), &json!(10)));
    let letters = warehouse.query("SELECT reason, stage, source, line, byte_offset, raw FROM contextflow.dead_letters");
    assert_eq!(letters.len(), 1);
    assert_eq!(
        (&letters[0]["reason"], &letters[0]["line"], &letters[0]["raw"]),
        (&json!("bad_json"), &json!(11), &json!("nonsense"))
    );
    assert_eq!(letters[0]["byte_offset"], line.len());
    let again = warehouse.load(&folder.path().join("some.jsonl"), &["--append"]);
    assert!(again["remarks"][0].as_str().unwrap().contains("skipped"), "{again}");
    assert_eq!(warehouse.counts()[0], 30);
}

#[test]
fn without_permission_nothing_changes() {
    let Some(setpriv) = program_in_path("setpriv") else { return println!("skipped: no setpriv") };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.jsonl");
    std::fs::copy(sample().join("visits-2025-01-31.jsonl"), &file).unwrap();
    let mut closed = std::fs::metadata(&file).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut closed, 0);
    std::fs::set_permissions(&file, closed).unwrap();
    let warehouse = Warehouse::new();
    let mut open = std::fs::metadata(warehouse.0.path()).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut open, 0o777);
    std::fs::set_permissions(warehouse.0.path(), open.clone()).unwrap();
    std::fs::set_permissions(folder.path(), open).unwrap();
    // The file is met while it is read, or named and refused at once.
    for (source, code) in [(folder.path(), 1), (&file, 2)] {
        // The tests may be run by root, whom nothing is closed to.
        let output = Command::new(&setpriv)
            .args(["--reuid=65534", "--clear-groups"])
            .arg(binary())
            .args(warehouse.arguments(source, &[]))
            .output()
            .unwrap();
        let error = text(&output.stderr);
        if error.contains("setpriv") {
            return println!("skipped: {error}");
        }
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains("a.jsonl") && error.contains("denied"), "{error}");
    }
}

/// So many times the sample's visits, in files of a few days.
fn many(times: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let day = std::fs::read_to_string(sample().join("visits-2025-02-01.jsonl")).unwrap();
    for file in 0..4 {
        let lines: String = (0..times / 4).map(|copy| day.replace("\"S-", &format!("\"S-{file}-{copy}-"))).collect();
        std::fs::write(folder.path().join(format!("visits-{file}.jsonl")), lines + "nonsense\n").unwrap();
    }
    folder
}

#[test]
fn a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one() {
    let source = many(2_000);
    let more = ["--checkpoint-bytes", "500000"];
    let undisturbed = Warehouse::new();
    let started = Instant::now();
    undisturbed.load(source.path(), &more);
    let whole = started.elapsed();
    let warehouse = Warehouse::new();
    warehouse.load(&sample(), &[]);
    let (before, after) = (warehouse.counts(), undisturbed.counts());
    let is_over = AtomicBool::new(false);

    let kills = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !is_over.load(Ordering::Relaxed) {
                let seen = warehouse.counts();
                assert!(seen == before || seen == after, "{seen:?} is neither {before:?} nor {after:?}");
                looks += 1;
            }
            looks
        });
        let mut kills = 0;
        let mut began = false;
        loop {
            // Every moment of the run is as likely as any other.
            let moment = whole.mul_f64(f64::from(kills % 7 + 1) / 8.0);
            let resume: &[&str] = if began { &["--resume"] } else { &[] };
            let mut child = warehouse.start(source.path(), &[&more[..], resume].concat());
            std::thread::sleep(moment + Duration::from_millis(u64::from(std::process::id() % 50)));
            let ended = child.try_wait().unwrap();
            if ended.is_none() && kills < 10 {
                child.kill().unwrap();
                kills += 1;
            }
            let output = child.wait_with_output().unwrap();
            let error = text(&output.stderr);
            if output.status.success() || (began && error.contains("no run that was stopped")) {
                break;
            }
            assert_ne!(output.status.code(), Some(1), "{error}");
            let records = warehouse.0.path().join("backfill/runs");
            began = std::fs::read_dir(records).is_ok_and(|runs| {
                runs.map(|run| std::fs::read_to_string(run.unwrap().path()).unwrap()).any(|run| {
                    run.contains("\"loading\"") || run.contains("\"publishing\"") || run.contains("\"shown\"")
                })
            });
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 0);
        kills
    });

    println!("{kills} kills");
    assert!(kills > 0);
    assert_eq!(warehouse.counts(), after);
    assert_eq!(warehouse.fingerprint(), undisturbed.fingerprint());
    let letters = "SELECT count(DISTINCT dead_letter_id) AS a FROM contextflow.dead_letters";
    assert_eq!(warehouse.one(letters), 4);
}

#[test]
fn of_two_runs_at_once_the_second_is_refused() {
    let source = many(4_000);
    let warehouse = Warehouse::new();
    let mut first = warehouse.start(source.path(), &[]);
    let lock = warehouse.0.path().join("backfill/backfill.lock");
    while !std::fs::read_to_string(&lock).is_ok_and(|owner| owner.contains("since")) {
        assert!(first.try_wait().unwrap().is_none(), "the first run is over before the second began");
        std::thread::sleep(Duration::from_millis(5));
    }

    let second = warehouse.backfill(&sample(), &[]);

    let error = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{error}");
    assert!(error.contains("another process") || error.contains("is at work"), "{error}");
    assert!(first.wait_with_output().unwrap().status.success());
    assert_eq!(warehouse.counts()[0], 40_000);
}

#[test]
fn a_disk_that_gets_full_in_the_middle_leaves_the_old_tables() {
    let Some(shell) = program_in_path("bash") else { return println!("skipped: no bash") };
    let source = many(4_000);
    let warehouse = Warehouse::new();
    warehouse.load(&sample(), &[]);
    let before = warehouse.fingerprint();

    // No file may grow past 100 blocks of 1 KiB.
    let output = Command::new(shell)
        .args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$0\" \"$@\""])
        .arg(binary())
        .args(warehouse.arguments(source.path(), &[]))
        .output()
        .unwrap();

    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("too large"), "{error}");
    assert_eq!(warehouse.fingerprint(), before);
}

#[test]
fn history_of_a_streams_type_lands_enriched_and_the_archive_makes_it_anew() {
    let folder = tempfile::tempdir().unwrap();
    let event = |user: &str, time: &str| json!({"userId": user, "eventName": "page_view", "eventTimestamp": time, "ipAddress": "8.8.8.8", "pageUrl": "/"});
    // Long before the stream's time window.
    let lines = [event("u1", "2009-05-01T00:00:00Z"), event("u2", "2009-06-01T00:00:00Z"), json!({"userId": "u3"})];
    let file = folder.path().join("history.jsonl");
    std::fs::write(&file, lines.map(|line| line.to_string()).join("\n")).unwrap();
    let warehouse = Warehouse::new();

    let history = ["--type", "clickstream", "--append"];

    let report = warehouse.load(&file, &history);

    assert_eq!((&report["rows"]["clickstream_events"], &report["dead_letters"]), (&json!(2), &json!(1)));
    let sql = "SELECT user_id, country, event_id, schema_version FROM contextflow.clickstream_events ORDER BY 1";
    let rows = warehouse.query(sql);
    assert!(rows.iter().all(|row| row["country"].as_str().is_some_and(|country| country != "Unknown")), "{rows:?}");
    let refused = warehouse.backfill(&file, &["--type", "clickstream"]);
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
    assert_eq!(warehouse.query(sql), rows, "what a stream has brought is not replaced by a file");
    let other = Warehouse::new();
    other.load(&file, &history);
    assert_eq!(other.query(sql), rows, "an event has the same identity when it is loaded again");

    // As the batcher archives it, with one row twice.
    let row = |user: &str, day: &str| {
        json!({"user_id": user, "event_name": "page_view", "event_timestamp": format!("{day}T01:00:00Z"), "event_id": user,
               "received_at": format!("{day}T01:00:01Z"), "schema_version": "1-0-0"})
    };
    let archive = warehouse.0.path().join("bucket/clickstream");
    let put = |name: &str, rows: &[Value]| {
        use std::io::Write as _;
        let path = archive.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut packed =
            flate2::write::GzEncoder::new(std::fs::File::create(path).unwrap(), flate2::Compression::fast());
        for row in rows {
            writeln!(packed, "{row}").unwrap();
        }
        packed.finish().unwrap();
    };
    put("2026/10/20/01/00/a.jsonl.gz", &[row("a", "2026-10-20"), row("b", "2026-10-20")]);
    put("2026/10/21/01/00/b.jsonl.gz", &[row("c", "2026-10-21")]);
    put("late/2026/10/22/01/00/c.jsonl.gz", &[row("b", "2026-10-20"), row("d", "2026-10-21"), row("e", "2026-10-22")]);
    let archive = Path::new("archive");
    let users = "SELECT string_agg(user_id, '' ORDER BY user_id) AS a FROM contextflow.clickstream_events";

    let report = warehouse.load(archive, &["--type", "clickstream"]);
    assert_eq!((&report["rows"]["clickstream_events"], &report["duplicates"]), (&json!(5), &json!(1)));
    assert_eq!(warehouse.one(users), "abcde");

    warehouse.load(&file, &history);
    let days = ["--type", "clickstream", "--from-day", "2026-10-20", "--to-day", "2026-10-21"];
    for _ in 0..2 {
        warehouse.load(archive, &days);
        assert_eq!(warehouse.one(users), "abcdeu1u2", "two days are made anew, the others stay");
    }
    let only_last = ["--type", "clickstream", "--append", "--from-day", "2026-10-22"];
    warehouse.load(archive, &only_last);
    assert_eq!(warehouse.one(users), "abcdeeu1u2", "an append does not look at what is there");
    let refused = warehouse.backfill(archive, &[&days[..], &["--force-recreate"]].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", text(&refused.stderr));
}

#[test]
fn a_streams_table_is_not_replaced_while_its_rows_wait_for_the_archive() {
    let mut dev = Dev::start(&[]);
    dev.publish(Some(&json!({"event_id": "e1", "event_name": "click"})));
    let count = "SELECT count(*) AS n FROM clickstream_events";
    let one = [json!({"n": 1})];
    dev.wait_for(count, |rows| rows == one);
    let data = dev.data().display().to_string();
    let replace = || run(["backfill", "--source", "archive", "--type", "clickstream", "--data-dir", &data]);
    let refusal = |reason: &str| {
        let output = replace();
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(reason), "{error}");
    };
    refusal("another process writes to this warehouse; stop it");
    // Before the ten seconds of the archive's window are over.
    dev.kill();
    refusal("1 messages in ");
    refusal("start `contextflow dev` on it until");
    assert_eq!(dev.query(count), one);

    dev.start_again();
    dev.interrupt();
    let output = replace();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(dev.query(count), one);
}
