//! `contextflow dead-letters show`.

use serde::Serialize;
use serde_json::{Map, Value, json};
use shared::clock::Clock;
use shared::schema::{Column, Kind, Mode, Plan, Registry, camel_case};

use crate::dead_letters::examine::{Form, Line, examine};
use crate::dead_letters::{Kept, letter, raw};
use crate::error::Failure;

/// How much of a value is shown where it differs.
const VALUE: usize = 80;

/// Arguments of `contextflow dead-letters show`.
#[derive(clap::Args)]
pub struct Args {
    /// Its `dead_letter_id`
    id: String,
    #[command(flatten)]
    whose: super::Whose,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Where a line differs from the present schema.
#[derive(Serialize)]
struct Difference {
    line: usize,
    code: String,
    column: Option<String>,
    expected: Option<String>,
    found: Option<String>,
    problem: String,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<(), Failure> {
    let registry = args.whose.registry()?;
    let source = args.whose.open(&registry).await?;
    let kept = letter(source.as_ref(), &args.id).await?;
    let bytes = raw(source.as_ref(), &kept.letter).await;
    let (verdict, differences) = match &bytes {
        Ok(bytes) => judge(&registry, &kept, bytes),
        Err(failure) => (format!("cannot be told: {failure}"), Vec::new()),
    };
    let bytes = bytes.unwrap_or_else(|_| kept.letter.raw.clone().into_bytes());
    let text = String::from_utf8(bytes).unwrap_or_else(|error| escaped(error.as_bytes()));

    let mut fields = fields(&kept)?;
    if args.json {
        fields.insert("raw".into(), json!(text));
        fields.insert("verdict".into(), json!(verdict));
        fields.insert("differences".into(), serde_json::to_value(&differences).map_err(Failure::work)?);
        println!("{}", Value::Object(fields));
        return Ok(());
    }
    fields.remove("raw");
    for (name, value) in &fields {
        println!("{name:<15} {}", value.as_str().map_or_else(|| value.to_string(), str::to_string));
    }
    println!("\nraw text:\n{text}\n");
    println!("with the present schemas: {verdict}");
    for Difference { line, column, expected, found, problem, .. } in &differences {
        let place = column.as_deref().unwrap_or("the event");
        println!("  line {line}, {place}: {problem}");
        if let Some(expected) = expected {
            println!("    expected {expected}");
        }
        if let Some(found) = found {
            println!("    found    {found}");
        }
    }
    Ok(())
}

fn fields(kept: &Kept) -> Result<Map<String, Value>, Failure> {
    let mut fields = match serde_json::to_value(&kept.letter).map_err(Failure::work)? {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    fields.extend(kept.replayed_at.as_ref().map(|at| ("replayed_at".to_string(), json!(at))));
    Ok(fields)
}

/// In words whether the letter would pass, and where it differs.
fn judge(registry: &Registry, kept: &Kept, bytes: &[u8]) -> (String, Vec<Difference>) {
    let lines = match examine(registry, &kept.letter, bytes, Clock::system().now()) {
        Ok(lines) => lines,
        Err(why) => return (format!("not to be replayed: {why}"), Vec::new()),
    };
    let passing = lines.iter().filter(|line| line.passes()).count();
    let form = if lines.iter().any(|line| line.form == Form::Enriched) { "row" } else { "event" };
    let verdict = match (passing, lines.len()) {
        (1, 1) => format!("the {form} passes"),
        (0, 1) => format!("the {form} does not pass"),
        (passing, all) => format!("{passing} of {all} {form}s pass"),
    };
    (verdict, lines.iter().flat_map(differences).collect())
}

fn differences(line: &Line) -> Vec<Difference> {
    let value: Value = serde_json::from_slice(&line.text).unwrap_or_default();
    let difference = |problem: &shared::decode::Problem| {
        let path: Vec<&str> = problem.column.iter().flat_map(|column| column.split('.')).collect();
        let column = line.plan.as_ref().and_then(|plan| column_at(plan, &path));
        let found = column.map(|_| values_at(&value, &path)).filter(|found| !found.is_empty());
        Difference {
            line: line.number,
            code: problem.code.to_string(),
            column: problem.column.clone(),
            expected: column.map(in_words),
            found: found.map(|found| found.iter().map(|value| cut(&value.to_string())).collect::<Vec<_>>().join(", ")),
            problem: problem.message.clone(),
        }
    };
    line.problems.iter().map(difference).collect()
}

fn column_at<'p>(plan: &'p Plan, path: &[&str]) -> Option<&'p Column> {
    let mut columns = &plan.columns;
    let mut found = None;
    for name in path {
        let column = columns.iter().find(|column| column.name == *name)?;
        if let Kind::Record(fields) = &column.kind {
            columns = &fields.columns;
        }
        found = Some(column);
    }
    found
}

fn in_words(column: &Column) -> String {
    let mode = match column.mode {
        Mode::Nullable => "",
        Mode::Required => ", REQUIRED",
        Mode::Repeated => ", REPEATED",
    };
    let length = column.max_length.map(|length| format!(", at most {length} long")).unwrap_or_default();
    format!("{}{mode}{length}", column.kind.name())
}

/// The values under a column's path; of an array, those of all its elements.
fn values_at<'v>(value: &'v Value, path: &[&str]) -> Vec<&'v Value> {
    match (value, path) {
        (Value::Array(elements), [_, ..]) => elements.iter().flat_map(|element| values_at(element, path)).collect(),
        (value, []) => vec![value],
        (Value::Object(members), [name, rest @ ..]) => {
            let found = members.get(*name).or_else(|| members.get(&camel_case(name)));
            found.map(|value| values_at(value, rest)).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(VALUE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// Bytes that are no text: what is not printable as `\xff`.
fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}
