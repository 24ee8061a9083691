//! The analysts' views: one file each in `infra/sql/views`, `<dataset>.<name>.sql`, in BigQuery's SQL.
//!
//! A file begins with a comment that says what the view answers. Tables stand as `` `dataset.table` ``, and nothing else
//! stands in backticks. A view reads tables and the views without duplicates, never another of these. The local warehouse
//! runs the same text.
//!
//! Besides, the view of conflicts of each streaming table, `<dataset>.v_<table>_conflicts`.

use crate::schema::Plan;

/// One view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    /// Dataset.
    pub dataset: &'static str,
    /// Name in it.
    pub name: &'static str,
    text: &'static str,
}

const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/views.rs"));

/// All views, by their names.
pub fn all() -> impl Iterator<Item = View> {
    FILES.iter().filter_map(|(file, text)| {
        let (dataset, name) = file.strip_suffix(".sql")?.split_once('.')?;
        Some(View { dataset, name, text })
    })
}

impl View {
    /// What it answers: the comment at its beginning, on one line.
    pub fn description(&self) -> String {
        let lines = self.text.lines().map_while(|line| line.strip_prefix("--"));
        lines.map(str::trim).collect::<Vec<_>>().join(" ")
    }

    /// Its query, without the comment at its beginning.
    pub fn query(&self) -> &'static str {
        let mut rest = self.text;
        while let Some((_, after)) = rest.split_once('\n').filter(|_| rest.starts_with("--")) {
            rest = after;
        }
        rest.trim_end()
    }

    /// The tables it reads, as `dataset.table`.
    pub fn reads(&self) -> impl Iterator<Item = &'static str> {
        self.query().split('`').skip(1).step_by(2)
    }

    /// Its query over the tables of a project.
    pub fn query_in(&self, project: &str) -> String {
        let mut opens = false;
        let with_project = |part: &'static str| {
            opens = !opens;
            let project = if opens && part.ends_with('`') { format!("{project}.") } else { String::new() };
            format!("{part}{project}")
        };
        self.query().split_inclusive('`').map(with_project).collect()
    }
}

/// The name of the view of conflicts, below the table's dataset.
pub fn name_of_conflicts(plan: &Plan) -> String {
    format!("v_{}_conflicts", plan.table.name)
}

/// The query for rows that share partition time and identity with another row of other content; `None` where rows have no
/// fingerprint. `project` stands before the dataset, with a dot.
pub fn conflicts(plan: &Plan, project: &str) -> Option<String> {
    let fingerprint = &plan.columns.get(plan.system?.fingerprint)?.name;
    let identity = &plan.columns.get(plan.identity?)?.name;
    let keys = keys(plan)?;
    let of_row = |extreme: &str| format!("{extreme}(`{fingerprint}`) OVER (PARTITION BY {keys})");
    // Rows that are older than fingerprints have none and are no conflict.
    let condition = format!("`{identity}` IS NOT NULL AND {} < {}", of_row("MIN"), of_row("MAX"));
    Some(rows_where(plan, project, &condition))
}

/// What rows are told apart by: the partition column, where there is one, and the identity. A filter on the partition
/// column keeps or drops all rows with one key alike, so that BigQuery reads only the partitions asked for.
pub(crate) fn keys(plan: &Plan) -> Option<String> {
    let identity = plan.columns.get(plan.identity?)?;
    let keys = plan.partition_column().into_iter().chain([identity]);
    Some(keys.map(|column| format!("`{}`", column.name)).collect::<Vec<_>>().join(", "))
}

/// The query for the rows of a table that a condition over windows chooses. Columns are named, so that a column more is a
/// definition that differs.
pub(crate) fn rows_where(plan: &Plan, project: &str, condition: &str) -> String {
    let columns: Vec<_> = plan.columns.iter().map(|column| format!("`{}`", column.name)).collect();
    let (columns, table) = (columns.join(", "), plan.table.full_name());
    format!("SELECT {columns}\nFROM `{project}{table}`\nWHERE TRUE\nQUALIFY {condition}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Registry;

    #[test]
    fn every_view_says_what_it_answers_and_reads_tables_of_the_schemas() {
        let registry = Registry::built_in().unwrap();
        let tables: Vec<_> = registry.plans().map(|plan| plan.table.full_name()).collect();
        assert!(all().count() >= 7);
        for view in all() {
            assert!(view.description().len() > 20 && !view.query().contains("--"), "{view:?}");
            let plain = view.reads().map(|table| table.replace(".v_", "."));
            for table in plain {
                assert!(tables.contains(&table), "{} reads {table}", view.name);
            }
        }
    }

    #[test]
    fn tables_get_their_project() {
        let view = View { dataset: "d", name: "v", text: "-- What?\n-- That.\nSELECT 1 FROM `d.a`, `d.b` AS b\n" };
        assert_eq!((view.description().as_str(), view.query()), ("What? That.", "SELECT 1 FROM `d.a`, `d.b` AS b"));
        assert_eq!(view.reads().collect::<Vec<_>>(), ["d.a", "d.b"]);
        assert_eq!(view.query_in("p"), "SELECT 1 FROM `p.d.a`, `p.d.b` AS b");
    }
}
