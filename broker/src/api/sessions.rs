//! Sessions: which there are, and the end of their links.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tegata_domain::session::{Event, State as SessionState};
use tegata_proto::id::{DesktopId, GatewayId, LinkNumber, PoolName, SeatName, SessionId, UserId};
use tracing::info;

use super::Api;
use super::page::{self, Page};
use super::problem::Problem;
use crate::flows::followup::Followups;
use crate::ports::store::{Actor, EventError, SessionEvent, SessionRecord};

/// Most sessions of one action.
const ITEMS_MAX: usize = 1_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query_ {
    cursor: Option<SessionId>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct Session {
    id: SessionId,
    user: UserId,
    display_name: String,
    pool: PoolName,
    desktop: DesktopId,
    desktop_name: SeatName,
    #[serde(flatten)]
    state: SessionState,
    created_at: String,
    class: String,
    link: LinkNumber,
    gateway: Option<GatewayId>,
}

impl From<SessionRecord> for Session {
    fn from(record: SessionRecord) -> Self {
        Self {
            id: record.sid,
            user: record.user,
            display_name: record.display_name,
            pool: record.pool,
            desktop: record.desktop,
            desktop_name: record.desktop_name,
            state: record.state,
            created_at: super::moment(record.created_at),
            class: record.class,
            link: record.link,
            gateway: record.gateway,
        }
    }
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    query: Result<Query<Query_>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Query_ { cursor, limit }) = query?;
    let limit = page::limit(limit)?;
    let records = api.followups.store.sessions(cursor, limit + 1).await?;
    let sessions = records.into_iter().map(Session::from).collect();
    let page = Page::new(sessions, limit, |session: &Session| session.id.to_string());
    Ok(Json(page).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Disconnect {
    pub(super) session_ids: Vec<SessionId>,
}

#[derive(Serialize)]
struct Outcome {
    session_id: SessionId,
    result: &'static str,
}

#[derive(Serialize)]
struct Outcomes {
    items: Vec<Outcome>,
}

pub(super) async fn disconnect(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    body: Result<Json<Disconnect>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(Disconnect { session_ids }) = body?;
    if session_ids.len() > ITEMS_MAX {
        return Err(Problem::malformed("session_ids are more than 1000"));
    }
    let followups = api.followups.clone();
    let items = api.acts.run(disconnect_all(followups, session_ids, actor)).await?;
    Ok(Json(Outcomes { items }).into_response())
}

async fn disconnect_all(
    followups: Followups,
    session_ids: Vec<SessionId>,
    actor: Actor,
) -> Vec<Outcome> {
    let mut items = Vec::with_capacity(session_ids.len());
    for sid in session_ids {
        let event = SessionEvent {
            sid,
            event: Event::Disconnected,
            link: None,
            carried: None,
            actor: actor.clone(),
            now: followups.clock.now(),
        };
        let result = match followups.store.session_event(event).await {
            Ok(left) => {
                followups.carry_out(left).await;
                info!(session.id = %sid, "Session disconnected");
                "disconnected"
            }
            Err(EventError::NoSuchSession(_)) => "no_such_session",
            Err(EventError::Refused(_)) => "not_connected",
            Err(EventError::Store(_)) => "unavailable",
        };
        items.push(Outcome { session_id: sid, result });
    }
    items
}
