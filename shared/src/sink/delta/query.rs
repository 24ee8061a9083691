//! The warehouse as SQL: every table of the registry, its deduplicated view, and the analysts' views.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::arrow::array::RecordBatch;
use deltalake::datafusion::catalog::{
    CatalogProvider as _, MemoryCatalogProvider, MemoryCatalogProviderList, SchemaProvider, TableProvider,
};
use deltalake::datafusion::error::{DataFusionError, Result as QueryResult};
use deltalake::datafusion::execution::context::SQLOptions;
use deltalake::datafusion::execution::runtime_env::RuntimeEnvBuilder;
use deltalake::datafusion::execution::{SessionState, SessionStateBuilder};
use deltalake::datafusion::prelude::{SessionConfig, SessionContext};
use deltalake::datafusion::sql::parser::Statement;
use deltalake::datafusion::sql::sqlparser::ast;
use tokio::task::spawn_blocking;

use super::dedup::Deduplicated;
use super::files::{Files, Place};
use super::first_line;
use super::load::pointer::Pointer;
use super::source::Source;
use super::views::{Dataset, Tables, Views};
use crate::bucket::Location;
use crate::schema::{Plan, Registry};
use crate::views;

const CATALOG: &str = "warehouse";
/// The schema that unqualified names are looked up in.
const BY_NAME: &str = "public";
/// Bytes that one warehouse's queries hold at most before they spill or fail.
const MEMORY: usize = 2 * 1024 * 1024 * 1024;
/// Queries share the machine with the pipeline.
const THREADS: usize = 2;

const ONLY_QUESTIONS: &str = "only questions are answered here: SELECT, WITH, VALUES, EXPLAIN, DESCRIBE, SHOW TABLES";

/// Why a query has no answer; one line.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The query is at fault.
    #[error("{0}")]
    Query(String),
    /// The warehouse is at fault.
    #[error("the warehouse cannot be read: {0}")]
    Warehouse(String),
}

/// Reads the tables of one folder or bucket, whether or not anyone writes them.
///
/// Tables are visible as `dataset.table` and, where no other dataset has the name, as `table`. A table that is not
/// there yet is empty. `dataset.v_table` shows the rows with an identity once each, `dataset.v_table_conflicts` those of a
/// stream that share an identity but not their content; beside them are the views of [`crate::views`]. Keep one for many queries: it
/// remembers what it has read of the logs and reads only what is new.
pub struct Warehouse {
    root: Arc<dyn Files>,
    sources: Vec<Source>,
    base: Arc<SessionState>,
}

impl Warehouse {
    /// The tables of `registry` in the folder `root`; nothing is read yet.
    pub fn open(root: &Path, registry: &Registry) -> Result<Self, QueryError> {
        let root = std::path::absolute(root).map_err(|error| QueryError::Warehouse(error.to_string()))?;
        Self::of(registry.plans(), &Place::Folder(root))
    }

    /// The tables of `registry` in a bucket; nothing is read yet. Queries run on the runtime that this is called on.
    pub fn open_bucket(location: Location, registry: &Registry) -> Result<Self, QueryError> {
        let place = Place::bucket(location).map_err(|error| QueryError::Warehouse(error.to_string()))?;
        Self::of(registry.plans(), &place)
    }

    /// The tables of some plans.
    pub(super) fn of<'p>(plans: impl IntoIterator<Item = &'p Arc<Plan>>, place: &Place) -> Result<Self, QueryError> {
        let runtime = RuntimeEnvBuilder::new().with_memory_limit(MEMORY, 1.0).build_arc().map_err(query_error)?;
        let config = SessionConfig::new()
            .with_target_partitions(THREADS)
            .with_default_catalog_and_schema(CATALOG, BY_NAME)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            // Plain `Utf8` for whoever turns results into something else.
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false)
            .set_bool("datafusion.sql_parser.map_string_types_to_utf8view", false)
            .set_bool("datafusion.execution.parquet.pushdown_filters", true);
        let base =
            SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features().build();
        let sources = plans.into_iter().map(|plan| Source::new(place, plan)).collect();
        Ok(Self { root: place.root(None), sources, base: Arc::new(base) })
    }

    /// A session over the newest version of every table; it keeps to these versions. Of the tables of a load it has
    /// either all with the load's rows or all without.
    pub async fn session(&self) -> Result<SessionContext, QueryError> {
        let mut datasets: BTreeMap<&str, Tables> = BTreeMap::new();
        for (source, shown) in self.sources.iter().zip(self.snapshot().await?) {
            let table = &source.plan.table;
            let dataset = datasets.entry(&table.dataset).or_default();
            if let Some(view) = Deduplicated::new(Arc::clone(&shown), &source.plan) {
                dataset.insert(format!("v_{}", table.name), Arc::new(view));
            }
            dataset.insert(table.name.clone(), shown);
        }
        let base = self.context(&datasets, None).map_err(query_error)?.state();
        self.context(&datasets, Some(&Arc::new(base))).map_err(query_error)
    }

    /// One version of every table, in the order of `sources`: those that the pointer names while a load switches them,
    /// else the newest, read again where a load switched some of them meanwhile.
    async fn snapshot(&self) -> Result<Vec<Arc<dyn TableProvider>>, QueryError> {
        let mut pointer = self.pointer().await?;
        loop {
            let mut shown = Vec::with_capacity(self.sources.len());
            for source in &self.sources {
                let table = &source.plan.table;
                let version = pointer.version_of(&table.dataset, &table.name);
                shown.push(source.at(version, &self.base).await.map_err(|error| {
                    QueryError::Warehouse(format!("table {}: {}", table.full_name(), first_line(&error)))
                })?);
            }
            let now = self.pointer().await?;
            if pointer.is_switching() || now == pointer {
                return Ok(shown);
            }
            pointer = now;
        }
    }

    async fn pointer(&self) -> Result<Pointer, QueryError> {
        let root = Arc::clone(&self.root);
        let read = spawn_blocking(move || Pointer::read(&*root)).await.map_err(io::Error::other);
        read.flatten().map_err(|error| QueryError::Warehouse(one_line(&error.to_string())))
    }

    /// Runs one query; statements that change anything are refused.
    pub async fn sql(&self, query: &str) -> Result<Vec<RecordBatch>, QueryError> {
        let session = self.session().await?;
        let state = session.state();
        let statement = state.sql_to_statement(query, &state.config_options().sql_parser.dialect);
        let statement = statement.map_err(query_error)?;
        if !is_question(&statement) {
            return Err(QueryError::Query(ONLY_QUESTIONS.into()));
        }
        for reference in state.resolve_table_references(&statement).map_err(query_error)? {
            let schema = state.schema_for_ref(reference.clone());
            if !schema.is_ok_and(|schema| schema.table_exist(reference.table())) {
                let names = table_names(&session).join(", ");
                return Err(QueryError::Query(format!("there is no table {reference}; there are: {names}")));
            }
        }
        let plan = state.statement_to_plan(statement).await.map_err(query_error)?;
        let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
        if options.verify_plan(&plan).is_err() {
            return Err(QueryError::Query(ONLY_QUESTIONS.into()));
        }
        let frame = session.execute_logical_plan(plan).await.map_err(query_error)?;
        let schema = Arc::clone(frame.schema().inner());
        let mut batches = frame.collect().await.map_err(query_error)?;
        if batches.is_empty() {
            // An answer without rows still tells its columns.
            batches.push(RecordBatch::new_empty(schema));
        }
        Ok(batches)
    }

    /// The views of conflicts of a dataset.
    fn conflicts(&self, dataset: &str) -> Views {
        let plans = self.sources.iter().map(|source| &source.plan).filter(|plan| plan.table.dataset == dataset);
        plans.filter_map(|plan| Some((views::name_of_conflicts(plan), views::conflicts(plan, "")?))).collect()
    }

    /// A session over tables, and with a session over these the views too.
    fn context(
        &self,
        datasets: &BTreeMap<&str, Tables>,
        base: Option<&Arc<SessionState>>,
    ) -> QueryResult<SessionContext> {
        let catalog = Arc::new(MemoryCatalogProvider::new());
        let has = |name: &str| {
            let found = name.split_once('.').and_then(|(dataset, table)| datasets.get(dataset)?.get(table));
            found.is_some()
        };
        let mut by_name: BTreeMap<String, Option<Arc<dyn SchemaProvider>>> = BTreeMap::new();
        for (name, tables) in datasets {
            let dataset = match base {
                Some(base) => Dataset::with_views(name, tables.clone(), self.conflicts(name), base, has),
                None => Dataset::of_tables(tables.clone()),
            };
            let dataset: Arc<dyn SchemaProvider> = Arc::new(dataset);
            for table in dataset.table_names() {
                let only = by_name.entry(table).and_modify(|unique| *unique = None);
                only.or_insert_with(|| Some(Arc::clone(&dataset)));
            }
            catalog.register_schema(name, dataset)?;
        }
        let by_name = by_name.into_iter().filter_map(|(name, dataset)| Some((name, dataset?))).collect();
        catalog.register_schema(BY_NAME, Arc::new(ByName(by_name)))?;
        let catalogs = Arc::new(MemoryCatalogProviderList::new());
        let state = SessionStateBuilder::new_from_existing(self.base.as_ref().clone()).with_catalog_list(catalogs);
        let context = SessionContext::new_with_state(state.build());
        context.register_catalog(CATALOG, catalog);
        Ok(context)
    }
}

/// Tables whose names need no dataset; found, but not listed a second time.
#[derive(Debug)]
struct ByName(BTreeMap<String, Arc<dyn SchemaProvider>>);

#[async_trait]
impl SchemaProvider for ByName {
    fn table_names(&self) -> Vec<String> {
        Vec::new()
    }

    async fn table(&self, name: &str) -> QueryResult<Option<Arc<dyn TableProvider>>> {
        match self.0.get(name) {
            Some(dataset) => dataset.table(name).await,
            None => Ok(None),
        }
    }

    fn table_exist(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// Whether a statement only reads. What it reads by is checked in its plan as well: EXPLAIN can hold anything.
fn is_question(statement: &Statement) -> bool {
    match statement {
        Statement::Explain(_) => true,
        Statement::Statement(statement) => matches!(
            **statement,
            ast::Statement::Query(_)
                | ast::Statement::Explain { .. }
                | ast::Statement::ExplainTable { .. }
                | ast::Statement::ShowTables { .. }
                | ast::Statement::ShowColumns { .. }
        ),
        _ => false,
    }
}

fn table_names(session: &SessionContext) -> Vec<String> {
    let Some(catalog) = session.catalog(CATALOG) else { return Vec::new() };
    let mut names = Vec::new();
    for dataset in catalog.schema_names() {
        let tables = catalog.schema(&dataset).map(|schema| schema.table_names()).unwrap_or_default();
        names.extend(tables.into_iter().map(|table| format!("{dataset}.{table}")));
    }
    names.sort();
    names
}

#[expect(clippy::needless_pass_by_value, reason = "it stands in `map_err`")]
fn query_error(error: DataFusionError) -> QueryError {
    match error.find_root() {
        DataFusionError::IoError(_) | DataFusionError::ObjectStore(_) | DataFusionError::ParquetError(_) => {
            QueryError::Warehouse(message(&error))
        }
        _ => QueryError::Query(message(&error)),
    }
}

/// The cause alone, on one line.
fn message(error: &DataFusionError) -> String {
    let root = error.find_root();
    let text = match root {
        DataFusionError::SQL(error, _) => error.to_string(),
        other => other.message().into_owned(),
    };
    one_line(text.split(DataFusionError::BACK_TRACE_SEP).next().unwrap_or_default())
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
