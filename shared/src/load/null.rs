//! Nowhere, for measurements: rows are made and dropped.

use std::sync::Arc;

use async_trait::async_trait;

use super::{Load, Loader, Mode};
use crate::row::Value;
use crate::schema::Plan;

/// Keeps nothing.
#[derive(Debug, Default, Clone, Copy)]
pub struct NullLoader;

#[async_trait]
impl Loader for NullLoader {
    async fn begin(
        &self,
        _: &str,
        _: &[Arc<Plan>],
        _: Mode,
        _: Option<&serde_json::Value>,
    ) -> Result<Box<dyn Load>, String> {
        Ok(Box::new(Self))
    }
}

#[async_trait]
impl Load for NullLoader {
    fn add(&mut self, _: usize, values: &[Value<'_>]) {
        // The row counts as used, so that none of the work on it is left out.
        std::hint::black_box(values);
    }

    fn held(&self) -> usize {
        0
    }

    async fn flush(&mut self) -> Result<(), String> {
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<serde_json::Value, String> {
        Ok(serde_json::Value::Null)
    }

    async fn publish(self: Box<Self>) -> Result<(), String> {
        Ok(())
    }

    async fn abandon(self: Box<Self>) -> Result<(), String> {
        Ok(())
    }
}
