//! The one task that writes.
//!
//! It takes the commands that wait, performs them in one transaction, and
//! answers them after its commit: many commands share one `fsync`. If one of them
//! fails, the transaction is undone and each is tried in one of its own, so that
//! it harms nobody else. After an error of the disk the next batch finds a
//! fresh connection, so that the store heals when the disk does.

use std::sync::Arc;

use async_trait::async_trait;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::FileLock;
use crate::ports::store::StoreError;

/// Most commands that share one commit.
pub(super) const BATCH_MAX: usize = 128;

/// Most commands that wait for the writer; further callers wait to get in.
pub(super) const WAITING_MAX: usize = 1024;

/// A command: what one method of the store does in its transaction.
///
/// It may be performed a second time after its first attempt was undone.
#[async_trait]
pub(super) trait Command: Send + Sync + 'static {
    /// What the caller gets once it is committed; a refusal is an answer too.
    type Answer: Send + 'static;

    /// Reads, decides and writes. After an error nothing of it stays.
    async fn perform(&self, tx: &mut SqliteConnection) -> Result<Self::Answer, StoreError>;
}

/// A command and the caller who waits for it.
struct Waiting<C: Command> {
    command: C,
    caller: oneshot::Sender<Result<C::Answer, StoreError>>,
    answer: Option<C::Answer>,
}

#[async_trait]
trait Job: Send {
    fn is_wanted(&self) -> bool;
    async fn perform(&mut self, tx: &mut SqliteConnection) -> Result<(), StoreError>;
    fn committed(self: Box<Self>);
    fn failed(self: Box<Self>, error: StoreError);
}

#[async_trait]
impl<C: Command> Job for Waiting<C> {
    fn is_wanted(&self) -> bool {
        !self.caller.is_closed()
    }

    async fn perform(&mut self, tx: &mut SqliteConnection) -> Result<(), StoreError> {
        self.answer = None;
        self.answer = Some(self.command.perform(tx).await?);
        Ok(())
    }

    // A caller that is gone meanwhile takes nothing back.
    fn committed(self: Box<Self>) {
        if let Some(answer) = self.answer {
            let _ = self.caller.send(Ok(answer));
        }
    }

    fn failed(self: Box<Self>, error: StoreError) {
        let _ = self.caller.send(Err(error));
    }
}

/// Upper bounds of the buckets for a command's time, in seconds.
const WRITE_BUCKETS: [f64; 10] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 5.0, 10.0];

/// The way to the writer.
#[derive(Clone)]
pub(super) struct Commands {
    way: mpsc::Sender<Box<dyn Job>>,
    took: Histogram,
    failed: Counter,
}

impl Commands {
    /// Has a command performed and waits until it is durable.
    pub(super) async fn send<C: Command>(&self, command: C) -> Result<C::Answer, StoreError> {
        let (caller, answer) = oneshot::channel();
        let job = Box::new(Waiting { command, caller, answer: None });
        let begun = Instant::now();
        let outcome = match self.way.send(job).await {
            Ok(()) => answer.await.unwrap_or_else(|gone| Err(stopped(gone))),
            Err(gone) => Err(stopped(gone)),
        };
        self.took.observe(begun.elapsed().as_secs_f64());
        if outcome.is_err() {
            self.failed.inc();
        }
        outcome
    }

    /// Has what is counted here shown.
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("store");
        let help = "Time until a change was durable, or failed";
        registry.register("write_seconds", help, self.took.clone());
        registry.register("write_failures", "Changes that were not stored", self.failed.clone());
    }
}

fn stopped(_: impl Sized) -> StoreError {
    StoreError::Unavailable("the writer has stopped".into())
}

/// The task that has to run for the store to answer.
pub struct Writer {
    commands: mpsc::Receiver<Box<dyn Job>>,
    options: SqliteConnectOptions,
    connection: Option<SqliteConnection>,
    _lock: Arc<FileLock>,
}

impl Writer {
    pub(super) fn new(
        options: SqliteConnectOptions,
        connection: SqliteConnection,
        lock: Arc<FileLock>,
    ) -> (Commands, Self) {
        let (sender, commands) = mpsc::channel(WAITING_MAX);
        let (took, failed) = (Histogram::new(WRITE_BUCKETS), Counter::default());
        let commands_in = Commands { way: sender, took, failed };
        (commands_in, Self { commands, options, connection: Some(connection), _lock: lock })
    }

    /// Writes until cancelled or until the last store handle is gone; what waits
    /// by then is still done.
    pub async fn run(mut self, cancelled: CancellationToken) {
        loop {
            let first = tokio::select! {
                biased;
                () = cancelled.cancelled(), if !self.commands.is_closed() => {
                    self.commands.close();
                    continue;
                }
                first = self.commands.recv() => first,
            };
            let Some(first) = first else { break };
            self.batch(first).await;
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            warn!(error = &error as &dyn std::error::Error, "The store did not close cleanly");
        }
    }

    /// Performs a command and all that wait behind it, up to the limit.
    async fn batch(&mut self, first: Box<dyn Job>) {
        let mut jobs = Vec::new();
        let mut next = Some(first);
        let mut performed = self.begin().await;
        while let Some(mut job) = next.take() {
            if job.is_wanted() {
                if performed.is_ok() {
                    performed = self.perform(job.as_mut()).await;
                }
                jobs.push(job);
            }
            if performed.is_ok() && jobs.len() < BATCH_MAX {
                next = self.commands.try_recv().ok();
            }
        }
        match performed {
            Ok(()) => self.commit(jobs).await,
            Err(error) => {
                self.undo().await;
                if jobs.len() == 1 {
                    fail(jobs, error);
                } else {
                    self.one_by_one(jobs).await;
                }
            }
        }
    }

    async fn one_by_one(&mut self, jobs: Vec<Box<dyn Job>>) {
        for mut job in jobs {
            let mut performed = self.begin().await;
            if performed.is_ok() {
                performed = self.perform(job.as_mut()).await;
            }
            match performed {
                Ok(()) => self.commit(vec![job]).await,
                Err(error) => {
                    self.undo().await;
                    fail(vec![job], error);
                }
            }
        }
    }

    async fn begin(&mut self) -> Result<(), StoreError> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(self.options.connect().await?),
        };
        sqlx::query("BEGIN IMMEDIATE").execute(connection).await?;
        Ok(())
    }

    async fn perform(&mut self, job: &mut dyn Job) -> Result<(), StoreError> {
        match &mut self.connection {
            Some(connection) => job.perform(connection).await,
            None => Err(stopped(())),
        }
    }

    async fn commit(&mut self, jobs: Vec<Box<dyn Job>>) {
        let committed = match &mut self.connection {
            Some(connection) => sqlx::query("COMMIT").execute(connection).await.map(drop),
            None => Err(sqlx::Error::WorkerCrashed),
        };
        match committed {
            Ok(()) => jobs.into_iter().for_each(Job::committed),
            Err(error) => {
                self.undo().await;
                fail(jobs, error.into());
            }
        }
    }

    /// Undoes the open transaction, by closing the connection if need be.
    async fn undo(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        if sqlx::query("ROLLBACK").execute(&mut connection).await.is_ok() {
            self.connection = Some(connection);
        } else if let Err(error) = connection.close().await {
            warn!(error = &error as &dyn std::error::Error, "A failed connection did not close");
        }
    }
}

/// Tells everybody the same bad news.
fn fail(jobs: Vec<Box<dyn Job>>, error: StoreError) {
    error!(error = &error as &dyn std::error::Error, commands = jobs.len(), "The store failed");
    match error {
        StoreError::Corrupt { what } => {
            for job in jobs {
                job.failed(StoreError::Corrupt { what });
            }
        }
        StoreError::Unavailable(source) => {
            let shared: Arc<dyn std::error::Error + Send + Sync> = source.into();
            for job in jobs {
                job.failed(StoreError::Unavailable(Box::new(shared.clone())));
            }
        }
    }
}
