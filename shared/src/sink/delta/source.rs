//! One table as a query sees it: one of its versions without the hidden column.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::arrow::datatypes::SchemaRef;
use deltalake::datafusion::catalog::{Session, TableProvider};
use deltalake::datafusion::datasource::empty::EmptyTable;
use deltalake::datafusion::error::Result as QueryResult;
use deltalake::datafusion::execution::SessionState;
use deltalake::datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use deltalake::datafusion::physical_plan::ExecutionPlan;
use deltalake::{DeltaTable, DeltaTableError};
use tokio::sync::Mutex;
use tokio::task::spawn_blocking;

use super::arrow::arrow_schema;
use super::data_file::PARTITION_DATE;
use super::files::{Files, Place};
use super::log;
use crate::schema::Plan;

/// A table that may not be there yet.
pub(super) struct Source {
    pub(super) plan: Arc<Plan>,
    files: Arc<dyn Files>,
    open: Mutex<Option<Open>>,
}

struct Open {
    table: DeltaTable,
    shown: Arc<dyn TableProvider>,
}

impl Source {
    pub(super) fn new(place: &Place, plan: &Arc<Plan>) -> Self {
        let files = place.table(&plan.table.dataset, &plan.table.name, None);
        Self { plan: Arc::clone(plan), files, open: Mutex::default() }
    }

    /// A version, or the newest; an empty table where there is none.
    ///
    /// A table that did not change since the last call costs a look at two file names.
    pub(super) async fn at(
        &self,
        version: Option<u64>,
        session: &Arc<SessionState>,
    ) -> Result<Arc<dyn TableProvider>, DeltaTableError> {
        let mut slot = self.open.lock().await;
        let open = match (slot.take(), version) {
            (Some(open), Some(version)) if open.table.version() == Some(version) => Some(open),
            (Some(open), None) if self.is_newest(&open.table).await? => Some(open),
            (Some(open), None) => self.update(open, session).await?,
            (_, version) => self.open(version, session).await?,
        };
        let shown = open.as_ref().map(|open| Arc::clone(&open.shown));
        *slot = open;
        Ok(shown.unwrap_or_else(|| Arc::new(EmptyTable::new(arrow_schema(&self.plan)))))
    }

    async fn is_newest(&self, table: &DeltaTable) -> Result<bool, DeltaTableError> {
        let Some(version) = table.version() else { return Ok(false) };
        let files = Arc::clone(&self.files);
        let exists = move |version| files.exists(&log::version_file(version));
        // Where even the known version is gone, the log was tidied or the folder replaced.
        let looked = spawn_blocking(move || Ok::<_, io::Error>(exists(version)? && !exists(version + 1)?));
        Ok(looked.await.map_err(io::Error::other)??)
    }

    async fn update(&self, mut open: Open, session: &Arc<SessionState>) -> Result<Option<Open>, DeltaTableError> {
        match open.table.update_state().await {
            Ok(()) => Ok(Some(Open { shown: shown(&open.table, session).await?, table: open.table })),
            // The versions in between may be tidied away, or the folder removed.
            Err(_) => self.open(None, session).await,
        }
    }

    async fn open(&self, version: Option<u64>, session: &Arc<SessionState>) -> Result<Option<Open>, DeltaTableError> {
        let Some(table) = log::open(&*self.files, version).await? else { return Ok(None) };
        Ok(Some(Open { shown: shown(&table, session).await?, table }))
    }
}

async fn shown(table: &DeltaTable, session: &Arc<SessionState>) -> Result<Arc<dyn TableProvider>, DeltaTableError> {
    let table: Arc<dyn TableProvider> = table.table_provider().with_session(Arc::clone(session)).await?;
    let all = table.schema();
    let columns: Vec<_> = (0..all.fields().len()).filter(|&index| all.field(index).name() != PARTITION_DATE).collect();
    let schema = Arc::new(all.project(&columns)?);
    Ok(Arc::new(Shown { table, columns, schema }))
}

/// Some columns of a table.
#[derive(Debug)]
struct Shown {
    table: Arc<dyn TableProvider>,
    columns: Vec<usize>,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for Shown {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        let columns = match projection {
            Some(wanted) => wanted.iter().filter_map(|&index| self.columns.get(index).copied()).collect(),
            None => self.columns.clone(),
        };
        self.table.scan(session, Some(&columns), filters, limit).await
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> QueryResult<Vec<TableProviderFilterPushDown>> {
        self.table.supports_filters_pushdown(filters)
    }
}
