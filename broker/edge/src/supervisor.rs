//! The only place that starts tasks, and the order in which they stop.
//!
//! [`Supervisor`] holds the tasks that a program is made of: if one of them ends
//! without being asked, all of them end. [`Tasks`] holds the many that come and
//! go, one a connection: a panic there ends that one only, and is counted.
//! Neither lets a task outlive it. [`Thread`] is for the one loop that is no task.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::oneshot;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, error, info, info_span, warn};

/// When a task is asked to stop: lower stages first, each after the one before
/// it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage(pub u8);

/// How a task went wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// It returned before it was asked to stop.
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
    /// It was asked to stop and did not.
    #[error("task {task} did not stop in time")]
    Stuck {
        /// Name of the task.
        task: &'static str,
    },
}

/// The tasks that a program is made of.
#[derive(Debug, Default)]
pub struct Supervisor {
    running: JoinSet<()>,
    placed: HashMap<Id, (&'static str, Stage)>,
    stages: BTreeMap<Stage, CancellationToken>,
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
        let body = body(cancelled).instrument(info_span!("task", name = task));
        let id = self.running.spawn(body).id();
        self.placed.insert(id, (task, stage));
    }

    /// Runs until `stop` completes or a task ends, then stops the stages one
    /// after the other, waiting at most `grace` for each.
    ///
    /// # Errors
    ///
    /// Names the first task that went wrong.
    pub async fn run(
        mut self,
        stop: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), TaskError> {
        let mut wrong = tokio::select! {
            biased;
            ended = self.next_end() => Some(ended.1),
            () = stop => None,
        };
        if let Some(error) = &wrong {
            error!(%error, "A task ended unasked, all are stopped");
        }
        for (stage, cancelled) in std::mem::take(&mut self.stages) {
            cancelled.cancel();
            if let Err(error) = self.drain(stage, Instant::now() + grace).await {
                error!(%error, "A task went wrong while all are stopped");
                wrong.get_or_insert(error);
            }
        }
        // What is stuck is dropped with the set, at its next await.
        wrong.map_or(Ok(()), Err)
    }

    /// Waits until no task of this stage is left.
    async fn drain(&mut self, stage: Stage, deadline: Instant) -> Result<(), TaskError> {
        let mut outcome = Ok(());
        while let Some(task) = self.first_of(stage) {
            match timeout_at(deadline, self.next_end()).await {
                Ok((of, TaskError::Returned { task })) if of <= stage => info!(task, "Stopped"),
                Ok((_, wrong)) => outcome = outcome.and(Err(wrong)),
                Err(_) => return outcome.and(Err(TaskError::Stuck { task })),
            }
        }
        outcome
    }

    fn first_of(&self, stage: Stage) -> Option<&'static str> {
        self.placed.values().find(|(_, of)| *of == stage).map(|(task, _)| *task)
    }

    /// Waits for the next task that ends, asked or not.
    async fn next_end(&mut self) -> (Stage, TaskError) {
        let (id, panicked) = match self.running.join_next_with_id().await {
            Some(Ok((id, ()))) => (id, false),
            Some(Err(error)) => (error.id(), error.is_panic()),
            // Without a task there is none that could end.
            None => std::future::pending().await,
        };
        let (task, stage) = self.placed.remove(&id).expect("every task is placed when it starts");
        (stage, if panicked { TaskError::Panicked { task } } else { TaskError::Returned { task } })
    }
}

/// Starts the tasks that come and go. Clones share one set.
///
/// When [`end`](Self::end) gives up, or the last clone is dropped, what still
/// runs is dropped at its next await. So a task must hold no clone itself.
#[derive(Debug, Clone)]
pub struct Tasks {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tracker: TaskTracker,
    abort: CancellationToken,
    panics: Counter,
}

impl Tasks {
    /// Starts with none. Each panic adds one to `panics`.
    pub fn new(panics: Counter) -> Self {
        let abort = CancellationToken::new();
        Self { shared: Arc::new(Shared { tracker: TaskTracker::new(), abort, panics }) }
    }

    /// Starts a task in the span that is current. After [`end`](Self::end) it
    /// never gets to run.
    pub fn spawn(&self, task: &'static str, body: impl Future<Output = ()> + Send + 'static) {
        let abort = self.shared.abort.clone();
        let watch = PanicWatch { task, panics: self.shared.panics.clone() };
        // Each layer around a future keeps room for it anew.
        let body = Box::pin(body);
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

impl Drop for Shared {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

/// An operating system's thread, for what must not wait its turn among tasks. It
/// belongs to one task, which tells it to end and waits for that.
pub(crate) struct Thread {
    handle: Option<JoinHandle<()>>,
    over: oneshot::Receiver<()>,
}

impl Thread {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// Passes on that the system gives none.
    pub(crate) fn start(
        name: &'static str,
        body: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let (running, over) = oneshot::channel();
        let body = move || {
            let _running = running;
            body();
        };
        let handle = Some(thread::Builder::new().name(name.into()).spawn(body)?);
        Ok(Self { handle, over })
    }

    /// Waits until it has ended, and panics as it did.
    pub(crate) async fn ended(&mut self) {
        if self.handle.is_some() {
            // Only its end drops the other side.
            let _ = (&mut self.over).await;
        }
        if let Some(Err(panic)) = self.handle.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Counts a panic of the task that holds it, while that task unwinds.
struct PanicWatch {
    task: &'static str,
    panics: Counter,
}

impl Drop for PanicWatch {
    fn drop(&mut self) {
        if thread::panicking() {
            self.panics.inc();
            error!(task = self.task, "A task panicked, the others go on");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Far longer than anything here takes.
    const GRACE: Duration = Duration::from_secs(20);

    fn log() -> (Arc<Mutex<Vec<&'static str>>>, impl Fn(&'static str) + Clone) {
        let log = Arc::new(Mutex::new(Vec::new()));
        let write = {
            let log = Arc::clone(&log);
            move |line| log.lock().unwrap().push(line)
        };
        (log, write)
    }

    fn obedient(
        supervisor: &mut Supervisor,
        task: &'static str,
        stage: u8,
        write: impl Fn(&'static str) + Send + 'static,
    ) {
        supervisor.spawn(task, Stage(stage), |cancelled| async move {
            cancelled.cancelled().await;
            tokio::task::yield_now().await;
            write(task);
        });
    }

    #[tokio::test]
    async fn stages_stop_one_after_the_other() {
        let (log, write) = log();
        let mut supervisor = Supervisor::new();
        obedient(&mut supervisor, "last", 9, write.clone());
        obedient(&mut supervisor, "first", 0, write.clone());
        obedient(&mut supervisor, "middle", 5, write);
        assert_eq!(supervisor.run(async {}, GRACE).await, Ok(()));
        assert_eq!(*log.lock().unwrap(), ["first", "middle", "last"]);
    }

    #[tokio::test]
    async fn a_task_that_returns_unasked_ends_all() {
        let (log, write) = log();
        let mut supervisor = Supervisor::new();
        obedient(&mut supervisor, "good", 1, write);
        supervisor.spawn("hasty", Stage(2), |_| async {});
        let ended = supervisor.run(std::future::pending(), GRACE).await;
        assert_eq!(ended, Err(TaskError::Returned { task: "hasty" }));
        assert_eq!(*log.lock().unwrap(), ["good"]);
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_all() {
        let (log, write) = log();
        let mut supervisor = Supervisor::new();
        obedient(&mut supervisor, "good", 1, write);
        supervisor.spawn("bad", Stage(0), |_| async { panic!("as asked") });
        let ended = supervisor.run(std::future::pending(), GRACE).await;
        assert_eq!(ended, Err(TaskError::Panicked { task: "bad" }));
        assert_eq!(*log.lock().unwrap(), ["good"]);
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_named_and_dropped() {
        let (log, write) = log();
        let mut supervisor = Supervisor::new();
        let (dropped, gone) = oneshot::channel::<()>();
        supervisor.spawn("deaf", Stage(0), |_| async move {
            let _dropped = dropped;
            std::future::pending::<()>().await;
        });
        obedient(&mut supervisor, "good", 1, write);
        let ended = supervisor.run(async {}, Duration::from_millis(20)).await;
        assert_eq!(ended, Err(TaskError::Stuck { task: "deaf" }));
        assert_eq!(*log.lock().unwrap(), ["good"], "the next stage stops all the same");
        timeout_at(Instant::now() + GRACE, gone).await.expect("dropped").unwrap_err();
    }

    #[tokio::test]
    async fn a_panic_among_many_is_counted_and_ends_no_other() {
        let panics = Counter::default();
        let tasks = Tasks::new(panics.clone());
        let (sender, answer) = oneshot::channel();
        tasks.spawn("bad", async { panic!("as asked") });
        tasks.spawn("good", async move { sender.send(1).unwrap() });
        tasks.end(Instant::now() + GRACE).await;
        assert_eq!((answer.await, panics.get()), (Ok(1), 1));
    }

    #[tokio::test]
    async fn a_thread_ends_whoever_waits_for_it_the_way_it_ended() {
        let mut good = Thread::start("good", || {}).expect("a thread");
        timeout_at(Instant::now() + GRACE, good.ended()).await.expect("it has ended");
        let mut supervisor = Supervisor::new();
        supervisor.spawn("bad", Stage(0), |_| async {
            Thread::start("bad", || panic!("as asked")).expect("a thread").ended().await;
        });
        let ended = supervisor.run(std::future::pending(), GRACE).await;
        assert_eq!(ended, Err(TaskError::Panicked { task: "bad" }));
    }

    #[tokio::test]
    async fn no_task_outlives_its_set() {
        for end in [true, false] {
            let tasks = Tasks::new(Counter::default());
            let (held, gone) = oneshot::channel::<()>();
            tasks.spawn("deaf", async move {
                let _held = held;
                std::future::pending::<()>().await;
            });
            if end {
                let end = tasks.end(Instant::now());
                timeout_at(Instant::now() + GRACE, end).await.expect("it gives up");
            }
            drop(tasks);
            timeout_at(Instant::now() + GRACE, gone).await.expect("dropped").unwrap_err();
        }
    }
}
