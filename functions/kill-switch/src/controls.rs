//! The port to what the kill-switch turns: subscriptions, the right to publish, billing.

#[cfg(feature = "rest")]
pub mod rest;

use async_trait::async_trait;
use serde_json::Value;

use crate::state::PushSettings;

/// Why a control did not turn.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Another changed it meanwhile: read it again.
    #[error("{0}")]
    Conflict(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// Anything else, after a few tries.
    #[error("{0}")]
    Failed(String),
}

/// What can be turned. Names are full (`projects/p/subscriptions/s`), projects are ids. Every call may be repeated.
#[async_trait]
pub trait Controls: Send + Sync {
    /// The push settings of a subscription.
    async fn push_settings(&self, subscription: &str) -> Result<PushSettings, ControlError>;

    /// Sets them; empty ones make it a subscription that is pulled from.
    async fn set_push_settings(&self, subscription: &str, settings: &PushSettings) -> Result<(), ControlError>;

    /// The IAM policy of a topic, with its etag and its conditions.
    async fn policy(&self, topic: &str) -> Result<Value, ControlError>;

    /// Sets it, if it is still the one that the etag stands for; otherwise a [`ControlError::Conflict`].
    async fn set_policy(&self, topic: &str, policy: &Value) -> Result<(), ControlError>;

    /// The billing account of a project, `billingAccounts/0X0X0X-0X0X0X-0X0X0X`; empty where it has none.
    async fn billing_account(&self, project: &str) -> Result<String, ControlError>;

    /// Takes a project's billing account away, which ends every service in it that costs anything.
    async fn detach(&self, project: &str) -> Result<(), ControlError>;
}
