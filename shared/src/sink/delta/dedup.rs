//! The deduplicated view of a table: of the rows with one partition time and one identity, the first received.
//!
//! What SQL says with `row_number() OVER (PARTITION BY event_timestamp, event_id ORDER BY received_at, loaded_at,
//! fingerprint) = 1`, in one pass over a hash table: a sort and a window a key cost ten times as much where the query engine
//! is not optimised, and that is how a development build has it. Filters on the two key columns go through to the table, as they keep or drop
//! all copies of a row alike.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};
use std::sync::Arc;

use async_trait::async_trait;
use deltalake::arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch};
use deltalake::arrow::compute;
use deltalake::arrow::datatypes::{DataType, Int64Type, SchemaRef};
use deltalake::datafusion::catalog::{Session, TableProvider};
use deltalake::datafusion::common::tree_node::TreeNodeRecursion;
use deltalake::datafusion::error::{DataFusionError, Result as QueryResult};
use deltalake::datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use deltalake::datafusion::execution::{SendableRecordBatchStream, TaskContext};
use deltalake::datafusion::logical_expr::{Expr, TableProviderFilterPushDown, TableType};
use deltalake::datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use deltalake::datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use deltalake::datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use deltalake::datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use futures::{StreamExt as _, TryStreamExt as _};

use crate::schema::Plan;

/// The deduplicated view of a table.
#[derive(Debug)]
pub(super) struct Deduplicated {
    table: Arc<dyn TableProvider>,
    /// Columns of the table.
    keys: Keys,
}

/// Where the columns stand that decide.
#[derive(Debug, Clone, Copy)]
struct Keys {
    /// The partition column.
    time: Option<usize>,
    identity: usize,
    /// By what copies are ordered, of a streaming table: `received_at`, `loaded_at`, `fingerprint`.
    order: [Option<usize>; 3],
}

impl Deduplicated {
    /// `None` for a table whose rows have no identity.
    pub(super) fn new(table: Arc<dyn TableProvider>, plan: &Plan) -> Option<Self> {
        let schema = table.schema();
        let find = |index: usize| schema.index_of(&plan.columns.get(index)?.name).ok();
        let keys = Keys {
            time: plan.table.partition.and_then(|partition| find(partition.column)),
            identity: find(plan.identity?)?,
            order: plan
                .system
                .map_or([None; 3], |system| [system.received_at, system.loaded_at, system.fingerprint].map(find)),
        };
        Some(Self { table, keys })
    }

    fn is_on_keys(&self, filter: &Expr) -> bool {
        let schema = self.table.schema();
        let columns = filter.column_refs();
        !columns.is_empty()
            && columns.iter().all(|column| {
                let index = schema.index_of(&column.name).ok();
                index.is_some() && (index == self.keys.time || index == Some(self.keys.identity))
            })
    }
}

#[async_trait]
impl TableProvider for Deduplicated {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        session: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        // Not for the table below: of its first rows some may be copies.
        _limit: Option<usize>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        let mut read = match projection {
            Some(wanted) => wanted.clone(),
            None => (0..self.schema().fields().len()).collect(),
        };
        let shown = read.len();
        let mut place = |column: usize| {
            read.iter().position(|&known| known == column).unwrap_or_else(|| {
                read.push(column);
                read.len() - 1
            })
        };
        let keys = Keys {
            time: self.keys.time.map(&mut place),
            identity: place(self.keys.identity),
            order: self.keys.order.map(|column| column.map(&mut place)),
        };
        let input = self.table.scan(session, Some(&read), filters, None).await?;
        Ok(Arc::new(DeduplicateExec::new(input, keys, shown)?))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> QueryResult<Vec<TableProviderFilterPushDown>> {
        let below = self.table.supports_filters_pushdown(filters)?;
        let decide = |(filter, below): (&&Expr, TableProviderFilterPushDown)| {
            if self.is_on_keys(filter) { below } else { TableProviderFilterPushDown::Unsupported }
        };
        Ok(filters.iter().zip(below).map(decide).collect())
    }
}

/// Drops copies of rows; what it shows are the first columns of its input.
#[derive(Debug)]
struct DeduplicateExec {
    input: Arc<dyn ExecutionPlan>,
    keys: Keys,
    shown: usize,
    properties: Arc<PlanProperties>,
}

impl DeduplicateExec {
    fn new(input: Arc<dyn ExecutionPlan>, keys: Keys, shown: usize) -> QueryResult<Self> {
        let schema = Arc::new(input.schema().project(&(0..shown).collect::<Vec<_>>())?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Ok(Self { input, keys, shown, properties: Arc::new(properties) })
    }
}

impl DisplayAs for DeduplicateExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DeduplicateExec")
    }
}

impl ExecutionPlan for DeduplicateExec {
    fn name(&self) -> &'static str {
        "DeduplicateExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        vec![Distribution::SinglePartition]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> QueryResult<TreeNodeRecursion>,
    ) -> QueryResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.keys, self.shown)?))
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> QueryResult<Arc<dyn ExecutionPlan>> {
        Ok(Arc::new(Self::new(children.swap_remove(0), self.keys, self.shown)?))
    }

    fn execute(&self, _: usize, context: Arc<TaskContext>) -> QueryResult<SendableRecordBatchStream> {
        let mut rows = self.input.execute(0, Arc::clone(&context))?;
        let memory = MemoryConsumer::new("deduplicated view").register(context.memory_pool());
        let mut kept = Kept::new(self.keys, (0..self.shown).collect(), memory);
        let work = async move {
            while let Some(batch) = rows.try_next().await? {
                kept.take(&batch)?;
            }
            Ok::<_, DataFusionError>(kept.into_batches())
        };
        let stream = futures::stream::once(work).map_ok(futures::stream::iter).try_flatten();
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.schema(), stream.boxed())))
    }
}

/// The rows so far.
struct Kept {
    keys: Keys,
    shown: Vec<usize>,
    batches: Vec<RecordBatch>,
    /// Of each batch, the rows that turned out to be copies.
    copies: Vec<Vec<u32>>,
    seen: HashMap<u128, Place, BuildHasherDefault<Hashed>>,
    hashers: [RandomState; 2],
    memory: MemoryReservation,
}

/// The copy of a row that is kept.
struct Place {
    order: [i64; 3],
    batch: u32,
    row: u32,
}

/// Bytes of an entry of `seen`, about.
const ENTRY: usize = 64;

impl Kept {
    fn new(keys: Keys, shown: Vec<usize>, memory: MemoryReservation) -> Self {
        let hashers = [RandomState::new(), RandomState::new()];
        Self { keys, shown, batches: Vec::new(), copies: Vec::new(), seen: HashMap::default(), hashers, memory }
    }

    fn take(&mut self, batch: &RecordBatch) -> QueryResult<()> {
        let shown = batch.project(&self.shown)?;
        self.memory.try_grow(shown.get_array_memory_size() + batch.num_rows() * ENTRY)?;
        let number = u32::try_from(self.batches.len()).unwrap_or(u32::MAX);
        self.batches.push(shown);
        self.copies.push(Vec::new());

        let times = self.keys.time.map(|column| numbers(batch.column(column))).transpose()?;
        let mut order = [None, None, None];
        for (values, column) in order.iter_mut().zip(self.keys.order) {
            *values = column.map(|column| numbers(batch.column(column))).transpose()?;
        }
        let identities = compute::cast(batch.column(self.keys.identity), &DataType::Utf8)?;
        let at = |values: &Option<Int64Array>, row| {
            values.as_ref().filter(|values| values.is_valid(row)).map(|values| values.value(row))
        };
        for (row, identity) in identities.as_string::<i32>().iter().enumerate() {
            // A row without an identity is nobody's copy.
            let Some(identity) = identity else { continue };
            let key = self.hash(at(&times, row), identity);
            // NULL first, as BigQuery has it.
            let order = order.each_ref().map(|values| at(values, row).unwrap_or(i64::MIN));
            let place = Place { order, batch: number, row: u32::try_from(row).unwrap_or(u32::MAX) };
            match self.seen.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(place);
                }
                Entry::Occupied(mut entry) => {
                    let later = if order < entry.get().order { entry.insert(place) } else { place };
                    self.copies[later.batch as usize].push(later.row);
                }
            }
        }
        Ok(())
    }

    /// 128 bits, so that two keys do not share them by chance.
    fn hash(&self, time: Option<i64>, identity: &str) -> u128 {
        let [high, low] = self.hashers.each_ref().map(|hasher| hasher.hash_one((time, identity)));
        u128::from(high) << 64 | u128::from(low)
    }

    fn into_batches(self) -> impl Iterator<Item = QueryResult<RecordBatch>> {
        let memory = self.memory;
        self.batches.into_iter().zip(self.copies).map(move |(batch, copies)| {
            memory.shrink(memory.size().min(batch.get_array_memory_size()));
            if copies.is_empty() {
                return Ok(batch);
            }
            let mut keep = vec![true; batch.num_rows()];
            for row in copies {
                keep[row as usize] = false;
            }
            Ok(compute::filter_record_batch(&batch, &BooleanArray::from(keep))?)
        })
    }
}

/// A time or date as numbers that tell values apart and keep their order.
pub(super) fn numbers(times: &ArrayRef) -> QueryResult<Int64Array> {
    Ok(compute::cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// Takes a key that is a hash as it is.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.0 ^= u64::from_ne_bytes(word);
        }
    }
}
