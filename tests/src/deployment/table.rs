//! What a deployment must have asked for, and nothing beside it: the table of `tests/fixtures/deployment.json`.
//!
//! `calls`: each a call that must have succeeded, by method, host, path and, on AWS, region and action. Its `body` must be the one of
//! the table: every member has to be there, and no other, but for the names under `free` (words for people, marks of the
//! tools). `*` stands for any text within a text. Arrays of texts are sets; a text that holds JSON is taken as JSON. With
//! `"partial": true` other members may be there. With `"repeated": true` there may be more than one. With `regions` the
//! call is wanted in each of them, `${IN}` being its name. With `like` the body is that of a file, and `body` adds to it.
//!
//! `policies`: of every resource the roles and their members, as the last write left them. A resource or role that is not
//! named has none.
//!
//! A change that is not in the table is a complaint too, so that nothing is made that the table does not know.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::Call;

/// The table.
#[derive(Debug, Deserialize)]
pub struct Table {
    /// Names of members whose values are of no account.
    free: BTreeSet<String>,
    calls: Vec<Wanted>,
    /// Resource, role, members; a condition stands behind the role: `roles/x if <expression>`.
    policies: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

/// A call that must have succeeded.
#[derive(Debug, Deserialize)]
struct Wanted {
    /// What it makes, for people.
    what: String,
    method: String,
    host: String,
    #[serde(default)]
    region: String,
    #[serde(default)]
    action: String,
    path: String,
    #[serde(default)]
    query: BTreeMap<String, String>,
    #[serde(default)]
    body: Value,
    /// A file below `infra/gcp/monitoring` that the body must be like; `body` adds to it.
    #[serde(default)]
    like: Option<String>,
    #[serde(default)]
    partial: bool,
    #[serde(default)]
    repeated: bool,
}

impl Wanted {
    fn is_place_of(&self, call: &Call) -> bool {
        let same = self.method == call.method && self.host == call.host;
        let asked = |(name, value): (&String, &String)| call.query.get(name).is_some_and(|found| glob(value, found));
        same && [(&self.region, &call.region), (&self.action, &call.action)]
            .iter()
            .all(|(wanted, found)| wanted == found)
            && glob(&self.path, &call.path)
            && self.query.iter().all(asked)
    }
}

impl Table {
    /// Reads the table; each `${NAME}` in it becomes the value given for it.
    pub fn read(values: &[(&str, &str)]) -> Self {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/deployment.json");
        let mut text = std::fs::read_to_string(file).expect("the table can be read");
        let give_values = |text: &mut String| {
            for (name, value) in values {
                *text = text.replace(&format!("${{{name}}}"), value);
            }
        };
        give_values(&mut text);
        let mut table: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
        let calls = table["calls"].as_array().into_iter().flatten().flat_map(in_each_region).collect();
        table["calls"] = Value::Array(calls);
        assert!(!table.to_string().contains("${"), "a name in {file} has no value");
        let mut table: Self = serde_json::from_value(table).unwrap_or_else(|error| panic!("{file}: {error}"));
        for wanted in &mut table.calls {
            let Some(like) = &wanted.like else { continue };
            let file = crate::infra::infra().join("gcp/monitoring").join(like);
            let mut text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            give_values(&mut text);
            let mut body: Value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            merge(&mut body, &wanted.body);
            wanted.body = body;
        }
        table
    }

    /// What is missing, wrong or too much in a record.
    pub fn complaints(&self, calls: &[Call]) -> Vec<String> {
        self.check(&changes_of(calls))
    }

    /// What could be taken out of a script and not be noticed: a call, a parameter, a value of a body, a role. With how
    /// many were tried.
    pub fn unnoticed(&self, calls: &[Call]) -> (usize, Vec<String>) {
        let mut changes = changes_of(calls);
        let (mut tried, mut unnoticed) = (0, Vec::new());
        let mut note = |table: &Self, what: String, changes: &[Call]| {
            tried += 1;
            if table.check(changes).is_empty() {
                unnoticed.push(what);
            }
        };
        for (resource, role) in
            self.policies.iter().flat_map(|(resource, roles)| roles.keys().map(move |role| (resource, role)))
        {
            let mut mutant = changes.clone();
            for call in mutant.iter_mut().filter(|call| policy_of(call).as_ref() == Some(resource)) {
                let bindings = policy_in(&mut call.body)["bindings"].as_array_mut().expect("a policy has bindings");
                bindings.retain(|binding| role_of(binding) != *role);
            }
            note(self, format!("{role} on {resource}"), &mutant);
        }
        for at in 0..changes.len() {
            if policy_of(&changes[at]).is_some() {
                continue;
            }
            let wanted = self.calls.iter().find(|wanted| wanted.is_place_of(&changes[at]));
            let Some(wanted) = wanted else { continue };
            if !wanted.repeated {
                let call = changes.remove(at);
                note(self, call.line(), &changes);
                changes.insert(at, call);
            }
            let call = changes[at].clone();
            for name in wanted.query.keys() {
                changes[at].query.remove(name);
                note(self, format!("{name} of {}", call.line()), &changes);
                changes[at].query.clone_from(&call.query);
            }
            let mut leaves = Vec::new();
            if !wanted.partial {
                self.leaves("", &call.body, &mut leaves);
            }
            for leaf in leaves {
                take_out(&mut changes[at].body, &leaf);
                note(self, format!("{leaf} of {}", call.line()), &changes);
                changes[at].body.clone_from(&call.body);
            }
        }
        (tried, unnoticed)
    }

    /// The complaints about changes whose bodies are parsed.
    fn check(&self, changes: &[Call]) -> Vec<String> {
        let mut complaints = Vec::new();
        let mut used = vec![false; changes.len()];
        for wanted in &self.calls {
            let here: Vec<_> = (0..changes.len()).filter(|&at| !used[at] && wanted.is_place_of(&changes[at])).collect();
            let mut differences = Vec::new();
            let mut found = false;
            for at in here {
                let mut difference = Vec::new();
                self.compare("", &wanted.body, &changes[at].body, wanted.partial, &mut difference);
                if !difference.is_empty() {
                    differences.push(difference.join("; "));
                    continue;
                }
                (found, used[at]) = (true, true);
                if !wanted.repeated {
                    break;
                }
            }
            if !found {
                let why = if differences.is_empty() { "was not asked for".into() } else { differences.join(" | ") };
                complaints.push(format!("{}: {why}", wanted.what));
            }
        }
        let unused = changes.iter().zip(used).filter(|(call, used)| !used && policy_of(call).is_none());
        complaints.extend(unused.map(|(call, _)| format!("not in the table: {} {}", call.line(), call.body)));
        let found = policies(changes);
        for resource in self.policies.keys().chain(found.keys()).collect::<BTreeSet<_>>() {
            let (wanted, found) = (self.policies.get(resource), found.get(resource));
            if wanted != found && !(wanted.is_none() && found.is_some_and(BTreeMap::is_empty)) {
                complaints.push(format!("roles on {resource}: {found:?} instead of {wanted:?}"));
            }
        }
        for call in changes {
            if ["\"allUsers\"", "\"allAuthenticatedUsers\""].iter().any(|all| call.body.to_string().contains(all)) {
                complaints.push(format!("open to everybody: {}", call.line()));
            }
        }
        complaints
    }

    fn compare(&self, at: &str, wanted: &Value, found: &Value, partial: bool, differences: &mut Vec<String>) {
        match (wanted, found) {
            (Value::String(wanted), Value::String(found)) if glob(wanted, found) => {}
            (Value::String(wanted), Value::Number(_) | Value::Bool(_) | Value::Object(_) | Value::Array(_))
                if glob(wanted, &found.to_string()) => {}
            (Value::Object(wanted), Value::Object(found)) => {
                for (name, value) in wanted.iter().filter(|(name, _)| !self.free.contains(*name)) {
                    let inner = found.get(name).unwrap_or(&Value::Null);
                    self.compare(&format!("{at}/{name}"), value, inner, partial, differences);
                }
                let more = found.iter().filter(|(name, value)| {
                    !partial && !wanted.contains_key(*name) && !self.free.contains(*name) && !is_empty(value)
                });
                differences
                    .extend(more.map(|(name, value)| format!("{at}/{name} is {value}, and is not in the table")));
            }
            (Value::Array(wanted), Value::Array(found)) if wanted.len() == found.len() => {
                let sorted = |values: &[Value]| {
                    let mut values = values.to_vec();
                    if values.iter().all(Value::is_string) {
                        values.sort_by_key(ToString::to_string);
                    }
                    values
                };
                for (index, (wanted, found)) in sorted(wanted).iter().zip(sorted(found)).enumerate() {
                    self.compare(&format!("{at}/{index}"), wanted, &found, partial, differences);
                }
            }
            (wanted, found) if wanted == found || is_empty(wanted) && is_empty(found) => {}
            (Value::Number(wanted), Value::Number(found)) if wanted.as_f64() == found.as_f64() => {}
            _ => differences.push(format!("{at} is {found} instead of {wanted}")),
        }
    }

    /// JSON pointers to the values that are of account.
    fn leaves(&self, at: &str, value: &Value, leaves: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                for (name, inner) in members.iter().filter(|(name, _)| !self.free.contains(*name)) {
                    self.leaves(&format!("{at}/{}", name.replace('~', "~0").replace('/', "~1")), inner, leaves);
                }
            }
            Value::Array(values) => {
                for (index, inner) in values.iter().enumerate() {
                    self.leaves(&format!("{at}/{index}"), inner, leaves);
                }
            }
            value if is_empty(value) || at.is_empty() => {}
            _ => leaves.push(at.into()),
        }
    }
}

/// Of every resource the roles and their members, as the last write left them.
fn policies(changes: &[Call]) -> BTreeMap<String, BTreeMap<String, BTreeSet<String>>> {
    let mut policies = BTreeMap::new();
    for call in changes {
        let Some(resource) = policy_of(call) else { continue };
        let policy = call.body.get("policy").unwrap_or(&call.body);
        let mut roles: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for binding in policy["bindings"].as_array().into_iter().flatten() {
            let members = binding["members"].as_array().into_iter().flatten();
            let members = members.filter_map(|member| member.as_str().map(str::to_string));
            roles.entry(role_of(binding)).or_default().extend(members);
        }
        policies.insert(resource, roles);
    }
    policies
}

/// A wanted call, or one for each of its `regions`.
fn in_each_region(wanted: &Value) -> Vec<Value> {
    let Some(regions) = wanted["regions"].as_array() else { return vec![wanted.clone()] };
    let in_region = |region: &Value| {
        let region = region.as_str().expect("a region is a text");
        let mut wanted: Value = serde_json::from_str(&wanted.to_string().replace("${IN}", region)).expect("still JSON");
        wanted["region"] = region.into();
        wanted["what"] = format!("{} in {region}", wanted["what"].as_str().unwrap_or_default()).into();
        wanted
    };
    regions.iter().map(in_region).collect()
}

fn role_of(binding: &Value) -> String {
    let role = binding["role"].as_str().unwrap_or_default();
    match binding["condition"]["expression"].as_str() {
        Some(condition) => format!("{role} if {condition}"),
        None => role.into(),
    }
}

fn policy_in(body: &mut Value) -> &mut Value {
    if body.get("policy").is_some() { &mut body["policy"] } else { body }
}

/// The changes of a record; texts in their bodies that hold JSON are parsed.
fn changes_of(calls: &[Call]) -> Vec<Call> {
    let changes = calls.iter().filter(|call| call.has_changed());
    changes.map(|call| Call { body: parsed(&call.body), ..call.clone() }).collect()
}

/// The resource whose policy a call writes: `pubsub.googleapis.com/projects/p/topics/t`.
fn policy_of(call: &Call) -> Option<String> {
    let host = call.host.rsplit_once('-').map_or(call.host.as_str(), |(_, host)| host);
    if let Some(bucket) = call.path.strip_prefix("/storage/v1/b/").and_then(|path| path.strip_suffix("/iam")) {
        return (call.method == "PUT").then(|| format!("{host}/{bucket}"));
    }
    let path = call.path.strip_suffix(":setIamPolicy")?.trim_start_matches('/');
    Some(format!("{host}/{}", path.split_once('/').map_or(path, |(_, path)| path)))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::Number(number) => number.as_f64() == Some(0.0),
    }
}

/// The JSON that a text holds, through and through.
fn parsed(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with(['{', '[']) => {
            serde_json::from_str(text).unwrap_or_else(|_| value.clone())
        }
        Value::Object(members) => members.iter().map(|(name, inner)| (name.clone(), parsed(inner))).collect(),
        Value::Array(values) => values.iter().map(parsed).collect(),
        value => value.clone(),
    }
}

/// Writes the members of one object into another.
fn merge(into: &mut Value, from: &Value) {
    for (name, value) in from.as_object().into_iter().flatten() {
        if value.is_object() && into[name].is_object() {
            merge(&mut into[name], value);
        } else {
            into[name] = value.clone();
        }
    }
}

fn take_out(body: &mut Value, pointer: &str) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer begins with a slash");
    let last = last.replace("~1", "/").replace("~0", "~");
    match body.pointer_mut(parent).expect("the leaf was found there") {
        Value::Object(members) => drop(members.remove(&last)),
        Value::Array(values) => drop(values.remove(last.parse().expect("an index"))),
        _ => unreachable!("only objects and arrays have members"),
    }
}

/// Whether a text is as a pattern says, in which `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == text };
    let Some(text) = text.strip_prefix(first) else { return false };
    (0..=text.len()).filter(|&at| text.is_char_boundary(at)).any(|at| glob(rest, &text[at..]))
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(glob("a*c", "abbc") && glob("*", "") && glob("a", "a"));
        assert!(!glob("a*c", "abcd") && !glob("a", "ab"));
    }
}
