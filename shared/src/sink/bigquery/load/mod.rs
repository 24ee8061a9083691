//! Bulk loads into `BigQuery`: rows go through pending streams into staging tables, and one transaction shows those of
//! all tables at once.
//!
//! - A target `dataset.table` has one staging table `dataset.table__run`, which BigQuery itself drops after
//!   [`KEPT_FOR`], so that a lost run leaves nothing.
//! - Between two checkpoints lies a segment, named by a random number that each of its rows bears in a further column.
//!   A checkpoint ends and commits the segment's streams and then names the segment. Rows of a segment that no
//!   checkpoint names are never shown: those of a run that was killed, even where its last request still arrives.
//! - The transaction records the run in `contextflow.loads` as well, so that it does its work once, however often it is
//!   repeated.
//!
//! Rows of a streaming table that land while it is loaded, or landed within the hour before, stay; those of the run that are
//! among them are left out. BigQuery lets no transaction change rows that were streamed in the last 30 minutes.
//!
//! Readers see all tables as they were or as they are to be. Not so with [`Mode::Recreate`]: a transaction of BigQuery
//! takes no table that is made in it, so the tables are dropped and made anew just before it and stand empty meanwhile. A
//! statement of BigQuery fills at most 4,000 partitions of a table.

mod sql;
mod staging;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::try_join_all;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use uuid::Uuid;

use self::sql::Sql;
use self::staging::Staging;
use self::stream::Writer;
use super::Options;
use super::login::Tokens;
use super::service::Service;
use crate::catalog::{ApiError, BigQuery, Verdict, Wanted, diff};
use crate::clock::{Clock, DAY, Micros};
use crate::load::{Load, Loader, Mode, check_run};
use crate::row::Value;
use crate::schema::{Plan, compile};
use crate::settings::Settings;

/// How long a staging table is kept.
const KEPT_FOR: Micros = 7 * DAY;
/// The table of runs.
const LOADS: &str = include_str!("loads.json");
/// Seconds before a transaction that met another one is tried again.
const PAUSES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];
/// Longest time of a call that is no append; a commit of many rows takes its time.
const CALL: Duration = Duration::from_mins(1);
/// The patience of a job that has hours: about a minute for each request.
const PATIENT: Options = Options {
    in_flight: 4,
    answer_within: Duration::from_mins(1),
    tries: 9,
    pause: Duration::from_millis(250),
    give_up_after: Duration::MAX,
};

/// Loads tables of one project; see [`Loader`].
pub struct BigQueryLoader {
    shared: Arc<Shared>,
}

struct Shared {
    catalog: BigQuery,
    service: Arc<Service>,
    options: Options,
    clock: Clock,
    loads: Arc<Plan>,
    /// Its table.
    recorded_in: String,
}

/// What a checkpoint says.
#[derive(Serialize, Deserialize)]
struct Checkpoint {
    /// The segments whose rows count.
    segments: Vec<i64>,
    /// How many rows each table has until now.
    rows: Vec<i64>,
}

impl BigQueryLoader {
    /// The loader that the settings name: the tables of `GOOGLE_CLOUD_PROJECT`, with Google's own login, or without any
    /// on the emulator at `BIGQUERY_REST_ENDPOINT` and `BIGQUERY_GRPC_ENDPOINT` (`http://host:port`).
    /// `BIGQUERY_LOCATION` says where datasets are made and queries run; without it BigQuery chooses. Inside a tokio
    /// runtime.
    pub async fn new(settings: &Settings, clock: Clock) -> Result<Self, String> {
        let service = Service::new(settings, &clock, CALL)?;
        Self::on(settings, service, PATIENT, clock).await
    }

    /// [`BigQueryLoader::new`] with other tokens (for Storage Write) and options than the usual.
    pub async fn with(
        settings: &Settings,
        tokens: Option<Tokens>,
        options: Options,
        clock: Clock,
    ) -> Result<Self, String> {
        Self::on(settings, Service::with(settings, tokens, &clock, CALL)?, options, clock).await
    }

    async fn on(settings: &Settings, service: Service, options: Options, clock: Clock) -> Result<Self, String> {
        let project = settings.project().map_err(|error| error.to_string())?;
        let location = settings.get("BIGQUERY_LOCATION").map(str::to_string);
        let catalog = BigQuery::new(settings, project, location).await.map_err(|error| error.to_string())?;
        let loads = Arc::new(compile("loads.json", LOADS).map_err(|error| error.to_string())?);
        let recorded_in = loads.table.full_name();
        let shared = Shared { catalog, service: Arc::new(service), options, clock, loads, recorded_in };
        Ok(Self { shared: Arc::new(shared) })
    }
}

#[async_trait]
impl Loader for BigQueryLoader {
    async fn begin(
        &self,
        run: &str,
        tables: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&Json>,
    ) -> Result<Box<dyn Load>, String> {
        check_run(run)?;
        tables.iter().try_for_each(|plan| mode.check(plan))?;
        let Checkpoint { segments, rows } = match checkpoint {
            Some(json) => {
                Checkpoint::deserialize(json).map_err(|error| format!("no checkpoint of BigQuery: {error}"))?
            }
            None => Checkpoint { segments: Vec::new(), rows: Vec::new() },
        };
        let shared = Arc::clone(&self.shared);
        let staging: Vec<_> = tables.iter().map(|plan| Staging::new(plan, run)).collect();
        let writer = |(index, staging): (usize, &Staging)| {
            let durable = rows.get(index).copied().unwrap_or_default();
            Writer::new(Arc::clone(&shared.service), shared.options, staging.clone(), durable)
        };
        let writers = staging.iter().enumerate().map(writer).collect();
        let mut load = BigQueryLoad {
            shared,
            run: run.into(),
            mode,
            tables: tables.to_vec(),
            staging,
            writers,
            segments,
            segment: 0,
        };
        if load.prepare().await? {
            tracing::warn!(run, "the run was published before; it adds nothing any more");
            load.writers.clear();
        }
        load.begin_segment();
        Ok(Box::new(load))
    }
}

struct BigQueryLoad {
    shared: Arc<Shared>,
    run: String,
    mode: Mode,
    tables: Vec<Arc<Plan>>,
    /// One a table.
    staging: Vec<Staging>,
    /// One a table; none where the run is published.
    writers: Vec<Writer>,
    /// Whose rows count.
    segments: Vec<i64>,
    /// The one under way.
    segment: i64,
}

impl BigQueryLoad {
    /// Makes what is missing of datasets, targets, staging tables and the run's record. Whether the run is published.
    async fn prepare(&self) -> Result<bool, String> {
        let Shared { catalog, clock, loads, .. } = &*self.shared;
        let location = catalog.location.as_deref();
        let all: Vec<_> = self.tables.iter().chain([loads]).map(Arc::clone).collect();
        self.make(&Wanted::datasets(&all, &catalog.project, location)).await?;
        // Tables that will be made anew may be of any form until then.
        let now = if self.mode == Mode::Recreate { std::slice::from_ref(loads) } else { &all };
        self.make(&Wanted::tables(now, &catalog.project)).await?;
        catalog.query(&self.sql().begin(self.mode)).await.map_err(|error| self.failed("recording", &error))?;
        if self.is_published().await? {
            return Ok(true);
        }
        for staging in &self.staging {
            let failed = |error: ApiError| format!("table {}: {error}", staging.name);
            if self.segments.is_empty() {
                let expires_at = clock.now() + KEPT_FOR;
                catalog.make_staging(&staging.name, &staging.columns, expires_at).await.map_err(failed)?;
            } else if !catalog.has_table(&staging.name).await.map_err(failed)? {
                let days = KEPT_FOR / DAY;
                return Err(format!(
                    "the rows of run {} are gone: there is no table {} (they are kept for {days} days); begin a new run",
                    self.run, staging.name
                ));
            }
        }
        Ok(false)
    }

    /// Has BigQuery follow the schemas; what would lose data is refused, as with `contextflow schema apply`.
    async fn make(&self, wanted: &Wanted) -> Result<(), String> {
        let catalog = &self.shared.catalog;
        let found = catalog.read(wanted).await.map_err(|error| self.failed("preparing", &error))?;
        let diff = diff(wanted, &found);
        if let Some(refused) = diff.differences.iter().find(|difference| difference.verdict == Verdict::Refuse) {
            return Err(format!(
                "{}: {}; see `contextflow schema diff`, mend it or load with --force-recreate",
                refused.object, refused.what
            ));
        }
        catalog.apply(&diff).await.map_err(|(object, error)| format!("{object}: {error}"))
    }

    fn begin_segment(&mut self) {
        // 48 bits, all of them random.
        self.segment = (Uuid::new_v4().as_u64_pair().0 >> 16).cast_signed();
        self.writers.iter_mut().for_each(|writer| writer.begin_segment(self.segment));
    }

    async fn is_published(&self) -> Result<bool, String> {
        let answer = self.shared.catalog.query(&self.sql().published()).await;
        answer.map(|answer| !answer.rows.is_empty()).map_err(|error| self.failed("asking for", &error))
    }

    /// Drops the targets and makes them anew.
    async fn recreate(&self) -> Result<(), String> {
        let catalog = &self.shared.catalog;
        for Staging { of, .. } in &self.staging {
            catalog.drop_table(of).await.map_err(|error| format!("table {of}: {error}"))?;
        }
        self.make(&Wanted::tables(&self.tables, &catalog.project)).await
    }

    /// Runs the transaction until the run is recorded as published.
    async fn switch(&self) -> Result<(), String> {
        let tables: Vec<_> = self.tables.iter().map(|plan| &**plan).zip(&self.staging).collect();
        let script = self.sql().publish(&tables, self.mode, &self.segments);
        for pause in PAUSES {
            let done = self.shared.catalog.query(&script).await;
            // Whatever came of this one: a repetition of it may have been faster.
            if self.is_published().await? {
                return Ok(());
            }
            match done {
                Ok(_) => return Err(format!("run {}: its record in {} is gone", self.run, self.shared.recorded_in)),
                Err(error) if met_another(&error) => {
                    tracing::warn!(run = self.run, %error, "the transaction is to be tried again");
                    tokio::time::sleep(Duration::from_secs(pause)).await;
                }
                Err(error) if changes_streamed_rows(&error) => {
                    let remedy =
                        "nothing was changed; publish it when nothing was streamed to the table for 30 minutes";
                    return Err(format!("{}; {remedy}", self.failed("publishing", &error)));
                }
                Err(error) => return Err(self.failed("publishing", &error)),
            }
        }
        Err(format!("publishing run {}: other transactions change the same tables; publish it later", self.run))
    }

    async fn drop_staging(&self) -> Result<(), String> {
        for Staging { name, .. } in &self.staging {
            self.shared.catalog.drop_table(name).await.map_err(|error| format!("table {name}: {error}"))?;
        }
        Ok(())
    }

    fn sql(&self) -> Sql<'_> {
        Sql { project: &self.shared.catalog.project, loads: &self.shared.recorded_in, run: &self.run }
    }

    fn failed(&self, doing: &str, error: &ApiError) -> String {
        format!("{doing} run {}: {error}", self.run)
    }
}

#[async_trait]
impl Load for BigQueryLoad {
    fn add(&mut self, table: usize, values: &[Value<'_>]) {
        if let Some(writer) = self.writers.get_mut(table) {
            writer.add(values);
        }
    }

    fn held(&self) -> usize {
        self.writers.iter().map(Writer::held).sum()
    }

    async fn flush(&mut self) -> Result<(), String> {
        try_join_all(self.writers.iter_mut().map(Writer::flush)).await.map(drop)
    }

    async fn checkpoint(&mut self) -> Result<Json, String> {
        let rows = try_join_all(self.writers.iter_mut().map(Writer::commit)).await?;
        self.segments.push(self.segment);
        self.begin_segment();
        serde_json::to_value(Checkpoint { segments: self.segments.clone(), rows }).map_err(|error| error.to_string())
    }

    async fn publish(mut self: Box<Self>) -> Result<(), String> {
        self.checkpoint().await?;
        if !self.is_published().await? {
            if self.mode == Mode::Recreate {
                self.recreate().await?;
            }
            self.switch().await?;
        }
        if let Err(error) = self.drop_staging().await {
            tracing::warn!(run = self.run, error, "staging tables stay until they expire");
        }
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<(), String> {
        self.drop_staging().await
    }
}

/// Whether a transaction would have changed rows that were streamed within the last 30 minutes: those of a table without the
/// system columns, by which they would be told apart.
fn changes_streamed_rows(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { message, .. } if message.contains("streaming buffer"))
}

/// Whether a transaction was cancelled in favour of another one.
fn met_another(error: &ApiError) -> bool {
    matches!(error, ApiError::Refused { message, .. } if message.contains("concurrent update"))
}
