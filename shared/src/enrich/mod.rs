//! Enrichments: lookups by one column that fill others. A new one is a file here and a line in [`ENRICHMENTS`].

pub mod address;
pub mod geo;
mod warm;

use std::sync::Arc;

pub use warm::{Source, Warm};

use crate::row::{Row, Value};
use crate::schema::Plan;

/// A kind of enrichment that a schema file may name.
pub struct Enrichment {
    /// The name in schema files.
    pub name: &'static str,
    /// What it finds, in the order in which [`Lookup::find`] gives it.
    pub outputs: &'static [&'static str],
    /// Whether the column it reads is a client's address, to which `IP_ANONYMISE` applies.
    pub reads_address: bool,
    /// The table used where no other is configured.
    pub built_in: &'static str,
    /// Reads a table from its source's bytes; the error names the line and what is wrong.
    pub load: Load,
}

/// Reads a table from bytes.
pub type Load = fn(&[u8]) -> Result<Arc<dyn Lookup>, String>;

/// Every enrichment there is.
pub static ENRICHMENTS: &[Enrichment] = &[geo::GEO];

/// A table that is looked up by one text. It never fails: what it does not have it says in words (`Unknown`).
pub trait Lookup: Send + Sync {
    /// The outputs for `key`, and whether the table has a row for it.
    fn find<'t>(&'t self, key: Option<&str>) -> (bool, [&'t str; 2]);
}

/// The tables in force, one for each of [`ENRICHMENTS`].
#[derive(Clone)]
pub struct Tables(Vec<Arc<dyn Lookup>>);

impl Tables {
    /// The built-in tables.
    pub fn built_in() -> Result<Self, String> {
        let load = |kind: &Enrichment| (kind.load)(kind.built_in.as_bytes());
        ENRICHMENTS.iter().map(load).collect::<Result<_, _>>().map(Self)
    }

    /// The built-in tables with that of `enrichment` read from `bytes`.
    pub fn with(enrichment: &str, bytes: &[u8]) -> Result<Self, String> {
        let mut tables = Self::built_in()?;
        tables.replace(enrichment, bytes)?;
        Ok(tables)
    }

    fn replace(&mut self, enrichment: &str, bytes: &[u8]) -> Result<(), String> {
        let known = ENRICHMENTS.iter().zip(&mut self.0).find(|(kind, _)| kind.name == enrichment);
        let (kind, table) = known.ok_or_else(|| format!("there is no enrichment `{enrichment}`"))?;
        *table = (kind.load)(bytes)?;
        Ok(())
    }

    /// Fills the enriched columns of a decoded row. Answers how many lookups found nothing.
    #[inline]
    pub fn enrich<'t>(&'t self, plan: &Plan, row: &mut Row<'t>) -> u32 {
        let mut misses = 0;
        for step in &plan.enrichments {
            let Some(table) = self.0.get(step.enrichment) else { continue };
            let (found, outputs) = table.find(row.text(step.from));
            misses += u32::from(!found);
            for (column, output) in step.into.iter().zip(outputs) {
                if let Some(column) = column {
                    row.set(*column, Value::borrowed(output));
                }
            }
        }
        misses
    }
}
