//! A plan in BigQuery's own words: `CREATE TABLE` and the JSON of `bq mk --schema`.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::plan::{Column, Granularity, Kind, Mode, Plan};

/// `CREATE TABLE` of GoogleSQL with nested types, descriptions, partitioning and clustering.
pub fn create_table(plan: &Plan) -> String {
    let columns: Vec<_> = plan.columns.iter().map(|column| format!("  {}", column_ddl(column))).collect();
    let mut ddl = format!("CREATE TABLE IF NOT EXISTS `{}` (\n{}\n)", plan.table.full_name(), columns.join(",\n"));
    if let Some(partition) = plan.table.partition {
        let column = &plan.columns[partition.column];
        let _ = write!(ddl, "\nPARTITION BY {}", partition_expression(column, partition.granularity));
    }
    if !plan.table.clustering.is_empty() {
        let names: Vec<_> = plan.table.clustering.iter().map(|&index| quote(&plan.columns[index].name)).collect();
        let _ = write!(ddl, "\nCLUSTER BY {}", names.join(", "));
    }
    let mut options = Vec::new();
    if let Some(description) = &plan.description {
        options.push(format!("description={}", literal(description)));
    }
    options.push(format!("labels=[(\"schema_version\", \"{}\")]", plan.version));
    if plan.table.require_partition_filter {
        options.push("require_partition_filter=TRUE".to_string());
    }
    let _ = write!(ddl, "\nOPTIONS ({});\n", options.join(", "));
    ddl
}

/// `ALTER TABLE` that adds a column to the table `name`. A table that is there takes no REQUIRED one.
pub fn add_column(name: &str, column: &Column) -> String {
    let mode = if column.mode == Mode::Required { Mode::Nullable } else { column.mode };
    let column = column_ddl(&Column { mode, ..column.clone() });
    format!("ALTER TABLE {} ADD COLUMN IF NOT EXISTS {column}", quote(name))
}

/// `ALTER TABLE` that gives a column of the table `name` the longer type of the schema.
pub fn widen_column(name: &str, column: &Column) -> String {
    format!("ALTER TABLE {} ALTER COLUMN {} SET DATA TYPE {}", quote(name), quote(&column.name), type_ddl(column))
}

/// The columns as `bq mk --schema FILE` reads them.
pub fn columns_json(plan: &Plan) -> Json {
    plan.columns.iter().map(column_json).collect()
}

fn partition_expression(column: &Column, granularity: Granularity) -> String {
    let name = quote(&column.name);
    let unit = match granularity {
        Granularity::Hour => "HOUR",
        Granularity::Day => "DAY",
        Granularity::Month => "MONTH",
        Granularity::Year => "YEAR",
    };
    match (&column.kind, granularity) {
        (Kind::Date, Granularity::Day) => name,
        (Kind::Date, _) => format!("DATE_TRUNC({name}, {unit})"),
        (_, Granularity::Day) => format!("DATE({name})"),
        (Kind::DateTime, _) => format!("DATETIME_TRUNC({name}, {unit})"),
        _ => format!("TIMESTAMP_TRUNC({name}, {unit})"),
    }
}

fn column_ddl(column: &Column) -> String {
    let mut ddl = format!("{} {}", quote(&column.name), type_ddl(column));
    if column.mode == Mode::Required {
        ddl.push_str(" NOT NULL");
    }
    if let Some(description) = &column.description {
        let _ = write!(ddl, " OPTIONS (description={})", literal(description));
    }
    ddl
}

fn type_ddl(column: &Column) -> String {
    let element = match &column.kind {
        Kind::Integer => "INT64".to_string(),
        Kind::Float => "FLOAT64".to_string(),
        Kind::Boolean => "BOOL".to_string(),
        Kind::Record(fields) => {
            let fields: Vec<_> = fields.columns.iter().map(column_ddl).collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        kind => match column.max_length {
            Some(length) => format!("{}({length})", kind.name()),
            None => kind.name().to_string(),
        },
    };
    if column.mode == Mode::Repeated { format!("ARRAY<{element}>") } else { element }
}

fn quote(name: &str) -> String {
    format!("`{name}`")
}

fn literal(text: &str) -> String {
    // A JSON string is a GoogleSQL string literal as well.
    Json::from(text).to_string()
}

/// One column of [`columns_json`].
pub fn column_json(column: &Column) -> Json {
    let mut json = json!({"name": column.name, "type": column.kind.name(), "mode": column.mode});
    if let Some(description) = &column.description {
        json["description"] = json!(description);
    }
    if let Some(length) = column.max_length {
        json["maxLength"] = json!(length.to_string());
    }
    if let Kind::Record(fields) = &column.kind {
        json["fields"] = fields.columns.iter().map(column_json).collect();
    }
    json
}
