//! The `BigQuery` sink against a Storage Write server that fails as told.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::join_all;
use pipeline_tests::proxy::Proxy;
use pipeline_tests::storage_write::{Act, StorageWrite};
use pipeline_tests::{NOW, built_in};
use shared::clock::{Clock, SECOND};
use shared::decode::Code as Fault;
use shared::schema::Plan;
use shared::settings::Settings;
use shared::sink::bigquery::{BigQuerySink, Options, Token, TokenSource, Tokens};
use shared::sink::contract::{self, batch, click, values};
use shared::sink::{Outcome, Sink};
use tonic::Code;

const QUICK: Options = Options {
    in_flight: 4,
    answer_within: Duration::from_secs(5),
    tries: 4,
    pause: Duration::from_millis(1),
    give_up_after: Duration::from_secs(30),
};

fn settings(server: &StorageWrite) -> Settings {
    Settings::from_iter([("GOOGLE_CLOUD_PROJECT", "example.com:p"), ("BIGQUERY_GRPC_ENDPOINT", &server.url)])
}

fn sink(server: &StorageWrite, options: Options) -> BigQuerySink {
    BigQuerySink::with(&settings(server), None, options, Clock::manual(NOW)).unwrap()
}

fn clicks() -> Arc<Plan> {
    Arc::clone(built_in().get("clickstream").unwrap())
}

/// Appends clicks by their numbers.
async fn append(sink: &BigQuerySink, numbers: std::ops::Range<usize>) -> Vec<Outcome> {
    sink.append(&batch(&clicks(), numbers.map(click))).await
}

/// That exactly these clicks have landed, each once.
fn assert_landed(server: &StorageWrite, numbers: impl Iterator<Item = usize>) {
    let expected: Vec<_> = numbers.map(|number| Bytes::from(click(number))).collect();
    assert_eq!(values(&clicks(), &server.rows(&clicks())), values(&clicks(), &expected));
}

fn detail(outcome: &Outcome) -> (Fault, &str) {
    let Outcome::Poison(reason) = outcome else { panic!("{outcome:?}") };
    (reason.code, &reason.detail)
}

#[tokio::test]
async fn it_keeps_the_contract_of_a_sink() {
    let server = Arc::new(StorageWrite::start().await);
    let sink = BigQuerySink::new(&settings(&server), Clock::system()).unwrap();
    let tables = Arc::clone(&server);
    contract::holds(Arc::new(sink), move |plan: Arc<Plan>| std::future::ready(tables.rows(&plan))).await;
    assert_eq!(server.calls(), 4, "one stream a table");
    let route =
        "write_stream=projects%2Fexample.com%3Ap%2Fdatasets%2Fbackend_events%2Ftables%2Forders%2Fstreams%2F_default";
    assert!(server.routes().iter().any(|seen| seen == route), "{:?}", server.routes());
    assert!(server.tokens_seen().iter().all(Option::is_none));
}

#[tokio::test]
async fn loaded_at_is_the_time_of_the_batch() {
    let server = StorageWrite::start().await;
    append(&sink(&server, QUICK), 0..1).await;
    let row: serde_json::Value = serde_json::from_slice(&server.rows(&clicks())[0]).unwrap();
    assert_eq!(row["loaded_at"], "2026-10-20T00:15:02.920Z");
}

#[tokio::test]
async fn rows_that_are_named_as_bad_cost_themselves_alone() {
    let server = StorageWrite::start().await;
    server.name_bad_rows(&["click-3", "click-7", "click-99"]);
    let started = Instant::now();
    let sink = sink(&server, Options { pause: Duration::from_mins(1), ..QUICK });
    let outcomes = append(&sink, 0..100).await;
    assert!(started.elapsed() < Duration::from_secs(20), "the others are sent again at once");
    for (number, outcome) in outcomes.iter().enumerate() {
        match number {
            3 | 7 | 99 => {
                let words = format!("BigQuery: Field event_id of click-{number} is bad.");
                assert_eq!(detail(outcome), (Fault::Refused, words.as_str()));
            }
            _ => assert_eq!(*outcome, Outcome::Done, "{number}"),
        }
    }
    assert_landed(&server, (0..100).filter(|number| ![3, 7, 99].contains(number)));
    assert_eq!(server.came().iter().map(|came| came.rows).collect::<Vec<_>>(), [100, 97]);
    assert_eq!(server.calls(), 1, "the stream goes on");
}

#[tokio::test]
async fn a_request_that_is_refused_as_a_whole_is_halved_until_the_culprit_stands_alone() {
    let server = StorageWrite::start().await;
    server.refuse_requests_with(&["click-0", "click-61"]);
    let outcomes = append(&sink(&server, QUICK), 0..100).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        match number {
            0 | 61 => {
                assert_eq!(detail(outcome), (Fault::Refused, "BigQuery: Something in the request is wrong."));
            }
            _ => assert_eq!(*outcome, Outcome::Done, "{number}"),
        }
    }
    assert_landed(&server, (0..100).filter(|number| ![0, 61].contains(number)));
    assert!(server.came().len() < 40, "{} requests", server.came().len());
}

#[tokio::test]
async fn a_request_that_is_refused_once_is_sent_again_as_a_whole_on_a_new_connection() {
    let server = StorageWrite::start().await;
    server.then([Act::Refuse(Code::InvalidArgument)]);
    assert_eq!(append(&sink(&server, QUICK), 0..100).await, vec![Outcome::Done; 100]);
    assert_landed(&server, 0..100);
    assert_eq!(server.came().iter().map(|came| came.rows).collect::<Vec<_>>(), [100, 100]);
    assert_eq!(server.calls(), 2);
}

#[tokio::test]
async fn a_table_that_refuses_every_row_makes_no_dead_letters_for_ten_minutes() {
    for rows in [1, 500] {
        let server = StorageWrite::start().await;
        let clock = Clock::manual(NOW);
        let sink = BigQuerySink::with(&settings(&server), None, QUICK, clock.clone()).unwrap();
        server.then(vec![Act::Refuse(Code::InvalidArgument); 3_000]);
        let words = format!(
            "{}: BigQuery takes no row: told to refuse; see `contextflow schema diff`",
            clicks().table.full_name()
        );
        for now in [NOW, NOW + 599 * SECOND] {
            clock.set(now);
            let before = server.came().len();
            assert_eq!(append(&sink, 0..rows).await, vec![Outcome::Retry(words.clone()); rows]);
            let requests = server.came().len() - before;
            assert!(requests <= 130, "{requests} requests for {rows} rows");
        }
        clock.set(NOW + 600 * SECOND);
        assert_eq!(detail(&append(&sink, 0..1).await[0]), (Fault::Refused, "BigQuery: told to refuse"));
    }
}

#[tokio::test]
async fn rows_that_are_refused_again_are_dead_letters_once_the_table_has_taken_others() {
    let server = StorageWrite::start().await;
    let clock = Clock::manual(NOW);
    let sink = BigQuerySink::with(&settings(&server), None, QUICK, clock.clone()).unwrap();
    server.refuse_requests_with(&["click-0", "click-1"]);
    for now in [NOW, NOW + 900 * SECOND] {
        clock.set(now);
        assert!(append(&sink, 0..2).await.iter().all(|outcome| matches!(outcome, Outcome::Retry(_))));
    }
    assert_eq!(append(&sink, 5..6).await, [Outcome::Done]);
    for outcome in append(&sink, 0..2).await {
        assert_eq!(detail(&outcome).0, Fault::Refused);
    }
    // What was refused long ago says nothing of a table that refuses now.
    clock.set(NOW + 3_600 * SECOND);
    assert!(matches!(append(&sink, 0..1).await[..], [Outcome::Retry(_)]));
}

#[tokio::test]
async fn a_table_of_another_form_is_for_an_operator_to_mend() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    server.make_integers(&["country"]);
    let words = format!(
        "{}: the column `country` is INT64 in the table, STRING in the schema; see `contextflow schema diff` (BigQuery: \
         The proto field mismatched with BigQuery field at country.)",
        clicks().table.full_name()
    );
    assert_eq!(append(&sink, 0..50).await, vec![Outcome::Retry(words); 50]);
    assert!(server.came().iter().all(|came| came.rows == 50), "nothing is halved");
    server.make_integers(&[]);
    assert_eq!(append(&sink, 0..50).await, vec![Outcome::Done; 50]);
}

/// BigQuery knows whether rows are there only where they have an offset.
#[tokio::test]
async fn already_exists_on_a_default_stream_is_no_success() {
    let server = StorageWrite::start().await;
    for act in [Act::Refuse(Code::AlreadyExists), Act::End(Code::AlreadyExists)] {
        server.then([act]);
        let before = server.rows(&clicks()).len();
        assert_eq!(append(&sink(&server, QUICK), 0..10).await, vec![Outcome::Done; 10]);
        assert_eq!(server.rows(&clicks()).len(), before + 10, "{act:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_has_died_silently_is_replaced() {
    let server = StorageWrite::start().await;
    let proxy = Proxy::before(&server.url).await;
    let settings =
        Settings::from_iter([("GOOGLE_CLOUD_PROJECT", "example.com:p"), ("BIGQUERY_GRPC_ENDPOINT", &proxy.url)]);
    let clock = Clock::manual(NOW);
    let open = |options| BigQuerySink::with(&settings, None, options, clock.clone()).unwrap();

    // Without a sign: what gets no answer is sent again on a new channel.
    let sink = open(Options { answer_within: Duration::from_millis(300), ..QUICK });
    assert_eq!(append(&sink, 0..1).await, [Outcome::Done]);
    proxy.fall_silent();
    assert_eq!(append(&sink, 1..2).await, [Outcome::Done]);
    assert_eq!(proxy.accepted(), 2);
    proxy.fall_silent();
    assert!(sink.ready().await.is_err());
    assert_eq!(sink.ready().await, Ok(()));

    // After more than four minutes without an answer: the old one is not tried.
    let sink = open(Options { answer_within: Duration::from_mins(5), give_up_after: Duration::from_mins(5), ..QUICK });
    assert_eq!(append(&sink, 2..3).await, [Outcome::Done]);
    let before = proxy.accepted();
    clock.set(NOW + 240 * SECOND);
    assert_eq!(append(&sink, 3..4).await, [Outcome::Done]);
    assert_eq!(proxy.accepted(), before);
    proxy.fall_silent();
    clock.set(NOW + 481 * SECOND);
    let appended = tokio::time::timeout(Duration::from_secs(30), append(&sink, 4..5)).await;
    assert_eq!(appended.expect("the old channel is not tried"), [Outcome::Done]);
    assert_landed(&server, 0..5);
}

#[tokio::test]
async fn what_may_pass_is_tried_again_with_the_same_rows() {
    for act in [
        Act::Refuse(Code::ResourceExhausted),
        Act::Refuse(Code::Aborted),
        Act::Refuse(Code::Internal),
        Act::End(Code::Unavailable),
        Act::End(Code::Unauthenticated),
        Act::Reset,
        Act::GoAway,
    ] {
        let server = StorageWrite::start().await;
        let sink = sink(&server, QUICK);
        assert_eq!(append(&sink, 0..10).await, vec![Outcome::Done; 10]);
        server.then([act, act]);
        assert_eq!(append(&sink, 10..20).await, vec![Outcome::Done; 10], "{act:?}");
        assert_landed(&server, 0..20);
        assert_eq!(server.calls(), 3, "{act:?}: a new stream each time");
    }
}

#[tokio::test]
async fn a_burst_that_outlasts_the_tries_is_left_to_the_caller() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    server.then([Act::Refuse(Code::ResourceExhausted); 4]);
    let words = format!("{}: ResourceExhausted: told to refuse", clicks().table.full_name());
    assert_eq!(append(&sink, 0..2).await, vec![Outcome::Retry(words); 2]);
    assert_eq!(server.came().len(), 4);
    assert_eq!(append(&sink, 0..2).await, vec![Outcome::Done; 2]);
    assert_landed(&server, 0..2);
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_slept_costs_no_try() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, Options { tries: 1, ..QUICK });
    server.then([Act::TakeAndEnd(Code::Aborted)]);
    assert!(matches!(append(&sink, 0..1).await[0], Outcome::Retry(_)), "it has landed, but nobody said so");
    assert_eq!(append(&sink, 1..2).await, [Outcome::Done]);
    assert_landed(&server, 0..2);
}

#[tokio::test]
async fn slow_answers_hold_up_nothing_but_their_stream() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    server.then([Act::TakeAfter(Duration::from_secs(2)); 3]);
    let started = Instant::now();
    let appends = join_all((0..3).map(|part| append(&sink, part * 10..part * 10 + 10))).await;
    assert!(appends.into_iter().flatten().all(|outcome| outcome == Outcome::Done));
    assert!(started.elapsed() >= Duration::from_secs(6), "the answers of one stream come one after the other");
    // The last waits for longer than an answer may take: those before it were answered meanwhile.
    assert_eq!((server.came().len(), server.calls()), (3, 1));
    assert_landed(&server, 0..30);
}

#[tokio::test]
async fn an_answer_that_never_comes_is_not_waited_for() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, Options { answer_within: Duration::from_millis(200), ..QUICK });
    server.then([Act::Silence]);
    assert_eq!(append(&sink, 0..5).await, vec![Outcome::Done; 5]);
    assert_eq!(server.calls(), 2);
    server.then([Act::Silence; 4]);
    let outcomes = append(&sink, 5..6).await;
    assert!(matches!(&outcomes[0], Outcome::Retry(reason) if reason.contains("no answer")), "{outcomes:?}");
}

#[tokio::test]
async fn an_append_ends_in_time_and_says_what_has_landed() {
    let server = StorageWrite::start().await;
    server.refuse_requests_with(&["click-0"]);
    let sink = sink(&server, Options { give_up_after: Duration::from_millis(500), ..QUICK });
    // The whole, twice; its halves; the rows of the first one, of which the second is never answered.
    server.then([Act::Take, Act::Take, Act::Take, Act::Take, Act::Take, Act::Silence]);
    let outcomes = append(&sink, 0..4).await;
    let late = format!("{}: no answer in time", clicks().table.full_name());
    assert_eq!(detail(&outcomes[0]).0, Fault::Refused);
    assert_eq!(outcomes[1..], [Outcome::Retry(late), Outcome::Done, Outcome::Done]);
}

#[tokio::test]
async fn requests_in_flight_are_bounded() {
    let server = StorageWrite::start().await;
    let sink = Arc::new(sink(&server, Options { in_flight: 2, ..QUICK }));
    server.then([Act::TakeAfter(Duration::from_millis(300))]);
    let appends: Vec<_> = (0..20)
        .map(|number| {
            let sink = Arc::clone(&sink);
            tokio::spawn(async move { append(&sink, number..number + 1).await })
        })
        .collect();
    for append in appends {
        assert_eq!(append.await.unwrap(), [Outcome::Done]);
    }
    assert_landed(&server, 0..20);
    assert_eq!(server.calls(), 1);
}

#[tokio::test]
async fn large_batches_go_in_requests_that_bigquery_takes() {
    let server = StorageWrite::start().await;
    let plan = Arc::clone(built_in().get("dead_letter").unwrap());
    let letter = |number: usize, size: usize| {
        let raw = "x".repeat(size);
        format!(
            r#"{{"dead_letter_id":"{number}","reason":"refused","stage":"enricher","raw":"{raw}","failed_at":"2026-10-20T00:15:03Z"}}"#
        )
    };
    let rows = (0..30).map(|number| letter(number, if number == 20 { 9_000_000 } else { 800_000 }));
    let outcomes = sink(&server, QUICK).append(&batch(&plan, rows)).await;
    for (number, outcome) in outcomes.iter().enumerate() {
        match number {
            20 => assert_eq!(detail(outcome).0, Fault::TooLarge),
            _ => assert_eq!(*outcome, Outcome::Done, "{number}"),
        }
    }
    assert_eq!(server.rows(&plan).len(), 29);
    assert_eq!(server.came().len(), 3);
    assert!(server.came().iter().all(|came| came.bytes < 9_100_000), "{:?}", server.came());
}

/// A click without a value in `country`.
fn without_country(number: usize) -> String {
    click(number).replace(r#""country":"DE","#, "")
}

#[tokio::test]
async fn a_column_that_the_table_lacks_is_waited_for_ten_minutes_and_then_costs_the_rows_with_a_value_in_it() {
    let server = StorageWrite::start().await;
    let clock = Clock::manual(NOW);
    let sink = BigQuerySink::with(&settings(&server), None, QUICK, clock.clone()).unwrap();
    server.drop_columns(&["country"]);
    let plan = clicks();
    let words =
        format!("the table {} lacks the column `country`; run `contextflow schema apply`", plan.table.full_name());
    let rows = || [click(0), without_country(1), click(2), without_country(3)];
    let retry = || Outcome::Retry(words.clone());
    // The rows without a value land whenever they come; the time of the first notice counts, however often BigQuery is asked.
    for now in [NOW, NOW + 61 * SECOND, NOW + 599 * SECOND] {
        clock.set(now);
        let outcomes = sink.append(&batch(&plan, rows())).await;
        assert_eq!(outcomes, [retry(), Outcome::Done, retry(), Outcome::Done]);
    }
    clock.set(NOW + 600 * SECOND);
    for (number, outcome) in sink.append(&batch(&plan, rows())).await.iter().enumerate() {
        match number {
            0 | 2 => assert_eq!(detail(outcome), (Fault::MissingColumn, format!("{words}, then replay").as_str())),
            _ => assert_eq!(*outcome, Outcome::Done, "{number}"),
        }
    }
    assert_eq!(server.rows(&plan).len(), 8);
    // Once known, nothing is refused any more.
    let before = server.came().len();
    assert_eq!(sink.append(&batch(&plan, [without_country(4)])).await, [Outcome::Done]);
    assert_eq!(server.came().len(), before + 1);
    // An answer tells of the new column: a replay lands.
    server.add_columns();
    assert_eq!(sink.append(&batch(&plan, [without_country(5)])).await, [Outcome::Done]);
    assert_eq!(sink.append(&batch(&plan, [click(0), click(2)])).await, vec![Outcome::Done; 2]);
    assert_eq!(server.rows(&plan).len(), 12);
    // The next change has its own ten minutes.
    server.drop_columns(&["country"]);
    assert_eq!(append(&sink, 0..1).await, [retry()]);
}

/// The service tells an old schema for minutes, and refuses by the new one.
#[tokio::test]
async fn a_column_that_only_the_refusal_names_is_left_out_as_well() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    server.drop_columns(&["country"]);
    server.tell_the_old_schema();
    let outcomes = sink.append(&batch(&clicks(), [click(0), without_country(1)])).await;
    assert!(matches!(&outcomes[0], Outcome::Retry(reason) if reason.contains("`country`")), "{outcomes:?}");
    assert_eq!(outcomes[1], Outcome::Done);
}

#[tokio::test]
async fn a_field_of_a_record_that_the_table_lacks_is_named() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    server.drop_columns(&["items.price", "items.quantity"]);
    let plan = Arc::clone(built_in().get("order").unwrap());
    let order = |items: &str| format!(r#"{{"order_id":"o","items":[{items}],"event_id":"e"}}"#);
    let rows = [order(r#"{"product_id":"p"}"#), order(r#"{"product_id":"p"},{"quantity":1}"#)];
    let outcomes = sink.append(&batch(&plan, rows)).await;
    assert_eq!(outcomes[0], Outcome::Done);
    assert!(matches!(&outcomes[1], Outcome::Retry(reason) if reason.contains("`items.quantity`")), "{outcomes:?}");
}

#[tokio::test]
async fn lacking_columns_are_asked_for_again_after_a_while() {
    let server = StorageWrite::start().await;
    let clock = Clock::manual(NOW);
    let sink = BigQuerySink::with(&settings(&server), None, QUICK, clock.clone()).unwrap();
    server.drop_columns(&["country"]);
    assert!(matches!(append(&sink, 0..1).await[0], Outcome::Retry(_)));
    server.drop_columns(&[]);
    assert!(matches!(append(&sink, 0..1).await[0], Outcome::Retry(_)));
    clock.set(NOW + 61 * SECOND);
    assert_eq!(append(&sink, 0..1).await, [Outcome::Done]);
}

#[tokio::test]
async fn a_table_that_is_not_there_is_waited_for() {
    let server = StorageWrite::start().await;
    let sink = sink(&server, QUICK);
    let table = clicks().table.full_name();
    server.drop_table(&table);
    let words = format!("the table {table} does not exist; run `contextflow schema apply`");
    assert_eq!(append(&sink, 0..2).await, vec![Outcome::Retry(words); 2]);
    server.create_table(&table);
    assert_eq!(append(&sink, 0..2).await, vec![Outcome::Done; 2]);
    server.drop_table("contextflow.dead_letters");
    let reason = "the table contextflow.dead_letters does not exist; run `contextflow schema apply`";
    assert_eq!(sink.ready().await, Err(reason.to_string()));
}

#[tokio::test]
async fn a_server_that_is_away_is_not_ready() {
    let away = Settings::from_iter([
        ("GOOGLE_CLOUD_PROJECT", "p".to_string()),
        ("BIGQUERY_GRPC_ENDPOINT", format!("http://127.0.0.1:{}", pipeline_tests::parts::free_port())),
    ]);
    let sink = BigQuerySink::with(&away, None, QUICK, Clock::system()).unwrap();
    assert!(sink.ready().await.unwrap_err().contains("Unavailable"));
    assert!(matches!(append(&sink, 0..1).await[0], Outcome::Retry(_)));
}

/// Tokens `token-0`, `token-1`, … that live 100 s.
struct Numbered {
    made: Arc<AtomicU32>,
    clock: Clock,
}

#[async_trait]
impl TokenSource for Numbered {
    async fn fetch(&self) -> Result<Token, String> {
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        Ok(Token { secret: format!("token-{number}"), expires_at: self.clock.now() + 100 * SECOND })
    }
}

fn with_tokens(server: &StorageWrite, clock: &Clock) -> (BigQuerySink, Arc<AtomicU32>) {
    let made = Arc::new(AtomicU32::new(0));
    let tokens = Tokens::new(Numbered { made: Arc::clone(&made), clock: clock.clone() }, clock.clone());
    (BigQuerySink::with(&settings(server), Some(tokens), QUICK, clock.clone()).unwrap(), made)
}

#[tokio::test]
async fn the_stream_is_opened_anew_before_its_token_expires() {
    let server = StorageWrite::start().await;
    let clock = Clock::manual(NOW);
    let (sink, made) = with_tokens(&server, &clock);
    server.accept_only("token-0");
    assert_eq!(append(&sink, 0..1).await, [Outcome::Done]);
    clock.set(NOW + 74 * SECOND);
    assert_eq!(append(&sink, 1..2).await, [Outcome::Done]);
    clock.set(NOW + 76 * SECOND);
    server.accept_only("token-1");
    assert_eq!(append(&sink, 2..3).await, [Outcome::Done]);
    assert_eq!(server.tokens_seen(), [Some("token-0".to_string()), Some("token-1".to_string())]);
    assert_eq!(made.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_token_that_is_refused_is_made_anew() {
    let server = StorageWrite::start().await;
    let (sink, made) = with_tokens(&server, &Clock::manual(NOW));
    server.accept_only("token-1");
    assert_eq!(append(&sink, 0..1).await, [Outcome::Done]);
    assert_eq!(made.load(Ordering::SeqCst), 2);
    // No right to write: the operator has to mend it, and the token may be of before he did.
    server.then([Act::End(Code::PermissionDenied)]);
    let outcomes = append(&sink, 1..2).await;
    assert!(matches!(&outcomes[0], Outcome::Retry(reason) if reason.contains("PermissionDenied")), "{outcomes:?}");
    server.accept_only("token-2");
    assert_eq!(append(&sink, 1..2).await, [Outcome::Done]);
    assert_landed(&server, 0..2);
}

#[test]
fn a_setting_that_cannot_be_used_is_named() {
    let open = |settings: &[(&str, &str)]| {
        BigQuerySink::new(&settings.iter().copied().collect(), Clock::system()).err().unwrap_or_default()
    };
    assert!(open(&[]).starts_with("GOOGLE_CLOUD_PROJECT: not set"));
    let bad = [("GOOGLE_CLOUD_PROJECT", "p"), ("BIGQUERY_GRPC_ENDPOINT", "no address at all")];
    assert!(open(&bad).starts_with("BIGQUERY_GRPC_ENDPOINT: "), "{}", open(&bad));
}
