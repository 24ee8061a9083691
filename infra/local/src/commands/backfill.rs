//! `contextflow backfill`: files of JSON lines into the tables of the local warehouse, or of BigQuery.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use backfill::config::{Options, Target, place};
use backfill::{Deps, Error, Progress};
use indicatif::ProgressBar;
use shared::clock::Clock;
use shared::enrich::Tables;
use shared::enrich::address::Anonymise;
use shared::load::{Mode, NullLoader};
use shared::schema::Registry;
use shared::settings::Settings;
use shared::sink::delta::DeltaSink;

use super::query::Engine;
use crate::bus::Bus;
use crate::dev;
use crate::error::Failure;

/// Where dead letters lie in a local pipeline's data.
const LETTERS: &str = "bucket/dead-letter/backfill";
/// How often the bar moves.
const TICK: Duration = Duration::from_millis(200);

/// Arguments of `contextflow backfill`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Whose tables are loaded
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    warehouse: Engine,
    #[command(flatten)]
    place: super::Place,
    /// The local pipeline's data
    #[arg(long, default_value = "./.contextflow", value_name = "FOLDER")]
    data_dir: PathBuf,
    /// A folder of further schema files
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    schemas: Option<PathBuf>,
    /// A lookup table in place of the built-in one
    #[arg(long, env = "GEO_URI", value_name = "CSV")]
    geo: Option<PathBuf>,
}

/// Runs the command.
pub async fn run(args: Args) -> Result<(), Failure> {
    let mut registry = super::registry(args.schemas.as_deref())?;
    let settings = Settings::from_env();
    let own = |name: &str| args.data_dir.join(name).to_string_lossy().into_owned();
    // Of each pipeline its own archive.
    let archive = match args.warehouse {
        Engine::Local => Some(own("bucket")),
        Engine::BigQuery => settings.get("ARCHIVE_URI").map(str::to_string),
    };
    let request = args.options.request(&mut registry, archive.as_deref()).map_err(failure)?;
    let lookups = super::lookups(args.geo.as_deref())?;
    let mut deps = deps(Arc::new(registry), lookups, args.options.ip_anonymise, Clock::system());
    let letters = args.options.dead_letters.clone();
    let at = |uri: String, deps: &Deps| place(&uri, &deps.settings).map(Some).map_err(failure);
    if args.options.to == Target::Null {
        deps.dead_letters = letters.map_or(Ok(None), |uri| at(uri, &deps))?;
    } else {
        let state = own(if args.warehouse == Engine::Local { "backfill" } else { "backfill-bigquery" });
        deps.state = at(args.options.state.clone().unwrap_or(state), &deps)?;
        deps.dead_letters = at(letters.unwrap_or_else(|| own(LETTERS)), &deps)?;
        match args.warehouse {
            Engine::Local => {
                let sink =
                    DeltaSink::open(&args.data_dir.join("warehouse"), deps.clock.clone()).map_err(Failure::work)?;
                if request.mode != Mode::Append && request.mapping.tables.iter().any(|plan| plan.system.is_some()) {
                    whole_archive(&args.data_dir)?;
                }
                into_delta(&mut deps, &Arc::new(sink));
            }
            Engine::BigQuery => super::cloud::load(&args.place, &mut deps).await?,
        }
    }
    let progress = Arc::new(Progress::default());
    let bar = super::progress(None, "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}");
    let report = tokio::select! {
        report = backfill::run(deps, request, Arc::clone(&progress)) => report,
        () = watch(&bar, &progress) => Err(Error::Work("the bar does not end".into())),
    };
    bar.finish_and_clear();
    report.and_then(|report| report.print(args.options.json)).map_err(failure)
}

/// Refuses to replace a streaming table while rows that it has wait for the archive: whole files go, and those rows with
/// them. The warehouse is this process's, so no pipeline adds to it.
fn whole_archive(data_dir: &Path) -> Result<(), Failure> {
    let place = data_dir.display();
    let stats = Bus::at_rest(&data_dir.join(dev::BUS_FILE), dev::topology()).map_err(|error| {
        Failure::work(format!("{error:#}; end the pipeline in {place} before its tables are replaced"))
    })?;
    let waiting: u64 = stats.iter().filter(|stats| stats.name == dev::ARCHIVE).map(|stats| stats.waiting).sum();
    if waiting == 0 {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{waiting} messages in {place} wait for the archive, and their rows would go from the table; start \
         `contextflow dev` on it until `contextflow status` shows none in {}, end it and load again; or give --append",
        dev::ARCHIVE
    )))
}

/// What a load works with, before it is said where rows go.
fn deps(registry: Arc<Registry>, lookups: Tables, anonymise: Anonymise, clock: Clock) -> Deps {
    Deps {
        loader: Arc::new(NullLoader),
        dead_letter_table: None,
        registry,
        lookups,
        anonymise,
        state: None,
        dead_letters: None,
        settings: Settings::from_env(),
        owner: format!("contextflow, process {}", std::process::id()),
        clock,
    }
}

/// The same for dead letters that are loaded again; those that fail once more lie beside the others.
pub fn history(
    data_dir: &Path,
    registry: Arc<Registry>,
    lookups: Tables,
    anonymise: Anonymise,
    clock: Clock,
) -> Result<Deps, Failure> {
    let deps = deps(registry, lookups, anonymise, clock);
    let letters = place(&data_dir.join(LETTERS).to_string_lossy(), &deps.settings).map_err(failure)?;
    Ok(Deps { dead_letters: Some(letters), ..deps })
}

/// Rows go to the tables of a local warehouse.
pub fn into_delta(deps: &mut Deps, sink: &Arc<DeltaSink>) {
    deps.loader = Arc::clone(sink) as _;
    deps.dead_letter_table = Some(Arc::clone(sink) as _);
}

async fn watch(bar: &ProgressBar, progress: &Progress) {
    loop {
        tokio::time::sleep(TICK).await;
        bar.set_length(progress.total.load(Ordering::Relaxed));
        bar.set_position(progress.done.load(Ordering::Relaxed));
    }
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Usage(reason) => Failure::Usage(reason),
        Error::Work(reason) => Failure::Work(reason),
    }
}
