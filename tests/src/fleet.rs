//! Many people at work in one process, where a program for each would be too much: the agent
//! library carries out a whole run for everybody, as the program does.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tegata_agent::arguments::Server;
use tegata_agent::progress::{Event, Person};
use tegata_agent::run::Run;
use tegata_agent::viewer::Viewer;
use tegata_agent::{Agent, Authority, Wishes};
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::PoolName;
use tegata_proto::login::PoolOffer;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::site::Site;
use crate::wait;

/// Threads that all of them share.
const THREADS: usize = 2;

/// Where people at work are.
pub struct Fleet {
    runtime: Runtime,
    authority: Authority,
    server: Server,
}

/// Somebody at work. Dropped, their run is cut off.
pub struct Worker {
    told: Arc<Told>,
    stop: CancellationToken,
    run: JoinHandle<Code>,
}

/// What the desktop's bytes are shown with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// A loopback port, for one connection.
    Forwarded,
    /// Nothing: they are read and dropped.
    Nowhere,
}

#[derive(Default)]
struct Told {
    events: Mutex<Vec<(Instant, Event)>>,
    changed: Condvar,
}

impl Fleet {
    /// Opens a place for the people of a site, who go to its broker by this address. It is on the
    /// host of the thread that calls this.
    ///
    /// # Errors
    ///
    /// When the site has no authority, or threads cannot be started.
    pub fn open(site: &Site, server: SocketAddr) -> Result<Self> {
        let authority = fs::read(site.path("ca.pem")).context("the site has no CA")?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("fleet")
            .enable_all()
            .build()?;
        let server = Server { host: server.ip().to_string(), port: server.port() };
        Ok(Self { runtime, authority: Authority::from_pem(&authority)?, server })
    }

    /// Begins a run, with sockets of its own.
    ///
    /// # Errors
    ///
    /// When there is no socket, or nobody could be called that.
    pub fn log_in(&self, name: &str, password: &str, shown: Shown) -> Result<Worker> {
        let agent = {
            let _inside = self.runtime.enter();
            Agent::new(self.authority.clone())?
        };
        let viewer = match shown {
            Shown::Forwarded => Viewer::Forward((Ipv4Addr::LOCALHOST, 0).into()),
            Shown::Nowhere => Viewer::Nothing,
        };
        let wishes = Wishes::new(name, Secret::new(password.to_owned()))?;
        let run = Run { server: self.server.clone(), viewer, wishes };
        let (told, stop) = (Arc::new(Told::default()), CancellationToken::new());
        let (mut person, stopped) = (Listener(Arc::clone(&told)), stop.clone());
        let run =
            self.runtime.spawn(async move { run.carry_out(&agent, &mut person, &stopped).await });
        Ok(Worker { told, stop, run })
    }

    /// Waits until a run has come to its end, and returns what it ended with.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn end(&self, mut worker: Worker) -> Result<Code> {
        worker.stop.cancel();
        let ended = self
            .runtime
            .block_on(async { tokio::time::timeout(wait::LIMIT, &mut worker.run).await });
        Ok(ended.context("the run does not end")??)
    }
}

impl Worker {
    /// Waits for the event of this number, from 0, among those that fit.
    ///
    /// # Errors
    ///
    /// When it does not come in time, or the run has ended without it.
    pub fn event(&self, number: usize, fits: impl Fn(&Event) -> bool) -> Result<(Instant, Event)> {
        let until = Instant::now() + wait::LIMIT;
        let mut events = self.told.events();
        loop {
            if let Some(found) = events.iter().filter(|(_, event)| fits(event)).nth(number) {
                return Ok(found.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            let is_over = events
                .last()
                .is_some_and(|(_, last)| matches!(last, Event::Ended { .. } | Event::Error { .. }));
            if is_over || left.is_zero() {
                let last: Vec<_> = events.iter().rev().take(5).map(|(_, event)| event).collect();
                bail!("event {number} did not come; the last were {last:?}");
            }
            (events, _) = self
                .told
                .changed
                .wait_timeout(events, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits for the attach of this number, from 0, of those that showed the desktop from its
    /// beginning.
    ///
    /// # Errors
    ///
    /// When it does not come in time.
    pub fn attached(&self, number: usize) -> Result<Instant> {
        Ok(self.event(number, |event| matches!(event, Event::Attached { .. }))?.0)
    }

    /// Waits for the desktop, and connects to it where it is forwarded. The thread that calls this
    /// is on the host of the fleet.
    ///
    /// # Errors
    ///
    /// When it is not there in time, or not forwarded.
    pub fn desktop(&self) -> Result<TcpStream> {
        let (_, attached) = self.event(0, |event| matches!(event, Event::Attached { .. }))?;
        let Event::Attached { forward: Some(address), .. } = attached else {
            bail!("the desktop is not forwarded");
        };
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(wait::LIMIT))?;
        stream.set_write_timeout(Some(wait::LIMIT))?;
        Ok(stream)
    }

    /// Counts the events so far that fit.
    pub fn count(&self, fits: impl Fn(&Event) -> bool) -> usize {
        self.told.events().iter().filter(|(_, event)| fits(event)).count()
    }

    /// Returns how long ago each event came, with what it was, for whoever looks into it.
    pub fn story(&self) -> Vec<(Duration, Event)> {
        self.told.events().iter().map(|(at, event)| (at.elapsed(), event.clone())).collect()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.run.abort();
    }
}

impl Told {
    fn events(&self) -> MutexGuard<'_, Vec<(Instant, Event)>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Listener(Arc<Told>);

impl Person for Listener {
    fn tell(&mut self, event: &Event) {
        self.0.events().push((Instant::now(), event.clone()));
        self.0.changed.notify_all();
    }

    async fn choose(&mut self, _pools: &[PoolOffer]) -> Option<PoolName> {
        None
    }
}
