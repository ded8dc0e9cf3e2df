//! The admin API, first steps: seven routes on the operations port.
//!
//! Every request shows an API key before anything else of it is looked at.
//! Answers are JSON in `snake_case`; what goes wrong is an RFC 9457 problem.
//!
//! | Route | Does |
//! |---|---|
//! | `GET /v1/pools` | lists pools |
//! | `PUT /v1/pools/{name}` | creates or changes one; `?reason=` where a pin changes |
//! | `GET /v1/desktops?pool=` | lists a pool's desktops, in pages |
//! | `GET /v1/sessions` | lists sessions that are not over, in pages |
//! | `POST /v1/sessions/actions/disconnect` | closes sessions' links, item by item |
//! | `POST /v1/sessions/actions/terminate` | ends sessions, item by item |
//! | `POST /v1/sessions/actions/terminate-all` | ends a person's sessions, or everyone's |

use std::sync::Arc;

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};

use tegata_domain::time::Timestamp;

use self::act::Acts;
use self::key::ApiKeys;
use self::problem::Problem;
use crate::flows::catalogue::Catalogue;
use crate::flows::followup::Followups;
use crate::flows::revocations::Revocations;
use crate::ports::store::Actor;

pub mod act;
mod desktops;
pub mod key;
mod page;
mod pools;
mod problem;
mod sessions;
#[cfg(test)]
mod tests;

/// Longest body of a pool, in bytes; some tens of thousands of desktops.
pub const POOL_BODY_MAX: usize = 8 * 1024 * 1024;

/// What the routes need.
pub struct Api {
    /// The pools in memory, refreshed after a change.
    pub catalogue: Arc<Catalogue>,
    /// What is left to do after a commit; with the store and the clock.
    pub followups: Followups,
    /// The logins under way, to be told whose sessions are ended.
    pub revocations: Arc<Revocations>,
    /// How what changes something is run.
    pub acts: Acts,
    /// Whose requests are answered.
    pub keys: ApiKeys,
    /// What the site allows of a pool beyond what the pool itself must keep.
    pub site: Site,
}

pub use self::pools::{Site, SiteFault};

/// Returns the routes.
pub fn routes(api: Arc<Api>) -> Router {
    let pool = put(pools::replace)
        .layer(DefaultBodyLimit::max(POOL_BODY_MAX))
        .layer(middleware::from_fn(announced));
    Router::new()
        .route("/v1/pools", get(pools::list))
        .route("/v1/pools/{name}", pool)
        .route("/v1/desktops", get(desktops::list))
        .route("/v1/sessions", get(sessions::list))
        .route("/v1/sessions/actions/disconnect", post(sessions::disconnect))
        .route("/v1/sessions/actions/terminate", post(sessions::terminate))
        .route("/v1/sessions/actions/terminate-all", post(sessions::terminate_all))
        .route_layer(middleware::from_fn_with_state(Arc::clone(&api), authenticate))
        .with_state(api)
}

async fn authenticate(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(name) = shown.and_then(|shown| api.keys.authenticate(shown)) else {
        return Problem::unauthorized().into_response();
    };
    let actor = Actor::ApiKey(name.to_owned());
    request.extensions_mut().insert(actor);
    next.run(request).await
}

/// Refuses a body that announces itself as too long for a pool before any of it is read.
async fn announced(request: Request, next: Next) -> Response {
    if request.body().size_hint().lower() > POOL_BODY_MAX as u64 {
        return Problem::too_long(POOL_BODY_MAX).into_response();
    }
    next.run(request).await
}

/// Writes a moment as RFC 3339, UTC, with milliseconds.
fn moment(at: Timestamp) -> String {
    let millis = i64::try_from(at.as_millis()).unwrap_or(i64::MAX);
    let moment = jiff::Timestamp::from_millisecond(millis).unwrap_or(jiff::Timestamp::MAX);
    format!("{moment:.3}")
}
