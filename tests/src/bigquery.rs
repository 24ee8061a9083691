//! Tables and queries of a `BigQuery` server, over its REST API.

use serde_json::{Map, Value, json};
use shared::schema::{Granularity, Plan, ddl};

use crate::pubsub::PROJECT;

/// A `BigQuery` server.
pub struct BigQueryApi {
    url: String,
    client: reqwest::blocking::Client,
}

impl BigQueryApi {
    /// The server at `rest`.
    pub fn at(rest: &str) -> Self {
        Self { url: format!("{rest}/bigquery/v2/projects/{PROJECT}"), client: reqwest::blocking::Client::new() }
    }

    /// Makes the table of a plan, and its dataset where there is none.
    pub fn create(&self, plan: &Plan) {
        let reference = json!({"projectId": PROJECT, "datasetId": plan.table.dataset, "tableId": plan.table.name});
        let _ = self
            .post("datasets", &json!({"datasetReference": {"projectId": PROJECT, "datasetId": plan.table.dataset}}));
        let mut table = json!({"tableReference": reference, "schema": {"fields": ddl::columns_json(plan)}});
        if let Some(partition) = plan.table.partition {
            let width = match partition.granularity {
                Granularity::Hour => "HOUR",
                Granularity::Day => "DAY",
                Granularity::Month => "MONTH",
                Granularity::Year => "YEAR",
            };
            table["timePartitioning"] = json!({"type": width, "field": plan.columns[partition.column].name});
        }
        let answer = self.post(&format!("datasets/{}/tables", plan.table.dataset), &table);
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// The rows of a query, each an object of texts as the API gives them.
    pub fn query(&self, sql: &str) -> Vec<Value> {
        let request = json!({"query": sql, "useLegacySql": false, "maxResults": 100_000, "timeoutMs": 60_000});
        let answer = self.post("queries", &request);
        // A failed query is HTTP 200 with `errors` in the emulator.
        assert!(answer.get("errors").is_none() && answer.get("error").is_none(), "{sql}: {answer}");
        let fields: Vec<_> = answer["schema"]["fields"].as_array().into_iter().flatten().collect();
        let read = |row: &Value| {
            let cells = row["f"].as_array().into_iter().flatten();
            let member = |(field, cell): (&&Value, &Value)| {
                (field["name"].as_str().unwrap_or_default().to_string(), cell["v"].clone())
            };
            Value::Object(fields.iter().zip(cells).map(member).collect::<Map<_, _>>())
        };
        answer["rows"].as_array().into_iter().flatten().map(read).collect()
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let answer = self.client.post(format!("{}/{path}", self.url)).json(body).send();
        answer.and_then(reqwest::blocking::Response::json).expect("BigQuery answers JSON")
    }
}
