//! A run from its beginning to its end: who may run, where it begins, what it reads, when it is shown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde_json::Value;
use shared::clock::{Micros, SECOND};
use shared::decode::time::{civil_from_days, timestamp_text};
use shared::load::{Load, Mode};
use tokio::runtime::Handle;

use crate::dead_letters::DeadLetters;
use crate::findings::{Findings, Place, day_of};
use crate::job::{FileInfo, Job, Room};
use crate::lines::{Lines, MAX_LINE, Piece, Position};
use crate::record::{Arguments, Checkpoint, FileRecord, Record, Records, State, loaded};
use crate::report::{Report, Tally};
use crate::right::Right;
use crate::source::{self, SourceFile};
use crate::{Deps, Error, Form, Progress, Request};

/// Rows held in memory before they are moved on, in bytes.
const HELD: usize = 64 << 20;

/// Runs on a thread that may block.
pub fn run(runtime: &Handle, deps: &Deps, request: &Request, progress: &Progress) -> Result<Report, Error> {
    let started = Instant::now();
    let mut listing = runtime.block_on(source::list(&request.source, &deps.settings))?;
    if let Form::Archive { days: Some(days) } = request.form {
        listing.files.retain(|file| may_hold(&file.uri, days));
    }
    if listing.files.iter().all(|file| file.size == 0) {
        return Err(Error::Usage(format!("{}: is empty; nothing was changed", request.source)));
    }
    let right = match &deps.state {
        Some(state) => Some(runtime.block_on(Right::take(state, &deps.owner, &deps.clock))?),
        None => None,
    };
    let run =
        Run { runtime, deps, request, progress, right: right.as_ref(), records: deps.state.as_ref().map(Records::new) };
    let report = run.load(&listing.files, listing.left_out);
    if let Some(right) = right {
        runtime.block_on(right.release());
    }
    report.map(|report| Report { seconds: started.elapsed().as_secs_f64(), ..report })
}

/// Whether an object of the archive may hold events of the days: late ones lie by when they came.
fn may_hold(uri: &str, (first, last): (i32, i32)) -> bool {
    let day = |day: i32| {
        let (year, month, day) = civil_from_days(day);
        format!("/{year:04}/{month:02}/{day:02}/")
    };
    uri.contains("/late/") || (first..=last).any(|wanted| uri.contains(&day(wanted)))
}

struct Run<'r> {
    runtime: &'r Handle,
    deps: &'r Deps,
    request: &'r Request,
    progress: &'r Progress,
    right: Option<&'r Right>,
    records: Option<Records>,
}

impl Run<'_> {
    fn load(&self, files: &[SourceFile], remarks: Vec<String>) -> Result<Report, Error> {
        let known = match &self.records {
            Some(records) => self.runtime.block_on(records.read())?,
            None => Vec::new(),
        };
        let mut record = match self.unfinished(&known, files)? {
            Some(record) => record,
            None => self.begin(files, &known)?,
        };
        let mut report = Report {
            run: if self.records.is_some() { record.run.clone() } else { String::new() },
            tables: record.arguments.tables.clone(),
            remarks,
            ..Report::default()
        };
        let skipped = record.files.iter().filter(|file| file.skipped);
        report.remarks.extend(skipped.map(|file| format!("{}: skipped, these tables hold it already", file.uri)));
        report.files = record.files.iter().filter(|file| !file.skipped).count() as u64;
        report.bytes = record.files.iter().filter(|file| !file.skipped).map(|file| file.size).sum();
        if report.files == 0 {
            report.tally.rows = vec![0; report.tables.len()];
            self.end(&mut record, State::Done)?;
            return Ok(report);
        }
        let mut job = match self.job(&record) {
            Ok(job) => job,
            Err(error) => {
                self.end(&mut record, State::Failed)?;
                return Err(error);
            }
        };
        let read = match record.state {
            State::Loading => self.read(files, &mut record, &mut job).map(|()| self.verdict(&job.tally)),
            _ => Ok(None),
        };
        report.tally = job.tally.clone();
        report.dead_letters_at = job.letters.uri().filter(|_| report.tally.buried() > 0).map(str::to_string);
        match read {
            Ok(None) => self.publish(job, &mut record).map(|()| report),
            Ok(Some(failure)) => {
                self.give_up(job.load, &mut record)?;
                Ok(Report { failure: Some(failure), ..report })
            }
            Err(error) => {
                // What is staged is in nobody's way; the error is what counts.
                if let Err(second) = self.give_up(job.load, &mut record) {
                    tracing::warn!(error = %second, "the staged rows of the failed run are left behind");
                }
                Err(error)
            }
        }
    }

    /// The run to go on with. Those that nobody goes on with are cleared away.
    fn unfinished(&self, known: &[Record], files: &[SourceFile]) -> Result<Option<Record>, Error> {
        let is_open = |record: &&Record| !matches!(record.state, State::Done | State::Failed);
        let mut open: Vec<_> = known.iter().filter(is_open).collect();
        if self.request.resume {
            let Some(last) = open.pop() else {
                return Err(Error::Usage("--resume: there is no run that was stopped; run without it".into()));
            };
            let differs = |what: &str| {
                let Record { run, started_at, .. } = last;
                let reason =
                    format!("--resume: the run {run} of {started_at} was begun with {what}; begin anew without it");
                Err(Error::Usage(reason))
            };
            if last.arguments != self.arguments() {
                return differs(&format!("other arguments ({:?})", last.arguments));
            }
            let is_same = last.files.len() == files.len()
                && last
                    .files
                    .iter()
                    .zip(files)
                    .all(|(known, file)| (&known.uri, known.size, &known.tag) == (&file.uri, file.size, &file.tag));
            if !is_same {
                return differs("other files, or they have changed");
            }
            if last.checkpoint.is_some() {
                return Ok(Some(last.clone()));
            }
            open.push(last);
        }
        for record in open {
            if record.state != State::Loading && self.request.mode == Mode::Append {
                let run = &record.run;
                let reason = format!("the run {run} was stopped while its rows were shown; go on with it: --resume");
                return Err(Error::Usage(reason));
            }
            self.clear(record)?;
        }
        Ok(None)
    }

    /// Removes what a run has staged that nobody goes on with. What cannot be removed is in nobody's way.
    fn clear(&self, record: &Record) -> Result<(), Error> {
        let mut record = record.clone();
        let tables = &self.request.mapping.tables;
        if record.state == State::Loading && record.arguments.tables == self.arguments().tables {
            tracing::info!(run = record.run, "clearing away a run that was stopped");
            let checkpoint = record.checkpoint.as_ref().map(|checkpoint| &checkpoint.load);
            let cleared = self.runtime.block_on(async {
                self.deps.loader.begin(&record.run, tables, self.request.mode, checkpoint).await?.abandon().await
            });
            if let Err(error) = cleared {
                tracing::warn!(run = record.run, error, "what the run has staged is left behind");
            }
        }
        self.end(&mut record, State::Failed)
    }

    fn begin(&self, files: &[SourceFile], known: &[Record]) -> Result<Record, Error> {
        let arguments = self.arguments();
        // An identity needs the checksum before the first row, and so does the look whether the file is loaded already.
        // The archive has identities; it is not read twice, so that the load begins soon after the listing.
        let loaded = if self.request.mode == Mode::Append { loaded(known, &arguments) } else { Vec::new() };
        let needs_checksum = self.request.mode == Mode::Append && self.records.is_some()
            || self.request.form == Form::Events && self.request.mapping.source().system.is_some();
        let mut of_files: Vec<FileRecord> = Vec::with_capacity(files.len());
        for file in files {
            let checksum = if needs_checksum { Some(file.checksum(self.runtime)?) } else { None };
            let skipped = checksum.as_ref().is_some_and(|checksum| {
                let is_twin = |other: &FileRecord| other.checksum.as_ref() == Some(checksum);
                loaded.contains(checksum) || (self.request.mode == Mode::Append && of_files.iter().any(is_twin))
            });
            let (uri, size, tag) = (file.uri.clone(), file.size, file.tag.clone());
            of_files.push(FileRecord { uri, size, tag, checksum, skipped });
        }
        let now = self.deps.clock.now();
        let started_at = timestamp_text(now);
        let record = Record {
            run: run_id(now),
            arguments,
            state: State::Loading,
            updated_at: started_at.clone(),
            started_at,
            files: of_files,
            checkpoint: None,
        };
        self.write(&record)?;
        Ok(record)
    }

    fn arguments(&self) -> Arguments {
        let Request { source, form, mapping, mode, .. } = self.request;
        Arguments {
            source: source.clone(),
            tables: mapping.tables.iter().map(|plan| plan.table.full_name()).collect(),
            mode: match mode {
                Mode::Replace => "replace",
                Mode::ReplaceDays { .. } => "replace days",
                Mode::Append => "append",
                Mode::Recreate => "recreate",
            }
            .into(),
            form: format!("{form:?}"),
        }
    }

    fn job(&self, record: &Record) -> Result<Job<'_>, Error> {
        let Deps { loader, lookups, anonymise, dead_letters, clock, .. } = self.deps;
        let Request { mapping, mode, form, .. } = self.request;
        let checkpoint = record.checkpoint.as_ref();
        let begun = loader.begin(&record.run, &mapping.tables, *mode, checkpoint.map(|checkpoint| &checkpoint.load));
        let load = self.held(begun)?;
        let parts = checkpoint.map_or(0, |checkpoint| checkpoint.letter_parts);
        let plan = mapping.source();
        let letters = DeadLetters::open(dead_letters.as_ref(), &record.run, parts, plan, *anonymise, clock.now());
        let tables = mapping.tables.len();
        Ok(Job {
            mapping,
            form: *form,
            parts_only: false,
            lookups,
            anonymise: *anonymise,
            now: clock.now(),
            load,
            letters: self.runtime.block_on(letters).map_err(Error::Work)?,
            tally: checkpoint.map_or_else(
                || Tally { rows: vec![0; tables], ..Tally::default() },
                |checkpoint| checkpoint.tally.clone(),
            ),
            findings: Findings::new(&mapping.findings),
            room: Room::default(),
        })
    }

    fn read(&self, files: &[SourceFile], record: &mut Record, job: &mut Job<'_>) -> Result<(), Error> {
        let (first, start) = match &record.checkpoint {
            Some(checkpoint) => (checkpoint.file, checkpoint.at),
            None => (0, Position::START),
        };
        self.progress.total.store(files.iter().map(|file| file.size).sum(), Ordering::Relaxed);
        self.progress.done.store(files.iter().take(first).map(|file| file.size).sum(), Ordering::Relaxed);
        if self.records.is_some() && record.checkpoint.is_none() {
            self.checkpoint(record, job, first, start)?;
        }
        let mut next_checkpoint = self.progress.done.load(Ordering::Relaxed) + self.request.checkpoint_bytes;
        for (index, file) in files.iter().enumerate().skip(first) {
            if record.files[index].skipped {
                self.progress.done.fetch_add(file.size, Ordering::Relaxed);
                continue;
            }
            let at = if index == first { start } else { Position::START };
            self.read_file(file, index, at, record, job, &mut next_checkpoint)?;
        }
        self.checkpoint(record, job, files.len(), Position::START)
    }

    fn read_file(
        &self,
        file: &SourceFile,
        index: usize,
        mut at: Position,
        record: &mut Record,
        job: &mut Job<'_>,
        next_checkpoint: &mut u64,
    ) -> Result<(), Error> {
        let checksum = record.files[index].checksum.clone();
        let needs_digest = self.records.is_some() && checksum.is_none();
        let done = Arc::clone(&self.progress.done);
        let (text, digest) = file.open(self.runtime, Arc::clone(&done), needs_digest)?;
        let info = FileInfo {
            uri: &file.uri,
            place: Place { file: file.name(), day: day_of(file.name()) },
            checksum: checksum.as_deref().unwrap_or_default(),
        };
        let failed = |error: std::io::Error| file.unreadable(&error);
        let mut pieces = Lines::new(text, at.offset, MAX_LINE).map_err(failed)?;
        while let Some(piece) = pieces.next().map_err(failed)? {
            match piece {
                Piece::Lines(piece) => job.piece(piece, &mut at, &info),
                Piece::TooLong(line) => job.long_line(&line, &mut at, &info),
            }
            self.after_piece(job)?;
            if done.load(Ordering::Relaxed) >= *next_checkpoint {
                self.checkpoint(record, job, index, at)?;
                *next_checkpoint = done.load(Ordering::Relaxed) + self.request.checkpoint_bytes;
            }
        }
        if needs_digest {
            record.files[index].checksum = Some(digest.finish());
        }
        Ok(())
    }

    fn after_piece(&self, job: &mut Job<'_>) -> Result<(), Error> {
        if let Some(right) = self.right {
            self.runtime.block_on(right.hold())?;
        }
        if job.load.held() >= HELD {
            self.held(job.load.flush())?;
        }
        if job.letters.is_full() {
            self.held(job.letters.flush())?;
        }
        Ok(())
    }

    /// Waits for work that may outlast the right, which is renewed meanwhile.
    fn held<T>(&self, work: impl Future<Output = Result<T, String>>) -> Result<T, Error> {
        let done = match self.right {
            Some(right) => self.runtime.block_on(right.hold_during(work))?,
            None => self.runtime.block_on(work),
        };
        done.map_err(Error::Work)
    }

    fn checkpoint(&self, record: &mut Record, job: &mut Job<'_>, file: usize, at: Position) -> Result<(), Error> {
        job.findings.settle(&mut job.tally);
        self.held(job.letters.flush())?;
        if self.records.is_none() {
            return Ok(());
        }
        let load = self.held(job.load.checkpoint())?;
        let letter_parts = job.letters.parts;
        record.checkpoint = Some(Checkpoint { file, at, load, letter_parts, tally: job.tally.clone() });
        self.write(record)
    }

    /// Why what was read may not be shown.
    fn verdict(&self, tally: &Tally) -> Option<String> {
        let stay = |reason: String| format!("{reason}; the tables stay as they were");
        let rows: u64 = tally.rows.iter().sum();
        match tally.lines {
            0 => Some(stay(format!("{}: holds no line", self.request.source))),
            lines if rows == 0 => Some(stay(format!("not one of {lines} lines could be used"))),
            _ => tally.over(self.request.max_dead_letters).map(stay),
        }
    }

    fn publish(&self, job: Job<'_>, record: &mut Record) -> Result<(), Error> {
        if matches!(record.state, State::Loading | State::Publishing) {
            if let Some(right) = self.right {
                self.runtime.block_on(right.hold())?;
            }
            self.mark(record, State::Publishing)?;
            let published =
                async { job.load.publish().await.map_err(|error| format!("{error}; --resume goes on from here")) };
            self.held(published)?;
            self.mark(record, State::Shown)?;
        }
        if let Some(table) = &self.deps.dead_letter_table {
            let now = self.deps.clock.now();
            let place = job.letters.uri().unwrap_or_default().to_string();
            self.held(async {
                let shown = job.letters.show(table.as_ref(), &self.deps.registry, now).await;
                shown.map_err(|error| {
                    format!("the tables are loaded, the dead letters lie in {place}, but: {error}; --resume goes on")
                })
            })?;
        }
        self.end(record, State::Done)
    }

    fn give_up(&self, load: Box<dyn Load>, record: &mut Record) -> Result<(), Error> {
        self.end(record, State::Failed)?;
        self.runtime.block_on(load.abandon()).map_err(Error::Work)
    }

    /// The record of a run that has ended needs no place to go on from.
    fn end(&self, record: &mut Record, state: State) -> Result<(), Error> {
        if let Some(checkpoint) = &mut record.checkpoint {
            checkpoint.load = Value::Null;
        }
        self.mark(record, state)
    }

    fn mark(&self, record: &mut Record, state: State) -> Result<(), Error> {
        record.state = state;
        record.updated_at = timestamp_text(self.deps.clock.now());
        self.write(record)
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        match &self.records {
            Some(records) => self.runtime.block_on(records.write(record)),
            None => Ok(()),
        }
    }
}

/// `20240701t093000250_1f4a9c`: sorts by time, to the millisecond.
fn run_id(now: Micros) -> String {
    let seconds = timestamp_text(now - now.rem_euclid(SECOND));
    let digits: String = seconds.bytes().filter(u8::is_ascii_digit).map(char::from).collect();
    let (day, time) = digits.split_at(8.min(digits.len()));
    format!("{day}t{time}{:03}_{:06x}", now.rem_euclid(SECOND) / 1_000, fastrand::u32(..0x0100_0000))
}
