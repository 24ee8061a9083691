//! The bulk load of tables: rows become data files that no version names, and one switch shows them all.
//!
//! Files wait in the folder `_load` of their table, each from the moment it is full or a checkpoint asks for it; what is
//! in no file yet is in memory. [`switch`] says how readers come from the tables as they were to those with the run's
//! rows.

pub(super) mod pointer;
mod staging;
pub(super) mod switch;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::kernel::Add;
use serde_json::Value as Json;
use tracing::warn;

use self::staging::Staging;
use self::switch::Switch;
use super::table::{Table, blocking};
use super::{DeltaError, DeltaSink, Right};
use crate::load::{Load, Loader, Mode, check_run};
use crate::row::Value;
use crate::schema::Plan;

/// What a checkpoint says: of each table, by its full name, the files that are staged.
type Checkpoint = BTreeMap<String, Vec<Add>>;

/// One load under way.
struct DeltaLoad {
    run: String,
    mode: Mode,
    plans: Vec<Arc<Plan>>,
    tables: Vec<Arc<Table>>,
    /// None while a call works on it, and for good once one failed or was dropped.
    staging: Option<Staging>,
    /// The run was published before: nothing is left to do.
    is_published: bool,
    switch: Arc<Switch>,
    /// The warehouse stays this writer's until the load has ended.
    _right: Arc<Right>,
}

#[async_trait]
impl Loader for DeltaSink {
    async fn begin(
        &self,
        run: &str,
        tables: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&Json>,
    ) -> Result<Box<dyn Load>, String> {
        let load = self.begin_load(run, tables, mode, checkpoint).await.map_err(|error| error.to_string())?;
        Ok(Box::new(load))
    }
}

impl DeltaSink {
    async fn begin_load(
        &self,
        run: &str,
        plans: &[Arc<Plan>],
        mode: Mode,
        checkpoint: Option<&Json>,
    ) -> Result<DeltaLoad, DeltaError> {
        self.recover().await?;
        let refused = |reason: String| DeltaError::Load { run: run.into(), reason };
        check_run(run).map_err(refused)?;
        plans.iter().try_for_each(|plan| mode.check(plan)).map_err(refused)?;
        let mut staged: Checkpoint = match checkpoint {
            Some(checkpoint) => serde_json::from_value(checkpoint.clone())
                .map_err(|error| refused(format!("its checkpoint cannot be read: {error}; start it anew")))?,
            None => Checkpoint::new(),
        };
        let tables: Vec<_> = plans.iter().map(|plan| self.table(&plan.table.dataset, &plan.table.name)).collect();
        let is_published = checkpoint.is_some() && holds_load(&tables, run).await?;
        let mut staging = Staging::new(run, self.clock.clone());
        for (table, plan) in tables.iter().zip(plans) {
            let files = staged.remove(&table.name).unwrap_or_default();
            table.prepare_load(plan, mode).await?;
            table.tidy_log().await?;
            if !is_published && !table.unstage(staging::paths(run, &files)).await? {
                return Err(refused(format!("staged files of {} are gone; start it anew", table.name)));
            }
            staging.table(plan, Arc::clone(&table.files), files);
        }
        Ok(DeltaLoad {
            run: run.into(),
            mode,
            plans: plans.to_vec(),
            tables,
            staging: Some(staging),
            is_published,
            switch: Arc::clone(&self.switch),
            _right: Arc::clone(&self.right),
        })
    }
}

async fn holds_load(tables: &[Arc<Table>], run: &str) -> Result<bool, DeltaError> {
    for table in tables {
        if !table.holds_load(run).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

#[async_trait]
impl Load for DeltaLoad {
    fn add(&mut self, table: usize, values: &[Value<'_>]) {
        if let Some(staging) = self.staging.as_mut().filter(|_| !self.is_published) {
            staging.add(table, values);
        }
    }

    fn held(&self) -> usize {
        self.staging.as_ref().map_or(0, Staging::held)
    }

    async fn flush(&mut self) -> Result<(), String> {
        self.stage(Staging::encode).await.map_err(|error| error.to_string())
    }

    async fn checkpoint(&mut self) -> Result<Json, String> {
        self.stage(Staging::store).await.map_err(|error| error.to_string())?;
        let staged: BTreeMap<_, _> = self.staging.iter().flat_map(Staging::staged).collect();
        serde_json::to_value(staged).map_err(|error| error.to_string())
    }

    async fn publish(mut self: Box<Self>) -> Result<(), String> {
        if !self.is_published {
            self.show().await.map_err(|error| error.to_string())?;
        }
        // The rows are shown, whatever becomes of the rest: the next load removes it.
        if let Err(error) = unstage(&self.tables).await {
            warn!(run = self.run, error = %error, "staged files left behind");
        }
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<(), String> {
        unstage(&self.tables).await.map_err(|error| error.to_string())
    }
}

impl DeltaLoad {
    /// Works on what is staged where it may block. A failure ends the load: rows may be lost by it.
    async fn stage(
        &mut self,
        work: impl FnOnce(&mut Staging) -> Result<(), DeltaError> + Send + 'static,
    ) -> Result<(), DeltaError> {
        let Some(mut staging) = self.staging.take() else {
            let reason = "a former step of it failed or was interrupted; begin from its last checkpoint".into();
            return Err(DeltaError::Load { run: self.run.clone(), reason });
        };
        let staging = blocking(move || work(&mut staging).map(|()| staging)).await??;
        self.staging = Some(staging);
        Ok(())
    }

    async fn show(&mut self) -> Result<(), DeltaError> {
        self.stage(Staging::store).await?;
        let files = self.staging.take().into_iter().flat_map(Staging::into_staged);
        let mut changes = Vec::with_capacity(self.tables.len());
        for ((table, plan), files) in self.tables.iter().zip(&self.plans).zip(files) {
            changes.push((Arc::clone(table), table.change(plan, self.mode, files).await?));
        }
        self.switch.publish(&self.run, changes).await
    }
}

async fn unstage(tables: &[Arc<Table>]) -> Result<(), DeltaError> {
    for table in tables {
        table.unstage(HashSet::new()).await?;
    }
    Ok(())
}
