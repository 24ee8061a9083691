//! What has to be done so that BigQuery has what is wanted, and what will not be done. Pure: nothing is asked or changed.
//!
//! Done: what is missing is made, columns are added, a REQUIRED column becomes NULLABLE, a `maxLength` grows, descriptions,
//! labels, clustering, the partition filter and views follow the schemas. Refused: whatever would drop or narrow a column or
//! needs the table written anew. Labels, descriptions and options of which the schemas say nothing stay as they are.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};

use super::apply::Found;
use super::wanted::{Kind, Object, Wanted};
use crate::schema::{Plan, ddl};

/// What is done about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Something missing is made.
    Create,
    /// Something is changed in place.
    Change,
    /// Nothing: it would lose data, or cannot be done in place.
    Refuse,
    /// Nothing, and nothing has to be.
    Note,
}

/// One difference between BigQuery and the schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What is done about it.
    pub verdict: Verdict,
    /// `table contextflow.clickstream_events`.
    pub object: String,
    /// The difference in words.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.verdict {
            Verdict::Create => '+',
            Verdict::Change => '~',
            Verdict::Refuse => '!',
            Verdict::Note => ' ',
        };
        write!(f, "{sign} {}: {}", self.object, self.what)
    }
}

/// Every difference, and the steps that end those which can be ended.
#[derive(Debug, Default, Serialize)]
pub struct Diff {
    /// In the order of the objects.
    pub differences: Vec<Difference>,
    #[serde(skip)]
    pub(super) steps: Vec<Step>,
}

/// One request. Each may arrive twice.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    pub(super) object: String,
    pub(super) action: Action,
}

#[derive(Debug, PartialEq)]
pub(super) enum Action {
    /// `POST` to a collection.
    Insert(String, Json),
    /// A statement of SQL.
    Run(String),
    /// `PATCH` of a table or view.
    Patch(String, Json),
}

impl Diff {
    /// How many differences have a verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.differences.iter().filter(|difference| difference.verdict == verdict).count()
    }

    /// How many differences [`super::BigQuery::apply`] would end.
    pub fn changes(&self) -> usize {
        self.count(Verdict::Create) + self.count(Verdict::Change)
    }

    /// Whether BigQuery has what is wanted.
    pub fn is_empty(&self) -> bool {
        self.changes() + self.count(Verdict::Refuse) == 0
    }

    fn create(&mut self, object: &Object) {
        let (collection, _) = object.path.rsplit_once('/').unwrap_or_default();
        let what = match &object.kind {
            Kind::Dataset => match object.document["location"].as_str() {
                Some(location) => format!("is missing; to be made in {location}"),
                None => "is missing; to be made in BigQuery's default location".into(),
            },
            Kind::Table(plan) => format!("is missing; to be made with {} columns", plan.columns.len()),
            Kind::View => "is missing; to be made".into(),
        };
        self.differences.push(Difference { verdict: Verdict::Create, object: label(object), what });
        self.step(object, Action::Insert(collection.into(), object.document.clone()));
    }

    fn step(&mut self, object: &Object, action: Action) {
        self.steps.push(Step { object: label(object), action });
    }
}

fn label(object: &Object) -> String {
    format!("{} {}", object.kind.noun(), object.name)
}

/// Compares what is wanted with what was found.
pub fn diff(wanted: &Wanted, found: &Found) -> Diff {
    let mut diff = Diff::default();
    for object in &wanted.objects {
        let Some(has) = found.get(&object.path) else {
            diff.create(object);
            continue;
        };
        let mut comparison = Comparison::new(object, has);
        match &object.kind {
            Kind::Dataset => comparison.dataset(),
            Kind::Table(plan) => comparison.table(plan),
            Kind::View => comparison.view(),
        }
        comparison.finish(&mut diff);
    }
    diff
}

/// One object, as it is wanted and as it is.
struct Comparison<'a> {
    object: &'a Object,
    wanted: &'a Json,
    has: &'a Json,
    differences: Vec<Difference>,
    statements: Vec<String>,
    patch: Map<String, Json>,
    schema_changes: bool,
}

impl<'a> Comparison<'a> {
    fn new(object: &'a Object, has: &'a Json) -> Self {
        Self {
            object,
            wanted: &object.document,
            has,
            differences: Vec::new(),
            statements: Vec::new(),
            patch: Map::new(),
            schema_changes: false,
        }
    }

    fn say(&mut self, verdict: Verdict, what: String) {
        self.differences.push(Difference { verdict, object: label(self.object), what });
    }

    fn change(&mut self, what: String) {
        self.say(Verdict::Change, what);
    }

    fn refuse(&mut self, what: String) {
        self.say(Verdict::Refuse, what);
    }

    fn finish(mut self, diff: &mut Diff) {
        if self.differences.iter().all(|difference| difference.verdict != Verdict::Refuse) {
            self.labels();
        }
        diff.differences.append(&mut self.differences);
        for sql in self.statements {
            diff.step(self.object, Action::Run(sql));
        }
        if !self.patch.is_empty() {
            let mut document = Json::Object(self.patch);
            document["tableReference"] = self.wanted["tableReference"].clone();
            diff.step(self.object, Action::Patch(self.object.path.clone(), document));
        }
    }

    fn dataset(&mut self) {
        let (wanted, has) = (self.wanted["location"].as_str(), self.has["location"].as_str());
        if let (Some(wanted), Some(has)) = (wanted, has)
            && !wanted.eq_ignore_ascii_case(has)
        {
            self.refuse(format!("lies in {has}, not in {wanted}; a dataset cannot move"));
        }
    }

    fn view(&mut self) {
        if !self.is("VIEW") {
            return;
        }
        // An emulator may not tell the query; the label then stands for it.
        let query = &self.has["view"]["query"];
        let is_other = !query.is_null() && *query != self.wanted["view"]["query"];
        if is_other || self.label_differs() {
            self.change("another definition".into());
            self.patch.insert("view".into(), self.wanted["view"].clone());
            self.patch.insert("labels".into(), self.merged_labels());
        }
        self.description();
    }

    fn table(&mut self, plan: &Plan) {
        if !self.is("TABLE") {
            return;
        }
        let fields = |document: &Json| document["schema"]["fields"].as_array().cloned().unwrap_or_default();
        let merged = self.fields("", &fields(self.wanted), &fields(self.has), Some(plan));
        if self.schema_changes {
            self.patch.insert("schema".into(), json!({"fields": merged}));
        }
        self.partitioning();
        self.clustering();
        self.description();
    }

    /// Whether the name stands for a thing of the right kind.
    fn is(&mut self, kind: &str) -> bool {
        let has = self.has["type"].as_str().unwrap_or(kind).to_string();
        if has != kind {
            self.refuse(format!("is a {has} in BigQuery"));
        }
        has == kind
    }

    /// Compares columns or fields; answers those of BigQuery with what changes about them. `plan` stands beside the columns
    /// of a table, not beside the fields of a RECORD.
    fn fields(&mut self, path: &str, wanted: &[Json], has: &[Json], plan: Option<&Plan>) -> Vec<Json> {
        let mut merged = Vec::with_capacity(wanted.len());
        for field in has {
            let path = format!("{path}{}", name(field));
            if let Some(wanted) = wanted.iter().find(|wanted| name(wanted).eq_ignore_ascii_case(name(field))) {
                merged.push(self.field(&path, wanted, field, plan));
            } else {
                self.refuse(format!("column {path} is not in the schema and would be dropped"));
                merged.push(field.clone());
            }
        }
        for field in wanted {
            if has.iter().any(|has| name(has).eq_ignore_ascii_case(name(field))) {
                continue;
            }
            let mut added = field.clone();
            let mut what = format!("column {path}{} {} is missing; to be added", name(field), type_of(field));
            if mode(field) == "REQUIRED" {
                added["mode"] = json!("NULLABLE");
                what.push_str(" as NULLABLE, since BigQuery adds no REQUIRED one");
            }
            self.change(what);
            self.schema_changes = true;
            // By SQL as well as by the patch: the patch alone writes a table's fields and descriptions, but in bqemulator
            // not the table.
            self.statements.extend(plan.and_then(|plan| {
                let column = plan.columns.get(plan.index_of(name(field))?)?;
                Some(ddl::add_column(&self.sql_name(), column))
            }));
            merged.push(added);
        }
        merged
    }

    fn field(&mut self, path: &str, wanted: &Json, has: &Json, plan: Option<&Plan>) -> Json {
        let mut merged = has.clone();
        if type_of(wanted) != type_of(has) {
            self.refuse(format!("column {path} is {}, in the schema {}", type_of(has), type_of(wanted)));
            return merged;
        }
        match (mode(has), mode(wanted)) {
            (has, wanted) if has == wanted => {}
            ("REQUIRED", "NULLABLE") => {
                self.change(format!("column {path} is REQUIRED; to become NULLABLE"));
                self.schema_changes = true;
                merged["mode"] = json!("NULLABLE");
            }
            ("NULLABLE", "REQUIRED") => self.say(
                Verdict::Note,
                format!("column {path} is NULLABLE and stays so; that it is REQUIRED is checked before it gets here"),
            ),
            (has, wanted) => self.refuse(format!("column {path} is {has}, in the schema {wanted}")),
        }
        self.max_length(path, wanted, &mut merged, plan);
        if let Some(description) = wanted["description"].as_str()
            && has["description"] != wanted["description"]
        {
            self.change(format!("column {path} is to be described as {description:?}"));
            self.schema_changes = true;
            merged["description"] = json!(description);
        }
        if let (Some(inner), Some(given)) = (wanted["fields"].as_array(), has["fields"].as_array()) {
            merged["fields"] = self.fields(&format!("{path}."), inner, given, None).into();
        }
        merged
    }

    fn max_length(&mut self, path: &str, wanted: &Json, merged: &mut Json, plan: Option<&Plan>) {
        let (has, limit) = (max_length(merged), max_length(wanted));
        let text = |limit: u64| if limit == u64::MAX { "any length".into() } else { format!("at most {limit}") };
        if limit < has {
            self.refuse(format!("column {path} holds {}, in the schema {}: narrower", text(has), text(limit)));
        } else if limit > has {
            let Some(column) = plan.and_then(|plan| plan.columns.get(plan.index_of(name(wanted))?)) else {
                self.refuse(format!(
                    "field {path} holds {}, in the schema {}: to be widened by hand",
                    text(has),
                    text(limit)
                ));
                return;
            };
            self.change(format!("column {path} holds {}; to hold {}", text(has), text(limit)));
            self.statements.push(ddl::widen_column(&self.sql_name(), column));
            match wanted.get("maxLength") {
                Some(length) => merged["maxLength"] = length.clone(),
                None => drop(merged.as_object_mut().and_then(|field| field.remove("maxLength"))),
            }
        }
    }

    fn partitioning(&mut self) {
        let text = |document: &Json| match &document["timePartitioning"] {
            Json::Null if !document["rangePartitioning"].is_null() => "partitioned by a range of numbers".to_string(),
            Json::Null => "not partitioned".into(),
            by => {
                let part = |name: &str, default| by[name].as_str().unwrap_or(default).to_string();
                format!("partitioned by {} of {}", part("type", "DAY"), part("field", "ingestion"))
            }
        };
        let (wanted, has) = (text(self.wanted), text(self.has));
        if wanted != has {
            return self.refuse(format!("is {has}, in the schema {wanted}; that needs a new table"));
        }
        let is_required = |document: &Json| {
            [&document["requirePartitionFilter"], &document["timePartitioning"]["requirePartitionFilter"]]
                .contains(&&json!(true))
        };
        if is_required(self.wanted) && !is_required(self.has) {
            self.change("queries are to be required to name partitions".into());
            let mut partitioning = self.has["timePartitioning"].clone();
            partitioning["requirePartitionFilter"] = json!(true);
            self.patch.insert("timePartitioning".into(), partitioning);
            self.patch.insert("requirePartitionFilter".into(), json!(true));
        }
    }

    fn clustering(&mut self) {
        let text = |document: &Json| {
            let fields = document["clustering"]["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
            fields.iter().filter_map(Json::as_str).collect::<Vec<_>>().join(", ")
        };
        let (wanted, has) = (text(self.wanted), text(self.has));
        if !wanted.eq_ignore_ascii_case(&has) {
            let or_none = |text: String| if text.is_empty() { "nothing".into() } else { text };
            self.change(format!("is clustered by {}; rows to come by {}", or_none(has), or_none(wanted)));
            self.patch.insert("clustering".into(), self.wanted["clustering"].clone());
        }
    }

    fn description(&mut self) {
        if let Some(description) = self.wanted["description"].as_str()
            && self.has["description"] != self.wanted["description"]
        {
            self.change(format!("is to be described as {description:?}"));
            self.patch.insert("description".into(), json!(description));
        }
    }

    /// The label of a table tells the version of which it has everything, so it comes last.
    fn labels(&mut self) {
        if self.label_differs() && !self.patch.contains_key("labels") {
            self.change(format!("is to be labelled {}", self.wanted["labels"]));
            self.patch.insert("labels".into(), self.merged_labels());
        }
    }

    fn label_differs(&self) -> bool {
        let wanted = self.wanted["labels"].as_object();
        wanted.is_some_and(|labels| labels.iter().any(|(name, value)| self.has["labels"][name] != *value))
    }

    fn merged_labels(&self) -> Json {
        let labels = |document: &Json| document["labels"].as_object().cloned().unwrap_or_default();
        let mut merged = labels(self.has);
        merged.extend(labels(self.wanted));
        merged.into()
    }

    /// `project.dataset.table`.
    fn sql_name(&self) -> String {
        let project = self.wanted["tableReference"]["projectId"].as_str().unwrap_or_default();
        format!("{project}.{}", self.object.name)
    }
}

fn name(field: &Json) -> &str {
    field["name"].as_str().unwrap_or_default()
}

fn mode(field: &Json) -> &str {
    field["mode"].as_str().unwrap_or("NULLABLE")
}

/// The type under its first name, with the digits of a decimal where they are limited.
fn type_of(field: &Json) -> String {
    let name = match field["type"].as_str().unwrap_or_default() {
        "INT64" => "INTEGER",
        "FLOAT64" => "FLOAT",
        "BOOL" => "BOOLEAN",
        "STRUCT" => "RECORD",
        other => other,
    };
    match (field["precision"].as_str(), field["scale"].as_str()) {
        (None, _) => name.to_string(),
        (Some(precision), scale) => format!("{name}({precision}, {})", scale.unwrap_or("0")),
    }
}

/// The limit of a column, `u64::MAX` where there is none.
fn max_length(field: &Json) -> u64 {
    match &field["maxLength"] {
        Json::String(text) => text.parse().unwrap_or(u64::MAX),
        number => number.as_u64().unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests;
