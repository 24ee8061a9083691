//! From lines to rows: what is done with every line of a source.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use shared::clock::{DAY, Micros};
use shared::dead_letter::{Reason, reason_of};
use shared::decode::{self, Code, Elements, Problem};
use shared::enrich::Tables;
use shared::enrich::address::{Anonymise, anonymise_row};
use shared::event;
use shared::load::Load;
use shared::mapping::Mapping;
use shared::row::{Row, Value};
use shared::schema::Plan;

use crate::Form;
use crate::dead_letters::{self, DeadLetters};
use crate::findings::{Findings, Place};
use crate::lines::{LongLine, MAX_LINE, Position, lines};
use crate::report::Tally;

/// How many archived rows are remembered, in 143 MB. What comes again later is left to the loader, and to
/// the view that shows each event once.
const REMEMBERED: usize = 7_000_000;

/// A load at work.
pub struct Job<'j> {
    /// How a line becomes rows.
    pub mapping: &'j Mapping,
    /// What the lines are.
    pub form: Form,
    /// Whether lines are in the tables already but for one element: it alone gets its row.
    pub parts_only: bool,
    /// What rows of streaming tables are enriched from.
    pub lookups: &'j Tables,
    /// What becomes of client addresses in them.
    pub anonymise: Anonymise,
    /// When the run began: `received_at` and `loaded_at` of its rows.
    pub now: Micros,
    /// Where rows go.
    pub load: Box<dyn Load>,
    /// Where the rest goes.
    pub letters: DeadLetters,
    /// What was counted.
    pub tally: Tally,
    /// What is worth a look.
    pub findings: Findings<'j>,
    /// What is used again for every line.
    pub room: Room,
}

/// Room that one line leaves to the next.
#[derive(Default)]
pub struct Room {
    derived: Vec<String>,
    elements: Elements,
    refused: Vec<(usize, Problem)>,
    /// Identities of archived rows.
    seen: Seen,
}

/// The first identities of a run.
struct Seen {
    hashes: HashSet<[u8; 16]>,
    most: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self { hashes: HashSet::new(), most: REMEMBERED }
    }
}

impl Seen {
    /// Past the most that are remembered a new one stays new.
    fn is_first(&mut self, hash: [u8; 16]) -> bool {
        if self.hashes.len() < self.most { self.hashes.insert(hash) } else { !self.hashes.contains(&hash) }
    }
}

/// The file that lines come from.
pub struct FileInfo<'f> {
    /// Its address.
    pub uri: &'f str,
    /// Its name and day, for findings.
    pub place: Place<'f>,
    /// Its checksum, where rows take their identity from it.
    pub checksum: &'f str,
}

impl<'j> Job<'j> {
    /// Takes a piece of whole lines; `at` moves on to what follows it.
    pub fn piece(&mut self, piece: &[u8], at: &mut Position, file: &FileInfo<'_>) {
        let mut row = Row::default();
        let mut values = Vec::new();
        for (at, line) in lines(piece, at) {
            self.tally.lines += 1;
            values = self.line(line, at, file, &mut row, values);
        }
    }

    /// Takes a line that was too long to be held.
    pub fn long_line(&mut self, line: &LongLine, at: &mut Position, file: &FileInfo<'_>) {
        self.tally.lines += 1;
        let detail = format!("a line of {} bytes; at most {MAX_LINE} are read", line.size);
        let reason = Reason { code: Code::TooLarge, detail };
        dead_letters::count(&mut self.tally, file.uri, *at, &reason);
        self.letters.bury_long(file.uri, *at, reason, line);
        *at = Position { line: at.line + 1, offset: at.offset + line.size + u64::from(line.has_end) };
    }

    /// `values` is room for a row; it comes back empty.
    #[inline]
    pub fn line<'a>(
        &mut self,
        line: &'a [u8],
        at: Position,
        file: &FileInfo<'_>,
        row: &mut Row<'a>,
        values: Vec<Value<'static>>,
    ) -> Vec<Value<'static>>
    where
        'j: 'a,
    {
        let mapping = self.mapping;
        let plan = mapping.source();
        let read = match self.form {
            Form::Events => decode::nested(plan, line, mapping.apart, row, &mut self.room.elements),
            Form::Archive { .. } => decode::row(plan, line, row),
        };
        let fault = match read {
            Ok(()) => reason_of(&row.problems),
            Err(problem) => Some(Reason::from(&problem)),
        };
        if let Some(reason) = fault {
            self.bury(line, at, file, reason, row);
            return values;
        }
        if let Form::Archive { days } = self.form {
            // An archive may be older than fingerprints.
            event::set_fingerprint(plan, row);
            if !self.is_wanted(plan, days, row) {
                return values;
            }
        }
        self.room.refused.clear();
        mapping.derive(row, &mut self.room.derived);
        let mut values = emptied(values);
        let Room { derived, refused, .. } = &mut self.room;
        let parts_only = self.parts_only;
        let made = mapping.rows(row, derived, &mut values, refused, |table, values| {
            if parts_only && !mapping.is_of_elements(table) {
                return;
            }
            self.load.add(table, values);
            self.tally.rows[table] += 1;
            self.findings.look(table, values, &file.place, at);
        });
        let values = emptied(values);
        if let Err(problem) = made {
            self.bury(line, at, file, Reason::from(&problem), row);
            return values;
        }
        if !self.room.refused.is_empty() || !self.room.elements.faults.is_empty() {
            self.bury_elements(line, at, file, row);
        }
        if parts_only {
            return values;
        }
        if plan.system.is_some() {
            self.complete(plan, at, file, row);
        }
        self.load.add(0, &row.values);
        self.tally.rows[0] += 1;
        self.findings.look(0, &row.values, &file.place, at);
        values
    }

    /// What the stream would have added.
    fn complete<'a>(&self, plan: &Plan, at: Position, file: &FileInfo<'_>, row: &mut Row<'a>)
    where
        'j: 'a,
    {
        let Some(system) = plan.system else { return };
        if self.form == Form::Events {
            self.lookups.enrich(plan, row);
            if row.text(system.event_id).is_none() {
                row.set(system.event_id, Value::Text(identity(file, at).into()));
            }
            row.set(system.received_at, Value::Timestamp(self.now));
            row.set(system.schema_version, Value::Text(plan.version.clone().into()));
            event::set_fingerprint(plan, row);
        }
        // After the lookup, which reads the whole address. What the archive holds may be older than the policy.
        anonymise_row(self.anonymise, plan, row);
        row.set(system.loaded_at, Value::Timestamp(self.now));
    }

    /// Whether a row of the archive is of the days asked for, and the first with its time, id and content.
    fn is_wanted(&mut self, plan: &Plan, days: Option<(i32, i32)>, row: &Row<'_>) -> bool {
        let time = plan.table.partition.and_then(|partition| row.values.get(partition.column)?.partition_time());
        let day = time.map(|time| time.div_euclid(DAY));
        let is_of_days =
            days.is_none_or(|(first, last)| day.is_some_and(|day| (i64::from(first)..=i64::from(last)).contains(&day)));
        if !is_of_days {
            return false;
        }
        let Some(id) = plan.identity.and_then(|column| row.text(column)) else { return true };
        let fingerprint = match plan.system.and_then(|system| row.values.get(system.fingerprint)) {
            Some(Value::Int(fingerprint)) => *fingerprint,
            _ => 0,
        };
        let mut hash = [0; 16];
        let of_numbers = Sha256::new().chain_update(time.unwrap_or_default().to_le_bytes());
        let digest = of_numbers.chain_update(fingerprint.to_le_bytes()).chain_update(id).finalize();
        hash.copy_from_slice(&digest[..16]);
        let is_first = self.room.seen.is_first(hash);
        self.tally.duplicates += u64::from(!is_first);
        is_first
    }

    #[cold]
    fn bury(&mut self, line: &[u8], at: Position, file: &FileInfo<'_>, reason: Reason, row: &Row<'_>) {
        let plan = self.mapping.source();
        let given = plan.system.and_then(|system| row.text(system.event_id));
        // The id that the row would have had, so that a replay has it too.
        let event_id = match self.form {
            Form::Events => plan.system.map(|_| given.map_or_else(|| identity(file, at), str::to_string)),
            Form::Archive { .. } => given.map(str::to_string),
        };
        dead_letters::count(&mut self.tally, file.uri, at, &reason);
        self.letters.bury(file.uri, at, event_id.as_deref(), reason, line);
    }

    /// Buries the elements that are at fault, alone, and takes those that no table wants out of the row.
    #[cold]
    fn bury_elements(&mut self, line: &[u8], at: Position, file: &FileInfo<'_>, row: &mut Row<'_>) {
        let Room { elements, refused, .. } = &mut self.room;
        // What stands before the first element and after the last one: with one of them between a line of its own.
        let spans = || elements.spans.iter().chain(elements.faults.iter().map(|(span, _)| span));
        let before = spans().map(|span| span.start).min().and_then(|start| line.get(..start)).unwrap_or_default();
        let after = spans().map(|span| span.end).max().and_then(|end| line.get(end..)).unwrap_or_default();
        let mut buried: Vec<_> =
            elements.faults.drain(..).filter_map(|(span, problems)| Some((span, reason_of(&problems)?))).collect();
        for (index, problem) in refused.iter() {
            let span = elements.spans.get(*index).cloned().unwrap_or_default();
            buried.push((span, Reason::from(problem)));
        }
        if let Some(Value::Repeated(values)) = self.mapping.apart.and_then(|column| row.values.get_mut(column)) {
            let mut index = 0;
            values.retain(|_| {
                index += 1;
                !refused.iter().any(|(refused, _)| refused + 1 == index)
            });
        }
        buried.sort_by_key(|(span, _)| span.start);
        for (span, reason) in buried {
            let at = Position { offset: at.offset + span.start as u64, ..at };
            dead_letters::count(&mut self.tally, file.uri, at, &reason);
            let raw = line.get(span).unwrap_or_default();
            self.letters.bury_part(file.uri, at, reason, raw, &[before, raw, after]);
        }
    }
}

/// The identity of a line that brings none.
fn identity(file: &FileInfo<'_>, at: Position) -> String {
    event::derived_id(&[file.checksum.as_bytes(), &at.offset.to_le_bytes()])
}

/// The same room for values of another lifetime: what is collected in place keeps its allocation.
#[inline]
fn emptied<'b>(mut values: Vec<Value<'_>>) -> Vec<Value<'b>> {
    values.clear();
    values.into_iter().map_while(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_identities_are_remembered_and_no_more() {
        let mut seen = Seen { hashes: HashSet::new(), most: 2 };
        let firsts = [1, 2, 1, 3, 3, 2].map(|number| seen.is_first([number; 16]));
        assert_eq!(firsts, [true, true, false, true, true, false]);
        assert_eq!(seen.hashes.len(), 2);
    }
}
