//! Which sessions this gateway carries, and the list by which they are ended.
//!
//! A link is registered before its broker is asked, so that a session that ends
//! between the broker's answer and the first byte has nothing that could come
//! up later. The registry decides between links of one session by their number
//! alone; it knows no ticket and carries nothing. What it keeps is the desktop's side
//! of a session that has lost its link, until the next one comes for it or the
//! pool's `hold` is over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tegata_edge::Connection;
use tegata_edge::connection::{Account, DesktopSide, Traffic};
use tegata_edge::network::{NetworkClass, NetworkClasses};
use tegata_proto::code::Code;
use tegata_proto::id::{Epoch, Incarnation, LinkNumber, SessionId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// How many links of one session may be attaching or carried at a time.
pub const LINKS_MAX: usize = 8;

/// How long the desktop's side of a superseded link waits for the link that took its
/// place, where the pool's `hold` is shorter.
const HANDOVER: Duration = Duration::from_secs(10);

/// How often sessions without a link are looked at.
const HOLDS_LOOKED_AT: Duration = Duration::from_secs(1);

/// How often it is looked at where links come from. One that is found elsewhere twice in
/// a row has moved; before that, QUIC may not have shown yet that its agent is there.
pub const PLACES_LOOKED_AT: Duration = Duration::from_secs(1);

/// The links of all sessions here.
pub struct Sessions {
    metrics: Metrics,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    draining: bool,
    sessions: HashMap<SessionId, Entry>,
}

/// One session, as long as it has a link here, or its desktop's side is held.
/// Afterwards the broker alone remembers its numbers.
#[derive(Default)]
struct Entry {
    accepted: Option<LinkNumber>,
    links: Vec<Arc<Link>>,
    held: Option<Held>,
}

/// The desktop's side of a session without a link.
struct Held {
    incarnation: Incarnation,
    side: DesktopSide,
    until: Instant,
}

struct Link {
    sid: SessionId,
    number: LinkNumber,
    now: Mutex<Now>,
    /// Told when the class of its network is another one.
    moved: Notify,
    connection: OnceLock<Connection>,
    accepted: OnceLock<Accepted>,
    cause: OnceLock<Stop>,
    stop: CancellationToken,
    stopped: CancellationToken,
    traffic: Arc<Traffic>,
    /// What it carries, once it does.
    carried: OnceLock<(Incarnation, Account)>,
}

/// What may change while a link lasts.
struct Now {
    remote: SocketAddr,
    class: NetworkClass,
    /// Whether it was found in a network of another class at the last look.
    is_away: bool,
    input_minutes: Option<u32>,
}

struct Accepted {
    epoch: Epoch,
    target: SocketAddr,
    at: Instant,
}

/// Why a link has to stop at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The session was ended.
    Ended(Code),
    /// A link with a higher number was accepted.
    Superseded,
    /// The gateway is going out of service.
    Draining,
}

/// Why a link is not even tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotBegun {
    /// An equal or higher number was accepted before.
    #[error("the link's number is not above the accepted one")]
    Stale,
    /// The session has [`LINKS_MAX`] links here.
    #[error("the session has too many links")]
    TooMany,
    /// Nothing new is taken.
    #[error("the gateway is draining")]
    Draining,
}

/// A link that is carried, or about to be.
#[derive(Debug, Clone)]
pub struct LiveLink {
    /// The session.
    pub sid: SessionId,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// The link's number.
    pub link: LinkNumber,
    /// Where the agent is.
    pub remote: SocketAddr,
    /// The class of that place.
    pub class: NetworkClass,
    /// The desktop.
    pub target: SocketAddr,
    /// How long ago the broker's answer was accepted.
    pub age: Duration,
    /// Bytes written onward to the desktop so far.
    pub bytes_up: u64,
    /// Bytes sent onward to the agent so far.
    pub bytes_down: u64,
    /// When the last byte was carried.
    pub last_byte_at: Option<SystemTime>,
}

/// What is known of a session whose last byte has been carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// When the last byte of any of its links was carried.
    pub last_byte_at: Option<SystemTime>,
}

impl Sessions {
    /// Starts with no session.
    pub fn new(metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { metrics, table: Mutex::default() })
    }

    /// Registers a link that is about to ask its broker.
    ///
    /// # Errors
    ///
    /// Refuses a number that is not above the accepted one, and what finds no room.
    pub fn begin(
        self: &Arc<Self>,
        sid: SessionId,
        number: LinkNumber,
        remote: SocketAddr,
        class: NetworkClass,
    ) -> Result<Registration, NotBegun> {
        let mut table = self.table();
        if table.draining {
            return Err(NotBegun::Draining);
        }
        let known = table.sessions.get(&sid);
        if known.and_then(|entry| entry.accepted).is_some_and(|accepted| number <= accepted) {
            return Err(NotBegun::Stale);
        }
        if known.is_some_and(|entry| entry.links.len() >= LINKS_MAX) {
            return Err(NotBegun::TooMany);
        }
        let link = Arc::new(Link {
            sid,
            number,
            now: Mutex::new(Now { remote, class, is_away: false, input_minutes: None }),
            moved: Notify::new(),
            connection: OnceLock::new(),
            accepted: OnceLock::new(),
            cause: OnceLock::new(),
            stop: CancellationToken::new(),
            stopped: CancellationToken::new(),
            traffic: Arc::new(Traffic::new(
                self.metrics.bytes_up.clone(),
                self.metrics.bytes_down.clone(),
            )),
            carried: OnceLock::new(),
        });
        table.sessions.entry(sid).or_default().links.push(link.clone());
        drop(table);
        Ok(Registration { sessions: self.clone(), link })
    }

    /// Ends every link of a session, carried or attaching, and its desktop's connection,
    /// and returns once the last one carries nothing any more; `None` if there was
    /// neither.
    ///
    /// The broker commits the end first: a link that asks later is refused there.
    pub async fn end(&self, sid: SessionId, cause: Code) -> Option<Ended> {
        let links = {
            let table = self.table();
            let links = table.sessions.get(&sid)?.links.clone();
            for link in &links {
                link.stop(Stop::Ended(cause));
            }
            links
        };
        for link in &links {
            link.stopped.cancelled().await;
        }
        // A link that was superseded just before has left its side here.
        self.let_go(sid);
        Some(Ended { last_byte_at: links.iter().filter_map(|l| l.traffic.last_byte_at()).max() })
    }

    /// Takes no new link from now on; those that are carried go on.
    pub fn drain(&self) {
        self.table().draining = true;
    }

    /// Takes no new link, ends all there are, and returns once nothing is
    /// carried.
    pub async fn end_all(&self) {
        let links: Vec<Arc<Link>> = {
            let mut table = self.table();
            table.draining = true;
            table.sessions.values().flat_map(|entry| entry.links.iter().cloned()).collect()
        };
        for link in &links {
            link.stop(Stop::Draining);
        }
        for link in &links {
            link.stopped.cancelled().await;
        }
        self.let_go_of(|_| true);
    }

    /// Lets desktops go whose `hold` is over, or of whom nothing more can come, for ever.
    pub async fn watch_holds(&self) {
        loop {
            tokio::time::sleep(HOLDS_LOOKED_AT).await;
            let now = Instant::now();
            self.let_go_of(|held| held.until <= now || held.side.is_over());
        }
    }

    /// Looks for ever at where links come from.
    pub async fn watch_places(&self, classes: &NetworkClasses) {
        loop {
            tokio::time::sleep(PLACES_LOOKED_AT).await;
            // Not under the lock of the table: a connection may be busy.
            let links: Vec<Arc<Link>> = {
                let table = self.table();
                table.sessions.values().flat_map(|entry| entry.links.iter().cloned()).collect()
            };
            for link in links {
                link.look(classes, &self.metrics);
            }
        }
    }

    /// Lets the desktop's side of a session go, if it is held.
    fn let_go(&self, sid: SessionId) {
        let mut table = self.table();
        let held = table.sessions.get_mut(&sid).and_then(|entry| entry.held.take());
        table.tidy(sid);
        drop(table);
        self.metrics.let_go(usize::from(held.is_some()));
    }

    fn let_go_of(&self, which: impl Fn(&Held) -> bool) {
        let mut table = self.table();
        let gone: Vec<SessionId> = table
            .sessions
            .iter()
            .filter(|(_, entry)| entry.held.as_ref().is_some_and(&which))
            .map(|(sid, _)| *sid)
            .collect();
        for sid in &gone {
            if let Some(entry) = table.sessions.get_mut(sid) {
                entry.held = None;
            }
            table.tidy(*sid);
        }
        drop(table);
        self.metrics.let_go(gone.len());
    }

    /// Lists every link that the broker and this registry have accepted.
    pub fn live(&self) -> Vec<LiveLink> {
        let table = self.table();
        table.sessions.values().flat_map(|entry| &entry.links).filter_map(|l| l.live()).collect()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change of the table is whole before anything in it can panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Forgets a session that has nothing here.
    fn tidy(&mut self, sid: SessionId) {
        if self
            .sessions
            .get(&sid)
            .is_some_and(|entry| entry.links.is_empty() && entry.held.is_none())
        {
            self.sessions.remove(&sid);
        }
    }
}

impl Link {
    fn stop(&self, cause: Stop) {
        // The first cause is the one that is told.
        let _ = self.cause.set(cause);
        self.stop.cancel();
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        // Every change is whole.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at where it comes from.
    fn look(&self, classes: &NetworkClasses, metrics: &Metrics) {
        let Some(connection) = self.connection.get() else { return };
        let found = connection.remote_address();
        let found = SocketAddr::new(found.ip().to_canonical(), found.port());
        let class = classes.class_of(found.ip());
        let mut now = self.now();
        if self.stopped.is_cancelled() {
            return;
        }
        // Whoever changes ports, or goes from one strange place to the next, is away as well.
        let (was_away, is_away) = (now.is_away, now.class != *class);
        now.is_away = is_away;
        if !is_away {
            now.remote = found;
        } else if was_away {
            (now.remote, now.is_away) = (found, false);
            metrics.link_left(&now.class);
            metrics.link_began(class);
            now.class = class.clone();
            drop(now);
            self.moved.notify_one();
        }
    }

    fn live(&self) -> Option<LiveLink> {
        let Accepted { epoch, target, at } = self.accepted.get()?;
        let (remote, class) = {
            let now = self.now();
            (now.remote, now.class.clone())
        };
        Some(LiveLink {
            sid: self.sid,
            epoch: *epoch,
            link: self.number,
            remote,
            class,
            target: *target,
            age: at.elapsed(),
            bytes_up: self.traffic.up(),
            bytes_down: self.traffic.down(),
            last_byte_at: self.traffic.last_byte_at(),
        })
    }
}

/// A link's entry in the registry. It is taken out by [`Registration::leave`],
/// at the latest when it is dropped.
pub struct Registration {
    sessions: Arc<Sessions>,
    link: Arc<Link>,
}

impl Registration {
    /// Accepts the link after the broker's answer: stops every lower link of the
    /// session, and returns once none of them carries anything.
    ///
    /// # Errors
    ///
    /// Tells why the link itself has to stop instead.
    pub async fn accept(&self, epoch: Epoch, target: SocketAddr) -> Result<(), Stop> {
        let lower = {
            let mut table = self.sessions.table();
            let link = &self.link;
            if let Some(cause) = link.cause.get() {
                return Err(*cause);
            }
            let entry = table.sessions.get_mut(&link.sid).ok_or(Stop::Superseded)?;
            if entry.accepted.is_some_and(|accepted| link.number <= accepted) {
                return Err(Stop::Superseded);
            }
            entry.accepted = Some(link.number);
            let accepted = Accepted { epoch, target, at: Instant::now() };
            if link.accepted.set(accepted).is_ok() {
                self.sessions.metrics.link_began(&link.now().class);
            }
            let lower = entry.links.iter().filter(|other| other.number < link.number);
            let lower: Vec<Arc<Link>> = lower.cloned().collect();
            for other in &lower {
                other.stop(Stop::Superseded);
            }
            lower
        };
        for other in lower {
            tokio::select! {
                biased;
                cause = self.stopping() => return Err(cause),
                () = other.stopped.cancelled() => {}
            }
        }
        Ok(())
    }

    /// Tells whether the session is on this connection to its desktop here, and could
    /// go on from this offset. While a link has only begun or is ending, nothing is carried,
    /// and that is left to the broker and to [`unshelve`](Self::unshelve).
    pub fn may_resume(&self, incarnation: Incarnation, received: u64) -> bool {
        let table = self.sessions.table();
        let Some(entry) = table.sessions.get(&self.link.sid) else { return false };
        let held = entry.held.as_ref().filter(|held| held.incarnation == incarnation);
        held.is_some_and(|held| held.side.may_resume(received))
            || entry.links.iter().filter(|link| link.accepted.get().is_some()).any(|link| {
                match link.carried.get() {
                    // It has the desktop's side and no channel yet.
                    None => true,
                    // One that is over is about to leave its side here.
                    Some((on, account)) => {
                        *on == incarnation && account.may_resume(received).unwrap_or(true)
                    }
                }
            })
    }

    /// Notes what the link carries.
    pub(crate) fn carries(&self, incarnation: Incarnation, account: Account) {
        // A link carries one thing.
        let _ = self.link.carried.set((incarnation, account));
    }

    /// Keeps the desktop's side for the session's next link, or gives it back where
    /// there is no time to keep it, or nothing to keep it for.
    pub fn shelve(
        &self,
        incarnation: Incarnation,
        side: DesktopSide,
        hold: Duration,
    ) -> Option<DesktopSide> {
        let superseded = matches!(self.link.cause.get(), Some(Stop::Superseded));
        let hold = if superseded { hold.max(HANDOVER) } else { hold };
        // The link that has taken over hears from it that the desktop has ended.
        if hold.is_zero() || (!superseded && side.is_over()) {
            return Some(side);
        }
        let kept = Held { incarnation, side, until: Instant::now() + hold };
        let mut table = self.sessions.table();
        // The link itself is in it until it leaves.
        if let Some(entry) = table.sessions.get_mut(&self.link.sid) {
            let older = entry.held.replace(kept);
            drop(table);
            self.sessions.metrics.held(older.is_none());
        }
        None
    }

    /// Takes the desktop's side that was kept for this link, if it is still there and
    /// of this incarnation. Another one is let go: the desktop is dialled again.
    pub fn unshelve(&self, incarnation: Option<Incarnation>) -> Option<DesktopSide> {
        let mut table = self.sessions.table();
        let held = table.sessions.get_mut(&self.link.sid)?.held.take();
        drop(table);
        self.sessions.metrics.let_go(usize::from(held.is_some()));
        held.filter(|held| Some(held.incarnation) == incarnation).map(|held| held.side)
    }

    /// Waits until the link has to stop.
    pub async fn stopping(&self) -> Stop {
        self.link.stop.cancelled().await;
        *self.link.cause.get().expect("the cause is set before the token is cancelled")
    }

    /// Has it looked at where this connection comes from, from now on.
    pub(crate) fn watch(&self, connection: Connection) {
        // A link has one connection.
        let _ = self.link.connection.set(connection);
    }

    /// Waits until the link comes from a network of another class than this.
    pub(crate) async fn moved_from(&self, class: &NetworkClass) {
        while self.link.now().class == *class {
            self.link.moved.notified().await;
        }
    }

    /// Returns where the link comes from.
    pub(crate) fn place(&self) -> (SocketAddr, NetworkClass) {
        let now = self.link.now();
        (now.remote, now.class.clone())
    }

    /// Notes in how many minutes the person touched the thin client.
    pub(crate) fn note_input(&self, minutes: Option<u32>) {
        self.link.now().input_minutes = minutes;
    }

    /// Returns what was noted last.
    pub(crate) fn input_minutes(&self) -> Option<u32> {
        self.link.now().input_minutes
    }

    /// Returns the session and the link's number.
    pub(crate) fn id(&self) -> (SessionId, LinkNumber) {
        (self.link.sid, self.link.number)
    }

    /// Returns what counts the link's bytes.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.link.traffic
    }

    /// Takes the link out: it carries nothing any more. May be repeated.
    pub fn leave(&self) {
        let mut table = self.sessions.table();
        let link = &self.link;
        if let Some(entry) = table.sessions.get_mut(&link.sid) {
            entry.links.retain(|other| !Arc::ptr_eq(other, link));
        }
        table.tidy(link.sid);
        drop(table);
        if !link.stopped.is_cancelled() {
            link.stopped.cancel();
            if link.accepted.get().is_some() {
                self.sessions.metrics.link_left(&link.now().class);
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.leave();
    }
}
