//! The tables beside the targets that hold the rows of a run.

use crate::schema::{Column, Fill, Kind, Mode, Plan};

/// A staging table: the columns of its target and, behind them, the segment that a row belongs to.
#[derive(Debug, Clone)]
pub(super) struct Staging {
    /// The target, `dataset.table`.
    pub(super) of: String,
    /// `dataset.table__run`.
    pub(super) name: String,
    /// The target's, then the segment.
    pub(super) columns: Vec<Column>,
}

impl Staging {
    pub(super) fn new(plan: &Plan, run: &str) -> Self {
        let of = plan.table.full_name();
        let mut name = "load_segment".to_string();
        while plan.columns.iter().any(|column| column.name.eq_ignore_ascii_case(&name)) {
            name.push('_');
        }
        let segment = Column {
            name,
            kind: Kind::Integer,
            mode: Mode::Required,
            max_length: None,
            max_elements: usize::MAX,
            description: None,
            fill: Fill::System,
        };
        let columns = plan.columns.iter().cloned().chain([segment]).collect();
        Self { name: format!("{of}__{run}"), of, columns }
    }

    /// The name of the segment's column.
    pub(super) fn segment(&self) -> &str {
        self.columns.last().map_or("", |column| &column.name)
    }
}
