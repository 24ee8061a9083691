use super::*;
use crate::schema::Registry;

const PROJECT: &str = "demo";

fn wanted(schemas: &[&str]) -> Wanted {
    let mut registry = Registry::default();
    for schema in schemas {
        registry.add("test.json", schema).unwrap();
    }
    Wanted::of(&registry, PROJECT, Some("EU"))
}

/// A schema of one table; `columns` and `table` are JSON members.
fn visits(version: &str, columns: &str, table: &str) -> String {
    format!(
        r#"{{"event_type":"visit","version":"{version}","ingest":"batch","identity":"visit_id","description":"Visits",
            "table":{{"dataset":"lab","name":"visits"{table}}},
            "columns":[{{"name":"at","type":"TIMESTAMP","mode":"REQUIRED"}},{{"name":"visit_id","type":"STRING"}}{columns}]}}"#
    )
}

const BY_DAY: &str = r#","time_partitioning":{"type":"DAY","field":"at"}"#;

/// What BigQuery has after everything wanted was made.
fn made(wanted: &Wanted) -> Found {
    let with_kind = |object: &Object| {
        let mut document = object.document.clone();
        match object.kind {
            Kind::Dataset => {}
            Kind::Table(_) => document["type"] = json!("TABLE"),
            Kind::View => document["type"] = json!("VIEW"),
        }
        (object.path.clone(), document)
    };
    wanted.objects.iter().map(with_kind).collect()
}

/// Differences and steps, for snapshots.
fn shown(diff: &Diff) -> String {
    let lines: Vec<_> = diff.differences.iter().map(ToString::to_string).collect();
    let steps: Vec<_> = diff
        .steps
        .iter()
        .map(|step| match &step.action {
            Action::Insert(path, document) => format!("POST {path}\n{document:#}"),
            Action::Patch(path, document) => format!("PATCH {path}\n{document:#}"),
            Action::Run(sql) => sql.clone(),
        })
        .collect();
    format!("{}\n\n{}", lines.join("\n"), steps.join("\n\n"))
}

/// The differences when BigQuery has the first schema and the second one is wanted.
fn between(has: &str, wants: &str) -> Diff {
    diff(&wanted(&[wants]), &made(&wanted(&[has])))
}

fn verdicts(diff: &Diff) -> Vec<Verdict> {
    diff.differences.iter().map(|difference| difference.verdict).collect()
}

#[test]
fn an_empty_project_gets_datasets_tables_and_views_in_this_order() {
    let schema = visits(
        "1-0-0",
        r#",{"name":"code","type":"STRING","maxLength":"9"}"#,
        &format!(r#"{BY_DAY},"require_partition_filter":true,"clustering":["code"]"#),
    );

    let diff = diff(&wanted(&[&schema]), &Found::default());

    assert_eq!((diff.changes(), diff.is_empty()), (3, false));
    insta::assert_snapshot!(shown(&diff));
}

#[test]
fn the_built_in_views_name_every_column_and_keep_the_partition_column_as_a_key() {
    let wanted = Wanted::of(&Registry::built_in().unwrap(), PROJECT, None);
    let queries = wanted.objects.iter().filter_map(|object| object.document["view"]["query"].as_str());

    insta::assert_snapshot!(queries.collect::<Vec<_>>().join("\n\n"));
}

#[test]
fn what_was_made_differs_in_nothing() {
    let wanted = Wanted::of(&Registry::built_in().unwrap(), PROJECT, Some("eu"));

    let diff = diff(&wanted, &made(&wanted));

    assert!(diff.is_empty() && diff.differences.is_empty() && diff.steps.is_empty(), "{}", shown(&diff));
}

#[test]
fn what_bigquery_adds_by_itself_is_no_difference() {
    let wanted = wanted(&[&visits("1-0-0", r#",{"name":"n","type":"INTEGER"}"#, BY_DAY)]);
    let found = made(&wanted);
    let mut table = found.get("datasets/lab/tables/visits").unwrap().clone();
    table["schema"]["fields"].as_array_mut().unwrap().reverse();
    table["schema"]["fields"][0]["type"] = json!("INT64");
    table["schema"]["fields"][1].as_object_mut().unwrap().remove("mode");
    table["schema"]["fields"][1]["description"] = json!("said by somebody else");
    table["labels"]["team"] = json!("web");
    table["timePartitioning"]["expirationMs"] = json!("86400000");
    table["requirePartitionFilter"] = json!(true);
    let others = wanted.objects.iter().map(|object| (object.path.clone(), found.get(&object.path).unwrap().clone()));
    let found = others.chain([("datasets/lab/tables/visits".to_string(), table)]).collect();

    let diff = diff(&wanted, &found);

    assert!(diff.is_empty() && diff.steps.is_empty(), "{}", shown(&diff));
}

#[test]
fn harmless_changes_are_made_in_place() {
    let before = visits(
        "1-0-0",
        r#",{"name":"must","type":"STRING","mode":"REQUIRED"},{"name":"code","type":"STRING","maxLength":"9"},
            {"name":"tag","type":"STRING","maxLength":"5"},{"name":"place","type":"RECORD","fields":[{"name":"x","type":"FLOAT"}]}"#,
        BY_DAY,
    );
    let after = visits(
        "1-1-0",
        r#",{"name":"must","type":"STRING"},{"name":"code","type":"STRING","maxLength":"12","description":"Code"},
            {"name":"tag","type":"STRING"},
            {"name":"place","type":"RECORD","fields":[{"name":"x","type":"FLOAT"},{"name":"y","type":"FLOAT","mode":"REQUIRED"}]},
            {"name":"price","type":"NUMERIC","mode":"REQUIRED","description":"Price"},
            {"name":"items","type":"RECORD","mode":"REPEATED","fields":[{"name":"sku","type":"STRING","mode":"REQUIRED"}]}"#,
        &format!(r#"{BY_DAY},"require_partition_filter":true,"clustering":["code"]"#),
    );

    let diff = between(&before, &after);

    assert_eq!(diff.count(Verdict::Refuse), 0, "{}", shown(&diff));
    insta::assert_snapshot!(shown(&diff));
}

#[test]
fn what_would_drop_narrow_or_rewrite_is_refused() {
    let columns = r#",{"name":"gone","type":"STRING"},{"name":"n","type":"FLOAT"},{"name":"many","type":"STRING","mode":"REPEATED"},
        {"name":"code","type":"STRING","maxLength":"9"},{"name":"free","type":"STRING"},
        {"name":"r","type":"RECORD","fields":[{"name":"x","type":"STRING"},{"name":"y","type":"STRING","maxLength":"3"}]}"#;
    let fewer = r#",{"name":"n","type":"INTEGER"},{"name":"many","type":"STRING"},
        {"name":"code","type":"STRING","maxLength":"8"},{"name":"free","type":"STRING","maxLength":"100"},
        {"name":"r","type":"RECORD","fields":[{"name":"y","type":"STRING","maxLength":"4"}]}"#;
    let by_month = r#","time_partitioning":{"type":"MONTH","field":"at"}"#;

    let diff = between(&visits("1-0-0", columns, BY_DAY), &visits("2-0-0", fewer, by_month));

    insta::assert_snapshot!(shown(&diff));
    let of_the_table: Vec<_> = diff.steps.iter().filter(|step| step.object == "table lab.visits").collect();
    assert!(of_the_table.is_empty(), "no label either: the table has not all of the version: {of_the_table:?}");
}

#[test]
fn a_column_that_became_required_is_told_and_left() {
    let diff = between(
        &visits("1-0-0", r#",{"name":"a","type":"STRING"}"#, ""),
        &visits("1-0-0", r#",{"name":"a","type":"STRING","mode":"REQUIRED"}"#, ""),
    );

    assert_eq!(verdicts(&diff), [Verdict::Note]);
    assert!(diff.is_empty() && diff.steps.is_empty());
}

#[test]
fn a_view_is_replaced_when_its_query_or_its_label_is_another() {
    let wanted = wanted(&[&visits("1-0-0", "", BY_DAY)]);
    let path = "datasets/lab/tables/v_visits";
    let change = |edit: fn(&mut Json)| {
        let found = made(&wanted);
        let mut view = found.get(path).unwrap().clone();
        edit(&mut view);
        let rest = wanted.objects.iter().map(|object| (object.path.clone(), found.get(&object.path).unwrap().clone()));
        diff(&wanted, &rest.chain([(path.to_string(), view)]).collect())
    };

    let edited = change(|view| view["view"]["query"] = json!("SELECT 1"));
    let untold = change(|view| {
        view.as_object_mut().unwrap().remove("view");
    });
    let untold_and_older = change(|view| {
        view.as_object_mut().unwrap().remove("view");
        view["labels"]["definition"] = json!("0123456789abcdef");
    });
    let a_table = change(|view| view["type"] = json!("TABLE"));

    assert_eq!(verdicts(&edited), [Verdict::Change]);
    assert!(matches!(&edited.steps[..], [Step { action: Action::Patch(at, _), .. }] if at == path), "{edited:?}");
    assert!(untold.is_empty(), "{untold:?}");
    assert_eq!(verdicts(&untold_and_older), [Verdict::Change]);
    assert_eq!(verdicts(&a_table), [Verdict::Refuse]);
}

#[test]
fn a_dataset_elsewhere_is_refused() {
    let wanted = wanted(&[&visits("1-0-0", "", "")]);
    let mut dataset = made(&wanted).get("datasets/lab").unwrap().clone();
    dataset["location"] = json!("US");

    let diff = diff(&wanted, &Found::from_iter([("datasets/lab".to_string(), dataset)]));

    assert_eq!(diff.differences[0].to_string(), "! dataset lab: lies in US, not in EU; a dataset cannot move");
}
