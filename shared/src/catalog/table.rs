//! Single tables, by their names `dataset.table`.

use reqwest::Method;
use serde_json::{Value as Json, json};

use super::client::{ApiError, BigQuery};
use crate::clock::Micros;
use crate::schema::{Column, ddl};

impl BigQuery {
    /// Makes a table that holds rows for a while: BigQuery drops it at `expires_at`. One that is there stays as it is.
    pub async fn make_staging(&self, name: &str, columns: &[Column], expires_at: Micros) -> Result<(), ApiError> {
        let (dataset, table) = name.split_once('.').unwrap_or_default();
        let document = json!({
            "tableReference": {"projectId": self.project, "datasetId": dataset, "tableId": table},
            "schema": {"fields": columns.iter().map(ddl::column_json).collect::<Json>()},
            // Milliseconds, and as text: a number of 64 bits.
            "expirationTime": (expires_at / 1000).to_string(),
        });
        match self.send(Method::POST, &format!("datasets/{dataset}/tables"), &[], Some(&document)).await {
            Err(ApiError::Refused { status: 409, .. }) => Ok(()),
            made => made.map(drop),
        }
    }

    /// Whether there is such a table.
    pub async fn has_table(&self, name: &str) -> Result<bool, ApiError> {
        match self.send(Method::GET, &path(name), &[], None).await {
            Err(error) if error.is_not_found() => Ok(false),
            found => found.map(|_| true),
        }
    }

    /// Drops a table, if there is one.
    pub async fn drop_table(&self, name: &str) -> Result<(), ApiError> {
        match self.send(Method::DELETE, &path(name), &[], None).await {
            Err(error) if error.is_not_found() => Ok(()),
            dropped => dropped.map(drop),
        }
    }
}

fn path(name: &str) -> String {
    let (dataset, table) = name.split_once('.').unwrap_or_default();
    format!("datasets/{dataset}/tables/{table}")
}
