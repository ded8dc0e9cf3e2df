//! What an operator wants to see of logins, desktops and sessions.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tegata_proto::code::Code;
use tegata_proto::id::RealmName;

use crate::ports::store::Census;

/// Upper bounds of the time histograms, in seconds.
const SECONDS: [f64; 14] =
    [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0];

/// The states of a desktop, as the store counts them.
const DESKTOP_STATES: [&str; 6] =
    ["starting", "ready", "assigned", "recycling", "draining", "quarantined"];

/// A step from the password to the desktop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Phase {
    /// The directory says who it is.
    Directory,
    /// A desktop becomes theirs, waiting included.
    Assign,
    /// The ticket is redeemed.
    Redeem,
    /// The gateway reaches the desktop.
    Attach,
    /// From the password to the ticket.
    Login,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result_ {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: Phase,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectoryLabels {
    realm: String,
    operation: &'static str,
    answered: &'static str,
}

/// Why a login was refused, as far as an operator may want to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Refusal {
    /// No directory would have been asked about such a name, password or realm.
    Malformed,
    /// Nobody goes by the name.
    Unknown,
    /// More than one person goes by the name.
    Ambiguous,
    /// The person has no tries left.
    Budget,
    /// The directory said no.
    Bind,
    /// The agent left while the directory was asked.
    Left,
    /// The source has tried too much.
    Throttled,
}

impl Refusal {
    const ALL: [Self; 7] = [
        Self::Malformed,
        Self::Unknown,
        Self::Ambiguous,
        Self::Budget,
        Self::Bind,
        Self::Left,
        Self::Throttled,
    ];
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabel {
    reason: Refusal,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabels {
    realm: String,
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DesktopLabels {
    pool: String,
    state: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SessionLabels {
    class: String,
    state: String,
}

type Count = Gauge<i64, std::sync::atomic::AtomicI64>;

/// Everything that the broker counts. Clones count together.
#[derive(Clone)]
pub struct Metrics {
    logins: Family<Result_, Counter>,
    redeems: Family<Result_, Counter>,
    phases: Family<PhaseLabel, Histogram>,
    directory: Family<DirectoryLabels, Histogram>,
    desktops: Family<DesktopLabels, Count>,
    sessions: Family<SessionLabels, Count>,
    waiting: Count,
    held_back: Counter,
    clock_jumps: Counter,
    census_at: Gauge<f64, AtomicU64>,
    refusals: Family<RefusalLabel, Counter>,
    queued: Family<QueueLabels, Histogram>,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(SECONDS);
        let metrics = Self {
            logins: Family::default(),
            redeems: Family::default(),
            phases: Family::new_with_constructor(seconds),
            directory: Family::new_with_constructor(seconds),
            desktops: Family::default(),
            sessions: Family::default(),
            waiting: Count::default(),
            held_back: Counter::default(),
            clock_jumps: Counter::default(),
            census_at: Gauge::default(),
            refusals: Family::default(),
            queued: Family::new_with_constructor(seconds),
        };
        let Self {
            logins,
            redeems,
            phases,
            directory,
            desktops,
            sessions,
            waiting,
            held_back,
            clock_jumps,
            census_at,
            refusals,
            queued,
        } = metrics.clone();
        registry.register("refused_logins", "Logins not let in by reason", refusals);
        let help = "Time that logins waited for their turn at a directory";
        registry.register("directory_queue_seconds", help, queued);
        registry.register("logins", "Logins by result", logins);
        registry.register("redeems", "Redeems by result", redeems);
        let help = "Time to the desktop by phase";
        registry.register("time_to_desktop_seconds", help, phases);
        let help = "Time a directory took to answer";
        registry.register("directory_seconds", help, directory);
        registry.register("desktops", "Desktops by pool and state", desktops);
        let help = "Sessions that are not over by network class and state";
        registry.register("sessions", help, sessions);
        registry.register("waiting", "Logins that wait for a desktop", waiting);
        let help = "Logins that waited because many sessions came back";
        registry.register("logins_held_back", help, held_back);
        let help = "Times that the broker's clock was set by more than five seconds";
        registry.register("clock_jumps", help, clock_jumps);
        let help = "Unix time at which desktops and sessions were counted last";
        registry.register("census_timestamp_seconds", help, census_at);
        metrics.begin();
        metrics
    }

    /// Shows a zero for what has not happened yet: where a series begins with its first event,
    /// no alarm sees a rise.
    fn begin(&self) {
        for result in Code::ALL.iter().map(|code| code.as_str()).chain(["ok"]) {
            drop(self.logins.get_or_create(&Result_ { result }));
            drop(self.redeems.get_or_create(&Result_ { result }));
        }
        for reason in Refusal::ALL {
            drop(self.refusals.get_or_create(&RefusalLabel { reason }));
        }
    }

    /// Counts a login that ended well (`None`) or with a code.
    pub fn login(&self, code: Option<Code>) {
        let result = code.map_or("ok", Code::as_str);
        self.logins.get_or_create(&Result_ { result }).inc();
    }

    /// Counts a login that waited for others to return.
    pub fn held_back(&self) {
        self.held_back.inc();
    }

    /// Counts that the clock was set.
    pub fn clock_jumped(&self) {
        self.clock_jumps.inc();
    }

    /// Counts a redeem that ended well (`None`) or with a code.
    pub fn redeem(&self, code: Option<Code>) {
        let result = code.map_or("ok", Code::as_str);
        self.redeems.get_or_create(&Result_ { result }).inc();
    }

    /// Notes how long a phase took.
    pub fn phase(&self, phase: Phase, took: Duration) {
        self.phases.get_or_create(&PhaseLabel { phase }).observe(took.as_secs_f64());
    }

    /// Notes how long a directory took for an operation.
    pub fn directory(
        &self,
        realm: &RealmName,
        operation: &'static str,
        took: Duration,
        answered: bool,
    ) {
        let labels = DirectoryLabels {
            realm: realm.to_string(),
            operation,
            answered: if answered { "yes" } else { "no" },
        };
        self.directory.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Counts a login that was not let in.
    pub fn refusal(&self, reason: Refusal) {
        self.refusals.get_or_create(&RefusalLabel { reason }).inc();
    }

    /// Notes how long a login waited for its turn at a directory.
    pub fn queued(&self, realm: &RealmName, lane: &'static str, waited: Duration) {
        let labels = QueueLabels { realm: realm.to_string(), lane };
        self.queued.get_or_create(&labels).observe(waited.as_secs_f64());
    }

    /// Counts somebody in or out of the waiting rooms.
    pub fn waiting(&self, by: i64) {
        self.waiting.inc_by(by);
    }

    /// Shows a fresh count of desktops and sessions.
    pub fn census(&self, census: &Census, unix_time: f64) {
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        // What is counted no more must not stay as it was; of what a pool with
        // desktops has none, it has 0.
        self.desktops.clear();
        let pools: BTreeSet<_> = census.desktops.keys().map(|(pool, _)| pool).collect();
        for (pool, state) in pools.into_iter().flat_map(|pool| DESKTOP_STATES.map(|s| (pool, s))) {
            let n = census.desktops.get(&(pool.clone(), state.to_owned())).copied();
            let labels = DesktopLabels { pool: pool.to_string(), state: state.to_owned() };
            self.desktops.get_or_create(&labels).set(count(n.unwrap_or(0)));
        }
        self.sessions.clear();
        for ((class, state), n) in &census.sessions {
            let labels = SessionLabels { class: class.clone(), state: state.clone() };
            self.sessions.get_or_create(&labels).set(count(*n));
        }
        self.census_at.set(unix_time);
    }
}
