//! The way to a realm's directory: so many logins at once, the others in a fair
//! queue, and names that were refused lately in a queue of their own.
//!
//! Who is next is decided by [`tegata_domain::gate`]; here it is waited for.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tegata_domain::gate::{Entered, Gate};
use tegata_edge::source::Prefix;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::flows::waiting::Queued;

/// Most logins that wait in one lane of a realm.
pub const QUEUE_MAX: usize = 1_024;

/// How long a login waits for its turn.
pub const QUEUE_WAIT: Duration = Duration::from_secs(30);

/// How long a login waits before it is told so; most waits are over by then.
const TELL_AFTER: Duration = Duration::from_millis(250);

/// How often it is told its place from then on.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Names that were refused lately get one slot for so many of the directory's.
const SLOTS_PER_SUSPECT: usize = 8;

/// Which queue a login waits in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// That of nearly everybody.
    Usual,
    /// That of names that were refused lately.
    Suspect,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Usual, Self::Suspect];

    /// Returns its name, as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usual => "usual",
            Self::Suspect => "suspect",
        }
    }
}

/// The way to one directory.
pub struct Turnstile {
    usual: Arc<Mutex<Waiters>>,
    suspect: Arc<Mutex<Waiters>>,
}

struct Waiters {
    gate: Gate<Prefix, u64>,
    calls: BTreeMap<u64, oneshot::Sender<Pass>>,
    serial: u64,
}

/// The right to ask the directory now; dropping it lets the next one in.
pub struct Pass {
    lane: Arc<Mutex<Waiters>>,
    since: Instant,
    used: bool,
}

/// Why a login did not get its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Turned {
    /// The queue is full, and others have a better right to it.
    #[error("the queue before the directory is full")]
    Full,
    /// It took too long.
    #[error("the queue before the directory is too slow")]
    TooSlow,
}

/// How one lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Logins that wait.
    pub waiting: usize,
    /// Logins that have passed and are not through.
    pub inside: usize,
}

impl Turnstile {
    /// Makes the way to a directory that serves so many logins at once.
    pub fn new(slots: usize) -> Self {
        let lane = |slots| {
            let gate = Gate::new(slots, QUEUE_MAX);
            Arc::new(Mutex::new(Waiters { gate, calls: BTreeMap::new(), serial: 0 }))
        };
        Self { usual: lane(slots), suspect: lane(slots / SLOTS_PER_SUSPECT) }
    }

    /// Waits for a turn; `tell` hears the place and how long it is expected to
    /// take, where anything is known about that, and at most [`QUEUE_WAIT`].
    ///
    /// # Errors
    ///
    /// The login has no turn, and asks nobody.
    pub async fn enter(
        &self,
        lane: Lane,
        from: (Prefix, NonZeroU32),
        mut tell: impl FnMut(Queued),
    ) -> Result<Pass, Turned> {
        let lane = match lane {
            Lane::Usual => &self.usual,
            Lane::Suspect => &self.suspect,
        };
        let Some((place, mut called)) = Place::take(lane, from)? else {
            return Ok(Pass::new(lane));
        };
        let deadline = Instant::now() + QUEUE_WAIT;
        let mut look = Instant::now() + TELL_AFTER;
        loop {
            match timeout_at(look.min(deadline), &mut called).await {
                Ok(Ok(pass)) => return Ok(pass),
                // Somebody with a better right has the place now.
                Ok(Err(_)) => return Err(Turned::Full),
                Err(_) if Instant::now() >= deadline => return Err(Turned::TooSlow),
                Err(_) => {}
            }
            look = Instant::now() + TELL_EVERY;
            if let Some(queued) = place.told(deadline) {
                tell(queued);
            }
        }
    }

    /// Tells how a lane stands.
    pub fn standing(&self, lane: Lane) -> Standing {
        let waiters = match lane {
            Lane::Usual => lock(&self.usual),
            Lane::Suspect => lock(&self.suspect),
        };
        Standing { waiting: waiters.gate.waiting(), inside: waiters.gate.taken() }
    }
}

/// A place in a lane; leaving is dropping it.
struct Place<'a> {
    lane: &'a Mutex<Waiters>,
    number: u64,
}

impl<'a> Place<'a> {
    /// Returns nothing where there is no need to wait.
    fn take(
        lane: &'a Mutex<Waiters>,
        from: (Prefix, NonZeroU32),
    ) -> Result<Option<(Self, oneshot::Receiver<Pass>)>, Turned> {
        let mut waiters = lock(lane);
        waiters.serial += 1;
        let number = waiters.serial;
        match waiters.gate.arrives(from, number).map_err(|_| Turned::Full)? {
            Entered::Passes => return Ok(None),
            Entered::Waits => {}
            Entered::WaitsInsteadOf(other) => drop(waiters.calls.remove(&other)),
        }
        let (call, called) = oneshot::channel();
        waiters.calls.insert(number, call);
        Ok(Some((Self { lane, number }, called)))
    }

    fn told(&self, deadline: Instant) -> Option<Queued> {
        let (place, expected) = lock(self.lane).gate.place(&self.number)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let place = u32::try_from(place).unwrap_or(u32::MAX);
        Some(Queued { place, expected: expected.unwrap_or(left).min(left) })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut waiters = lock(self.lane);
        waiters.gate.gives_up(&self.number);
        waiters.calls.remove(&self.number);
    }
}

impl Pass {
    fn new(lane: &Arc<Mutex<Waiters>>) -> Self {
        Self { lane: Arc::clone(lane), since: Instant::now(), used: false }
    }

    /// Notes that the directory was asked, so that the time it takes until the
    /// pass is given back says how long others will wait.
    pub fn is_used(&mut self) {
        self.used = true;
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let held = self.used.then(|| self.since.elapsed());
        let call = {
            let mut waiters = lock(&self.lane);
            let next = waiters.gate.leaves(held);
            next.map(|next| waiters.calls.remove(&next))
        };
        let Some(call) = call else { return };
        let pass = Self::new(&self.lane);
        // One who is gone meanwhile drops it, which lets the next one in.
        if let Some(call) = call {
            drop(call.send(pass));
        }
    }
}

fn lock(lane: &Mutex<Waiters>) -> MutexGuard<'_, Waiters> {
    // Each change of a gate is whole, so a poisoned lock hides nothing.
    lane.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(address: &str) -> (Prefix, NonZeroU32) {
        (Prefix::of(address.parse().unwrap()), NonZeroU32::MIN)
    }

    fn hush(_: Queued) {}

    #[tokio::test(start_paused = true)]
    async fn whoever_waits_is_told_and_called_and_whoever_leaves_holds_nobody_up() {
        let turnstile = Turnstile::new(1);
        let home = from("192.0.2.1");
        let first = turnstile.enter(Lane::Usual, home, hush).await.unwrap();
        let gone = turnstile.enter(Lane::Usual, home, hush);
        let mut told = Vec::new();
        let waits = turnstile.enter(Lane::Usual, home, |queued| {
            told.push(queued.place);
        });
        {
            tokio::pin!(gone);
            tokio::select! {
                biased;
                _ = &mut gone => panic!("there is one slot"),
                () = std::future::ready(()) => {}
            }
            let suspect = turnstile.enter(Lane::Suspect, home, hush).await;
            assert!(suspect.is_ok(), "the other lane is not held up");
            assert_eq!(turnstile.standing(Lane::Usual), Standing { waiting: 1, inside: 1 });
        }
        assert_eq!(turnstile.standing(Lane::Usual).waiting, 0, "it left");
        let (second, ()) = tokio::join!(waits, async {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            drop(first);
        });
        assert_eq!(told, [1, 1, 1]);
        drop(second.unwrap());
        assert_eq!(turnstile.standing(Lane::Usual), Standing { waiting: 0, inside: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_has_an_end() {
        let turnstile = Turnstile::new(1);
        let _inside = turnstile.enter(Lane::Usual, from("192.0.2.1"), hush).await.unwrap();
        let began = Instant::now();
        let turned = turnstile.enter(Lane::Usual, from("192.0.2.1"), hush).await.err();
        assert_eq!((turned, began.elapsed()), (Some(Turned::TooSlow), QUEUE_WAIT));
        assert_eq!(turnstile.standing(Lane::Usual).waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_that_fills_the_queue_makes_room_for_one_from_elsewhere() {
        let turnstile = Turnstile::new(1);
        let inside = turnstile.enter(Lane::Usual, from("192.0.2.1"), hush).await.unwrap();
        let crowd = (0..=QUEUE_MAX).map(|_| turnstile.enter(Lane::Usual, from("192.0.2.1"), hush));
        let crowd = futures_of(crowd);
        let honest = async {
            let pass = turnstile.enter(Lane::Usual, from("192.0.2.9"), hush).await.unwrap();
            drop(pass);
        };
        let ((full, served), (), ()) = tokio::join!(crowd, honest, async {
            tokio::task::yield_now().await;
            drop(inside);
        });
        assert_eq!((full, served), (2, QUEUE_MAX - 1), "one too many, and one who made room");
    }

    /// Drives all at once; counts those who found the queue full, and the served.
    async fn futures_of<F: Future<Output = Result<Pass, Turned>>>(
        calls: impl Iterator<Item = F>,
    ) -> (usize, usize) {
        let mut calls: Vec<_> = calls.map(Box::pin).map(Some).collect();
        let (mut full, mut served) = (0, 0);
        std::future::poll_fn(move |context| {
            let mut moved = true;
            while std::mem::take(&mut moved) {
                for call in &mut calls {
                    let Some(waiting) = call else { continue };
                    if let std::task::Poll::Ready(done) = waiting.as_mut().poll(context) {
                        *call = None;
                        moved = true;
                        match done {
                            Ok(pass) => {
                                served += 1;
                                drop(pass);
                            }
                            Err(_) => full += 1,
                        }
                    }
                }
            }
            if calls.iter().all(Option::is_none) {
                std::task::Poll::Ready((full, served))
            } else {
                std::task::Poll::Pending
            }
        })
        .await
    }
}
