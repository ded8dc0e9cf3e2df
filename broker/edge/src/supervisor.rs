//! The only place that starts tasks, and the order in which they stop.
//!
//! [`Supervisor`] holds the tasks that a program is made of: if one of them ends
//! without being asked, all of them end. [`Tasks`] holds the many that come and
//! go, one a connection: a panic there ends that one only, and is counted.
//! Neither lets a task outlive it.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, info, warn};

/// When a task is asked to stop: lower stages first, each after the one before
/// it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage(pub u8);

/// A task ended that should have run until it was asked to stop.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unasked {
    /// It returned.
    #[error("task {task} returned without being asked")]
    Returned {
        /// Name of the task.
        task: &'static str,
    },
    /// It panicked.
    #[error("task {task} panicked")]
    Panicked {
        /// Name of the task.
        task: &'static str,
    },
}

/// The tasks that a program is made of.
#[derive(Debug, Default)]
pub struct Supervisor {
    running: JoinSet<()>,
    placed: HashMap<Id, (&'static str, Stage)>,
    stages: std::collections::BTreeMap<Stage, CancellationToken>,
}

impl Supervisor {
    /// Starts with no task.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task. It runs until the token it is given is cancelled, and then
    /// ends by itself.
    pub fn spawn<F>(
        &mut self,
        task: &'static str,
        stage: Stage,
        body: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let cancelled = self.stages.entry(stage).or_default().clone();
        let body = body(cancelled).instrument(tracing::info_span!("task", name = task));
        let id = self.running.spawn(body).id();
        self.placed.insert(id, (task, stage));
    }

    /// Runs until `stop` completes or a task ends, then stops the stages one
    /// after the other, waiting at most `grace` for each.
    ///
    /// # Errors
    ///
    /// Names the task that ended without being asked.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), Unasked> {
        let outcome = tokio::select! {
            biased;
            unasked = self.first_end() => Err(unasked),
            () = stop => Ok(()),
        };
        if let Err(unasked) = &outcome {
            error!(error = %unasked, "A task ended unasked, all are stopped");
        }
        self.drain(grace).await;
        outcome
    }

    /// Waits for a task that ends although nobody asked it to.
    async fn first_end(&mut self) -> Unasked {
        match self.running.join_next_with_id().await {
            Some(ended) => self.ended(ended).1,
            // Without a task there is none that could end.
            None => std::future::pending().await,
        }
    }

    async fn drain(mut self, grace: Duration) {
        for (stage, cancelled) in std::mem::take(&mut self.stages) {
            let deadline = Instant::now() + grace;
            cancelled.cancel();
            while self.placed.values().any(|(_, of)| *of <= stage) {
                match timeout_at(deadline, self.running.join_next_with_id()).await {
                    Ok(Some(ended)) => {
                        let (of, how) = self.ended(ended);
                        match how {
                            Unasked::Returned { task } if of <= stage => info!(task, "Stopped"),
                            Unasked::Returned { .. } | Unasked::Panicked { .. } => {
                                error!(error = %how, "A task ended badly while others were stopped");
                            }
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        for (task, _) in self.placed.values().filter(|(_, of)| *of <= stage) {
                            warn!(task, "Did not stop in time");
                        }
                        break;
                    }
                }
            }
        }
        self.running.shutdown().await;
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) -> (Stage, Unasked) {
        let (id, panicked) = match &ended {
            Ok((id, ())) => (*id, false),
            Err(error) => (error.id(), error.is_panic()),
        };
        let (task, stage) = self.placed.remove(&id).expect("every task is placed when it starts");
        (stage, if panicked { Unasked::Panicked { task } } else { Unasked::Returned { task } })
    }
}

/// Starts the tasks that come and go. Clones share one set.
///
/// When [`end`](Self::end) is called, or the last clone outside the tasks
/// themselves is dropped, what still runs is dropped at its next await.
#[derive(Debug, Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tracker: TaskTracker,
    abort: CancellationToken,
    panics: Counter,
    _abort_on_drop: DropGuard,
}

impl Tasks {
    /// Starts with none. Each panic adds one to `panics`.
    pub fn new(panics: Counter) -> Self {
        let abort = CancellationToken::new();
        let _abort_on_drop = abort.clone().drop_guard();
        Self {
            shared: Arc::new(Shared { tracker: TaskTracker::new(), abort, panics, _abort_on_drop }),
        }
    }

    /// Starts a task in the span that is current. After [`end`](Self::end) it
    /// never gets to run.
    pub fn spawn(&self, task: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        let abort = self.shared.abort.clone();
        let watch = PanicWatch { task, panics: self.shared.panics.clone() };
        let body = async move {
            let _watch = watch;
            abort.run_until_cancelled_owned(body).await;
        };
        self.shared.tracker.spawn(body.in_current_span());
    }

    /// Returns how many tasks run.
    pub fn len(&self) -> usize {
        self.shared.tracker.len()
    }

    /// Tells whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.shared.tracker.is_empty()
    }

    /// Waits until every task has ended, and drops those that have not by `deadline`.
    pub async fn end(&self, deadline: Instant) {
        self.shared.tracker.close();
        if timeout_at(deadline, self.shared.tracker.wait()).await.is_err() {
            warn!(left = self.len(), "Tasks did not end in time and are dropped");
        }
        self.shared.abort.cancel();
        self.shared.tracker.wait().await;
    }
}

/// Counts a panic of the task that holds it, while that task unwinds.
struct PanicWatch {
    task: &'static str,
    panics: Counter,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.panics.inc();
            error!(task = self.task, "A task panicked, the others go on");
        }
    }
}
