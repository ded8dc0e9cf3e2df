//! What a stranger could learn from how long a refusal takes: tries of several
//! kinds, interleaved, from many addresses and over many people.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use tegata_parts::slapd::{self, Person, Slapd};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::stranger::{self, Tried};

/// The password of everybody in the crowd.
pub const PASSWORD: &str = "Himitsu-1";

/// How much is tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// People in the directory; every second one is disabled.
    pub people: usize,
    /// Tries in all.
    pub tries: usize,
    /// Tries at once.
    pub in_flight: usize,
}

impl Plan {
    /// As many as it takes to see two milliseconds.
    pub const WHOLE: Self = Self { people: 700, tries: 2_000, in_flight: 32 };
}

/// One kind of try.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A wrong password for somebody.
    WrongPassword,
    /// A name that nobody has.
    UnknownName,
    /// The right password of somebody disabled.
    Disabled,
}

/// What was seen of one kind.
#[derive(Debug, Clone, Serialize)]
pub struct Seen {
    /// Which.
    pub kind: Kind,
    /// How many.
    pub tries: usize,
    /// None of them was answered sooner.
    pub fastest_ms: f64,
    /// Half of them were answered within this.
    pub p50_ms: f64,
    /// Nine of ten were answered within this.
    pub p90_ms: f64,
    /// Nearly all were answered within this.
    pub p99_ms: f64,
}

/// What was seen of all.
#[derive(Debug, Clone, Serialize)]
pub struct Figures {
    /// By kind.
    pub kinds: Vec<Seen>,
    /// How far the medians are apart.
    pub medians_apart_ms: f64,
    /// The different answers there were, as text.
    pub answers: BTreeSet<String>,
}

/// A directory of the plan's people.
pub fn crowd(plan: Plan) -> slapd::Builder {
    let person = |n: usize| {
        let person = Person::new(&uid(n), &format!("Person {n}"), PASSWORD);
        if n.is_multiple_of(2) { person } else { person.locked() }
    };
    (0..plan.people).map(person).fold(Slapd::builder(), slapd::Builder::person)
}

/// Tries all, mixed, and tells what was seen.
///
/// # Errors
///
/// When a conversation breaks off.
pub async fn interleaved(broker: SocketAddr, plan: Plan) -> Result<Figures> {
    ensure!(plan.people > 1 && plan.in_flight > 0, "a plan without people or tries");
    // A broker that has just started does not know yet how long a bind takes.
    let warm_up = 0..2 * plan.in_flight;
    mixed(broker, plan, warm_up.clone()).await?;
    let seen = mixed(broker, plan, warm_up.end..warm_up.end + plan.tries).await?;
    let answers = seen.iter().map(|(_, tried)| String::from_utf8_lossy(&tried.bytes).into_owned());
    let answers = answers.collect();
    let kinds = [Kind::WrongPassword, Kind::UnknownName, Kind::Disabled].map(|kind| {
        let of_kind = seen.iter().filter(|(other, _)| *other == kind);
        summary(kind, of_kind.map(|(_, tried)| tried.took).collect())
    });
    let kinds = kinds.into_iter().collect::<Result<Vec<_>>>()?;
    let medians = || kinds.iter().map(|kind| kind.p50_ms);
    let medians_apart_ms = medians().fold(0.0, f64::max) - medians().fold(f64::MAX, f64::min);
    Ok(Figures { kinds, medians_apart_ms, answers })
}

async fn mixed(broker: SocketAddr, plan: Plan, which: Range<usize>) -> Result<Vec<(Kind, Tried)>> {
    let turns = Arc::new(Semaphore::new(plan.in_flight));
    let mut running = JoinSet::new();
    for n in which {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        running.spawn(async move {
            let (kind, name, password) = the_try(n, plan);
            let tried = stranger::try_from(address(n), broker, &name, password).await;
            drop(turn);
            tried.map(|tried| (kind, tried))
        });
    }
    let mut seen = Vec::new();
    while let Some(tried) = running.join_next().await {
        seen.push(tried??);
    }
    Ok(seen)
}

/// How long a good login takes, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct BesideBad {
    /// The median where nobody else tries.
    pub alone_p50_ms: f64,
    /// The median while so many bad ones run.
    pub beside_p50_ms: f64,
    /// Bad ones at once.
    pub bad: usize,
}

/// Logs somebody in so many times, one after the other, alone and beside bad
/// logins for the people of a plan; in turns, so that a busy machine is busy for
/// both.
///
/// # Errors
///
/// When a good login is not let in, or a conversation breaks off.
pub async fn beside_bad(
    broker: SocketAddr,
    (name, password): (&str, &str),
    (good, bad): (usize, usize),
    plan: Plan,
) -> Result<BesideBad> {
    let from = Ipv4Addr::LOCALHOST;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let next = Arc::new(AtomicUsize::new(0));
    let rounds = good.div_ceil(GOOD_A_ROUND);
    for crowded in (0..rounds).flat_map(|_| [false, true]) {
        let mut others = JoinSet::new();
        for _ in 0..if crowded { bad } else { 0 } {
            let next = Arc::clone(&next);
            others.spawn(async move {
                let mut over = Ok(());
                while over.is_ok() {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let (_, name, password) = the_try(n, plan);
                    let tried = stranger::try_from(address(n), broker, &name, password).await;
                    over = tried.map(drop);
                }
                over
            });
        }
        for _ in 0..GOOD_A_ROUND {
            let tried = stranger::try_from(from, broker, name, password).await?;
            ensure!(tried.code()?.is_none(), "a good login was refused");
            if crowded { beside.push(tried.took) } else { alone.push(tried.took) }
        }
    }
    let kind = Kind::WrongPassword;
    let (alone, beside) = (summary(kind, alone)?, summary(kind, beside)?);
    Ok(BesideBad { alone_p50_ms: alone.p50_ms, beside_p50_ms: beside.p50_ms, bad })
}

/// How long whole logins took, the handshake included.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Took {
    /// How many there were.
    pub logins: usize,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// Nearly all of them took no longer.
    pub p99_ms: f64,
}

/// Somebody who may log in, and does so again and again.
#[derive(Debug, Clone, Copy)]
pub struct Honest<'a> {
    /// Where the broker is.
    pub broker: SocketAddr,
    /// Where they are.
    pub from: Ipv4Addr,
    /// What they type.
    pub name: &'a str,
    /// And this.
    pub password: &'a str,
}

/// How long they wait before each login. Tens of thousands of them would leave more in the
/// store's cache than what they are compared with.
const PAUSE: Duration = Duration::from_millis(20);

impl Honest<'_> {
    /// Logs in so many times.
    ///
    /// # Errors
    ///
    /// When a login is not let in.
    pub async fn alone(&self, logins: usize) -> Result<Took> {
        let mut took = Vec::with_capacity(logins);
        for _ in 0..logins {
            took.push(self.logs_in().await?);
        }
        Took::of(took)
    }

    /// Logs in until something else is done, once at least.
    ///
    /// # Errors
    ///
    /// When a login is not let in, and what the other thing fails with.
    pub async fn beside<T>(&self, other: impl Future<Output = Result<T>>) -> Result<(T, Took)> {
        let mut other = std::pin::pin!(other);
        let (mut took, mut done) = (Vec::new(), None);
        // A login that has begun is waited for: its end is what is asked about.
        while done.is_none() {
            let mut login = std::pin::pin!(self.logs_in());
            took.push(loop {
                tokio::select! {
                    biased;
                    took = &mut login => break took?,
                    outcome = &mut other, if done.is_none() => done = Some(outcome?),
                }
            });
        }
        Ok((done.context("nothing else was done")?, Took::of(took)?))
    }

    async fn logs_in(&self) -> Result<Duration> {
        tokio::time::sleep(PAUSE).await;
        let began = Instant::now();
        let tried = stranger::try_from(self.from, self.broker, self.name, self.password).await?;
        ensure!(tried.code()?.is_none(), "a good login was refused: {:?}", tried.code()?);
        Ok(began.elapsed())
    }
}

impl Took {
    fn of(took: Vec<Duration>) -> Result<Self> {
        let seen = summary(Kind::WrongPassword, took)?;
        Ok(Self { logins: seen.tries, p50_ms: seen.p50_ms, p99_ms: seen.p99_ms })
    }
}

/// Good logins between two looks at the other case.
const GOOD_A_ROUND: usize = 20;

/// Which try is the `n`th: the kinds take turns, and go round the people.
fn the_try(n: usize, plan: Plan) -> (Kind, String, &'static str) {
    let half = plan.people / 2;
    match n % 3 {
        0 => (Kind::WrongPassword, uid(n / 3 % half * 2), "not-the-one"),
        1 => (Kind::UnknownName, format!("nobody{:05}", n / 3 % half), PASSWORD),
        _ => (Kind::Disabled, uid(n / 3 % half * 2 + 1), PASSWORD),
    }
}

/// Names as long as those of the unknown.
fn uid(n: usize) -> String {
    format!("person{n:05}")
}

/// An address of its own for each try, as far as there are any.
fn address(n: usize) -> Ipv4Addr {
    let octet = |n: usize| u8::try_from(n % 250 + 1).unwrap_or(1);
    Ipv4Addr::new(127, octet(n / 62_500), octet(n / 250), octet(n))
}

fn summary(kind: Kind, mut took: Vec<Duration>) -> Result<Seen> {
    took.sort_unstable();
    let at = |percent: usize| {
        let n = (took.len() * percent / 100).min(took.len().saturating_sub(1));
        took.get(n).map(|took| took.as_secs_f64() * 1_000.0).context("no try of a kind")
    };
    let (tries, fastest_ms) = (took.len(), at(0)?);
    Ok(Seen { kind, tries, fastest_ms, p50_ms: at(50)?, p90_ms: at(90)?, p99_ms: at(99)? })
}
