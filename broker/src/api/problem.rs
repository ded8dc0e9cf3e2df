//! What goes wrong, as RFC 9457 has it, with a stable `code`.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::{debug, warn};
use uuid::Uuid;

use crate::ports::store::StoreError;

/// One problem. The `trace_id` is in the log beside the cause.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    faults: Vec<Fault>,
    trace_id: Uuid,
}

/// One thing that is wrong in what was sent.
#[derive(Debug, Serialize)]
pub(super) struct Fault {
    /// Path of the key.
    pub(super) key: String,
    /// What is wrong with it.
    pub(super) problem: String,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, title: &'static str) -> Self {
        Self {
            kind: "about:blank",
            title,
            status: status.as_u16(),
            code,
            detail: None,
            faults: vec![],
            trace_id: Uuid::now_v7(),
        }
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub(super) fn unwritable(error: &serde_json::Error) -> Self {
        let title = "The answer cannot be written";
        let problem = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", title);
        warn!(%error, trace_id = %problem.trace_id, "Request not served");
        problem
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "No valid API key was shown")
    }

    /// For a body of more bytes than `limit`.
    pub(super) fn too_long(limit: usize) -> Self {
        let detail = format!("the body is longer than {limit} bytes");
        Self::unreadable(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    pub(super) fn malformed(detail: impl Into<String>) -> Self {
        Self::unreadable(StatusCode::BAD_REQUEST, detail)
    }

    fn unreadable(status: StatusCode, detail: impl Into<String>) -> Self {
        Self::new(status, "malformed", "The request cannot be read").detail(detail)
    }

    pub(super) fn invalid(faults: Vec<Fault>) -> Self {
        let title = "What was sent cannot be";
        let problem = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", title);
        Self { faults, ..problem }
    }

    pub(super) fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, code, "It does not fit what is there").detail(detail)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let title = "The store cannot serve now";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", title);
        let error = &error as &dyn std::error::Error;
        warn!(error, trace_id = %problem.trace_id, "Request not served");
        problem
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        Self::unreadable(rejection.status(), rejection.body_text())
    }
}

impl From<QueryRejection> for Problem {
    fn from(rejection: QueryRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

impl From<PathRejection> for Problem {
    fn from(rejection: PathRejection) -> Self {
        Self::malformed(rejection.body_text())
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        debug!(code = self.code, trace_id = %self.trace_id, "Request refused");
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self)).into_response();
        let problem = axum::http::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(CONTENT_TYPE, problem);
        if status == StatusCode::UNAUTHORIZED {
            let bearer = axum::http::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        response
    }
}
