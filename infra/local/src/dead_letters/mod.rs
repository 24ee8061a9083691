//! Dead letters of a warehouse, whichever it is: which there are, why they failed, and the way back into the pipeline.
//!
//! A letter that went round again has a row in `dead_letter_replays`; nothing is deleted or changed. What fails again
//! comes back as another letter with an id of its own.

pub mod examine;
pub mod replay;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use shared::dead_letter::DeadLetter;
use shared::event;
use shared::sink::delta::{QueryError, Warehouse};

use crate::commands::query::rows_of;
use crate::error::Failure;

/// The stage of letters that a load of files made.
const BACKFILL: &str = "backfill";
/// Letters of one page of a replay: each may bring 256 KB along.
const PAGE: usize = 200;

/// Where letters lie: the local warehouse, or BigQuery, with the bucket beside it.
#[async_trait]
pub trait Source: Send + Sync {
    /// The rows of one SELECT that both engines understand; times are RFC 3339.
    async fn rows(&self, sql: &str) -> Result<Vec<Map<String, Value>>, Failure>;

    /// The object that the `raw_uri` of a letter names.
    async fn object(&self, uri: &str) -> Result<Vec<u8>, Failure>;
}

/// The warehouse and the bucket of `contextflow dev`.
#[derive(Clone)]
pub struct Local {
    /// Its tables.
    pub warehouse: Arc<Warehouse>,
    /// The folder that is its bucket.
    pub bucket: PathBuf,
}

#[async_trait]
impl Source for Local {
    async fn rows(&self, sql: &str) -> Result<Vec<Map<String, Value>>, Failure> {
        let batches = self.warehouse.sql(sql).await.map_err(|error| match error {
            QueryError::Query(_) => Failure::usage(error),
            QueryError::Warehouse(_) => Failure::work(error),
        })?;
        rows_of(&batches).map_err(Failure::work)
    }

    async fn object(&self, uri: &str) -> Result<Vec<u8>, Failure> {
        let fault = |reason: String| Failure::work(format!("{uri}: {reason}"));
        // A letter names a file of this bucket and no other of the machine.
        let name = uri.rsplit_once("/dead-letter/raw/").map(|(_, name)| name).filter(|name| !name.contains(".."));
        let name = name.ok_or_else(|| fault("not a large dead letter of this warehouse".into()))?;
        let path = self.bucket.join("dead-letter/raw").join(name);
        tokio::fs::read(&path).await.map_err(|error| fault(error.to_string()))
    }
}

/// Which dead letters are meant; those that satisfy all of it.
#[derive(Debug, Clone, Default, clap::Args, Serialize, Deserialize)]
pub struct Selection {
    /// A condition in SQL on the letters' columns, for example `stage = 'enricher'`
    #[arg(long = "where", value_name = "SQL")]
    #[serde(rename = "where", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Those that failed for this reason
    #[arg(long, value_name = "CODE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Those that failed at this stage
    #[arg(long, value_name = "STAGE")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<String>,
    /// The one with this id
    #[arg(long, value_name = "ID")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

impl Selection {
    /// The letter `id`.
    pub fn one(id: &str) -> Self {
        Self { id: Some(id.to_string()), ..Self::default() }
    }

    fn sql(&self) -> Result<String, Failure> {
        let mut all = vec!["TRUE".to_string()];
        for (column, given) in [("reason", &self.reason), ("stage", &self.stage), ("dead_letter_id", &self.id)] {
            let Some(text) = given else { continue };
            // The alphabet of ids, which needs no quoting in any dialect.
            if !event::is_event_id(text) {
                return Err(Failure::usage(format!("`{text}` is no {column}; `dead-letters list` shows them")));
            }
            all.push(format!("{column} = '{text}'"));
        }
        // On lines of its own, so that a comment in it ends.
        all.extend(self.condition.as_ref().map(|condition| format!("(\n{condition}\n)")));
        Ok(all.join(" AND "))
    }
}

/// Letters of one reason at one stage.
#[derive(Debug, Serialize, Deserialize)]
pub struct Group {
    /// Where they failed.
    pub stage: String,
    /// Code of the fault.
    pub reason: String,
    /// How many.
    pub letters: u64,
    /// When the first failed, RFC 3339.
    pub first_seen: String,
    /// When the last failed, RFC 3339.
    pub last_seen: String,
    /// Id of one of them.
    pub example: String,
}

/// A letter as it lies in the warehouse.
#[derive(Debug, Deserialize)]
pub struct Kept {
    /// What failed.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// When it was last sent again, RFC 3339.
    pub replayed_at: Option<String>,
}

/// The letters that are selected by reason and stage, the most frequent first. Replayed ones count only if `replayed`.
pub async fn groups(source: &dyn Source, selection: &Selection, replayed: bool) -> Result<Vec<Group>, Failure> {
    let sql = format!(
        "{LETTERS} SELECT stage, reason, COUNT(DISTINCT dead_letter_id) AS letters, MIN(failed_at) AS first_seen, \
         MAX(failed_at) AS last_seen, MIN(dead_letter_id) AS example FROM letters WHERE {} AND {} \
         GROUP BY stage, reason ORDER BY letters DESC, stage, reason",
        if replayed { "TRUE" } else { "replayed_at IS NULL" },
        selection.sql()?,
    );
    source.rows(&sql).await?.into_iter().map(read).collect()
}

/// The letter `id`, the last copy of it.
pub async fn letter(source: &dyn Source, id: &str) -> Result<Kept, Failure> {
    let selected = Selection::one(id).sql()?;
    let sql = format!("{LETTERS} SELECT * FROM letters WHERE {selected} ORDER BY failed_at DESC LIMIT 1");
    let row = source.rows(&sql).await?.into_iter().next();
    read(
        row.ok_or_else(|| Failure::usage(format!("there is no dead letter {id}; `dead-letters list` shows examples")))?,
    )
}

/// The next selected letters that were not replayed and failed until `until`, RFC 3339, in the order in which they
/// failed.
async fn page(
    source: &dyn Source,
    selection: &Selection,
    until: &str,
    after: Option<&DeadLetter>,
) -> Result<Vec<DeadLetter>, Failure> {
    let after = after.map_or_else(String::new, |last| {
        let (at, id) = (&last.failed_at, &last.dead_letter_id);
        format!("AND (failed_at > TIMESTAMP '{at}' OR (failed_at = TIMESTAMP '{at}' AND dead_letter_id > '{id}'))")
    });
    let sql = format!(
        "{LETTERS} SELECT * FROM letters WHERE replayed_at IS NULL AND failed_at <= TIMESTAMP '{until}' AND {} {after} \
         ORDER BY failed_at, dead_letter_id LIMIT {PAGE}",
        selection.sql()?
    );
    let kept = source.rows(&sql).await?.into_iter().map(read::<Kept>);
    kept.map(|kept| kept.map(|kept| kept.letter)).collect()
}

/// Every letter with the time of its replay, in SQL that both engines understand.
const LETTERS: &str = "WITH letters AS (SELECT letter.*, replay.replayed_at FROM contextflow.v_dead_letters AS letter \
    LEFT JOIN (SELECT dead_letter_id, MAX(replayed_at) AS replayed_at FROM contextflow.dead_letter_replays \
    GROUP BY dead_letter_id) AS replay ON replay.dead_letter_id = letter.dead_letter_id)";

fn read<T: serde::de::DeserializeOwned>(row: Map<String, Value>) -> Result<T, Failure> {
    let id = row.get("dead_letter_id").and_then(Value::as_str).unwrap_or_default().to_string();
    serde_json::from_value(Value::Object(row))
        .map_err(|error| Failure::work(format!("dead letter {id} has another form than this version reads: {error}")))
}

/// The exact bytes of a letter, wherever they lie.
pub async fn raw(source: &dyn Source, letter: &DeadLetter) -> Result<Vec<u8>, Failure> {
    if let Some(uri) = &letter.raw_uri {
        if letter.stage == BACKFILL {
            return Err(Failure::usage(format!(
                "over 256 KB, of which the letter has the beginning; the whole is {uri}: mend it there and load the file again, \
                 or in a file of its own and load that with `contextflow backfill --append`"
            )));
        }
        return source.object(uri).await;
    }
    let broken = || Failure::work(format!("the raw text of dead letter {} is no base64", letter.dead_letter_id));
    letter.raw_bytes().ok_or_else(broken)
}
