//! What present schemas say of a dead letter: its lines decoded anew, in the form in which they would go round again.

use std::sync::Arc;

use serde::Serialize;
use shared::clock::Micros;
use shared::dead_letter::DeadLetter;
use shared::decode::{self, Code, Problem};
use shared::encode::Splice;
use shared::event::{self, BodyType};
use shared::mapping::Mapping;
use shared::push;
use shared::row::Row;
use shared::schema::{DEFAULT_TYPE, Ingest, Plan, Registry};

use super::BACKFILL;

/// On which topic a line belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// An event as it was sent: the raw topic.
    Raw,
    /// A row, enriched before it failed: the enriched topic. Its system columns stay as they are.
    Enriched,
    /// A line of a file, or a part of one: into its tables, as the load that met it would have done.
    History,
}

/// One event of a letter, ready to go.
#[derive(Debug)]
pub struct Line {
    /// Its number in the letter, from 1.
    pub number: usize,
    /// The schema of its type; none where there is no such type.
    pub plan: Option<Arc<Plan>>,
    /// What it is.
    pub form: Form,
    /// Its text, with the `event_id` that it had or would have had.
    pub text: Vec<u8>,
    /// Where it differs from the schema; empty: it would pass.
    pub problems: Vec<Problem>,
}

impl Line {
    /// Whether present schemas take it.
    pub fn passes(&self) -> bool {
        self.problems.is_empty()
    }
}

/// The lines of a letter; the error is why none of it may ever go round again.
///
/// `raw` are its exact bytes. A forwarded copy of Pub/Sub's may hold several events, every other letter one.
pub fn examine(registry: &Registry, letter: &DeadLetter, raw: &[u8], now: Micros) -> Result<Vec<Line>, String> {
    if letter.reason == Code::BadEnvelope {
        return Err("what came was no message of Pub/Sub: send its events to the publisher".into());
    }
    if letter.stage == BACKFILL {
        return Ok(vec![history(registry, letter, raw)?]);
    }
    let lines: Vec<_> = push::lines(raw).collect();
    if lines.is_empty() {
        return Err("it holds no event".into());
    }
    // The id of a letter is that of its one event.
    let kept = letter.event_id.as_deref().filter(|_| lines.len() == 1);
    let examination = Examination { registry, letter, kept, now };
    Ok(lines.into_iter().map(|(number, text)| examination.line(number, text)).collect())
}

/// How the lines of a file became rows: by the built-in mapping of their type, or each as an event of a stream.
///
/// A type of batches alone may have been loaded with a mapping file, which a letter does not name.
pub fn mapping_of(registry: &Registry, event_type: &str) -> Result<Mapping, String> {
    const OTHERWISE: &str = "a line of a file whose type has no built-in mapping: mend the line in a file of its own and \
                             load that with `contextflow backfill --append`";
    match Mapping::built_in(event_type, registry) {
        Some(mapping) => mapping.map_err(|error| error.to_string()),
        None => registry.streaming(event_type).map(|plan| Mapping::of_one(Arc::clone(plan))).ok_or(OTHERWISE.into()),
    }
}

/// The line of a file that a letter keeps, or the line with the part that it keeps.
fn history(registry: &Registry, letter: &DeadLetter, raw: &[u8]) -> Result<Line, String> {
    let mapping = mapping_of(registry, letter.event_type.as_deref().unwrap_or_default())?;
    let within = letter.place.as_ref().and_then(|place| place.within.as_ref());
    let mut text = within.map_or(raw, |within| within.as_bytes()).to_vec();
    let problems = backfill::problems(&mapping, &text, within.is_some());
    let plan = Arc::clone(mapping.source());
    if let Some(id) = letter.event_id.as_ref().filter(|_| problems.is_empty() && plan.system.is_some()) {
        let mut named = Splice::new(&String::from_utf8_lossy(&text));
        named.add("event_id", id);
        text = named.finish();
    }
    Ok(Line { number: 1, plan: Some(plan), form: Form::History, text, problems })
}

struct Examination<'e> {
    registry: &'e Registry,
    letter: &'e DeadLetter,
    /// The `event_id` to have.
    kept: Option<&'e str>,
    now: Micros,
}

impl Examination<'_> {
    fn line(&self, number: usize, text: &[u8]) -> Line {
        let mut line =
            Line { number: number + 1, plan: None, form: Form::Raw, text: text.to_vec(), problems: Vec::new() };
        let Some(plan) = plan_of(self.registry, self.letter, text) else {
            let name = self.letter.event_type.as_deref().unwrap_or(DEFAULT_TYPE);
            let message = format!("no stream has events of type `{name}`");
            line.problems.push(Problem::of("event_type", Code::UnknownType, message));
            return line;
        };
        line.plan = Some(Arc::clone(plan));
        if self.letter.ingest.is_some() && plan.ingest != Ingest::Public {
            let message =
                format!("anyone may have sent it, and only backends may send events of type `{}`", plan.event_type);
            line.problems.push(Problem::of("event_type", Code::TypeNotAllowed, message));
            return line;
        }
        let mut row = Row::default();
        line.form = form(self.letter, plan, text, &mut row);
        if let Err(problem) = decode(plan, line.form, text, self.now, &mut row) {
            line.problems.push(problem);
            return line;
        }
        let own = plan.system.and_then(|system| row.text(system.event_id));
        if own.is_none_or(|own| self.kept.is_some_and(|kept| kept != own)) {
            // Of a line without an id, the same one at every replay.
            let derived = || event::derived_id(&[self.letter.dead_letter_id.as_bytes(), number.to_string().as_bytes()]);
            // Decoded as an object, so it is one.
            let mut named = Splice::new(&String::from_utf8_lossy(text));
            named.add("event_id", &self.kept.map_or_else(derived, str::to_string));
            line.text = named.finish();
        }
        let mut row = Row::default();
        line.problems = match decode(plan, line.form, &line.text, self.now, &mut row) {
            Ok(()) => row.problems.into_kept(),
            Err(problem) => vec![problem],
        };
        line
    }
}

/// The schema of a line: that of the letter's type; where it has none, or the default one, that of the type which the line
/// itself names.
fn plan_of<'r>(registry: &'r Registry, letter: &DeadLetter, text: &[u8]) -> Option<&'r Arc<Plan>> {
    match letter.event_type.as_deref() {
        Some(name) if name != DEFAULT_TYPE => registry.streaming(name),
        _ => match event::type_in_body(registry, text) {
            BodyType::Known(plan) => registry.streaming(&plan.event_type),
            BodyType::Unknown(_) => None,
        },
    }
}

/// The batcher and the warehouse refuse rows, the enricher events; what Pub/Sub gave up may be either, and only a row
/// has the system columns that the enricher sets.
fn form<'a>(letter: &DeadLetter, plan: &Plan, text: &'a [u8], row: &mut Row<'a>) -> Form {
    let is_row = match letter.stage.as_str() {
        "batcher" | "warehouse" => true,
        "pubsub" => {
            let is_set = |row: &Row<'_>, column: usize| row.values.get(column).is_some_and(|value| !value.is_null());
            let set = |row: &Row<'_>| {
                plan.system.is_some_and(|system| is_set(row, system.received_at) && is_set(row, system.schema_version))
            };
            decode::row(plan, text, row).is_ok() && row.unknown_keys == 0 && set(row)
        }
        _ => false,
    };
    if is_row { Form::Enriched } else { Form::Raw }
}

fn decode<'a>(plan: &Plan, form: Form, text: &'a [u8], now: Micros, row: &mut Row<'a>) -> Result<(), Problem> {
    if form == Form::Enriched { decode::row(plan, text, row) } else { decode::event(plan, text, now, row) }
}

#[cfg(test)]
mod tests {
    use shared::dead_letter::{Origin, Place, Reason};

    use super::*;

    const NOW: Micros = 1_792_455_302_920_000;
    const EVENT: &str = r#"{"user_id":"u","event_timestamp":"2026-10-20T00:15:02Z"}"#;

    fn letter(stage: &str, event_type: Option<&str>, event_id: Option<&str>, raw: &str) -> DeadLetter {
        let origin =
            Origin { stage, event_type, event_id, identity: &[raw.as_bytes()], failed_at: NOW, ..Origin::default() };
        DeadLetter::new(&origin, Reason { code: Code::WrongType, detail: String::new() }, raw.as_bytes())
    }

    fn examined(letter: &DeadLetter) -> Vec<Line> {
        examine(&Registry::built_in().unwrap(), letter, letter.raw.as_bytes(), NOW).unwrap()
    }

    fn id(line: &Line) -> String {
        let value: serde_json::Value = serde_json::from_slice(&line.text).unwrap();
        value["event_id"].as_str().unwrap().to_string()
    }

    #[test]
    fn an_event_keeps_the_id_of_its_letter() {
        for (raw, expected) in [
            (EVENT.to_string(), "kept"),
            (EVENT.replace("user_id", "eventId"), "kept"),
            (EVENT.replace("\"u\"", "\"u\",\"event_id\":\"not an id\""), "kept"),
        ] {
            let lines = examined(&letter("enricher", Some("clickstream"), Some("kept"), &raw));
            assert_eq!(
                (id(&lines[0]).as_str(), lines[0].passes(), lines[0].form),
                (expected, true, Form::Raw),
                "{raw}"
            );
        }
    }

    #[test]
    fn a_forwarded_copy_keeps_the_ids_it_has_and_gets_the_same_others_each_time() {
        let raw = format!("{}\n\n{EVENT}\n{{\"event_timestamp\":1}}\n", EVENT.replace("user_id", "event_id"));
        let letter = letter("pubsub", None, None, &raw);
        let lines = examined(&letter);
        let numbers: Vec<_> = lines.iter().map(|line| (line.number, line.passes())).collect();
        assert_eq!(numbers, [(1, true), (3, true), (4, false)]);
        assert_eq!(id(&lines[0]), "u");
        assert_eq!(id(&lines[1]), id(&examined(&letter)[1]));
        assert_ne!(id(&lines[1]), id(&lines[2]));
    }

    #[test]
    fn a_row_is_told_by_what_the_enricher_has_set() {
        let row = r#"{"user_id":"u","event_timestamp":"2026-10-20T00:15:02Z","country":"DE","event_id":"e",
            "received_at":"2026-10-20T00:15:03Z","schema_version":"1-0-0"}"#
            .replace('\n', "");
        for (stage, raw, form) in [
            ("warehouse", row.as_str(), Form::Enriched),
            ("pubsub", &row, Form::Enriched),
            ("pubsub", EVENT, Form::Raw),
            ("enricher", &row, Form::Raw),
        ] {
            assert_eq!(examined(&letter(stage, Some("clickstream"), None, raw))[0].form, form, "{stage} {raw}");
        }
    }

    #[test]
    fn what_is_broken_stays_broken() {
        for raw in ["{\"user_id\":12", "[]", "\"text\"", "{} {}"] {
            let lines = examined(&letter("enricher", Some("order"), Some("kept"), raw));
            assert_eq!((lines[0].passes(), lines[0].text.as_slice()), (false, raw.as_bytes()));
        }
        let lines = examined(&letter("enricher", Some("nothing"), None, "{}"));
        assert_eq!(lines[0].problems[0].code, Code::UnknownType);
    }

    #[test]
    fn what_anyone_may_have_sent_goes_back_as_a_public_type_alone() {
        for (event_type, raw, passes) in
            [("clickstream", EVENT, true), ("order", r#"{"order_date":"2026-10-20T00:15:02Z"}"#, false)]
        {
            let mut letter = letter("enricher", Some(event_type), Some("kept"), raw);
            assert!(examined(&letter)[0].passes(), "{event_type}");
            letter.ingest = Some("public".into());
            assert_eq!(examined(&letter)[0].passes(), passes, "{event_type}");
        }
    }

    #[test]
    fn a_line_of_a_file_goes_back_into_the_tables_of_its_type() {
        let registry = Registry::built_in().unwrap();
        let of = |kind: Option<&str>| letter("backfill", kind, Some("kept"), EVENT);
        for kind in [None, Some("session"), Some("nothing")] {
            let refused = examine(&registry, &of(kind), EVENT.as_bytes(), NOW).unwrap_err();
            assert!(refused.contains("backfill --append"), "{refused}");
        }
        // Not within the time that a stream takes, and no event of one.
        let old = of(Some("clickstream"));
        let lines = examine(&registry, &old, EVENT.replace("2026", "1999").as_bytes(), NOW).unwrap();
        assert_eq!((lines[0].form, lines[0].passes(), id(&lines[0]).as_str()), (Form::History, true, "kept"));
        assert_eq!(examined(&of(Some("visit")))[0].problems[0].code, Code::MissingRequired);
    }

    #[test]
    fn a_part_of_a_line_is_judged_within_its_line() {
        let event = |kind: &str| {
            format!(r#"{{"event":{{"event_type":"{kind}","timestamp":"2024-07-01T09:00:00","details":{{}}}}}}"#)
        };
        let within = |kind: &str| {
            let mut letter = letter("backfill", Some("visit"), None, &event(kind));
            let within = format!(r#"{{"session_id":"s","user_id":"u","device_type":"d","events":[{}]}}"#, event(kind));
            letter.place = Some(Place { source: "f".into(), line: 1, byte_offset: 9, within: Some(within) });
            examined(&letter).remove(0)
        };
        assert!(within("page_view").passes());
        assert_eq!(within("wish").problems[0].code, Code::UnknownType);
    }
}
