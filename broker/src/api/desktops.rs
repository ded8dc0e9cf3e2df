//! Desktops, as an administrator sees them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use tegata_domain::desktop::State as DesktopState;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{DesktopId, Epoch, PoolName, SeatName, SessionId, UserId};

use super::page::{self, Page};
use super::problem::Problem;
use super::{Api, moment};
use crate::ports::store::DesktopRecord;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query_ {
    pool: PoolName,
    cursor: Option<SeatName>,
    limit: Option<u32>,
}

#[derive(Serialize)]
struct Desktop {
    id: DesktopId,
    pool: PoolName,
    name: SeatName,
    address: SocketAddr,
    #[serde(flatten)]
    state: DesktopState,
    user: Option<UserId>,
    account: Option<String>,
    session: Option<SessionId>,
    epoch: Epoch,
    certificate_sha256: Option<Sha256>,
    probed_at: Option<String>,
}

impl From<DesktopRecord> for Desktop {
    fn from(record: DesktopRecord) -> Self {
        let DesktopRecord { id, pool, name, address, desktop, probed_at } = record;
        let (user, account) = match desktop.holder {
            Some(holder) => (Some(holder.user), holder.account),
            None => (None, None),
        };
        Self {
            id,
            pool,
            name,
            address,
            state: desktop.state,
            user,
            account,
            session: desktop.session,
            epoch: desktop.epoch,
            certificate_sha256: desktop.pin,
            probed_at: probed_at.map(moment),
        }
    }
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    query: Result<Query<Query_>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(Query_ { pool, cursor, limit }) = query?;
    let limit = page::limit(limit)?;
    let records = api.followups.store.desktops(&pool, cursor.as_ref(), limit + 1).await?;
    let desktops = records.into_iter().map(Desktop::from).collect();
    let page = Page::new(desktops, limit, |desktop: &Desktop| desktop.name.to_string());
    Ok(Json(page).into_response())
}
