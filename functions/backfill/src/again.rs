//! What a former run could not use, loaded as that run would have: dead letters whose schema was mended.

use bytes::Bytes;
use shared::dead_letter::Place as At;
use shared::decode::{self, Elements, Problem};
use shared::load::Mode;
use shared::mapping::Mapping;
use shared::row::Row;

use crate::dead_letters::DeadLetters;
use crate::findings::{Findings, Place};
use crate::job::{FileInfo, Job, Room};
use crate::lines::Position;
use crate::report::Tally;
use crate::{Deps, Error, Form};

/// A line to be loaded again.
#[derive(Debug, Clone)]
pub struct Again {
    /// The line; of a part of a line, the line with this part alone.
    pub line: Bytes,
    /// Whether the rest of the line is in the tables already: only its element gets a row.
    pub is_part: bool,
    /// Where it stood.
    pub at: At,
}

/// Adds lines to the tables of `mapping`, all of them or, with an error, none. Parts that still fail become dead letters
/// of their own.
///
/// `run` names this set of lines (`[0-9a-z_]`, at most 40 characters): the same lines under the same name count once,
/// however often a crash makes it begin anew.
pub async fn again(deps: &Deps, mapping: &Mapping, run: &str, lines: &[Again]) -> Result<(), Error> {
    let now = deps.clock.now();
    let begun = deps.loader.begin(run, &mapping.tables, Mode::Append, None).await.map_err(Error::Work)?;
    let letters = DeadLetters::open(deps.dead_letters.as_ref(), run, 0, mapping.source(), deps.anonymise, now);
    let mut job = Job {
        mapping,
        form: Form::Events,
        parts_only: false,
        lookups: &deps.lookups,
        anonymise: deps.anonymise,
        now,
        load: begun,
        letters: letters.await.map_err(Error::Work)?,
        tally: Tally { rows: vec![0; mapping.tables.len()], ..Tally::default() },
        findings: Findings::new(&mapping.findings),
        room: Room::default(),
    };
    for Again { line, is_part, at } in lines {
        job.parts_only = *is_part;
        let file = FileInfo { uri: &at.source, place: Place { file: &at.source, day: None }, checksum: "" };
        job.line(line, Position { line: at.line, offset: at.byte_offset }, &file, &mut Row::default(), Vec::new());
    }
    let Job { mut load, mut letters, .. } = job;
    letters.flush().await.map_err(Error::Work)?;
    // Begun with a checkpoint, a run that was shown before the process ended is known, and shown no second time.
    let staged = load.checkpoint().await.map_err(Error::Work)?;
    drop(load);
    let load = deps.loader.begin(run, &mapping.tables, Mode::Append, Some(&staged)).await.map_err(Error::Work)?;
    load.publish().await.map_err(Error::Work)?;
    match &deps.dead_letter_table {
        Some(table) => letters.show(table.as_ref(), &deps.registry, now).await.map_err(Error::Work),
        None => Ok(()),
    }
}

/// Where a line differs from what `mapping` takes; none: it would be loaded. Of a whole line the parts that fail do not
/// count, as they cost themselves alone.
pub fn problems(mapping: &Mapping, line: &[u8], is_part: bool) -> Vec<Problem> {
    let (mut row, mut elements) = (Row::default(), Elements::default());
    if let Err(problem) = decode::nested(mapping.source(), line, mapping.apart, &mut row, &mut elements) {
        return vec![problem];
    }
    if !row.problems.is_empty() {
        return row.problems.into_kept();
    }
    let mut problems = Vec::new();
    let (mut derived, mut refused) = (Vec::new(), Vec::new());
    mapping.derive(&row, &mut derived);
    let made = mapping.rows(&row, &derived, &mut Vec::new(), &mut refused, |_, _| {});
    problems.extend(made.err());
    if is_part {
        problems.extend(elements.faults.into_iter().flat_map(|(_, problems)| problems.into_kept()));
        problems.extend(refused.into_iter().map(|(_, problem)| problem));
    }
    problems
}
