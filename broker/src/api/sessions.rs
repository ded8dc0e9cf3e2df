//! Sessions: which there are, and how their links and they themselves are ended.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Extension, Query, State};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tegata_domain::session::{Cause, Event, State as SessionState};
use tegata_proto::id::{DesktopId, GatewayId, LinkNumber, PoolName, SeatName, SessionId, UserId};
use tracing::info;

use super::Api;
use super::page::{self, Page};
use super::problem::Problem;
use crate::flows::followup::Followups;
use crate::ports::store::{Actor, EventError, SessionEvent, SessionRecord, StoreError};

/// Most sessions of one action.
const ITEMS_MAX: usize = 1_000;

/// How many sessions are looked at in one page when all are to end.
const PAGE: u32 = 1_000;

/// How many sessions something is done to at once; the store commits together what
/// comes together.
const AT_ONCE: usize = 256;

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
    #[serde(skip_serializing_if = "Option::is_none")]
    ends_at: Option<String>,
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
            ends_at: record.ends_at.map(super::moment),
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

/// Which sessions an action is for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct These {
    pub(super) session_ids: Vec<SessionId>,
}

/// Whose sessions end: one person's, or everybody's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Whose {
    #[serde(default)]
    pub(super) user: Option<UserId>,
    #[serde(default)]
    pub(super) everyone: bool,
}

#[derive(Serialize)]
pub(super) struct Outcome {
    session_id: SessionId,
    result: &'static str,
    /// When its last byte was carried, of one that carries nothing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_byte_at: Option<String>,
}

#[derive(Serialize)]
struct Outcomes {
    items: Vec<Outcome>,
}

/// What is done to sessions, and the words for how that went.
#[derive(Clone, Copy)]
struct Deed {
    event: Event,
    done: &'static str,
    /// Where it does not fit.
    unfit: &'static str,
}

const DISCONNECT: Deed =
    Deed { event: Event::Disconnected, done: "disconnected", unfit: "not_connected" };

const TERMINATE: Deed = Deed {
    event: Event::EndWanted(Cause::Administrator),
    done: "terminated",
    unfit: "not_terminated",
};

pub(super) async fn disconnect(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    body: Result<Json<These>, JsonRejection>,
) -> Result<Response, Problem> {
    these(&api, DISCONNECT, actor, body).await
}

pub(super) async fn terminate(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    body: Result<Json<These>, JsonRejection>,
) -> Result<Response, Problem> {
    these(&api, TERMINATE, actor, body).await
}

async fn these(
    api: &Api,
    deed: Deed,
    actor: Actor,
    body: Result<Json<These>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(These { session_ids }) = body?;
    if session_ids.len() > ITEMS_MAX {
        return Err(Problem::malformed("session_ids are more than 1000"));
    }
    let followups = api.followups.clone();
    let act = async move { deed.done_to(&followups, session_ids, &actor).await };
    let items = api.acts.run(act).await?;
    Ok(Json(Outcomes { items }).into_response())
}

pub(super) async fn terminate_all(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    body: Result<Json<Whose>, JsonRejection>,
) -> Result<Response, Problem> {
    let Json(Whose { user, everyone }) = body?;
    if user.is_some() == everyone {
        return Err(Problem::malformed("it is either of a user or everyone: true"));
    }
    let (followups, revocations) = (api.followups.clone(), Arc::clone(&api.revocations));
    let act = async move {
        revocations.tell(user.clone());
        all_of(&followups, user, &actor).await
    };
    let items = api.acts.run(act).await??;
    Ok(Json(Outcomes { items }).into_response())
}

/// Ends every session that is not over, or those of one person.
async fn all_of(
    followups: &Followups,
    user: Option<UserId>,
    actor: &Actor,
) -> Result<Vec<Outcome>, StoreError> {
    let (mut items, mut before) = (Vec::new(), None);
    loop {
        // Youngest first, each page before the one before: what ends drops out behind.
        let page = followups.store.sessions(before, PAGE).await?;
        let Some(last) = page.last() else { return Ok(items) };
        before = Some(last.sid);
        let theirs = page.iter().filter(|of| user.as_ref().is_none_or(|user| of.user == *user));
        let theirs = theirs.map(|of| of.sid).collect();
        items.extend(TERMINATE.done_to(followups, theirs, actor).await);
    }
}

impl Deed {
    /// Does it to each session, many at a time.
    async fn done_to(
        self,
        followups: &Followups,
        session_ids: Vec<SessionId>,
        actor: &Actor,
    ) -> Vec<Outcome> {
        stream::iter(session_ids)
            .map(|sid| self.done_to_one(followups, sid, actor))
            .buffered(AT_ONCE)
            .collect()
            .await
    }

    async fn done_to_one(self, followups: &Followups, sid: SessionId, actor: &Actor) -> Outcome {
        let event = SessionEvent {
            sid,
            event: self.event,
            link: None,
            carried: None,
            actor: actor.clone(),
            now: followups.clock.now(),
        };
        let mut last_byte_at = None;
        let result = match followups.store.session_event(event).await {
            Ok(left) => {
                let closed = followups.carry_out(left).await;
                let own = closed.into_iter().find(|closed| closed.sid == sid);
                last_byte_at = own.and_then(|closed| closed.last_byte_at).map(super::moment);
                info!(session.id = %sid, result = self.done, "Done to a session");
                self.done
            }
            Err(EventError::NoSuchSession(_)) => "no_such_session",
            Err(EventError::Refused(_)) => self.unfit,
            Err(EventError::Store(_)) => "unavailable",
        };
        Outcome { session_id: sid, result, last_byte_at }
    }
}
