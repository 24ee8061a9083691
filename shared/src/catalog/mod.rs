//! BigQuery's REST side: which datasets, tables and views there are, what the schemas want of them, and queries.
//!
//! [`Wanted`] says what should be there, [`BigQuery::read`] what is, [`diff()`] what has to be done, without doing it, and
//! [`BigQuery::apply`] does it. The documents are BigQuery's own JSON throughout: what a typed model does not know
//! (`maxLength`, policy tags) would be lost by reading a table and writing it back.

mod apply;
mod client;
mod diff;
mod login;
mod query;
mod table;
mod wanted;

pub use apply::Found;
pub use client::{ApiError, BigQuery};
pub use diff::{Diff, Difference, Verdict, diff};
pub use query::Answer;
pub use wanted::Wanted;
