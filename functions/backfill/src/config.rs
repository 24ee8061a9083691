//! What can be set: the flags that the job and `contextflow backfill` share.

use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use shared::bucket::{self, Location};
use shared::clock::{Clock, Micros};
use shared::decode::time;
use shared::enrich::address::Anonymise;
use shared::enrich::geo::GEO;
use shared::enrich::{Source, Tables, Warm};
use shared::load::{Mode, NullLoader};
use shared::mapping::Mapping;
use shared::schema::{Ingest, Registry};
use shared::settings::Settings;
#[cfg(feature = "cloud")]
use shared::sink::bigquery::{BigQuerySink, load::BigQueryLoader};

use crate::{Deps, Error, Form, Limit, Request};

/// The flags.
#[derive(Debug, Clone, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct Options {
    /// File, folder, pattern, gs:// or s3:// address of JSON lines (.jsonl, .json, also .gz and .zst), or `archive`
    #[arg(long, env = "SOURCE", value_name = "SOURCE")]
    pub source: String,
    /// How lines become rows: a built-in mapping, or a mapping file
    #[arg(long, default_value = "visit", value_name = "NAME|FILE", conflicts_with = "event_type")]
    pub mapping: String,
    /// Load the lines as events of this type into its own table, enriched as the stream does; into that of a stream with
    /// --append, or from its archive
    #[arg(long = "type", value_name = "TYPE|FILE")]
    pub event_type: Option<String>,
    /// With `--source archive`: only from this day on, 2026-10-20; the other days stay as they are
    #[arg(long, value_name = "DAY", requires = "event_type")]
    pub from_day: Option<String>,
    /// With `--source archive`: the last day
    #[arg(long, value_name = "DAY", requires = "from_day")]
    pub to_day: Option<String>,
    /// Add the rows to those that are there, without the files that were loaded before
    #[arg(long, conflicts_with = "force_recreate")]
    pub append: bool,
    /// Make the tables anew from their schemas; that of a stream loses what the archive does not have yet
    #[arg(long)]
    pub force_recreate: bool,
    /// Go on with the run that was stopped
    #[arg(long)]
    pub resume: bool,
    /// Where rows go: `null` is nowhere, for measuring
    #[arg(long, value_enum, default_value_t = Target::Tables)]
    pub to: Target,
    /// Fail, and leave the tables as they are, with more dead letters than this
    #[arg(long, value_name = "N|P%")]
    pub max_dead_letters: Option<Limit>,
    /// Where dead letters are kept
    #[arg(long, env = "DEAD_LETTERS_URI", value_name = "URI")]
    pub dead_letters: Option<String>,
    /// Where runs are recorded, and who is at work
    #[arg(long, env = "STATE_URI", value_name = "URI")]
    pub state: Option<String>,
    /// Bytes of the source from one checkpoint to the next
    #[arg(long, env = "CHECKPOINT_BYTES", default_value_t = 64 << 20, value_name = "N")]
    pub checkpoint_bytes: u64,
    /// What becomes of client addresses in streaming tables: off, truncate or drop; dead letters keep their bytes
    #[arg(long, env = "IP_ANONYMISE", default_value = "off", value_name = "POLICY")]
    pub ip_anonymise: Anonymise,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Where rows go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// The tables of the warehouse
    Tables,
    /// Nowhere: for measuring
    Null,
}

impl Options {
    /// What a run is to do. `archive` is where the archive lies, for `--source archive`.
    pub fn request(&self, registry: &mut Registry, archive: Option<&str>) -> Result<Request, Error> {
        let mut mode = match (self.append, self.force_recreate) {
            (true, _) => Mode::Append,
            (_, true) => Mode::Recreate,
            _ => Mode::Replace,
        };
        let mapping = self.mapping(registry)?;
        let (source, form) = if self.source == "archive" {
            let plan = mapping.source();
            let Some(archive) = archive else {
                return Err(Error::Usage("--source archive: no archive; set ARCHIVE_URI".into()));
            };
            if self.event_type.is_none() || plan.system.is_none() {
                return Err(Error::Usage("--source archive: say of which stream, with --type TYPE".into()));
            }
            let days = self.days()?;
            if let Some((first, last)) = days {
                match mode {
                    Mode::Recreate => {
                        let reason = "--from-day keeps the other days, --force-recreate does not; give one of them";
                        return Err(Error::Usage(reason.into()));
                    }
                    Mode::Replace => mode = Mode::ReplaceDays { first, last },
                    _ => {}
                }
                mode.check(plan).map_err(|reason| Error::Usage(format!("--from-day: {reason}; give --append")))?;
            }
            (format!("{}/{}", archive.trim_end_matches('/'), plan.event_type), Form::Archive { days })
        } else {
            if self.from_day.is_some() {
                return Err(Error::Usage("--from-day is for --source archive".into()));
            }
            let streaming = mapping.tables.iter().find(|plan| plan.system.is_some());
            if let Some(plan) = streaming.filter(|_| mode != Mode::Append && self.to == Target::Tables) {
                return Err(Error::Usage(format!(
                    "{}: what the stream has brought would go; add to it with --append, or make it anew with --source archive",
                    plan.table.full_name()
                )));
            }
            (self.source.clone(), Form::Events)
        };
        Ok(Request {
            source,
            form,
            mapping,
            mode,
            resume: self.resume,
            max_dead_letters: self.max_dead_letters,
            checkpoint_bytes: self.checkpoint_bytes,
        })
    }

    fn mapping(&self, registry: &mut Registry) -> Result<Mapping, Error> {
        let read = |file: &str, kind: &str| {
            let fault =
                |error| Error::Usage(format!("`{file}`: no {kind} of this name is built in, and as a file: {error}"));
            std::fs::read_to_string(file).map_err(fault)
        };
        let Some(name) = &self.event_type else {
            let mapping = match Mapping::built_in(&self.mapping, registry) {
                Some(mapping) => mapping,
                None => shared::mapping::compile(&self.mapping, &read(&self.mapping, "mapping")?, registry),
            };
            return mapping.map_err(|error| Error::Usage(error.to_string()));
        };
        let plan = match registry.get(name) {
            Some(plan) => plan.clone(),
            None => registry.add(name, &read(name, "type")?).map_err(|error| Error::Usage(error.to_string()))?,
        };
        if plan.ingest == Ingest::Internal {
            return Err(Error::Usage(format!("--type {name}: the pipeline alone writes this table")));
        }
        Ok(Mapping::of_one(plan))
    }

    fn days(&self) -> Result<Option<(i32, i32)>, Error> {
        let day = |flag: &str, text: &str| {
            time::date(text).map_err(|(_, reason)| Error::Usage(format!("{flag} {text}: {reason}")))
        };
        let Some(first) = &self.from_day else { return Ok(None) };
        let last = self.to_day.as_ref().unwrap_or(first);
        let days = (day("--from-day", first)?, day("--to-day", last)?);
        if days.0 > days.1 { Err(Error::Usage("--to-day lies before --from-day".into())) } else { Ok(Some(days)) }
    }
}

/// What the job works with, and what it is to do: by its flags and by `WAREHOUSE`, `ARCHIVE_URI`, `SCHEMAS_URI` and
/// `GEO_URI`.
pub async fn wire(options: &Options, settings: Settings) -> Result<(Deps, Request), Error> {
    let mut registry = registry(&settings).await?;
    let request = options.request(&mut registry, settings.get("ARCHIVE_URI"))?;
    let place_of = |uri: &Option<String>| uri.as_deref().map(|uri| place(uri, &settings)).transpose();
    let clock = Clock::system();
    let mut deps = Deps {
        loader: Arc::new(NullLoader),
        dead_letter_table: None,
        registry: Arc::new(registry),
        lookups: lookups(&settings, &clock).await?,
        anonymise: options.ip_anonymise,
        state: None,
        dead_letters: place_of(&options.dead_letters)?,
        owner: settings.get("CLOUD_RUN_EXECUTION").or(settings.get("HOSTNAME")).unwrap_or("a process").to_string(),
        settings: settings.clone(),
        clock,
    };
    if options.to == Target::Tables {
        deps.state = place_of(&options.state)?;
        if deps.state.is_none() {
            return Err(Error::Usage("no --state and no STATE_URI; say where runs are recorded".into()));
        }
        warehouse(&settings, &mut deps).await?;
    }
    Ok((deps, request))
}

/// The tables that `GEO_URI` names, as they are now.
async fn lookups(settings: &Settings, clock: &Clock) -> Result<Tables, Error> {
    let fault = |error: String| Error::Usage(format!("GEO_URI: {error}"));
    let place = settings.get("GEO_URI").map(|uri| bucket::open(uri, settings)).transpose().map_err(fault)?;
    let sources = place.map(|place| Source { enrichment: GEO.name, place }).into_iter().collect();
    let warm = Warm::load(sources, clock.clone(), Micros::MAX).await.map_err(fault)?;
    Ok(warm.tables().await)
}

/// A place to write to. A folder is made where it is missing, and named by its real path, as a bucket knows no `..`.
pub fn place(uri: &str, settings: &Settings) -> Result<Location, Error> {
    let Some(folder) = bucket::local(uri) else { return bucket::open(uri, settings).map_err(Error::Usage) };
    let failed = |error: std::io::Error| Error::Work(format!("{uri}: {error}"));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let folder = std::fs::canonicalize(folder).map_err(failed)?;
    bucket::open(&folder.to_string_lossy(), settings).map_err(Error::Usage)
}

#[cfg(feature = "cloud")]
async fn registry(settings: &Settings) -> Result<Registry, Error> {
    Registry::read(settings).await.map_err(|error| Error::Usage(error.to_string()))
}

#[cfg(not(feature = "cloud"))]
#[expect(clippy::unused_async, reason = "the same call with and without the feature")]
async fn registry(_: &Settings) -> Result<Registry, Error> {
    Registry::built_in().map_err(|error| Error::Work(error.to_string()))
}

/// `BigQuery`, with the dead-letter table that the batcher writes as well.
#[cfg(feature = "cloud")]
async fn warehouse(settings: &Settings, deps: &mut Deps) -> Result<(), Error> {
    let name = settings.text("WAREHOUSE", "bigquery");
    if name != "bigquery" {
        return Err(Error::Usage(format!("WAREHOUSE: `{name}`: this job loads bigquery")));
    }
    let loader = BigQueryLoader::new(settings, deps.clock.clone()).await.map_err(Error::Usage)?;
    deps.loader = Arc::new(loader);
    let sink = BigQuerySink::new(settings, deps.clock.clone()).map_err(Error::Usage)?;
    deps.dead_letter_table = Some(Arc::new(sink));
    Ok(())
}

#[cfg(not(feature = "cloud"))]
#[expect(clippy::unused_async, reason = "the same call with and without the feature")]
async fn warehouse(_: &Settings, _: &mut Deps) -> Result<(), Error> {
    Err(Error::Usage("this job was built without a warehouse; give --to null".into()))
}

/// The exit code of a run, and its error to standard error.
pub fn end(ended: Result<(), Error>) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    eprintln!("backfill: {error}");
    ExitCode::from(match error {
        Error::Work(_) => 1,
        Error::Usage(_) => 2,
    })
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("`{text}`: give a number, or a share such as 0.5%");
        match text.strip_suffix('%') {
            None => text.parse().map(Self::Number).map_err(|_| expected()),
            Some(share) => match share.parse::<f64>() {
                Ok(share) if (0.0..=100.0).contains(&share) => Ok(Self::Share(share / 100.0)),
                _ => Err(expected()),
            },
        }
    }
}
