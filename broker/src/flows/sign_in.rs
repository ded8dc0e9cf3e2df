//! Whether a name and a password are somebody's.
//!
//! The order is: the source's own limit; the directory's search, after a turn in
//! the queue before it; the person's budget; one bind. Every refusal reads alike
//! and is answered at a point of a fixed grid, after the time that a search with
//! a bind nearly always takes: neither text nor time tells a stranger anything
//! about a name, whether a bind was needed or not. A directory that cannot answer
//! is no refusal.
//!
//! What is counted is decided by [`tegata_domain::throttle`].

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tegata_domain::latency::Latency;
use tegata_domain::throttle::{Fill, Outcome, SourceLimits, Throttle, Throttled, Try};
use tegata_edge::network::NetworkClass;
use tegata_edge::source::Prefix;
use tegata_proto::code::Code;
use tegata_proto::id::{RealmName, UserId};
use tegata_proto::login::Password;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use crate::flows::turnstile::{Lane, Turnstile};
use crate::flows::waiting::Queued;
use crate::metrics::{Metrics, Phase, Refusal};
use crate::ports::clock::Clock;
use crate::ports::directory::{
    Directory, DirectoryError, Found, LoginName, NonEmptyPassword, Person, Verdict,
};
use crate::ports::store::Familiarity;

pub use gauges::Gauges;

use lines::Lines;

mod gauges;
mod lines;

/// Distance between the points at which refusals are answered.
pub const REFUSAL_GRID: Duration = Duration::from_millis(500);

/// How long a directory may take for one login, search and bind together, once
/// it has its turn. An agent is told within 5 s that the directory cannot answer.
pub const DIRECTORY_LIMIT: Duration = Duration::from_secs(4);

/// How long a search with a bind is taken to last before one was seen.
const ASSUMED: Duration = Duration::from_millis(900);

/// Those who wait for the outcome of somebody else's bind are woken in so many
/// groups.
const WAKE_GROUPS: usize = 64;

/// Where a login comes from.
#[derive(Debug, Clone, Copy)]
pub struct Visitor<'a> {
    /// Its address or network.
    pub source: Prefix,
    /// What that source may do.
    pub limits: &'a SourceLimits,
}

/// Why nobody was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// What the agent is told.
    pub code: Code,
    /// When to try again, where that is known.
    pub retry_after: Option<Duration>,
}

impl From<Code> for Denied {
    fn from(code: Code) -> Self {
        Self { code, retry_after: None }
    }
}

/// What sources may do, by the class of their network.
#[derive(Debug, Clone, Default)]
pub struct SourceRules {
    /// Where the class has none of its own.
    pub usual: SourceLimits,
    /// Those of a class.
    pub classes: BTreeMap<NetworkClass, SourceLimits>,
}

impl SourceRules {
    /// Returns what a source of this class may do.
    pub fn of(&self, class: &NetworkClass) -> &SourceLimits {
        self.classes.get(class).unwrap_or(&self.usual)
    }
}

/// Asks the realms' directories.
pub struct SignIn {
    /// In the order of the configuration; never empty.
    realms: Vec<Realm>,
    throttle: Mutex<Throttle<Prefix>>,
    settled: [Notify; WAKE_GROUPS],
    familiarity: Arc<dyn Familiarity>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    lines: Lines,
    began: Instant,
}

/// A directory and the way to it.
pub struct Realm {
    /// The directory.
    pub directory: Arc<dyn Directory>,
    /// Who may ask it now.
    pub turnstile: Turnstile,
    /// How long a search with a bind takes.
    full: Mutex<Latency>,
}

/// What happens to one login, as far as its answer's time depends on it.
struct Course {
    asked: Instant,
    /// Since when only the directory's own time counts.
    passed: Instant,
    /// Which directory, by its place in the list.
    realm: Option<usize>,
}

impl SignIn {
    /// Puts the directories behind their queues. The seed is random and secret.
    pub fn new(
        directories: Vec<Arc<dyn Directory>>,
        seed: [u64; 2],
        familiarity: Arc<dyn Familiarity>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        let realm = |directory: Arc<dyn Directory>| Realm {
            turnstile: Turnstile::new(directory.serves_at_once()),
            full: Mutex::new(Latency::new(ASSUMED)),
            directory,
        };
        Self {
            realms: directories.into_iter().map(realm).collect(),
            throttle: Mutex::new(Throttle::new(seed)),
            settled: std::array::from_fn(|_| Notify::new()),
            familiarity,
            clock,
            metrics,
            lines: Lines::default(),
            began: Instant::now(),
        }
    }

    /// Returns the realms that a person may name.
    pub fn names(&self) -> Vec<RealmName> {
        self.realms.iter().map(|realm| realm.directory.realm().clone()).collect()
    }

    /// Returns the realms with their queues.
    pub fn realms(&self) -> &[Realm] {
        &self.realms
    }

    /// Tells how full the tables of the throttle are.
    pub fn fill(&self) -> Fill {
        let now = self.now();
        self.throttle().fill(now)
    }

    /// Returns the person whom name and password belong to; `tell` hears of a
    /// queue before the directory.
    ///
    /// # Errors
    ///
    /// `refused` for everything that is wrong with name or password, `throttled`
    /// where the source has tried too much, `unavailable` where the directory
    /// could not be asked.
    pub async fn authenticate(
        &self,
        password: Password,
        visitor: Visitor<'_>,
        tell: impl FnMut(Queued),
    ) -> Result<Person, Denied> {
        let asked = Instant::now();
        let mut course = Course { asked, passed: asked, realm: None };
        let outcome = self.decide(password, visitor, tell, &mut course).await;
        if let Err(Denied { code: Code::Refused | Code::Throttled, .. }) = outcome {
            let done = Instant::now().max(course.passed + self.usual(course.realm));
            tokio::time::sleep_until(next_point(course.asked, done)).await;
        }
        outcome
    }

    async fn decide(
        &self,
        password: Password,
        visitor: Visitor<'_>,
        tell: impl FnMut(Queued),
        course: &mut Course,
    ) -> Result<Person, Denied> {
        let now = self.now();
        let arrived = self.throttle().arrives(visitor.source, visitor.limits, now);
        arrived.map_err(|throttled| self.throttled(throttled))?;
        let Password { realm: named, name, password, .. } = password;
        let Some((n, realm)) = self.named(named.as_ref()) else {
            return Err(self.refused(visitor, None, Refusal::Malformed));
        };
        course.realm = Some(n);
        let typed = Typed { realm: realm.directory.realm(), name: &name };
        let (Ok(name), Ok(password)) = (LoginName::new(&*name), NonEmptyPassword::new(password))
        else {
            return Err(self.refused(visitor, Some(typed), Refusal::Malformed));
        };

        let suspect = self.throttle().is_suspect(typed.realm, typed.name, self.now());
        let lane = if suspect { Lane::Suspect } else { Lane::Usual };
        let entered = realm.turnstile.enter(lane, (visitor.source, visitor.limits.share), tell);
        let entered = entered.await;
        course.passed = Instant::now();
        self.metrics.queued(typed.realm, lane.as_str(), course.passed - course.asked);
        let mut pass = entered.map_err(|turned| {
            if self.may_log() {
                warn!(realm = %typed.realm, error = %turned, "Login had no turn");
            }
            Denied::from(Code::Unavailable)
        })?;
        // Those that came with it may have failed while it waited.
        let still = self.throttle().may_try(visitor.source, visitor.limits, self.now());
        still.map_err(|throttled| self.throttled(throttled))?;
        pass.is_used();
        self.ask(realm, (&name, &password), visitor, typed).await
    }

    /// Asks the directory, which has a turn for it.
    async fn ask(
        &self,
        realm: &Realm,
        (name, password): (&LoginName, &NonEmptyPassword),
        visitor: Visitor<'_>,
        typed: Typed<'_>,
    ) -> Result<Person, Denied> {
        let directory = &*realm.directory;
        let deadline = Instant::now() + DIRECTORY_LIMIT;
        let (found, searched) =
            self.timed(typed.realm, "find", deadline, directory.find(name)).await;
        let found = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Err(self.refused(visitor, Some(typed), Refusal::Unknown)),
            Err(Unasked::Ambiguous) => {
                return Err(self.refused(visitor, Some(typed), Refusal::Ambiguous));
            }
            Err(Unasked::NotDone | Unasked::NotAnswered) => return Err(Code::Unavailable.into()),
        };

        let attempt = self.attempt(&found, visitor, typed, deadline).await?;
        let verify = directory.verify(&found, password);
        let (verdict, bound) = self.timed(typed.realm, "verify", deadline, verify).await;
        match verdict {
            Ok(verdict) => {
                let took = searched + bound;
                self.metrics.phase(Phase::Directory, took);
                realm.full().observed(took, self.now());
                self.judged(attempt, &found, verdict)
            }
            Err(Unasked::NotDone | Unasked::Ambiguous) => {
                attempt.settle(Outcome::NotDone);
                Err(Code::Unavailable.into())
            }
            Err(Unasked::NotAnswered) => {
                attempt.settle(Outcome::Unknown);
                Err(Code::Unavailable.into())
            }
        }
    }

    fn judged(
        &self,
        attempt: Attempt<'_>,
        found: &Found,
        verdict: Verdict,
    ) -> Result<Person, Denied> {
        let user = found.user();
        match verdict {
            Verdict::Correct(person) if person.user == *user => {
                attempt.settle(Outcome::Right);
                return Ok(person);
            }
            Verdict::Correct(_) => {
                warn!(user.id = %user, "Directory answered with somebody else");
            }
            // As few as the person's budget.
            Verdict::Wrong { reason } => info!(user.id = %user, %reason, "Login refused"),
        }
        let (visitor, typed) = (attempt.visitor, attempt.typed);
        attempt.settle(Outcome::Wrong);
        Err(self.refused(visitor, Some(typed), Refusal::Bind))
    }

    /// Returns the right to one bind as the person, in its budget.
    async fn attempt<'a>(
        &'a self,
        found: &'a Found,
        visitor: Visitor<'a>,
        typed: Typed<'a>,
        deadline: Instant,
    ) -> Result<Attempt<'a>, Denied> {
        let user = found.user();
        let mut familiar = None;
        loop {
            // Before the look, so that what is settled meanwhile is not missed.
            let settled = self.settled_of(user).notified();
            let now = self.now();
            let tried = self.throttle().reserve(user, familiar == Some(true), now);
            match tried {
                Try::Go => {
                    return Ok(Attempt { sign_in: self, user, visitor, typed, settled: false });
                }
                Try::Spent | Try::Wait | Try::Doubtful if familiar.is_none() => {
                    familiar = Some(self.is_familiar(user, visitor.source, deadline).await);
                }
                Try::Spent => {
                    debug!(user.id = %user, reason = "budget", "Login refused");
                    return Err(self.refused(visitor, Some(typed), Refusal::Budget));
                }
                Try::Doubtful => return Err(Code::Unavailable.into()),
                Try::Wait => {
                    let woken = timeout_at(deadline, settled).await;
                    woken.map_err(|_| Denied::from(Code::Unavailable))?;
                }
            }
        }
    }

    async fn is_familiar(&self, user: &UserId, source: Prefix, deadline: Instant) -> bool {
        let source = source.to_string();
        let asked = self.familiarity.is_familiar(user, &source, self.clock.now());
        match timeout_at(deadline, asked).await {
            Ok(Ok(familiar)) => familiar,
            Ok(Err(error)) => {
                if self.may_log() {
                    warn!(error = &error as &dyn std::error::Error, "Store not read");
                }
                false
            }
            Err(_) => false,
        }
    }

    /// Waits for a directory's answer, and measures how long it takes.
    async fn timed<T>(
        &self,
        realm: &RealmName,
        operation: &'static str,
        deadline: Instant,
        answer: impl Future<Output = Result<T, DirectoryError>>,
    ) -> (Result<T, Unasked>, Duration) {
        let began = Instant::now();
        let answer = timeout_at(deadline, answer).await;
        let took = began.elapsed();
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.unasked(&error)),
            Err(_) => {
                if self.may_log() {
                    warn!(%realm, operation, "Directory is too slow");
                }
                Err(Unasked::NotAnswered)
            }
        };
        self.metrics.directory(realm, operation, took, answer.is_ok());
        (answer, took)
    }

    fn throttled(&self, throttled: Throttled) -> Denied {
        self.metrics.refusal(Refusal::Throttled);
        Denied { code: Code::Throttled, retry_after: Some(throttled.retry_after) }
    }

    /// Counts a refusal.
    fn refused(&self, visitor: Visitor<'_>, typed: Option<Typed<'_>>, why: Refusal) -> Denied {
        self.metrics.refusal(why);
        let now = self.now();
        let mut throttle = self.throttle();
        throttle.refused(visitor.source, visitor.limits, now);
        if let Some(Typed { realm, name }) = typed {
            throttle.suspect(realm, name, now);
        }
        Code::Refused.into()
    }

    fn named(&self, name: Option<&RealmName>) -> Option<(usize, &Realm)> {
        match (name, &self.realms[..]) {
            (None, [only]) => Some((0, only)),
            (None, _) => None,
            (Some(name), all) => {
                all.iter().enumerate().find(|(_, realm)| realm.directory.realm() == name)
            }
        }
    }

    /// How long a search with a bind takes nearly always; without a realm, in
    /// the slowest one.
    fn usual(&self, realm: Option<usize>) -> Duration {
        let chosen = self.realms.iter().enumerate().filter(|(n, _)| realm.is_none_or(|r| r == *n));
        chosen.map(|(_, realm)| realm.usual()).max().unwrap_or(ASSUMED)
    }

    fn settled_of(&self, user: &UserId) -> &Notify {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        let group = usize::try_from(hasher.finish() % WAKE_GROUPS as u64).unwrap_or(0);
        &self.settled[group]
    }

    /// Judges what a directory's failure is to a login.
    fn unasked(&self, error: &DirectoryError) -> Unasked {
        if self.may_log() {
            warn!(error = error as &dyn std::error::Error, "Directory gave no answer");
        }
        match error {
            DirectoryError::Ambiguous { .. } => Unasked::Ambiguous,
            DirectoryError::TimedOut { .. } | DirectoryError::CutOff { .. } => Unasked::NotAnswered,
            DirectoryError::Unavailable { .. }
            | DirectoryError::Busy { .. }
            | DirectoryError::Untrusted { .. }
            | DirectoryError::Misconfigured { .. } => Unasked::NotDone,
        }
    }

    /// Tells whether a line may be written of what a stranger can bring about.
    fn may_log(&self) -> bool {
        self.lines.may_write(self.now())
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle<Prefix>> {
        // Each change of the counters is whole, so a poisoned lock hides nothing.
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Realm {
    /// How long a search with a bind takes, but for one in a hundred.
    pub fn usual(&self) -> Duration {
        self.full().p99().min(DIRECTORY_LIMIT)
    }

    fn full(&self) -> MutexGuard<'_, Latency> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name as it came, and where it is meant to be of.
#[derive(Clone, Copy)]
struct Typed<'a> {
    realm: &'a RealmName,
    name: &'a str,
}

/// One bind that holds its place in the person's budget. Where its outcome is
/// never said, as when the agent leaves while the directory is asked, it counts
/// as a failure: leaving must not pay.
struct Attempt<'a> {
    sign_in: &'a SignIn,
    user: &'a UserId,
    visitor: Visitor<'a>,
    typed: Typed<'a>,
    settled: bool,
}

impl Attempt<'_> {
    fn settle(mut self, outcome: Outcome) {
        self.settled = true;
        self.end(outcome);
    }

    fn end(&self, outcome: Outcome) {
        let now = self.sign_in.now();
        self.sign_in.throttle().settle(self.user, outcome, now);
        self.sign_in.settled_of(self.user).notify_waiters();
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        if std::thread::panicking() {
            // A fault of ours is nobody's wrong password.
            return self.end(Outcome::Unknown);
        }
        self.end(Outcome::Wrong);
        self.sign_in.refused(self.visitor, Some(self.typed), Refusal::Left);
    }
}

/// What a directory's failure is to a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unasked {
    /// The name means more than one person.
    Ambiguous,
    /// The directory did not get to it.
    NotDone,
    /// It may have got to it.
    NotAnswered,
}

/// Returns the first point of the grid after all work was done.
fn next_point(asked: Instant, done: Instant) -> Instant {
    let worked = done.saturating_duration_since(asked).as_millis();
    let points = worked / REFUSAL_GRID.as_millis() + 1;
    asked + REFUSAL_GRID.saturating_mul(u32::try_from(points).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
