//! The pools as the store has them, kept in memory for logins.

use std::collections::BTreeSet;
use std::sync::Arc;

use arc_swap::ArcSwap;
use tegata_domain::group::GroupName;
use tegata_domain::pool::Pool;
use tegata_proto::id::{PoolName, UserId};

use crate::ports::store::{Store, StoreError};

/// Every pool, as of the last look at the store.
///
/// Each change through this process is followed by a [`Catalogue::refresh`]; a
/// pass of the reconciler sees the others.
pub struct Catalogue {
    store: Arc<dyn Store>,
    pools: ArcSwap<Vec<Arc<Pool>>>,
}

impl Catalogue {
    /// Starts empty; [`Catalogue::refresh`] fills it.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, pools: ArcSwap::default() }
    }

    /// Reads the store.
    ///
    /// # Errors
    ///
    /// The store could not serve; the last look stays.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let pools = self.store.pools().await?;
        self.pools.store(Arc::new(pools.into_iter().map(Arc::new).collect()));
        Ok(())
    }

    /// Returns the pools that a person with these groups may use, by name.
    pub fn open_to(&self, user: &UserId, groups: &BTreeSet<GroupName>) -> Vec<Arc<Pool>> {
        let pools = self.pools.load();
        pools.iter().filter(|pool| pool.entitles(user, groups)).cloned().collect()
    }

    /// Returns one pool.
    pub fn pool(&self, name: &PoolName) -> Option<Arc<Pool>> {
        self.pools.load().iter().find(|pool| pool.name() == name).cloned()
    }

    /// Returns every pool, by name.
    pub fn all(&self) -> Arc<Vec<Arc<Pool>>> {
        self.pools.load_full()
    }
}
