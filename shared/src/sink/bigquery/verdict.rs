//! What an answer of BigQuery means for the rows of its request.

use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response::Response;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::storage_error::StorageErrorCode;
use gcp_bigquery_client::google::cloud::bigquery::storage::v1::{RowError, StorageError};
use gcp_bigquery_client::google::rpc;
use prost::Message;
use tonic::{Code, Status};

use super::connection::Reply;

/// What to do with the rows of a request.
#[derive(Debug, PartialEq)]
pub(super) enum Verdict {
    /// They stand in the table. With `new_schema` the table has changed since.
    Landed { new_schema: bool },
    /// None was taken because of these (position in the request, why).
    BadRows(Vec<(usize, String)>),
    /// None was taken, and it does not say which is at fault, or whether it is the table.
    Refused(String),
    /// None was taken: the table lacks columns, of which the text names some.
    Lacking(String),
    /// The table is not there.
    NoTable,
    /// The token is not accepted.
    NoLogin(String),
    /// The account may not write there.
    Forbidden(String),
    /// It may work soon.
    TryAgain(String),
}

/// Reads an answer to its end. `rows` is the size of its request; `numbered` says whether that had an offset.
pub(super) fn verdict(reply: Reply, rows: usize, numbered: bool) -> Verdict {
    let response = match reply {
        Ok(response) => response,
        Err(status) => return refusal(&status, numbered),
    };
    let bad = bad_rows(response.row_errors, rows);
    if !bad.is_empty() {
        return Verdict::BadRows(bad);
    }
    match response.response {
        Some(Response::AppendResult(_)) => Verdict::Landed { new_schema: response.updated_schema.is_some() },
        Some(Response::Error(error)) => of_status(Code::from(error.code), &error.message, &error.details, numbered),
        None => Verdict::TryAgain("an answer without a result".into()),
    }
}

/// Reads a status with which a call has ended.
pub(super) fn refusal(status: &Status, numbered: bool) -> Verdict {
    let details = rpc::Status::decode(status.details()).unwrap_or_default().details;
    of_status(status.code(), status.message(), &details, numbered)
}

fn bad_rows(errors: Vec<RowError>, rows: usize) -> Vec<(usize, String)> {
    let inside =
        |error: RowError| Some((usize::try_from(error.index).ok().filter(|&index| index < rows)?, error.message));
    errors.into_iter().filter_map(inside).collect()
}

fn of_status(code: Code, message: &str, details: &[prost_types::Any], numbered: bool) -> Verdict {
    let storage = details
        .iter()
        .filter(|detail| detail.type_url.ends_with(".StorageError"))
        .find_map(|detail| StorageError::decode(detail.value.as_slice()).ok())
        .map(|error| error.code());
    let said = || format!("{code:?}: {message}");
    match (storage, code) {
        // Rows are numbered where only one writer has the stream: they are those of a request whose answer was lost. Without
        // an offset BigQuery cannot know that, and the answer is about something else.
        (Some(StorageErrorCode::OffsetAlreadyExists), _) | (_, Code::AlreadyExists) if numbered => {
            Verdict::Landed { new_schema: false }
        }
        (Some(StorageErrorCode::SchemaMismatchExtraFields), _) => Verdict::Lacking(message.into()),
        (_, Code::InvalidArgument) if message.contains("more fields than BigQuery schema") => {
            Verdict::Lacking(message.into())
        }
        (Some(StorageErrorCode::TableNotFound), _) | (_, Code::NotFound) => Verdict::NoTable,
        (_, Code::InvalidArgument) => Verdict::Refused(message.into()),
        (_, Code::Unauthenticated) => Verdict::NoLogin(said()),
        (_, Code::PermissionDenied) => Verdict::Forbidden(said()),
        _ => Verdict::TryAgain(said()),
    }
}

/// The columns that a text like `…, extra fields: 'a,b' Entity: …` names.
pub(super) fn named_columns(message: &str) -> impl Iterator<Item = String> {
    let quoted = message.split_once("extra field").and_then(|(_, rest)| rest.split('\'').nth(1)).unwrap_or_default();
    quoted.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gcp_bigquery_client::google::cloud::bigquery::storage::v1::AppendRowsResponse;
    use gcp_bigquery_client::google::cloud::bigquery::storage::v1::append_rows_response::AppendResult;

    #[test]
    fn an_error_inside_an_answer_is_no_success() {
        let answer = |code: Code, message: &str| AppendRowsResponse {
            response: Some(Response::Error(rpc::Status {
                code: code.into(),
                message: message.into(),
                details: vec![],
            })),
            ..AppendRowsResponse::default()
        };
        let of = |code, message| verdict(Ok(answer(code, message)), 3, false);
        assert_eq!(of(Code::InvalidArgument, "why"), Verdict::Refused("why".into()));
        assert_eq!(of(Code::NotFound, "why"), Verdict::NoTable);
        assert_eq!(of(Code::AlreadyExists, "why"), Verdict::TryAgain("AlreadyExists: why".into()));
        let numbered = verdict(Ok(answer(Code::AlreadyExists, "why")), 3, true);
        assert_eq!(numbered, Verdict::Landed { new_schema: false });
        assert_eq!(of(Code::OutOfRange, "why"), Verdict::TryAgain("OutOfRange: why".into()));
        assert_eq!(of(Code::ResourceExhausted, "why"), Verdict::TryAgain("ResourceExhausted: why".into()));
        assert!(matches!(verdict(Ok(AppendRowsResponse::default()), 3, false), Verdict::TryAgain(_)));
        let landed = AppendRowsResponse {
            response: Some(Response::AppendResult(AppendResult { offset: None })),
            ..AppendRowsResponse::default()
        };
        assert_eq!(verdict(Ok(landed.clone()), 3, false), Verdict::Landed { new_schema: false });
        let error = |index| RowError { index, code: 1, message: "why".into() };
        let bad = AppendRowsResponse { row_errors: vec![error(1), error(7), error(-1)], ..landed };
        assert_eq!(verdict(Ok(bad), 3, false), Verdict::BadRows(vec![(1, "why".into())]));
    }

    #[test]
    fn the_details_tell_more_than_the_code() {
        let storage =
            StorageError { code: StorageErrorCode::SchemaMismatchExtraFields.into(), ..StorageError::default() };
        let details = prost_types::Any {
            type_url: "type.googleapis.com/google.cloud.bigquery.storage.v1.StorageError".into(),
            value: storage.encode_to_vec(),
        };
        let status = rpc::Status { code: 3, message: "why".into(), details: vec![details] };
        let status = Status::with_details(Code::InvalidArgument, "why", status.encode_to_vec().into());
        assert_eq!(verdict(Err(status), 1, false), Verdict::Lacking("why".into()));
    }

    #[test]
    fn columns_are_named_between_quotes() {
        let names = |message| named_columns(message).collect::<Vec<_>>();
        let message = "Input schema has more fields than BigQuery schema, extra fields: 'a,items.b' Entity: projects/p";
        assert_eq!(names(message), ["a", "items.b"]);
        assert_eq!(names("no such text"), [""; 0]);
    }
}
