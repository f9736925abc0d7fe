//! Why the API did not answer: a status and a JSON body that says who has to act.

use crate::api::MadeBy;
use crate::strict_json::JsonError;
use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

/// The word for what went wrong. Each has one status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Code {
    /// The request does not say what it must.
    BadRequest,
    /// A token is asked for, and none or no good one was sent.
    Unauthorized,
    /// Too many wrong tokens, or too many requests: wait as long as `Retry-After` says.
    TooMany,
    /// State may not be changed from there, or not with this token.
    Forbidden,
    /// There is no such thing.
    NotFound,
    /// The transaction waits for a block. It has no receipt yet.
    Waiting,
    /// There was such a thing; it is no longer kept.
    Gone,
    /// The body is larger than it may be.
    TooLarge,
    /// The head is larger than it may be.
    HeadTooLarge,
    /// The body is of a kind that is not taken.
    UnsupportedMedia,
    /// The path exists, with another method.
    MethodNotAllowed,
    /// The rules of the chain refuse this.
    Refused,
    /// This node follows and makes no blocks: send it to the one that is named.
    Follows,
    /// As many as there may be, are. Try again later.
    Busy,
    /// A write failed: nothing is committed any more until the node restarts.
    WriteFailed,
    /// It took too long.
    Timeout,
    /// This node's own machine or store failed.
    Internal,
    /// Stored bytes that the answer takes are damaged. Others are served; ask another node for this.
    Damaged,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound | Self::Waiting => StatusCode::NOT_FOUND,
            Self::Gone => StatusCode::GONE,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Refused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Follows => StatusCode::MISDIRECTED_REQUEST,
            Self::Busy | Self::WriteFailed => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal | Self::Damaged => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What every answer that is not a success says.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorText,
}

#[derive(Debug, Serialize, ToSchema)]
struct ErrorText {
    code: Code,
    /// What happened, with the values that were compared.
    message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
    /// The lowest height whose state is kept, where heights are the matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    lowest_height: Option<u64>,
    /// The highest height there is, where heights are the matter.
    #[serde(skip_serializing_if = "Option::is_none")]
    highest_height: Option<u64>,
    /// Who makes the blocks, where this node does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    producer: Option<MadeBy>,
}

/// An answer that is not a success.
#[derive(Debug)]
pub(crate) struct ApiError(Box<ErrorText>);

impl ApiError {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(Box::new(ErrorText {
            code,
            message,
            hint: None,
            lowest_height: None,
            highest_height: None,
            producer: None,
        }))
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Whether it is of this kind.
    pub(crate) fn is(&self, code: Code) -> bool {
        self.0.code == code
    }

    /// Adds which heights there are.
    pub(crate) fn heights(mut self, lowest: u64, highest: u64) -> Self {
        self.0.lowest_height = Some(lowest);
        self.0.highest_height = Some(highest);
        self
    }
}

impl From<MadeBy> for ApiError {
    fn from(made_by: MadeBy) -> Self {
        let mut error = Self::new(Code::Follows, made_by.to_string());
        error.0.producer = Some(made_by);
        error
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.0.code.status(), Json(ErrorBody { error: *self.0 })).into_response()
    }
}

impl From<JsonError> for ApiError {
    fn from(error: JsonError) -> Self {
        Self::new(Code::BadRequest, error.to_string())
    }
}
