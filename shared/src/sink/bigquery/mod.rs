//! BigQuery through its Storage Write API.
