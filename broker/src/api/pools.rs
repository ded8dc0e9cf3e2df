//! Pools: what there is, and what it shall be.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Extension, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tegata_domain::pool::{DEFAULT_GROUP, Faults, Pool, RawPool, Reuse};
use tegata_edge::network::NetworkClasses;
use tegata_gateway::dial::TargetPolicy;
use tegata_proto::id::PoolName;
use tracing::info;

use super::Api;
use super::page::Page;
use super::problem::{Fault, Problem};
use crate::ports::store::{Actor, PoolChange, PutPool, PutPoolError};

/// Longest reason, in bytes.
const REASON_MAX: usize = 512;

/// What the site allows of a pool, whatever the pool itself says.
pub struct Site {
    /// What the gateways may connect to.
    pub targets: TargetPolicy,
    /// Whether desktops can be asked who is logged on.
    pub asks_desktops: bool,
    /// The kinds of networks that people may be on.
    pub classes: Arc<NetworkClasses>,
}

/// A pool that this site cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct SiteFault {
    /// Path of the key.
    pub key: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Site {
    /// Names the rows of a pool that are for classes which this site does not have: what
    /// they forbid would be allowed.
    pub fn unknown_classes(&self, pool: &Pool) -> Vec<SiteFault> {
        let rows = pool.raw().by_class.iter().enumerate();
        let unknown = rows.filter(|(_, row)| !self.classes.knows(&row.class));
        let problem = "is no network class of this site";
        let fault = |n| SiteFault { key: format!("by_class[{n}].class"), problem };
        unknown.map(|(n, _)| fault(n)).collect()
    }

    /// Names everything that this site cannot do for a pool.
    pub fn faults(&self, pool: &Pool) -> Vec<SiteFault> {
        let mut faults = Vec::new();
        let raw = pool.raw();
        if raw.reuse == Reuse::AfterLogoff && !self.asks_desktops {
            faults.push(SiteFault {
                key: "reuse".to_owned(),
                problem: "desktop_cannot_be_asked: no occupancy command is configured",
            });
        }
        if raw.gateways.as_str() != DEFAULT_GROUP {
            let problem = "is no group of gateways of this site; the only one is default";
            faults.push(SiteFault { key: "gateways".to_owned(), problem });
        }
        faults.extend(self.unknown_classes(pool));
        for (n, desktop) in raw.desktops.iter().enumerate() {
            if !self.targets.permits(desktop.address) {
                let key = format!("desktops[{n}].address");
                let problem = "is outside the gateway's own list of targets";
                faults.push(SiteFault { key, problem });
            }
        }
        faults
    }
}

/// Lists pools without their desktops, which `/v1/desktops` lists. The key is
/// left out, so that what is listed cannot be put back and withdraw them all.
pub(super) async fn list(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let pools = api.followups.store.pools().await?;
    let limit = u32::try_from(pools.len()).unwrap_or(u32::MAX);
    let mut shown = Vec::with_capacity(pools.len());
    for pool in &pools {
        let mut pool = serde_json::to_value(pool).map_err(|error| Problem::unwritable(&error))?;
        pool.as_object_mut().map(|keys| keys.remove("desktops"));
        shown.push(pool);
    }
    Ok(Json(Page::new(shown, limit, |pool| pool["name"].to_string())).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) reason: Option<String>,
}

pub(super) async fn replace(
    State(api): State<Arc<Api>>,
    Extension(actor): Extension<Actor>,
    name: Result<Path<PoolName>, PathRejection>,
    change: Result<Query<Change>, QueryRejection>,
    body: Result<Json<RawPool>, JsonRejection>,
) -> Result<Response, Problem> {
    let (Path(name), Query(Change { reason }), Json(raw)) = (name?, change?, body?);
    if reason.as_ref().is_some_and(|text| text.len() > REASON_MAX || text.trim().is_empty()) {
        return Err(Problem::malformed("reason is empty or longer than 512 bytes"));
    }
    if raw.name != name {
        return Err(Problem::malformed("the pool's name is not that of its path"));
    }
    let pool = Pool::try_from(raw).map_err(|Faults(faults)| {
        let fault = |f: tegata_domain::pool::Fault| Fault { key: f.key, problem: f.problem.into() };
        Problem::invalid(faults.into_iter().map(fault).collect())
    })?;
    let faults = api.site.faults(&pool);
    if !faults.is_empty() {
        let fault = |f: SiteFault| Fault { key: f.key, problem: f.problem.into() };
        return Err(Problem::invalid(faults.into_iter().map(fault).collect()));
    }

    let shown = Json(pool.clone());
    let put =
        PutPool { pool, actor, reason, only_if_absent: false, now: api.followups.clock.now() };
    let (store, catalogue) = (Arc::clone(&api.followups.store), Arc::clone(&api.catalogue));
    let act = async move {
        let change = store.put_pool(put).await?;
        info!(pool = %name, ?change, "Pool put");
        catalogue.refresh().await?;
        Ok::<_, PutPoolError>(change)
    };
    let change = api.acts.run(act).await?.map_err(|error| match error {
        PutPoolError::ReasonMissing(_) => Problem::conflict("reason_missing", error.to_string()),
        PutPoolError::InUse(_) => Problem::conflict("in_use", error.to_string()),
        PutPoolError::Elsewhere(_) => Problem::conflict("elsewhere", error.to_string()),
        PutPoolError::Fixed(_) => Problem::conflict("fixed", error.to_string()),
        PutPoolError::Store(error) => error.into(),
    })?;
    let status = match change {
        PoolChange::Created => StatusCode::CREATED,
        PoolChange::Updated | PoolChange::Unchanged => StatusCode::OK,
    };
    Ok((status, shown).into_response())
}
