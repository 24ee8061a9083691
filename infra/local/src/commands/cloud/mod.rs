//! The clouds from the command line: BigQuery, Pub/Sub and the kill-switch.

mod release;
mod status;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backfill::Deps;
use object_store::ObjectStoreExt as _;
use serde_json::{Map, Value, json};
use shared::bucket;
use shared::catalog::{ApiError, BigQuery, Diff, Verdict, Wanted, diff};
use shared::clock::Clock;
use shared::encode::Splice;
use shared::publish::pubsub::{Options, PubSub};
use shared::publish::{Message, PublishError, Publisher};
use shared::push;
use shared::schema::DEFAULT_TYPE;
use shared::settings::Settings;
use shared::sink::bigquery::{BigQuerySink, load::BigQueryLoader};

use super::generate::target::{Request, Target};
use super::{Place, query, schema};
use crate::dead_letters::Source;
use crate::dead_letters::replay::{Topic, Ways};
use crate::error::Failure;

pub use release::release;
pub use status::status;

/// How long Pub/Sub's client gathers messages for one request.
const GATHER: Duration = Duration::from_millis(10);
/// How long dead letters are offered to a topic.
const PATIENCE: Duration = Duration::from_mins(1);

/// `contextflow schema diff`: what differs is printed and, as with `diff`, exit code 1.
pub async fn schema_diff(args: &schema::DiffArgs) -> Result<(), Failure> {
    let (_, _, diff) = compare(args).await?;
    if args.json {
        print_json(&diff, &json!({}))?;
    } else {
        print_lines(&diff);
    }
    if diff.is_empty() {
        return Ok(());
    }
    let refused = diff.count(Verdict::Refuse);
    let advice =
        if refused == 0 { "run `contextflow schema apply`" } else { "what begins with ! has to be done by hand" };
    Err(Failure::work(format!("{} to change, {refused} refused; {advice}", diff.changes())))
}

/// `contextflow schema apply`: all of it or, where something is refused, nothing.
pub async fn schema_apply(args: &schema::ApplyArgs) -> Result<(), Failure> {
    let (bigquery, wanted, planned) = compare(&args.diff).await?;
    let (changes, refused) = (planned.changes(), planned.count(Verdict::Refuse));
    let is_done = !args.dry_run && (refused == 0 || args.partial);
    if !args.diff.json {
        print_lines(&planned);
    }
    if is_done && changes > 0 {
        apply(&bigquery, &wanted, &planned).await?;
    }
    if args.diff.json {
        print_json(&planned, &json!({"applied": if is_done { changes } else { 0 }}))?;
    } else if changes > 0 {
        println!("{changes} {}", if is_done { "changed" } else { "to change; nothing was changed" });
    }
    match refused {
        0 => Ok(()),
        _ if args.dry_run || args.partial => Err(Failure::work(format!("{refused} refused (they begin with !)"))),
        _ => Err(Failure::work(format!("{refused} refused (they begin with !); --partial does the rest"))),
    }
}

async fn apply(bigquery: &BigQuery, wanted: &Wanted, planned: &Diff) -> Result<(), Failure> {
    bigquery.apply(planned).await.map_err(|(object, error)| {
        Failure::work(format!("{object}: {error}; what was done before it stands, so run this again"))
    })?;
    // What BigQuery made of it is what counts.
    let left = diff(wanted, &bigquery.read(wanted).await.map_err(failure)?);
    if left.changes() == 0 {
        return Ok(());
    }
    let lines: Vec<_> = left.differences.iter().map(ToString::to_string).collect();
    Err(Failure::work(format!("BigQuery took all of it and still differs:\n{}", lines.join("\n"))))
}

async fn compare(args: &schema::DiffArgs) -> Result<(BigQuery, Wanted, Diff), Failure> {
    let registry = super::registry(args.schemas.as_deref())?;
    let bigquery = open(&args.place).await?;
    let wanted = Wanted::of(&registry, &bigquery.project, args.place.location.as_deref());
    let found = bigquery.read(&wanted).await.map_err(failure)?;
    let diff = diff(&wanted, &found);
    Ok((bigquery, wanted, diff))
}

fn print_lines(diff: &Diff) {
    for difference in &diff.differences {
        println!("{difference}");
    }
    if diff.is_empty() {
        println!("nothing differs");
    }
}

/// `{"differences": […], "changes": 3, "refused": 0}` and what else there is to say.
fn print_json(diff: &Diff, more: &Value) -> Result<(), Failure> {
    let mut json = serde_json::to_value(diff).map_err(Failure::work)?;
    json["changes"] = diff.changes().into();
    json["refused"] = diff.count(Verdict::Refuse).into();
    for (name, value) in more.as_object().into_iter().flatten() {
        json[name] = value.clone();
    }
    println!("{json}");
    Ok(())
}

/// `contextflow backfill --warehouse bigquery`.
pub async fn load(place: &Place, deps: &mut Deps) -> Result<(), Failure> {
    let project = project(place)?;
    let mut settings = Settings::from_env().with("GOOGLE_CLOUD_PROJECT", project);
    if let Some(location) = &place.location {
        settings = settings.with("BIGQUERY_LOCATION", location);
    }
    let loader = BigQueryLoader::new(&settings, deps.clock.clone()).await.map_err(Failure::usage)?;
    deps.loader = Arc::new(loader);
    let sink = BigQuerySink::new(&settings, deps.clock.clone()).map_err(Failure::usage)?;
    deps.dead_letter_table = Some(Arc::new(sink));
    Ok(())
}

/// `contextflow query --warehouse bigquery`.
pub async fn query(sql: &str, place: &Place) -> Result<query::Answer, Failure> {
    let answer = open(place).await?.query(sql).await.map_err(failure)?;
    Ok(query::Answer { columns: answer.columns, rows: answer.rows })
}

async fn open(place: &Place) -> Result<BigQuery, Failure> {
    BigQuery::new(&Settings::from_env(), project(place)?, place.location.clone()).await.map_err(failure)
}

fn project(place: &Place) -> Result<&str, Failure> {
    place.project.as_deref().ok_or_else(|| Failure::usage("no project; give --project ID or set GOOGLE_CLOUD_PROJECT"))
}

/// What BigQuery refuses as wrong is the caller's to put right.
fn failure(error: ApiError) -> Failure {
    match error {
        ApiError::Refused { status: 200 | 400 | 404, .. } | ApiError::Login(_) => Failure::usage(error),
        _ => Failure::work(error),
    }
}

/// The dead letters of BigQuery.
pub async fn dead_letters(place: &Place) -> Result<Box<dyn Source>, Failure> {
    Ok(Box::new(Letters(open(place).await?)))
}

struct Letters(BigQuery);

#[async_trait]
impl Source for Letters {
    async fn rows(&self, sql: &str) -> Result<Vec<Map<String, Value>>, Failure> {
        let answer = self.0.query(sql).await.map_err(failure)?;
        Ok(answer.rows.into_iter().map(|row| answer.columns.iter().cloned().zip(row).collect()).collect())
    }

    async fn object(&self, uri: &str) -> Result<Vec<u8>, Failure> {
        let fault = |error: &dyn std::fmt::Display| Failure::work(format!("{uri}: {error}"));
        let place = bucket::open(uri, &Settings::from_env()).map_err(|error| fault(&error))?;
        let object = place.store.get(&place.path).await.map_err(|error| fault(&error))?;
        Ok(object.bytes().await.map_err(|error| fault(&error))?.into())
    }
}

/// How dead letters of BigQuery go back: events to the topic or publisher `to`, rows to the enriched topic beside it.
/// Lines of files go into their tables with `history`. Replays are written into BigQuery.
pub async fn ways(to: Option<&str>, place: &Place, mut history: Deps) -> Result<Ways, Failure> {
    load(place, &mut history).await?;
    let settings = Settings::from_env();
    let name = |variable: &str, kind: &str| settings.text(variable, &format!("clickstream-{kind}-topic")).to_string();
    let default = || Ok(format!("pubsub://{}/{}", project(place)?, name("RAW_TOPIC", "raw")));
    let to = to.map_or_else(default, |to| Ok(to.to_string()))?;
    let of_place = settings.clone().with("GOOGLE_CLOUD_PROJECT", project(place)?);
    let replays = Arc::new(BigQuerySink::new(&of_place, Clock::system()).map_err(Failure::usage)?);
    if to.starts_with("http://") || to.starts_with("https://") {
        let publisher = Arc::new(Address(Target::open(&to, PATIENCE).await?));
        return Ok(Ways { raw: Topic { name: to, publisher }, enriched: None, replays, history });
    }
    let (project, _) = to.strip_prefix("pubsub://").and_then(|names| names.split_once('/')).unwrap_or_default();
    let beside = format!("pubsub://{project}/{}", name("ENRICHED_TOPIC", "enriched"));
    let raw = Topic { publisher: topic(&to, PATIENCE).await?, name: to };
    let enriched = Topic { publisher: topic(&beside, PATIENCE).await?, name: beside };
    Ok(Ways { raw, enriched: Some(enriched), replays, history })
}

/// A publisher's address in the place of a topic: a message is a request.
struct Address(Target);

#[async_trait]
impl Publisher for Address {
    async fn publish(&self, messages: Vec<Message>) -> Vec<Result<String, PublishError>> {
        let mut answers = Vec::new();
        for message in messages {
            let lines: Vec<_> = push::lines(&message.data).map(|(_, line)| with_type(line, &message)).collect();
            let events = lines.len() as u64;
            let request = Request { target: self.0.clone(), body: lines.join("\n"), events };
            let (ids, rejected) = request.until_answered(PATIENCE).await;
            let reason = if rejected > 0 { "the publisher rejects the event" } else { "the publisher did not answer" };
            let failed = || PublishError { topic: "the publisher".into(), reason: reason.into() };
            answers.push(if ids.len() as u64 == events { Ok(ids.join(",")) } else { Err(failed()) });
        }
        answers
    }
}

/// An event with its type in its body, where a publisher looks for it.
fn with_type(line: &[u8], message: &Message) -> String {
    let line = String::from_utf8_lossy(line);
    let Some(name) = message.attributes.get("event_type").filter(|name| *name != DEFAULT_TYPE) else {
        return line.into_owned();
    };
    let mut typed = Splice::new(&line);
    typed.add("event_type", name);
    String::from_utf8_lossy(&typed.finish()).into_owned()
}

/// The topic that `pubsub://PROJECT/TOPIC` names. A publish is given up after `patience`.
pub async fn topic(to: &str, patience: Duration) -> Result<Arc<dyn Publisher>, Failure> {
    let names = to.strip_prefix("pubsub://").and_then(|names| names.split_once('/'));
    let Some((project, topic)) = names.filter(|(project, topic)| !project.is_empty() && is_topic(topic)) else {
        return Err(Failure::usage(format!("{to} is no topic; give pubsub://PROJECT/TOPIC")));
    };
    let settings = Settings::from_env();
    let credentials = shared::credentials::google(&settings).map_err(Failure::usage)?;
    // An uplink may be slow.
    let options = Options { wait: GATHER, attempt: patience, give_up_after: patience };
    let pubsub = PubSub::new(&settings, credentials, options, Clock::system()).await.map_err(Failure::work)?;
    Ok(Arc::new(pubsub.topic(&format!("projects/{project}/topics/{topic}"))))
}

fn is_topic(name: &str) -> bool {
    name.len() >= 3 && !name.contains('/')
}
