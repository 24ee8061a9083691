//! `contextflow dev`: the whole pipeline in one process, the functions wired to an embedded bus, a folder as bucket and
//! a Delta Lake folder as warehouse.

pub mod dead_letters;
mod descriptors;
mod latency;
mod report;
mod site;
mod trace;
mod traffic;
mod trust;
mod visits;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use batcher::Batcher;
use enricher::Enricher;
use object_store::local::LocalFileSystem;
use publisher::{ClientAddress, StreamTypes};
use serde_json::json;
use shared::bucket::{Folder, Location};
use shared::clock::{Clock, SECOND};
use shared::enrich::address::Anonymise;
use shared::enrich::{Source, Tables, Warm, geo};
use shared::metrics::Metrics;
use shared::publish::{MAX_EVENT_BYTES, Publisher};
use shared::schema::{Registry, Schemas};
use shared::serve::{self, Limits};
use shared::settings::Settings;
use shared::sink::Sink;
use shared::sink::delta::{DeltaError, DeltaSink, Warehouse};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bus::{Bus, Config as BusConfig, Subscription};
use crate::commands::{backfill, generate};
use crate::dead_letters::Local;
use crate::dead_letters::replay::{Topic, Ways};
use crate::error::Failure;
use dead_letters::DeadLetters;
use report::Report;
use trace::{TracedSink, TracedTopic, Traces};
use trust::Trust;

/// Where `contextflow dev` is unless something else is said.
pub const ADDRESS: &str = "http://127.0.0.1:8080";
/// The bus's file in the data folder.
pub const BUS_FILE: &str = "bus.redb";
/// The subscription whose rows go into the archive.
pub const ARCHIVE: &str = "clickstream-archive-sub";
/// Its pushes at once: each waits for its window of ten seconds to close.
const ARCHIVE_PUSHES: usize = 1_000;
/// How old a lookup may be before its source is looked at again.
const LOOKUP_AGE_SECONDS: i64 = 5;
/// How old the schemas may be before their folder is looked at again.
const SCHEMA_AGE_SECONDS: i64 = 5;
/// How long the end may take: what is on its way lands, the rest stays on the bus for the next start.
const DRAIN: Duration = Duration::from_secs(5);
/// How long requests may take then.
const END: Duration = Duration::from_secs(1);

const RAW: &str = "clickstream-raw-topic";
const ENRICHED: &str = "clickstream-enriched-topic";
const DEAD_LETTER: &str = "clickstream-dead-letter-topic";

/// Arguments of `contextflow dev`.
#[derive(clap::Args)]
pub struct Args {
    /// Port on 127.0.0.1
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,
    /// Where events in flight, the bucket and the warehouse are kept
    #[arg(long, default_value = "./.contextflow", value_name = "FOLDER")]
    data_dir: PathBuf,
    /// Keep nothing: use a temporary folder that goes with the process
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// Generate events meanwhile, this many a second
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// A lookup table in place of the built-in one; it is read again when it changes
    #[arg(long, env = "GEO_URI", value_name = "CSV")]
    geo: Option<PathBuf>,
    /// A folder of further schema files; it is read again when they change
    #[arg(long, env = "SCHEMAS_URI", value_name = "FOLDER")]
    schemas: Option<PathBuf>,
    /// What becomes of client addresses: off, truncate or drop
    #[arg(long, env = "IP_ANONYMISE", default_value = "off", value_name = "POLICY")]
    ip_anonymise: Anonymise,
    /// A further name that the pipeline is reached by, as through a tunnel; may be given more than once
    #[arg(long = "allow-host", value_name = "HOST[:PORT]")]
    allow_hosts: Vec<String>,
    /// The token of the bus's pushes in place of a random one, for tests that push themselves
    #[arg(long, env = "PUSH_TOKEN", hide = true, hide_env_values = true)]
    push_token: Option<String>,
}

/// Runs the command until Ctrl-C or SIGTERM.
pub async fn run(args: Args) -> Result<(), Failure> {
    let ended = ended().map_err(Failure::work)?;
    let temporary = if args.ephemeral { Some(tempfile::tempdir().map_err(Failure::usage)?) } else { None };
    let folder = temporary.as_ref().map_or(args.data_dir.as_path(), |folder| folder.path());
    let registry = Arc::new(crate::commands::registry(args.schemas.as_deref())?);
    let clock = Clock::system();
    let lookups = lookups(args.geo.as_deref(), &clock).await?;
    let limits = Limits::read(&Settings::from_env()).map_err(Failure::usage)?;
    let pushes = descriptors::pushes(serve::descriptors());
    let (listener, push_listener) = (listen(args.port).await?, listen(0).await?);
    let address = listener.local_addr().map_err(Failure::work)?;
    let push_address = push_listener.local_addr().map_err(Failure::work)?;
    let tables = lookups.tables().await;
    let schemas = Arc::new(schemas(args.schemas.as_deref(), &registry, &clock)?);
    let pipeline = Pipeline::open(folder, &registry, &schemas, lookups, tables, args.ip_anonymise, &clock)?;
    let token = args.push_token.unwrap_or_else(|| Uuid::new_v4().to_string());

    let stop = CancellationToken::new();
    let serve = |listener, router, limits| {
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(async move { serve::serve(listener, router, limits, ended, END).await })
    };
    let functions = pipeline.functions(&token);
    // Pushes have a listener of their own, which clients cannot keep them from.
    let push_server = serve(push_listener, functions.clone(), Limits { connections: pushes, ..limits });
    let trust = Arc::new(Trust::new(address.port(), &args.allow_hosts));
    let router = pipeline.router().merge(functions).layer(middleware::from_fn_with_state(trust, trust::guard));
    let server = serve(listener, router, limits);
    pipeline.bus.start(&format!("http://{push_address}"), Some(&token)).map_err(Failure::work)?;
    eprintln!("contextflow is on http://{address} with its data in {}; Ctrl-C ends it", folder.display());
    let generator =
        args.rate.map(|rate| tokio::spawn(generate::endless(format!("http://{address}"), rate, stop.clone())));

    ended.await;
    eprintln!("ending: what is on its way lands first");
    if let Some(generator) = generator {
        generator.abort();
    }
    pipeline.end().await;
    stop.cancel();
    let _ = tokio::join!(server, push_server);
    eprintln!("{}", pipeline.summary().await);
    Ok(())
}

/// Comes to its end at Ctrl-C or SIGTERM; from the call on neither ends the process by itself.
fn ended() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupted, mut terminated) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupted.recv() => {}
            _ = terminated.recv() => {}
        }
    })
}

async fn listen(port: u16) -> Result<TcpListener, Failure> {
    TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Failure::usage(format!("port {port} is taken; give another with --port N")),
        _ => Failure::usage(format!("port {port} on 127.0.0.1: {error}")),
    })
}

async fn lookups(geo: Option<&Path>, clock: &Clock) -> Result<Arc<Warm>, Failure> {
    let mut sources = Vec::new();
    if let Some(path) = geo {
        let fault = |error: String| Failure::usage(format!("--geo {}: {error}", path.display()));
        let full = std::fs::canonicalize(path).map_err(|error| fault(error.to_string()))?;
        let object = object_store::path::Path::from_absolute_path(&full).map_err(|error| fault(error.to_string()))?;
        let store = Arc::new(LocalFileSystem::new());
        let place = Location { store, path: object, uri: path.display().to_string() };
        sources.push(Source { enrichment: geo::GEO.name, place });
    }
    let warm = Warm::load(sources, clock.clone(), LOOKUP_AGE_SECONDS * SECOND).await;
    warm.map(Arc::new).map_err(Failure::usage)
}

/// The schemas, read again when the files of their folder change.
fn schemas(folder: Option<&Path>, registry: &Arc<Registry>, clock: &Clock) -> Result<Schemas, Failure> {
    let Some(folder) = folder else { return Ok(Schemas::fixed(Arc::clone(registry))) };
    let place = shared::bucket::open(&folder.display().to_string(), &Settings::default()).map_err(Failure::usage)?;
    Ok(Schemas::watch(Arc::clone(registry), place, clock.clone(), SCHEMA_AGE_SECONDS * SECOND))
}

/// The functions with everything behind them.
struct Pipeline {
    bus: Bus,
    publisher: Arc<publisher::Deps>,
    enricher: Arc<Enricher>,
    batcher: Arc<Batcher>,
    report: Arc<Report>,
    traces: Arc<Traces>,
    dead_letters: Arc<DeadLetters>,
    warehouse: Arc<Warehouse>,
}

impl Pipeline {
    fn open(
        folder: &Path,
        registry: &Arc<Registry>,
        schemas: &Arc<Schemas>,
        lookups: Arc<Warm>,
        tables: Tables,
        anonymise: Anonymise,
        clock: &Clock,
    ) -> Result<Self, Failure> {
        let unwritable = |what: &str, error: &dyn std::fmt::Display| {
            Failure::usage(format!(
                "{what} in {}: {error}; give a folder that can be written with --data-dir",
                folder.display()
            ))
        };
        let bucket_folder = folder.join("bucket");
        let store = Folder::open(&bucket_folder).map_err(|error| unwritable("failed to open the bucket", &error))?;
        let bucket_uri = format!("file://{}", std::fs::canonicalize(&bucket_folder).unwrap_or(bucket_folder).display());
        let bucket = Location { store: Arc::new(store), path: object_store::path::Path::default(), uri: bucket_uri };
        let mut topology = topology();
        descriptors::fit(&mut topology, descriptors::pushes(serve::descriptors()));
        let mut batching = batcher::Config::default();
        if let Some(archive) = topology.subscriptions.iter().find(|subscription| subscription.name == ARCHIVE) {
            let wait = batching.archive.wait;
            batching.archive.wait = descriptors::archive_wait(wait, ARCHIVE_PUSHES, archive.max_outstanding);
        }
        let bus = Bus::open(&folder.join(BUS_FILE), clock.clone(), topology)
            .map_err(|error| Failure::usage(format!("failed to open the bus: {error:#}")))?;
        let warehouse_folder = folder.join("warehouse");
        let writer = DeltaSink::open(&warehouse_folder, clock.clone()).map_err(|error| match error {
            DeltaError::Io { .. } => unwritable("failed to open the warehouse", &error),
            _ => Failure::usage(format!("failed to open the warehouse: {error}")),
        })?;
        let writer = Arc::new(writer);
        let mut history = backfill::history(folder, Arc::clone(registry), tables, anonymise, clock.clone())?;
        backfill::into_delta(&mut history, &writer);
        let tables: Arc<dyn Sink> = writer;
        let warehouse = Warehouse::open(&warehouse_folder, registry)
            .map_err(|error| unwritable("failed to open the warehouse", &error))?;
        let warehouse = Arc::new(warehouse);

        let traces = Arc::new(Traces::new(clock.clone()));
        let topic = |name: &str| -> Arc<dyn Publisher> {
            Arc::new(TracedTopic::new(Arc::new(bus.publisher(name)), name, Arc::clone(&traces)))
        };
        let sink: Arc<dyn Sink> = Arc::new(TracedSink::new(Arc::clone(&tables), Arc::clone(&traces)));
        let publisher = publisher::Deps {
            schemas: Arc::clone(schemas),
            topic: topic(RAW),
            clock: clock.clone(),
            anonymise,
            max_event_bytes: MAX_EVENT_BYTES,
            synthetic_events: true,
            stream_types: StreamTypes::All,
        };
        let enricher_deps = enricher::Deps {
            schemas: Arc::clone(schemas),
            lookups,
            enriched: topic(ENRICHED),
            dead_letters: topic(DEAD_LETTER),
            bucket: Some(bucket.clone()),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new(clock.clone())),
        };
        let enricher = Enricher::new(enricher_deps, enricher::Config { anonymise, ..enricher::Config::default() });
        let batcher_deps = batcher::Deps {
            schemas: Arc::clone(schemas),
            sink,
            bucket: Some(bucket),
            enriched: topic(ENRICHED),
            dead_letters: topic(DEAD_LETTER),
            clock: clock.clone(),
            metrics: Arc::new(Metrics::new(clock.clone())),
        };
        let batcher = Batcher::new(batcher_deps, &batching);
        let back = |name: &str| Topic { name: name.to_string(), publisher: topic(name) };
        let local = Local { warehouse: Arc::clone(&warehouse), bucket: folder.join("bucket") };
        let dead_letters = DeadLetters {
            local: local.clone(),
            schemas: Arc::clone(schemas),
            ways: Ways { raw: back(RAW), enriched: Some(back(ENRICHED)), replays: tables, history },
            clock: clock.clone(),
            folder: std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf()),
            turn: Mutex::default(),
        };
        let place = dead_letters.folder.clone();
        let report = Report::new(local, place, bus.clone(), registry, Arc::clone(&traces), clock.clone());
        Ok(Self {
            bus,
            publisher: Arc::new(publisher),
            enricher: Arc::new(enricher),
            batcher: Arc::new(batcher),
            report: Arc::new(report),
            traces,
            dead_letters: Arc::new(dead_letters),
            warehouse,
        })
    }

    fn router(&self) -> Router {
        Router::new()
            .merge(publisher::router(Arc::clone(&self.publisher)))
            .layer(middleware::from_fn(client_address))
            .route("/ready", get(ready).with_state((self.bus.clone(), Arc::clone(&self.batcher))))
            .merge(report::router(Arc::clone(&self.report)))
            .merge(trace::router(Arc::clone(&self.traces)))
            .merge(dead_letters::router(Arc::clone(&self.dead_letters)))
            .merge(visits::router(Arc::clone(&self.warehouse)))
            .merge(site::router())
    }

    /// The functions that the bus pushes to, for pushes with its token alone.
    fn functions(&self, token: &str) -> Router {
        Router::new()
            .nest("/enricher", enricher::router(Arc::clone(&self.enricher)))
            .nest("/batcher", batcher::router(Arc::clone(&self.batcher)))
            .layer(middleware::from_fn_with_state(Arc::from(token), trust::push_guard))
    }

    /// Lets what is on its way land, for a bounded time.
    async fn end(&self) {
        self.batcher.hurry();
        if !self.bus.drain(DRAIN).await {
            eprintln!("not everything has landed yet; the rest is on disk and goes on at the next start");
        }
        self.bus.stop(Duration::from_secs(1)).await;
    }

    async fn summary(&self) -> String {
        self.report.summary().await
    }
}

/// The topics and the four subscriptions of the drawing. None has a dead-letter topic: the functions separate poison messages
/// themselves, and an outage of any length moves nothing.
pub fn topology() -> BusConfig {
    let push = |name: &str, topic: &str, path: &str, max_outstanding| Subscription {
        max_outstanding,
        ..Subscription::new(name, topic, path)
    };
    let subscriptions = vec![
        push("clickstream-raw-sub", RAW, "/enricher", 256),
        push("clickstream-enriched-sub", ENRICHED, "/batcher", 256),
        push(ARCHIVE, ENRICHED, "/batcher/archive", ARCHIVE_PUSHES),
        push("clickstream-dead-letter-sub", DEAD_LETTER, "/batcher/dead-letter", 256),
    ];
    let topics = [RAW, ENRICHED, DEAD_LETTER].map(str::to_string).to_vec();
    BusConfig { topics, subscriptions, ..BusConfig::default() }
}

/// `GET /ready`: whether events can be stored, on the bus and where they land.
async fn ready(State((bus, batcher)): State<(Bus, Arc<Batcher>)>) -> Response {
    let ready = match bus.ready() {
        Ok(()) => batcher.ready().await,
        error => error,
    };
    match ready {
        Ok(()) => Json(json!({"status": "ready"})).into_response(),
        Err(reason) => {
            (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"status": "not ready", "reason": reason}))).into_response()
        }
    }
}

/// Hands the socket's address on as the client's.
async fn client_address(ConnectInfo(address): ConnectInfo<SocketAddr>, mut request: Request, next: Next) -> Response {
    request.extensions_mut().insert(ClientAddress(address.ip()));
    next.run(request).await
}
