use super::*;
use crate::problem::examined;
use crate::schema::{Registry, compile};

const NOW: Micros = 1_792_455_302_920_000;

fn order() -> std::sync::Arc<Plan> {
    std::sync::Arc::clone(Registry::built_in().unwrap().get("order").unwrap())
}

/// The faults of an order with these members.
fn faults(members: &str) -> Problems {
    let line = format!(r#"{{"event_id":"e","order_id":"o","order_date":"2026-10-20T00:15:02Z",{members}}}"#);
    let mut row = Row::default();
    event(&order(), line.as_bytes(), NOW, &mut row).unwrap();
    row.problems
}

fn columns(problems: &Problems) -> Vec<&str> {
    problems.iter().filter_map(|problem| problem.column.as_deref()).collect()
}

#[test]
fn the_last_value_of_a_key_stands_and_so_do_its_faults() {
    let bad = format!("[{}]", vec!["5"; 1_000].join(","));
    assert!(faults(&format!(r#""items":{bad},"items":[]"#)).is_empty());
    assert_eq!(columns(&faults(&format!(r#""items":[],"items":{bad}"#))).len(), MAX_PROBLEMS);
    let twice = faults(&format!(r#""items":{bad},"status":{{}},"items":{bad},"items":[7]"#));
    assert_eq!((twice.total(), twice.code()), (2, Some(Code::WrongType)));
    let nested = r#""items":[{"quantity":"x","quantity":1},{"quantity":1,"quantity":"y","price":{}}]"#;
    assert_eq!(columns(&faults(nested)), ["items.quantity", "items.price"]);
    // Only faults past the kept ones are left.
    let rest = faults(&format!(r#""items":{bad},"status":{{}},"items":[]"#));
    assert_eq!((rest.len(), rest.total(), rest.code()), (0, 1, Some(Code::WrongType)));
}

#[test]
fn a_column_at_fault_is_not_missing_as_well_however_many_faults_there_are() {
    let line = format!(r#"{{"items":[{}],"order_date":true}}"#, vec!["5"; 30].join(","));
    let mut row = Row::default();
    event(&order(), line.as_bytes(), NOW, &mut row).unwrap();
    assert_eq!(row.problems.total(), 31);
    assert!(row.has_fault(order().index_of("order_date").unwrap()));
}

#[test]
fn an_array_has_as_many_elements_as_its_schema_says() {
    let file = r#"{"event_type": "poll", "version": "1-0-0", "ingest": "public", "table": {"dataset": "d", "name": "polls"},
        "columns": [{"name": "votes", "type": "INTEGER", "mode": "REPEATED", "maxElements": 3},
                    {"name": "notes", "type": "STRING", "mode": "REPEATED"}]}"#;
    let plan = compile("poll.json", file).unwrap();
    let told = |line: String| {
        let mut row = Row::default();
        event(&plan, line.as_bytes(), NOW, &mut row)
            .map(|()| row.problems.iter().map(Problem::to_string).collect::<Vec<_>>())
    };
    assert_eq!(told(r#"{"votes":[1,2,3]}"#.into()).unwrap(), [""; 0]);
    assert_eq!(told(r#"{"votes":[1,2,3,4]}"#.into()).unwrap(), ["votes: 4 elements, at most 3 fit"]);
    let notes = |count| told(format!(r#"{{"notes":[{}]}}"#, vec!["\"\""; count].join(","))).unwrap();
    assert_eq!(notes(10_000), [""; 0]);
    assert_eq!(notes(10_001), ["notes: 10001 elements, at most 10000 fit"]);
    for (file, reason) in [
        (file.replace(r#""maxElements": 3"#, r#""maxElements": 0"#), "columns.votes.maxElements: `0`"),
        (file.replace(r#""STRING", "mode": "REPEATED""#, r#""STRING", "maxElements": 5"#), "only a REPEATED column"),
    ] {
        let error = compile("poll.json", &file).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_event_decodes_to_about_as_many_values_as_it_has_bytes() {
    let fields: Vec<_> = (0..100).map(|number| format!(r#"{{"name":"f{number}","type":"STRING"}}"#)).collect();
    let file = format!(
        r#"{{"event_type": "wide", "version": "1-0-0", "ingest": "public", "table": {{"dataset": "d", "name": "wide"}},
            "columns": [{{"name": "r", "type": "RECORD", "mode": "REPEATED", "fields": [{}]}}]}}"#,
        fields.join(",")
    );
    let plan = compile("wide.json", &file).unwrap();
    let decode = |count: usize| {
        let line = format!(r#"{{"r":[{}]}}"#, vec!["{}"; count].join(","));
        let mut row = Row::default();
        event(&plan, line.as_bytes(), NOW, &mut row).unwrap();
        (row.problems.code(), row.problems.total())
    };
    assert_eq!(decode(40), (None, 0));
    assert_eq!(decode(5_000), (Some(Code::TooLarge), 1));
}

#[test]
fn an_event_of_too_many_values_is_bad_whatever_follows() {
    let (numbers, records) = (vec!["5"; 25].join(","), vec!["{}"; 3_000].join(","));
    let found = faults(&format!(r#""items":[{numbers},{records}],"items":[{{"product_id":"p"}}]"#));
    assert_eq!((found.total(), found.code()), (1, Some(Code::TooLarge)));
    // A row is shorter than the event that it was made of.
    let row_of = format!(r#"{{"event_id":"e","items":[{records}]}}"#);
    let mut decoded = Row::default();
    row(&order(), row_of.as_bytes(), &mut decoded).unwrap();
    assert!(decoded.problems.is_empty(), "{:?}", decoded.problems);
}

#[test]
fn a_line_of_too_many_values_is_bad_as_a_whole() {
    let plan = order();
    let items = plan.index_of("items").unwrap();
    let line = format!(r#"{{"items":[{},{{"quantity":1}}]}}"#, vec!["{}"; 3_000].join(","));
    let (mut row, mut elements) = (Row::default(), Elements::default());
    nested(&plan, line.as_bytes(), Some(items), &mut row, &mut elements).unwrap();
    assert_eq!(row.problems.code(), Some(Code::TooLarge));
}

/// The work on a repeated key is a look at the faults that are kept, of which there are few.
#[test]
fn faults_are_examined_in_proportion_to_the_input() {
    let body = |count: usize| {
        let members = vec![r#""items":[5],"status":{}"#; count].join(",");
        format!(r#""items":[{}],{members},"status":"new""#, vec!["5"; count].join(","))
    };
    let work = |count| {
        let before = examined();
        assert!(!faults(&body(count)).is_empty());
        examined() - before
    };
    let (once, twice) = (work(2_000), work(4_000));
    assert!(once > 0 && once <= 2_001 * 2 * MAX_PROBLEMS, "{once}");
    assert!(twice <= 2 * once + MAX_PROBLEMS * 4, "{once} {twice}");
}
