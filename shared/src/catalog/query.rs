//! A query and its answer, value by value.

use reqwest::Method;
use serde_json::{Number, Value as Json, json};
use uuid::Uuid;

use super::client::{ApiError, BigQuery};
use crate::decode::time::timestamp_text;

/// Rows of one page.
const PAGE: u32 = 10_000;
/// How long BigQuery holds a request until the answer of its query is there.
const WAIT_MS: u32 = 10_000;

/// The rows of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// The columns' names.
    pub columns: Vec<String>,
    /// One value a column: numbers and booleans as JSON has them; NUMERIC, dates and times as text, exact; TIMESTAMP as
    /// RFC 3339 to the microsecond; ARRAY and STRUCT as arrays and objects.
    pub rows: Vec<Vec<Json>>,
}

impl BigQuery {
    /// Runs one statement, as long as it takes, and fetches its whole answer.
    pub async fn query(&self, sql: &str) -> Result<Answer, ApiError> {
        let mut request = json!({
            "query": sql,
            "useLegacySql": false,
            "maxResults": PAGE,
            "timeoutMs": WAIT_MS,
            // A request that arrives twice runs once.
            "requestId": Uuid::new_v4().to_string(),
            // Microseconds; without it a timestamp is a floating-point number of seconds.
            "formatOptions": {"useInt64Timestamp": true},
        });
        if let Some(location) = &self.location {
            request["location"] = json!(location);
        }
        let mut page = self.send(Method::POST, "queries", &[], Some(&request)).await?;
        let path = format!("queries/{}", page["jobReference"]["jobId"].as_str().unwrap_or_default());
        let location = page["jobReference"]["location"].as_str().unwrap_or_default().to_string();
        let mut answer = Answer::default();
        let mut fields = Vec::new();
        loop {
            if let Some(given) = page["schema"]["fields"].as_array() {
                fields.clone_from(given);
            }
            // Beside columns an error is a warning; a failed query has none (the service answers 4xx, an emulator 200).
            if let Some(error) = page["errors"].get(0).filter(|_| fields.is_empty()) {
                return Err(ApiError::of(200, error));
            }
            let rows = page["rows"].as_array().map(Vec::as_slice).unwrap_or_default();
            answer.rows.extend(rows.iter().map(|row| values(&fields, row)));
            let is_complete = page["jobComplete"] != json!(false);
            let token = page["pageToken"].as_str().unwrap_or_default().to_string();
            if is_complete && token.is_empty() {
                break;
            }
            let (size, wait) = (PAGE.to_string(), WAIT_MS.to_string());
            let mut parameters = vec![
                ("maxResults", size.as_str()),
                ("timeoutMs", wait.as_str()),
                ("formatOptions.useInt64Timestamp", "true"),
            ];
            parameters.extend([("location", location.as_str()), ("pageToken", &token)]);
            parameters.retain(|(_, value)| !value.is_empty());
            page = self.send(Method::GET, &path, &parameters, None).await?;
        }
        answer.columns = fields.iter().map(|field| name(field).to_string()).collect();
        Ok(answer)
    }
}

fn name(field: &Json) -> &str {
    field["name"].as_str().unwrap_or_default()
}

/// The values of a row or STRUCT, `{"f": [{"v": …}, …]}`.
fn values(fields: &[Json], row: &Json) -> Vec<Json> {
    fields.iter().enumerate().map(|(index, field)| value(field, &row["f"][index]["v"])).collect()
}

fn value(field: &Json, given: &Json) -> Json {
    match given {
        Json::Array(elements) if field["mode"] == "REPEATED" => {
            elements.iter().map(|element| single(field, &element["v"])).collect()
        }
        _ => single(field, given),
    }
}

fn single(field: &Json, given: &Json) -> Json {
    let Json::String(text) = given else {
        let Some(fields) = field["fields"].as_array().filter(|_| given.is_object()) else { return given.clone() };
        let members = fields.iter().map(|field| name(field).to_string()).zip(values(fields, given));
        return Json::Object(members.collect());
    };
    let known = match field["type"].as_str().unwrap_or_default() {
        "INTEGER" | "INT64" => text.parse::<i64>().ok().map(Json::from),
        // NaN and the infinities stay text: JSON has no number for them.
        "FLOAT" | "FLOAT64" => text.parse::<f64>().ok().and_then(Number::from_f64).map(Json::Number),
        "BOOLEAN" | "BOOL" => text.parse::<bool>().ok().map(Json::Bool),
        "TIMESTAMP" => text.parse::<i64>().ok().map(|micros| timestamp_text(micros).into()),
        _ => None,
    };
    known.unwrap_or_else(|| given.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_keeps_its_digits() {
        let field = |kind: &str| json!({"name": "x", "type": kind, "mode": "NULLABLE"});
        let cases = [
            ("INTEGER", json!("9223372036854775807"), json!(9_223_372_036_854_775_807_i64)),
            ("FLOAT", json!("0.1"), json!(0.1)),
            ("FLOAT", json!("NaN"), json!("NaN")),
            ("BOOLEAN", json!("true"), json!(true)),
            ("NUMERIC", json!("12345678901234567890.123456789"), json!("12345678901234567890.123456789")),
            ("TIMESTAMP", json!("1792455302920001"), json!("2026-10-20T00:15:02.920001Z")),
            ("TIMESTAMP", json!("-1"), json!("1969-12-31T23:59:59.999999Z")),
            ("DATE", json!("2026-10-20"), json!("2026-10-20")),
            ("STRING", json!("7"), json!("7")),
            ("STRING", json!(null), json!(null)),
        ];
        for (kind, given, expected) in cases {
            assert_eq!(value(&field(kind), &given), expected, "{kind} {given}");
        }
    }

    #[test]
    fn arrays_and_structs_nest() {
        let field = json!({"name": "items", "type": "RECORD", "mode": "REPEATED", "fields": [
            {"name": "sku", "type": "STRING"},
            {"name": "sizes", "type": "INTEGER", "mode": "REPEATED"},
            {"name": "maker", "type": "RECORD", "fields": [{"name": "since", "type": "TIMESTAMP"}]},
        ]});
        let given = json!([
            {"v": {"f": [{"v": "a"}, {"v": [{"v": "1"}, {"v": "2"}]}, {"v": {"f": [{"v": "0"}]}}]}},
            {"v": {"f": [{"v": null}, {"v": []}, {"v": null}]}},
        ]);
        let expected = json!([
            {"sku": "a", "sizes": [1, 2], "maker": {"since": "1970-01-01T00:00:00Z"}},
            {"sku": null, "sizes": [], "maker": null},
        ]);
        assert_eq!(value(&field, &given), expected);
    }
}
