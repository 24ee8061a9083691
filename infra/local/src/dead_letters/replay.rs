//! Dead letters through the pipeline again: decoded with present schemas, sent, and marked by an appended row.
//!
//! A letter is marked after its topic has acknowledged it. A crash in between sends it twice, with the same `event_id`:
//! it counts once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use backfill::Again;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use shared::clock::Clock;
use shared::dead_letter::{DeadLetter, Place, REPLAY_OF};
use shared::decode::time::timestamp_text;
use shared::event;
use shared::publish::{Attributes, Message, PUBLIC, Publisher, publish_each};
use shared::schema::{DEAD_LETTER_REPLAY, Plan, Registry};
use shared::sink::{Batch, Outcome, Sink};

use super::examine::{Form, Line, examine, mapping_of};
use super::{Selection, Source, page, raw};
use crate::error::Failure;

/// What a replay works with.
pub struct Replay<'r> {
    /// Where the letters lie.
    pub source: &'r dyn Source,
    /// The schemas that decide.
    pub registry: &'r Registry,
    /// Time.
    pub clock: &'r Clock,
    /// Whether rows can go back as well; a publisher takes events only.
    pub takes_rows: bool,
}

/// The ways back.
pub struct Ways {
    /// The raw topic, for events.
    pub raw: Topic,
    /// The enriched topic, for rows.
    pub enriched: Option<Topic>,
    /// The table that records which letters were replayed.
    pub replays: Arc<dyn Sink>,
    /// What loads lines of files.
    pub history: backfill::Deps,
}

/// A topic with its name.
#[derive(Clone)]
pub struct Topic {
    /// How it is called in `sent_to`.
    pub name: String,
    /// The topic.
    pub publisher: Arc<dyn Publisher>,
}

/// What became of the selected letters.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Summary {
    /// Letters that are selected and were not replayed before.
    pub letters: u64,
    /// Letters that pass now. They were sent, unless it is a dry run.
    pub passing: u64,
    /// Their events.
    pub events: u64,
    /// Why the others stay.
    pub left: Vec<Left>,
}

/// Letters that stay for one reason.
#[derive(Debug, Serialize, Deserialize)]
pub struct Left {
    /// Code of the fault that they have now, or `not_replayable`.
    pub reason: String,
    /// How many.
    pub letters: u64,
    /// Id of the first.
    pub example: String,
    /// What is wrong with that one.
    pub detail: String,
}

/// The messages of a letter that passes.
struct Ready {
    id: String,
    event_id: Option<String>,
    messages: Vec<(Form, Message)>,
    /// The type and the line, of a letter that a load of files made.
    again: Option<(String, Again)>,
}

impl Replay<'_> {
    /// Sends the selected letters that pass, or (without ways) only counts them.
    pub async fn run(&self, selection: &Selection, ways: Option<&Ways>) -> Result<Summary, Failure> {
        let mut summary = Summary::default();
        // A letter may lie there in several copies.
        let mut seen = HashSet::new();
        let mut last: Option<DeadLetter> = None;
        // What fails again meanwhile is a letter of the next replay.
        let began = timestamp_text(self.clock.now());
        loop {
            let letters = page(self.source, selection, &began, last.as_ref()).await?;
            let mut ready = Vec::new();
            for letter in letters.iter().filter(|letter| seen.insert(letter.dead_letter_id.clone())) {
                summary.letters += 1;
                match self.prepare(letter).await {
                    Ok((one, events)) => {
                        summary.events += events;
                        ready.push(one);
                    }
                    Err((reason, detail)) => summary.leave(reason, detail, letter),
                }
            }
            summary.passing += ready.len() as u64;
            if let Some(ways) = ways.filter(|_| !ready.is_empty()) {
                self.send(ready, ways).await?;
            }
            last = letters.into_iter().next_back();
            if last.is_none() {
                summary.left.sort_by_key(|left| Reverse(left.letters));
                return Ok(summary);
            }
        }
    }

    /// The messages of a letter and the number of its events; the error is why it stays.
    async fn prepare(&self, letter: &DeadLetter) -> Result<(Ready, u64), (String, String)> {
        const STAYS: &str = "not_replayable";
        let stays = |detail: String| (STAYS.to_string(), detail);
        let raw = raw(self.source, letter).await.map_err(|failure| stays(failure.to_string()))?;
        let lines = examine(self.registry, letter, &raw, self.clock.now()).map_err(stays)?;
        // Of several events those that fail come back as letters of their own.
        if !lines.iter().any(Line::passes) {
            let problem = lines.into_iter().flat_map(|line| line.problems).next();
            return Err(
                problem.map_or_else(|| stays(String::new()), |fault| (fault.code.to_string(), fault.to_string()))
            );
        }
        if !self.takes_rows && lines.iter().any(|line| line.form == Form::Enriched) {
            return Err(stays(
                "an enriched row, which a publisher does not take: give --to pubsub://PROJECT/TOPIC".into(),
            ));
        }
        let events = lines.len() as u64;
        let (id, event_id) = (letter.dead_letter_id.clone(), letter.event_id.clone());
        let ready = match lines.as_slice() {
            [Line { form: Form::History, text, .. }] => {
                let again = Some((letter.event_type.clone().unwrap_or_default(), line_again(letter, text)));
                Ready { id, event_id, messages: Vec::new(), again }
            }
            _ => Ready { id, event_id, messages: messages(letter, lines), again: None },
        };
        Ok((ready, events))
    }

    /// Sends letters and marks those that were acknowledged.
    async fn send(&self, ready: Vec<Ready>, ways: &Ways) -> Result<(), Failure> {
        let mut failed: BTreeMap<usize, String> = BTreeMap::new();
        for (form, topic) in [(Form::Raw, Some(&ways.raw)), (Form::Enriched, ways.enriched.as_ref())] {
            let of_form = ready.iter().enumerate().flat_map(|(index, one)| {
                one.messages.iter().filter(move |(known, _)| *known == form).map(move |(_, message)| (index, message))
            });
            let (owners, messages): (Vec<usize>, Vec<Message>) =
                of_form.map(|(index, message)| (index, message.clone())).unzip();
            let Some(topic) = topic.filter(|_| !messages.is_empty()) else { continue };
            let mut answers = publish_each(topic.publisher.as_ref(), messages).await.into_iter();
            for owner in owners {
                match answers.next() {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => drop(failed.insert(owner, error.to_string())),
                    None => drop(failed.insert(owner, format!("{} gave no answer", topic.name))),
                }
            }
        }
        self.load(&ready, ways, &mut failed).await;
        let sent = ready.iter().enumerate().filter(|(index, _)| !failed.contains_key(index)).map(|(_, one)| one);
        self.mark(sent, ways).await?;
        match failed.first_key_value() {
            None => Ok(()),
            Some((_, reason)) => Err(Failure::work(format!(
                "{} letters were not taken and stay, the others before them are on their way: {reason}",
                failed.len()
            ))),
        }
    }

    /// Loads lines of files: those of a type at once, or none of them.
    async fn load(&self, ready: &[Ready], ways: &Ways, failed: &mut BTreeMap<usize, String>) {
        let mut of_types: BTreeMap<&str, Vec<(usize, Again)>> = BTreeMap::new();
        for (index, one) in ready.iter().enumerate() {
            if let Some((event_type, again)) = &one.again {
                of_types.entry(event_type).or_default().push((index, again.clone()));
            }
        }
        for (event_type, lines) in of_types {
            let (owners, lines): (Vec<_>, Vec<_>) = lines.into_iter().unzip();
            // The same letters are the same load: after a crash in its middle they are not loaded twice.
            let ids: Vec<_> = owners.iter().map(|owner| ready[*owner].id.as_bytes()).collect();
            let run = event::derived_id(&ids);
            let loaded = match mapping_of(self.registry, event_type) {
                Ok(mapping) => backfill::again(&ways.history, &mapping, &format!("replay_{run}"), &lines).await,
                Err(reason) => Err(backfill::Error::Usage(reason)),
            };
            if let Err(error) = loaded {
                failed.extend(owners.into_iter().map(|owner| (owner, error.to_string())));
            }
        }
    }

    async fn mark<'m>(&self, sent: impl Iterator<Item = &'m Ready>, ways: &Ways) -> Result<(), Failure> {
        let plan = self.registry.get(DEAD_LETTER_REPLAY);
        let plan = plan.ok_or_else(|| Failure::work(format!("there is no schema {DEAD_LETTER_REPLAY}")))?;
        let now = self.clock.now();
        let row = |one: &Ready| {
            let is_row = one.messages.first().is_some_and(|(form, _)| *form == Form::Enriched);
            let topic = if is_row { ways.enriched.as_ref() } else { None }.unwrap_or(&ways.raw);
            let load = one.again.as_ref().map(|(event_type, _)| format!("the tables of {event_type}"));
            let sent_to = load.unwrap_or_else(|| topic.name.clone());
            let mut row = json!({"dead_letter_id": one.id, "replayed_at": timestamp_text(now), "sent_to": sent_to});
            if let Some(event_id) = &one.event_id {
                row["event_id"] = json!(event_id);
            }
            Bytes::from(row.to_string())
        };
        let batch = Batch { plan: Arc::clone(plan), rows: sent.map(row).collect(), loaded_at: now };
        let outcomes = ways.replays.append(&batch).await;
        let fault = outcomes.into_iter().find_map(|outcome| match outcome {
            Outcome::Done => None,
            Outcome::Retry(reason) => Some(reason),
            Outcome::Poison(reason) => Some(reason.detail),
        });
        fault.map_or(Ok(()), |reason| {
            Err(Failure::work(format!(
                "letters were sent and could not be marked in {}: {reason}; replay them again, they count once",
                plan.table.full_name()
            )))
        })
    }
}

impl Summary {
    fn leave(&mut self, reason: String, detail: String, letter: &DeadLetter) {
        match self.left.iter_mut().find(|left| left.reason == reason) {
            Some(left) => left.letters += 1,
            None => self.left.push(Left { reason, letters: 1, example: letter.dead_letter_id.clone(), detail }),
        }
    }
}

/// The line of a file that a letter keeps, to be loaded again as `text`.
fn line_again(letter: &DeadLetter, text: &[u8]) -> Again {
    let nowhere = || Place { source: letter.dead_letter_id.clone(), line: 1, byte_offset: 0, within: None };
    let at = letter.place.clone().unwrap_or_else(nowhere);
    Again { line: Bytes::copy_from_slice(text), is_part: at.within.is_some(), at }
}

/// Lines of one message.
struct Pack {
    form: Form,
    plan: Arc<Plan>,
    lines: Vec<Vec<u8>>,
}

/// One message a form and type, with what the first one said of them.
fn messages(letter: &DeadLetter, lines: Vec<Line>) -> Vec<(Form, Message)> {
    let mut packs: Vec<Pack> = Vec::new();
    for Line { plan, form, text, .. } in lines {
        let Some(plan) = plan else { continue };
        match packs.iter_mut().find(|pack| pack.form == form && pack.plan.event_type == plan.event_type) {
            Some(pack) => pack.lines.push(text),
            None => packs.push(Pack { form, plan, lines: vec![text] }),
        }
    }
    let message = |pack: Pack| {
        let mut attributes = Attributes::from([
            ("event_type".to_string(), pack.plan.event_type.clone()),
            (REPLAY_OF.to_string(), letter.dead_letter_id.clone()),
        ]);
        if pack.form == Form::Enriched {
            attributes.insert("rows".into(), pack.lines.len().to_string());
            attributes.insert("schema_version".into(), pack.plan.version.clone());
        } else {
            attributes.insert("source".into(), "replay".into());
            attributes.extend(letter.ingest.clone().map(|ingest| (PUBLIC.0.to_string(), ingest)));
            attributes.extend(letter.received_at.clone().map(|at| ("received_at".to_string(), at)));
        }
        (pack.form, Message { data: pack.lines.join(&b'\n').into(), attributes })
    };
    packs.into_iter().map(message).collect()
}
