//! `contextflow enrich`: the enricher as a filter over NDJSON.

use std::fs::File;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use clap::ValueEnum;
use indicatif::ProgressBar;
use serde::Serialize;
use shared::clock::{Clock, Micros};
use shared::dead_letter::{DeadLetter, Origin, Reason, reason_of};
use shared::decode::{self, time};
use shared::enrich::Tables;
use shared::row::{Row, Value};
use shared::schema::Plan;
use shared::{encode, event};

use super::parquet::ParquetFile;
use crate::error::Failure;

/// How much is read at once; a line may be longer.
const CHUNK: usize = 256 * 1024;
/// How much output is gathered before it is written.
const OUTPUT: usize = 256 * 1024;

/// Arguments of `contextflow enrich`.
#[derive(clap::Args)]
pub struct Args {
    /// NDJSON to read; `-` is standard input
    #[arg(long = "in", default_value = "-", value_name = "FILE")]
    input: String,
    /// A lookup table in place of the built-in one (header `first_octet,country,city`)
    #[arg(long, value_name = "CSV")]
    geo: Option<PathBuf>,
    /// Event type or schema file
    #[arg(long, default_value = "clickstream", value_name = "TYPE|FILE")]
    schema: String,
    /// What to write
    #[arg(long, value_enum, default_value_t = Target::Ndjson)]
    to: Target,
    /// Where to write it (NDJSON: standard output unless given)
    #[arg(long, value_name = "PATH")]
    out: Option<PathBuf>,
    /// Write the system columns too: `event_id`, `received_at`, `loaded_at`, `schema_version` and `fingerprint`
    #[arg(long)]
    system_columns: bool,
    /// Where lines that cannot be used go, one JSON object each
    #[arg(long, value_name = "PATH")]
    dead_letters: Option<PathBuf>,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

/// Forms of output.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Nothing: for measuring and checking
    Null,
    /// One JSON object a line
    Ndjson,
    /// A Parquet file
    Parquet,
}

/// What is said at the end.
#[derive(Serialize)]
struct Summary {
    read: u64,
    written: u64,
    dead_lettered: u64,
    unknown_geo: u64,
    max_timestamp: Option<String>,
    seconds: f64,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let plan = super::plan(&args.schema)?;
    let tables = super::lookups(args.geo.as_deref())?;
    let (input, length) = open(&args.input)?;
    let filter = Filter {
        columns: if args.system_columns { plan.columns.len() } else { plan.own_columns },
        now: Clock::system().now(),
        input: args.input.clone(),
        tables: &tables,
        plan: &plan,
    };
    let mut output = Output::new(args, &plan)?;
    let mut totals = Totals::default();
    let bar = super::progress(length, "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta}");
    filter.read_all(input, &bar, &mut output, &mut totals)?;
    output.finish()?;
    bar.finish_and_clear();
    report(args, &totals, started.elapsed().as_secs_f64())
}

fn report(args: &Args, totals: &Totals, seconds: f64) -> Result<(), Failure> {
    let summary = Summary {
        read: totals.read,
        written: totals.read - totals.dead_lettered,
        dead_lettered: totals.dead_lettered,
        unknown_geo: totals.unknown_geo,
        max_timestamp: totals.max_time.map(time::timestamp_text),
        seconds,
    };
    let Summary { read, written, dead_lettered, unknown_geo, .. } = &summary;
    if args.json {
        let line = serde_json::to_string(&summary).map_err(Failure::work)?;
        // NDJSON may have standard output for itself.
        if args.to == Target::Ndjson && args.out.is_none() { eprintln!("{line}") } else { println!("{line}") }
    } else {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = *read as f64 / seconds.max(1e-9);
        eprintln!(
            "{read} events read, {written} written, {dead_lettered} dead letters, {unknown_geo} of unknown place, \
             latest {}; {seconds:.2} s, {rate:.0} events/s",
            summary.max_timestamp.as_deref().unwrap_or("none"),
        );
    }
    if *dead_lettered > 0 && args.dead_letters.is_none() {
        eprintln!(
            "{dead_lettered} lines could not be used and are kept nowhere; --dead-letters PATH keeps them with their reasons"
        );
    }
    if *read > 0 && *written == 0 {
        return Err(Failure::work("not one line could be used"));
    }
    Ok(())
}

fn open(input: &str) -> Result<(Box<dyn Read>, Option<u64>), Failure> {
    if input == "-" {
        return Ok((Box::new(std::io::stdin().lock()), None));
    }
    let fault = |error: std::io::Error| Failure::usage(format!("--in {input}: {error}"));
    let file = File::open(input).map_err(fault)?;
    let meta = file.metadata().map_err(fault)?;
    if meta.is_dir() {
        return Err(Failure::usage(format!("--in {input}: is a folder; give a file or -")));
    }
    Ok((Box::new(file), Some(meta.len())))
}

#[derive(Default)]
struct Totals {
    read: u64,
    dead_lettered: u64,
    unknown_geo: u64,
    max_time: Option<Micros>,
}

/// Where in the input a line stands.
#[derive(Clone, Copy, Default)]
struct Position {
    line: u64,
    offset: u64,
}

struct Filter<'f> {
    plan: &'f Arc<Plan>,
    tables: &'f Tables,
    now: Micros,
    columns: usize,
    input: String,
}

impl Filter<'_> {
    fn read_all(
        &self,
        mut input: impl Read,
        bar: &ProgressBar,
        output: &mut Output,
        totals: &mut Totals,
    ) -> Result<(), Failure> {
        let fault = |error: std::io::Error| Failure::work(format!("failed to read {}: {error}", self.input));
        let mut buffer = vec![0; CHUNK];
        let mut filled = 0;
        let mut at = Position { line: 1, offset: 0 };
        loop {
            if filled == buffer.len() {
                buffer.resize(buffer.len() * 2, 0);
            }
            let count = match input.read(&mut buffer[filled..]) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(fault(error)),
            };
            let new = filled + count;
            let whole = if count == 0 {
                new
            } else {
                memchr::memrchr(b'\n', &buffer[filled..new]).map_or(0, |end| filled + end + 1)
            };
            self.chunk(&buffer[..whole], &mut at, output, totals)?;
            buffer.copy_within(whole..new, 0);
            filled = new - whole;
            bar.set_position(at.offset);
            if count == 0 {
                return Ok(());
            }
        }
    }

    /// Whole lines, the last one with or without its line end.
    fn chunk(&self, chunk: &[u8], at: &mut Position, output: &mut Output, totals: &mut Totals) -> Result<(), Failure> {
        let mut row = Row::default();
        let mut rest = chunk;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = &rest[..end];
            if !line.trim_ascii().is_empty() {
                totals.read += 1;
                self.line(line, *at, &mut row, output, totals)?;
            }
            let used = rest.len().min(end + 1);
            rest = &rest[used..];
            at.line += 1;
            at.offset += used as u64;
        }
        output.flush_if_large()
    }

    #[inline]
    fn line<'a>(
        &'a self,
        line: &'a [u8],
        at: Position,
        row: &mut Row<'a>,
        output: &mut Output,
        totals: &mut Totals,
    ) -> Result<(), Failure> {
        if let Err(problem) = decode::event(self.plan, line, self.now, row) {
            return self.bury(line, at, Reason::from(&problem), row, output, totals);
        }
        if let Some(reason) = reason_of(&row.problems) {
            return self.bury(line, at, reason, row, output, totals);
        }
        totals.unknown_geo += u64::from(self.tables.enrich(self.plan, row));
        if let Some(partition) = self.plan.table.partition {
            totals.max_time = totals.max_time.max(row.values[partition.column].partition_time());
        }
        if self.columns > self.plan.own_columns {
            self.set_system_columns(at, row);
        }
        output.write(&self.plan.columns[..self.columns], &row.values[..self.columns])
    }

    fn set_system_columns(&self, at: Position, row: &mut Row<'_>) {
        let Some(system) = self.plan.system else { return };
        if row.text(system.event_id).is_none() {
            let offset = at.offset.to_le_bytes();
            row.set(system.event_id, Value::Text(event::derived_id(&[self.input.as_bytes(), &offset]).into()));
        }
        row.set(system.received_at, Value::Timestamp(self.now));
        row.set(system.loaded_at, Value::Timestamp(self.now));
        row.set(system.schema_version, Value::Text(self.plan.version.clone().into()));
        event::set_fingerprint(self.plan, row);
    }

    #[cold]
    fn bury(
        &self,
        line: &[u8],
        at: Position,
        reason: Reason,
        row: &Row<'_>,
        output: &mut Output,
        totals: &mut Totals,
    ) -> Result<(), Failure> {
        totals.dead_lettered += 1;
        let Some(file) = &mut output.dead_letters else { return Ok(()) };
        let offset = at.offset.to_le_bytes();
        let origin = Origin {
            stage: "enricher",
            event_type: Some(&self.plan.event_type),
            event_id: self.plan.system.and_then(|system| row.text(system.event_id)),
            identity: &[self.input.as_bytes(), &offset],
            received_at: None,
            failed_at: self.now,
            attempts: 1,
            ingest: None,
        };
        let letter = LineLetter {
            file: &self.input,
            line: at.line,
            offset: at.offset,
            letter: DeadLetter::new(&origin, reason, line),
        };
        let mut json = serde_json::to_vec(&letter).map_err(Failure::work)?;
        json.push(b'\n');
        file.write_all(&json).map_err(|error| Failure::work(format!("failed to write a dead letter: {error}")))
    }
}

/// A dead letter with its place in the input.
#[derive(Serialize)]
struct LineLetter<'a> {
    file: &'a str,
    line: u64,
    offset: u64,
    #[serde(flatten)]
    letter: DeadLetter,
}

struct Output {
    form: Form,
    dead_letters: Option<std::io::BufWriter<File>>,
}

enum Form {
    Null,
    Ndjson { file: Box<dyn Write>, name: String, buffer: Vec<u8> },
    Parquet(Box<ParquetFile>),
}

impl Output {
    fn new(args: &Args, plan: &Plan) -> Result<Self, Failure> {
        let create = |path: &PathBuf| {
            File::create(path).map_err(|error| Failure::usage(format!("failed to create {}: {error}", path.display())))
        };
        let columns = if args.system_columns { &plan.columns[..] } else { &plan.columns[..plan.own_columns] };
        let form = match (args.to, &args.out) {
            (Target::Null, _) => Form::Null,
            (Target::Ndjson, None) => Form::Ndjson {
                file: Box::new(std::io::stdout().lock()),
                name: "standard output".into(),
                buffer: Vec::new(),
            },
            (Target::Ndjson, Some(path)) => {
                let name = path.display().to_string();
                Form::Ndjson { file: Box::new(create(path)?), name, buffer: Vec::with_capacity(OUTPUT * 2) }
            }
            (Target::Parquet, Some(path)) => {
                Form::Parquet(Box::new(ParquetFile::create(create(path)?, path, columns)?))
            }
            (Target::Parquet, None) => return Err(Failure::usage("--to parquet needs --out PATH")),
        };
        let dead_letters = args.dead_letters.as_ref().map(create).transpose()?.map(std::io::BufWriter::new);
        Ok(Self { form, dead_letters })
    }

    #[inline]
    fn write(&mut self, columns: &[shared::schema::Column], values: &[Value<'_>]) -> Result<(), Failure> {
        match &mut self.form {
            Form::Null => Ok(()),
            Form::Ndjson { buffer, .. } => {
                encode::object(columns, values, buffer);
                buffer.push(b'\n');
                Ok(())
            }
            Form::Parquet(file) => file.push(values),
        }
    }

    fn flush_if_large(&mut self) -> Result<(), Failure> {
        match &mut self.form {
            Form::Ndjson { file, name, buffer } if buffer.len() >= OUTPUT => flush(file.as_mut(), name, buffer),
            _ => Ok(()),
        }
    }

    fn finish(self) -> Result<(), Failure> {
        match self.form {
            Form::Null => {}
            Form::Ndjson { mut file, name, mut buffer } => flush(file.as_mut(), &name, &mut buffer)?,
            Form::Parquet(file) => file.finish()?,
        }
        match self.dead_letters {
            Some(mut file) => {
                file.flush().map_err(|error| Failure::work(format!("failed to write a dead letter: {error}")))
            }
            None => Ok(()),
        }
    }
}

fn flush(file: &mut dyn Write, name: &str, buffer: &mut Vec<u8>) -> Result<(), Failure> {
    file.write_all(buffer)
        .and_then(|()| file.flush())
        .map_err(|error| Failure::work(format!("failed to write to {name}: {error}")))?;
    buffer.clear();
    Ok(())
}
