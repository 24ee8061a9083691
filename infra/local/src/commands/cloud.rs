//! The clouds from the command line: BigQuery and Pub/Sub.

use std::sync::Arc;
use std::time::Duration;

use backfill::Deps;
use serde_json::{Value, json};
use shared::catalog::{ApiError, BigQuery, Diff, Verdict, Wanted, diff};
use shared::publish::Publisher;
use shared::publish::pubsub::{Options, PubSub};
use shared::settings::Settings;
use shared::sink::bigquery::{BigQuerySink, load::BigQueryLoader};

use super::{Place, query, schema};
use crate::error::Failure;

/// How long Pub/Sub's client gathers messages for one request.
const GATHER: Duration = Duration::from_millis(10);

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
    let project = place.project.as_deref().ok_or_else(no_project)?;
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
    let project = place.project.as_deref().ok_or_else(no_project)?;
    BigQuery::new(&Settings::from_env(), project, place.location.clone()).await.map_err(failure)
}

fn no_project() -> Failure {
    Failure::usage("no project; give --project ID or set GOOGLE_CLOUD_PROJECT")
}

/// What BigQuery refuses as wrong is the caller's to put right.
fn failure(error: ApiError) -> Failure {
    match error {
        ApiError::Refused { status: 200 | 400 | 404, .. } | ApiError::Login(_) => Failure::usage(error),
        _ => Failure::work(error),
    }
}

/// The topic that `pubsub://PROJECT/TOPIC` names. A publish is given up after `patience`.
pub async fn topic(to: &str, patience: Duration) -> Result<Arc<dyn Publisher>, Failure> {
    let names = to.strip_prefix("pubsub://").and_then(|names| names.split_once('/'));
    let Some((project, topic)) = names.filter(|(project, topic)| !project.is_empty() && is_topic(topic)) else {
        return Err(Failure::usage(format!("{to} is no topic; give pubsub://PROJECT/TOPIC")));
    };
    let settings = Settings::from_env();
    let credentials = shared::credentials::google(&settings).map_err(Failure::usage)?;
    let options = Options { wait: GATHER, give_up_after: patience };
    let pubsub = PubSub::new(&settings, credentials, options).await.map_err(Failure::work)?;
    Ok(Arc::new(pubsub.topic(&format!("projects/{project}/topics/{topic}"))))
}

fn is_topic(name: &str) -> bool {
    name.len() >= 3 && !name.contains('/')
}
