//! Where sins are committed: a site with staff and desktops, and the eye that is
//! kept on it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tegata_parts::fake::FakeDesktop;
use tegata_proto::ALPN_LOGIN;
use tokio::time::timeout;

use super::HONEST;
use crate::site::{Site, pool};
use crate::stranger::{self, Keys, Line};

/// Everybody's password; it must never be seen in a log.
pub const PASSWORD: &str = "Himitsu-canary-5190";

/// What sins may cost the broker.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// By how much it may grow, in KiB.
    growth_kib: u64,
    /// How many lines of an operator's log it may write.
    lines: usize,
}

impl Cost {
    /// Of floods, however many peers take part.
    pub const FLOOD: Self = Self { growth_kib: 100 * 1024, lines: 50 };

    /// Of a table of so many sins, each committed once, with the honest logins that they need:
    /// two of their passwords are checked at once, with 19 MiB for each.
    pub const fn of_table(sins: usize) -> Self {
        Self { growth_kib: 48 * 1024, lines: 50 + 5 * sins }
    }

    /// With as many honest logins beside.
    pub const fn and_logins(self, logins: usize) -> Self {
        Self { lines: self.lines + 2 * logins, ..self }
    }
}

/// What the broker had used before anybody sinned.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    memory_kib: u64,
    lines: usize,
}

/// A site, and what it was like before anybody sinned.
pub struct Place {
    /// The site.
    pub site: Site,
    _desktops: Vec<FakeDesktop>,
    callers: AtomicU32,
}

/// How the honest clients of a while fared.
#[derive(Debug, Default, Clone, Copy)]
pub struct Fared {
    /// How many were greeted.
    pub greeted: u32,
    /// How long the slowest of them waited.
    pub slowest: Duration,
}

impl Place {
    /// Opens a site with so many people, `p0`, `p1` and on, and a desktop for
    /// each.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn open(people: usize) -> Result<Arc<Self>> {
        Self::limited(people, "")
    }

    /// Opens one with other limits, in TOML.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn limited(people: usize, limits: &str) -> Result<Arc<Self>> {
        let names: Vec<_> = (0..people).map(|n| format!("p{n}")).collect();
        let staff: Vec<_> =
            names.iter().map(|name| (name.as_str(), PASSWORD, &["keiri"][..])).collect();
        let desktops = names.iter().map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
        let addresses: Vec<_> = desktops.iter().map(FakeDesktop::address).collect();
        let site = Site::builder()
            .people(&staff)?
            .pool(pool("keiri", "keiri", &addresses))
            .log_as_json()
            .limits(limits)
            .start()?;
        site.api()?.wait_for_desktops("keiri", "ready", people)?;
        Ok(Arc::new(Self { site, _desktops: desktops, callers: AtomicU32::new(0) }))
    }

    /// Returns an address to sin from that nobody has used before: what one
    /// sinner is counted for is never another's loss.
    pub fn caller(&self) -> Ipv4Addr {
        let next = self.callers.fetch_add(1, Ordering::Relaxed);
        let [_, high, middle, low] = next.to_be_bytes();
        // From 127.16.0.1 on; `HERE` stays the honest clients' own.
        Ipv4Addr::new(127, 16 + high, middle, low.max(1))
    }

    /// Greets the broker as an honest client does.
    ///
    /// # Errors
    ///
    /// When it is not greeted back within [`HONEST`].
    pub async fn greet(&self) -> Result<Duration> {
        let began = Instant::now();
        let mut refused = None;
        let greeted = timeout(HONEST, async {
            // A try that its machine was too slow for is made again, as agents do.
            while let Err(error) = self.greet_once().await {
                refused = Some(error);
            }
        });
        match (greeted.await, refused) {
            (Ok(()), _) => Ok(began.elapsed()),
            (Err(_), None) => bail!("an honest client was kept waiting"),
            (Err(_), Some(error)) => Err(error.context("an honest client was refused")),
        }
    }

    async fn greet_once(&self) -> Result<()> {
        let mut line = Line::open(self.site.listen(), ALPN_LOGIN).await?;
        stranger::hello(&mut line, &Keys::generate()?).await.map(drop)
    }

    /// Greets again and again while something else goes on.
    ///
    /// # Errors
    ///
    /// As [`greet`](Self::greet), and what the other thing fails with.
    pub async fn meanwhile<T>(&self, other: impl Future<Output = Result<T>>) -> Result<(T, Fared)> {
        let mut other = std::pin::pin!(other);
        let mut fared = Fared::default();
        loop {
            tokio::select! {
                biased;
                greeted = self.greet() => {
                    fared.greeted += 1;
                    fared.slowest = fared.slowest.max(greeted?);
                }
                done = &mut other => return Ok((done?, fared)),
            }
        }
    }

    /// Checks that the broker runs and greets.
    ///
    /// # Errors
    ///
    /// When it does not.
    pub async fn is_well(&self) -> Result<()> {
        ensure!(self.site.is_running(), "the broker has ended: {}", self.site.log());
        self.greet().await.map(drop)
    }

    /// Returns how much memory the broker has now, in KiB.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn memory_kib(&self) -> Result<u64> {
        Ok(self.site.resident_kib()?.into())
    }

    /// Checks that every line of the log is one event, and that none holds the
    /// password.
    ///
    /// # Errors
    ///
    /// Shows the first line that is something else.
    pub fn log_is_clean(&self) -> Result<()> {
        let log = self.site.log();
        ensure!(!log.contains(PASSWORD), "the log holds a password");
        ensure!(!log.contains("Panicked"), "something panicked: {log}");
        // The last line may be in the middle of being written.
        let whole = log.rfind('\n').map_or("", |end| &log[..end]);
        for line in whole.lines() {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            ensure!(event["level"].is_string() && event["message"].is_string(), "{line}");
        }
        Ok(())
    }

    /// Greets once, and returns what the broker has used so far.
    ///
    /// # Errors
    ///
    /// When it is not well.
    pub async fn before(&self) -> Result<Before> {
        self.is_well().await?;
        Ok(Before { memory_kib: self.memory_kib()?, lines: self.lines() })
    }

    /// Checks everything that must hold after sins.
    ///
    /// # Errors
    ///
    /// Says what does not.
    pub async fn has_endured(&self, before: Before, cost: Cost) -> Result<()> {
        self.is_well().await?;
        self.log_is_clean()?;
        let (old, now) = (before.memory_kib, self.memory_kib()?);
        let lines = self.lines() - before.lines;
        println!("memory: {old} KiB before, {now} KiB after; {lines} lines");
        ensure!(now <= old + cost.growth_kib, "from {old} to {now} KiB");
        ensure!(lines <= cost.lines, "{lines} lines: {}", self.site.log());
        Ok(())
    }

    /// Counts the lines that an operator's log has: ours is finer.
    fn lines(&self) -> usize {
        self.site.log().lines().filter(|line| !line.contains(r#""level":"DEBUG""#)).count()
    }
}
