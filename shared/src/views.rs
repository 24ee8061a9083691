//! The analysts' views: one file each in `infra/sql/views`, `<dataset>.<name>.sql`, in BigQuery's SQL.
//!
//! A file begins with a comment that says what the view answers. Tables stand as `` `dataset.table` ``, and nothing else
//! stands in backticks. A view reads tables and the views without duplicates, never another of these. The local warehouse
//! runs the same text.

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
