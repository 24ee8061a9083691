//! The statements of a load.

use std::fmt::Write as _;

use super::staging::Staging;
use crate::decode::time::date_text;
use crate::load::Mode;
use crate::schema::Plan;

/// Rows that a streaming table has loaded so many minutes before the begin of a run, or later, stay. They may not be in the
/// source of the run: the archive is written ten seconds behind the table, and minutes where a push comes again; clocks
/// differ and the listing of an archive takes a while. And BigQuery refuses a transaction that deletes rows which were
/// streamed in the last 30 minutes. An archive that is further behind than this is not whole.
const MARGIN_MINUTES: u32 = 60;

/// Names of a project in GoogleSQL.
pub(super) struct Sql<'a> {
    pub(super) project: &'a str,
    /// Where runs are recorded, `dataset.table`.
    pub(super) loads: &'a str,
    /// Checked to be `[0-9a-z_]`.
    pub(super) run: &'a str,
}

impl Sql<'_> {
    /// Records the run, once.
    pub(super) fn begin(&self, mode: Mode) -> String {
        let mode = match mode {
            Mode::Replace => "replace",
            Mode::ReplaceDays { .. } => "replace days",
            Mode::Append => "append",
            Mode::Recreate => "recreate",
        };
        let (loads, run) = (self.table(self.loads), self.run);
        format!(
            "MERGE {loads} AS loads USING (SELECT '{run}' AS run) AS begun ON loads.run = begun.run\n\
             WHEN NOT MATCHED THEN INSERT (run, mode, begun_at) VALUES ('{run}', '{mode}', CURRENT_TIMESTAMP())"
        )
    }

    /// One row where the run is published, none where it is not.
    pub(super) fn published(&self) -> String {
        format!("SELECT run FROM {} WHERE run = '{}' AND published_at IS NOT NULL", self.table(self.loads), self.run)
    }

    /// Shows the rows of these segments, of which there is one at least, in all tables, in one transaction, unless that was done before.
    ///
    /// The record is updated, not inserted: of two transactions that change rows of one table BigQuery lets only one
    /// commit, so a repetition beside a first one that is still running cannot add the rows twice. Rows are deleted one
    /// by one, since `TRUNCATE` does not reach rows that were streamed shortly before.
    ///
    /// Of a streaming table, which goes on while it is loaded, the newest rows stay, and staged copies of them are not shown;
    /// of staged rows with one partition time, identity and fingerprint, as an archive may have them, the first received is
    /// shown.
    pub(super) fn publish(&self, tables: &[(&Plan, &Staging)], mode: Mode, segments: &[i64]) -> String {
        let (loads, run) = (self.table(self.loads), self.run);
        let segments = segments.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        let mut script = format!(
            "BEGIN TRANSACTION;\n\
             IF EXISTS (SELECT run FROM {loads} WHERE run = '{run}' AND published_at IS NULL) THEN\n\
             UPDATE {loads} SET published_at = CURRENT_TIMESTAMP() WHERE run = '{run}';\n"
        );
        for (plan, staging) in tables {
            let (target, staged) = (self.table(&staging.of), self.table(&staging.name));
            let of_run = format!("`{}` IN ({segments})", staging.segment());
            let replaced = match mode {
                Mode::Append => None,
                Mode::Replace | Mode::Recreate => Some(every_row(plan)),
                Mode::ReplaceDays { first, last } => Some(rows_of_days(plan, first, last)),
            };
            let stream = streamed(plan);
            if let Some(rows) = &replaced {
                let rows = stream.as_ref().map_or_else(|| rows.clone(), |stream| stream.old(rows, &self.begun_at()));
                let _ = writeln!(script, "DELETE FROM {target} WHERE {rows};");
            }
            let columns: Vec<_> = plan.columns.iter().map(|column| format!("`{}`", column.name)).collect();
            let columns = columns.join(", ");
            let mut shown = of_run;
            if let Some(stream) = &stream {
                if let Some(rows) = &replaced {
                    shown.push_str(&stream.without_copy(&target, rows));
                }
                shown.push_str(&stream.once());
            }
            let _ = writeln!(
                script,
                "INSERT INTO {target} ({columns}) SELECT {columns} FROM {staged} AS staged WHERE {shown};"
            );
        }
        script.push_str("END IF;\nCOMMIT TRANSACTION;");
        script
    }

    fn begun_at(&self) -> String {
        format!("(SELECT begun_at FROM {} WHERE run = '{}')", self.table(self.loads), self.run)
    }

    fn table(&self, name: &str) -> String {
        format!("`{}.{name}`", self.project)
    }
}

/// Columns of a streaming table by their names.
struct Streamed<'p> {
    event_id: &'p str,
    received_at: &'p str,
    loaded_at: &'p str,
    fingerprint: &'p str,
    /// What a row has in common with its copies: the partition column, if there is one, the identity and the fingerprint.
    keys: Vec<&'p str>,
}

fn streamed(plan: &Plan) -> Option<Streamed<'_>> {
    let name = |index: usize| plan.columns.get(index).map(|column| column.name.as_str());
    let system = plan.system?;
    let event_id = name(system.event_id)?;
    let fingerprint = name(system.fingerprint)?;
    let partition = plan.partition_column().map(|column| column.name.as_str());
    let keys = partition.into_iter().chain([event_id, fingerprint]).collect();
    let (received_at, loaded_at) = (name(system.received_at)?, name(system.loaded_at)?);
    Some(Streamed { event_id, received_at, loaded_at, fingerprint, keys })
}

impl Streamed<'_> {
    /// Those of `rows` that a run, begun then, would have if they were in its source.
    fn old(&self, rows: &str, begun_at: &str) -> String {
        let loaded_at = self.loaded_at;
        format!(
            "({rows}) AND (`{loaded_at}` IS NULL OR `{loaded_at}` < TIMESTAMP_SUB({begun_at}, INTERVAL {MARGIN_MINUTES} MINUTE))"
        )
    }

    /// Leaves out staged rows that have a copy among those `rows` that have stayed.
    fn without_copy(&self, target: &str, rows: &str) -> String {
        // A row that is older than fingerprints has none.
        let is_copy = |key: &&str| {
            let is_equal = format!("old.`{key}` = staged.`{key}`");
            if *key == self.fingerprint { format!("({is_equal} OR old.`{key}` IS NULL)") } else { is_equal }
        };
        let is_copy = self.keys.iter().map(is_copy).collect::<Vec<_>>().join(" AND ");
        format!(" AND NOT EXISTS (SELECT 1 FROM {target} AS old WHERE ({rows}) AND {is_copy})")
    }

    /// Keeps one of the copies of a row.
    fn once(&self) -> String {
        let Self { event_id, received_at, keys, .. } = self;
        let keys: Vec<_> = keys.iter().map(|key| format!("`{key}`")).collect();
        let keys = keys.join(", ");
        format!(" QUALIFY `{event_id}` IS NULL OR ROW_NUMBER() OVER (PARTITION BY {keys} ORDER BY `{received_at}`) = 1")
    }
}

/// A condition that every row meets. On a partitioned table it is one on the partition column, since the table may
/// require that; in a form that BigQuery can prune by.
fn every_row(plan: &Plan) -> String {
    let Some(column) = plan.partition_column() else { return "TRUE".into() };
    let (name, day) = (&column.name, format!("{} '2000-01-01'", column.kind.name()));
    format!("`{name}` < {day} OR `{name}` >= {day} OR `{name}` IS NULL")
}

/// A condition that the rows of these days meet, both ends among them.
fn rows_of_days(plan: &Plan, first: i32, last: i32) -> String {
    let Some(column) = plan.partition_column() else { return "FALSE".into() };
    let (name, kind) = (&column.name, column.kind.name());
    format!("`{name}` >= {kind} '{}' AND `{name}` < {kind} '{}'", date_text(first), date_text(last + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::compile;

    const SQL: Sql<'_> = Sql { project: "example.com:p", loads: "contextflow.loads", run: "r1" };

    fn plan(partition: &str) -> Plan {
        let file = format!(
            r#"{{"event_type": "sale", "version": "1-0-0", "ingest": "batch",
                "table": {{"dataset": "shop", "name": "sales"{partition}}},
                "columns": [{{"name": "day", "type": "DATE"}}, {{"name": "load_segment", "type": "STRING"}}]}}"#
        );
        compile("sale.json", &file).unwrap()
    }

    #[test]
    fn rows_are_replaced_and_recorded_in_one_transaction() {
        let plan =
            plan(r#", "time_partitioning": {"type": "MONTH", "field": "day"}, "require_partition_filter": true"#);
        let staging = Staging::new(&plan, "r1");
        insta::assert_snapshot!(SQL.publish(&[(&plan, &staging)], Mode::Replace, &[7, -8]), @r"
        BEGIN TRANSACTION;
        IF EXISTS (SELECT run FROM `example.com:p.contextflow.loads` WHERE run = 'r1' AND published_at IS NULL) THEN
        UPDATE `example.com:p.contextflow.loads` SET published_at = CURRENT_TIMESTAMP() WHERE run = 'r1';
        DELETE FROM `example.com:p.shop.sales` WHERE `day` < DATE '2000-01-01' OR `day` >= DATE '2000-01-01' OR `day` IS NULL;
        INSERT INTO `example.com:p.shop.sales` (`day`, `load_segment`) SELECT `day`, `load_segment` FROM `example.com:p.shop.sales__r1` AS staged WHERE `load_segment_` IN (7, -8);
        END IF;
        COMMIT TRANSACTION;
        ");
    }

    #[test]
    fn of_days_only_their_rows_are_replaced() {
        let plan = plan(r#", "time_partitioning": {"type": "DAY", "field": "day"}"#);
        let script =
            SQL.publish(&[(&plan, &Staging::new(&plan, "r1"))], Mode::ReplaceDays { first: 58, last: 59 }, &[7]);
        let expected =
            "DELETE FROM `example.com:p.shop.sales` WHERE `day` >= DATE '1970-02-28' AND `day` < DATE '1970-03-02';";
        assert!(script.contains(expected), "{script}");
    }

    #[test]
    fn of_a_stream_the_newest_rows_stay_and_copies_land_once() {
        let file = r#"{"event_type": "click", "version": "1-0-0", "ingest": "stream",
            "table": {"dataset": "shop", "name": "clicks", "time_partitioning": {"type": "DAY", "field": "at"}},
            "columns": [{"name": "at", "type": "TIMESTAMP"}]}"#;
        let plan = compile("click.json", file).unwrap();
        let staging = Staging::new(&plan, "r1");
        insta::assert_snapshot!(
            SQL.publish(&[(&plan, &staging)], Mode::ReplaceDays { first: 58, last: 59 }, &[7]),
            @r"
        BEGIN TRANSACTION;
        IF EXISTS (SELECT run FROM `example.com:p.contextflow.loads` WHERE run = 'r1' AND published_at IS NULL) THEN
        UPDATE `example.com:p.contextflow.loads` SET published_at = CURRENT_TIMESTAMP() WHERE run = 'r1';
        DELETE FROM `example.com:p.shop.clicks` WHERE (`at` >= TIMESTAMP '1970-02-28' AND `at` < TIMESTAMP '1970-03-02') AND (`loaded_at` IS NULL OR `loaded_at` < TIMESTAMP_SUB((SELECT begun_at FROM `example.com:p.contextflow.loads` WHERE run = 'r1'), INTERVAL 60 MINUTE));
        INSERT INTO `example.com:p.shop.clicks` (`at`, `event_id`, `received_at`, `loaded_at`, `schema_version`, `fingerprint`) SELECT `at`, `event_id`, `received_at`, `loaded_at`, `schema_version`, `fingerprint` FROM `example.com:p.shop.clicks__r1` AS staged WHERE `load_segment` IN (7) AND NOT EXISTS (SELECT 1 FROM `example.com:p.shop.clicks` AS old WHERE (`at` >= TIMESTAMP '1970-02-28' AND `at` < TIMESTAMP '1970-03-02') AND old.`at` = staged.`at` AND old.`event_id` = staged.`event_id` AND (old.`fingerprint` = staged.`fingerprint` OR old.`fingerprint` IS NULL)) QUALIFY `event_id` IS NULL OR ROW_NUMBER() OVER (PARTITION BY `at`, `event_id`, `fingerprint` ORDER BY `received_at`) = 1;
        END IF;
        COMMIT TRANSACTION;
        "
        );
        let once = "QUALIFY `event_id` IS NULL OR ROW_NUMBER() OVER (PARTITION BY `at`, `event_id`, `fingerprint` ORDER BY `received_at`) = 1;";
        let append = SQL.publish(&[(&plan, &staging)], Mode::Append, &[7]);
        assert!(
            !append.contains("DELETE") && !append.contains("EXISTS (SELECT 1") && append.contains(once),
            "{append}"
        );
    }

    #[test]
    fn an_append_deletes_nothing() {
        let plan = plan("");
        let staging = Staging::new(&plan, "r1");
        let script = |mode| SQL.publish(&[(&plan, &staging)], mode, &[7]);
        assert!(!script(Mode::Append).contains("DELETE"));
        assert!(script(Mode::Recreate).contains("DELETE FROM `example.com:p.shop.sales` WHERE TRUE;"));
    }
}
