//! What the schemas want BigQuery to have.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

use crate::schema::{Plan, Registry, Table, ddl};
use crate::views::{self, View};

/// The label of a table that tells by which version of its schema it was last changed.
pub(super) const VERSION_LABEL: &str = "schema_version";
/// The label of a view that tells its definition from another one.
pub(super) const DEFINITION_LABEL: &str = "definition";

/// Datasets, tables and views, each after what it needs.
#[derive(Debug)]
pub struct Wanted {
    pub(super) objects: Vec<Object>,
}

/// Something with a name.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) kind: Kind,
    /// `dataset`, or `dataset.table`.
    pub(super) name: String,
    /// Where the REST API has it, below the project.
    pub(super) path: String,
    /// The REST API's document.
    pub(super) document: Json,
}

#[derive(Debug)]
pub(super) enum Kind {
    Dataset,
    Table(Arc<Plan>),
    View,
}

impl Kind {
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Self::Dataset => "dataset",
            Self::Table(_) => "table",
            Self::View => "view",
        }
    }
}

impl Wanted {
    /// What the plans of a registry stand for: their datasets and tables, a deduplicated view of each table whose rows
    /// have an identity, a view of the conflicts of each streaming table, and the analysts' views over them.
    pub fn of(registry: &Registry, project: &str, location: Option<&str>) -> Self {
        let datasets = datasets(registry.plans(), project, location);
        let tables = registry.plans().map(|plan| table(project, plan));
        let views = registry.plans().flat_map(|plan| [deduplicated(project, plan), conflicts(project, plan)]).flatten();
        let reports = views::all().filter_map(|view| report(project, registry, &view));
        Self { objects: datasets.chain(tables).chain(views).chain(reports).collect() }
    }

    /// The datasets of some plans.
    pub fn datasets(plans: &[Arc<Plan>], project: &str, location: Option<&str>) -> Self {
        Self { objects: datasets(plans, project, location).collect() }
    }

    /// The tables of some plans, without datasets and views.
    pub fn tables(plans: &[Arc<Plan>], project: &str) -> Self {
        Self { objects: plans.iter().map(|plan| table(project, plan)).collect() }
    }
}

fn datasets<'a>(
    plans: impl IntoIterator<Item = &'a Arc<Plan>>,
    project: &str,
    location: Option<&str>,
) -> impl Iterator<Item = Object> {
    let names: BTreeSet<_> = plans.into_iter().map(|plan| plan.table.dataset.as_str()).collect();
    names.into_iter().map(move |name| dataset(project, name, location))
}

fn dataset(project: &str, name: &str, location: Option<&str>) -> Object {
    let mut document = json!({"datasetReference": {"projectId": project, "datasetId": name}});
    if let Some(location) = location {
        document["location"] = json!(location);
    }
    Object { kind: Kind::Dataset, name: name.into(), path: format!("datasets/{name}"), document }
}

fn table(project: &str, plan: &Arc<Plan>) -> Object {
    let mut document = json!({
        "labels": {VERSION_LABEL: plan.version},
        "schema": {"fields": ddl::columns_json(plan)},
    });
    if let Some(description) = &plan.description {
        document["description"] = json!(description);
    }
    if let (Some(partition), Some(column)) = (plan.table.partition, plan.partition_column()) {
        document["timePartitioning"] = json!({"type": partition.granularity, "field": column.name});
    }
    if plan.table.require_partition_filter {
        document["requirePartitionFilter"] = json!(true);
        // Where the API had it first; bqemulator still reads it there and nowhere else.
        document["timePartitioning"]["requirePartitionFilter"] = json!(true);
    }
    if !plan.table.clustering.is_empty() {
        let names: Vec<_> = plan.table.clustering.iter().map(|&index| plan.columns[index].name.as_str()).collect();
        document["clustering"] = json!({"fields": names});
    }
    below_dataset(project, &plan.table.dataset, &plan.table.name, Kind::Table(Arc::clone(plan)), document)
}

/// The view in which every row is seen once: of the rows with one partition time and one identity the first received,
/// whether the others are copies of it or conflicts.
///
/// The partition column is one of the window's keys, so a filter on it keeps or drops all copies of a row alike;
/// BigQuery takes it down to the table and reads only those partitions. The view itself needs no filter: where the table
/// requires one, it is for the query to give. Columns are named, so that a column more is a definition that differs.
fn deduplicated(project: &str, plan: &Plan) -> Option<Object> {
    let identity = plan.columns.get(plan.identity?)?;
    let identity = quoted(&identity.name);
    // The last one decides between rows of one append.
    let order = plan.system.map(|system| [system.received_at, system.loaded_at, system.fingerprint]);
    let order = order.map(|columns| columns.map(|index| quoted(&plan.columns[index].name)).join(", "));
    let order = order.map(|columns| format!(" ORDER BY {columns}")).unwrap_or_default();
    let keys = views::keys(plan)?;
    let condition = format!("{identity} IS NULL OR ROW_NUMBER() OVER (PARTITION BY {keys}{order}) = 1");
    let query = views::rows_where(plan, &format!("{project}."), &condition);
    let description = format!("Every row of {} once", plan.table.name);
    Some(view(project, &plan.table.dataset, &format!("v_{}", plan.table.name), &description, &query))
}

/// The view of conflicts, which prunes as [`deduplicated`] does.
fn conflicts(project: &str, plan: &Plan) -> Option<Object> {
    let query = views::conflicts(plan, &format!("{project}."))?;
    let description = format!("Rows of {} with one event_id and different content", plan.table.name);
    Some(view(project, &plan.table.dataset, &views::name_of_conflicts(plan), &description, &query))
}

/// An analysts' view, where the schemas have all that it reads.
fn report(project: &str, registry: &Registry, report: &View) -> Option<Object> {
    let is_there = |name: &str| {
        registry.plans().any(|plan| {
            let Table { dataset, name: table, .. } = &plan.table;
            name == format!("{dataset}.{table}") || (plan.identity.is_some() && name == format!("{dataset}.v_{table}"))
        })
    };
    let query = report.query_in(project);
    report.reads().all(is_there).then(|| view(project, report.dataset, report.name, &report.description(), &query))
}

fn view(project: &str, dataset: &str, name: &str, description: &str, query: &str) -> Object {
    let digest = crate::event::hex(&Sha256::digest(query)[..8]);
    let document = json!({
        "description": description,
        "labels": {DEFINITION_LABEL: digest},
        "view": {"query": query, "useLegacySql": false},
    });
    below_dataset(project, dataset, name, Kind::View, document)
}

fn below_dataset(project: &str, dataset: &str, name: &str, kind: Kind, mut document: Json) -> Object {
    document["tableReference"] = json!({"projectId": project, "datasetId": dataset, "tableId": name});
    Object { kind, name: format!("{dataset}.{name}"), path: format!("datasets/{dataset}/tables/{name}"), document }
}

fn quoted(name: &str) -> String {
    format!("`{name}`")
}
