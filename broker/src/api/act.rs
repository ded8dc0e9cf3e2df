//! What a request sets going and must not break off.
//!
//! A request's own future is dropped when its caller hangs up or its time is
//! over, perhaps between a commit and what has to follow it. So whatever changes
//! something runs in a task of its own, and the request only waits for it.

use std::sync::Arc;

use axum::http::StatusCode;
use tegata_edge::supervisor::Tasks;
use tokio::sync::{Semaphore, oneshot};

use super::problem::Problem;

/// Most acts in progress; further requests wait for their turn, and begin nothing
/// if their caller does not wait with them.
pub const ACTS_MAX: usize = 32;

/// Runs acts to their end.
pub struct Acts {
    tasks: Tasks,
    turns: Arc<Semaphore>,
}

impl Acts {
    /// Starts with none in progress.
    pub fn new(tasks: Tasks) -> Self {
        Self { tasks, turns: Arc::new(Semaphore::new(ACTS_MAX)) }
    }

    /// Runs an act to its end, whatever becomes of the caller, and returns its
    /// answer.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        act: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Problem> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        let (tell, answer) = oneshot::channel();
        self.tasks.spawn("act", async move {
            let _until_done = turn;
            // Nobody may be left to hear it.
            let _heard = tell.send(act.await);
        });
        // Without an answer the broker is stopping.
        let title = "The broker is stopping";
        answer.await.map_err(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", title))
    }
}
