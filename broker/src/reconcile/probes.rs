//! Looks at desktops, always as many as may be looked at at once: one that does
//! not answer holds up nothing but its own place.
//!
//! Which are due is the store's to say, and what an answer means is decided by
//! `tegata_domain::desktop`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tegata_domain::desktop::Probe;
use tegata_proto::id::DesktopId;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Passes, REMEMBERED_MAX, ticker};
use crate::ports::prober::Prober;
use crate::ports::store::ProbeTarget;

/// Most desktops that are looked at at once.
const PROBES_MAX: usize = 128;

/// Most desktops that are listed at once to be looked at next.
const LISTED_MAX: u32 = 256;

/// Time between two full probes of a desktop that is in use or ready for it.
const FULL_PROBE_EVERY: Duration = Duration::from_mins(5);

/// Where desktops to look at come from, and where it is written what was seen.
#[async_trait]
trait Book: Send + Sync + 'static {
    /// Lists desktops that are due, the most urgent first; nothing on an error.
    async fn due(&self, limit: u32) -> Vec<ProbeTarget>;

    /// Writes what was found; nothing, where the desktop only took a connection or could
    /// not be looked at.
    async fn record(&self, target: &ProbeTarget, found: Option<Probe>);
}

#[async_trait]
impl Book for Passes {
    async fn due(&self, limit: u32) -> Vec<ProbeTarget> {
        let listed = self.followups.store.to_probe(self.followups.clock.now(), limit).await;
        listed.unwrap_or_else(|error| {
            warn!(error = &error as &dyn std::error::Error, "Desktops not listed");
            vec![]
        })
    }

    async fn record(&self, target: &ProbeTarget, found: Option<Probe>) {
        let now = self.followups.clock.now();
        match self.followups.store.probed(target.desktop, found, now).await {
            Ok(followups) => drop(self.followups.carry_out(followups).await),
            Err(error) => debug!(desktop = %target.name, %error, "Probe not recorded"),
        }
    }
}

impl Passes {
    /// Probes desktops until cancelled.
    pub async fn probes(self: Arc<Self>, cancelled: CancellationToken) {
        let prober = Arc::clone(&self.prober);
        keep_looking(self, prober, cancelled).await;
    }
}

/// Looks at what is due until cancelled; what is in flight then is dropped.
async fn keep_looking(book: Arc<impl Book>, prober: Arc<dyn Prober>, cancelled: CancellationToken) {
    let mut round = Round::default();
    let mut timer = ticker();
    loop {
        if round.lists_now() {
            let in_flight = u32::try_from(round.in_flight.len()).unwrap_or(u32::MAX);
            round.listed(book.due(LISTED_MAX.saturating_add(in_flight)).await);
        }
        round.fill(&book, &prober);
        tokio::select! {
            biased;
            () = cancelled.cancelled() => return,
            Some(done) = round.running.join_next_with_id() => round.done(done),
            _ = timer.tick() => round.may_list = true,
        }
    }
}

/// What is being looked at, and what is next.
#[derive(Default)]
struct Round {
    running: JoinSet<Option<DesktopId>>,
    in_flight: HashMap<Id, DesktopId>,
    next: VecDeque<ProbeTarget>,
    /// Whether listing again may find what was not due before: not right after a
    /// list without anything new.
    may_list: bool,
    /// When a desktop answered its last full probe.
    answered: HashMap<DesktopId, Instant>,
}

impl Round {
    fn lists_now(&self) -> bool {
        self.may_list && self.next.is_empty() && self.running.len() < PROBES_MAX
    }

    /// Takes what is due and not looked at already.
    fn listed(&mut self, due: Vec<ProbeTarget>) {
        let new = |target: &ProbeTarget| !self.in_flight.values().any(|id| *id == target.desktop);
        self.next = due.into_iter().filter(new).collect();
        self.may_list = !self.next.is_empty();
    }

    /// Begins with what is next while there is room.
    fn fill(&mut self, book: &Arc<impl Book>, prober: &Arc<dyn Prober>) {
        while self.running.len() < PROBES_MAX {
            let Some(target) = self.next.pop_front() else { return };
            let desktop = target.desktop;
            let recent = |at: &Instant| at.elapsed() < FULL_PROBE_EVERY;
            let full = target.in_doubt || !self.answered.get(&desktop).is_some_and(recent);
            let (book, prober) = (Arc::clone(book), Arc::clone(prober));
            let probe = self.running.spawn(async move {
                let found =
                    if full { prober.full(&target).await } else { prober.connect(&target).await };
                // In here, so that the answers of many share one commit.
                book.record(&target, found).await;
                matches!(found, Some(Probe::Answered(_))).then_some(desktop)
            });
            self.in_flight.insert(probe.id(), desktop);
        }
    }

    fn done(&mut self, done: Result<(Id, Option<DesktopId>), tokio::task::JoinError>) {
        match done {
            Ok((id, answered)) => {
                self.in_flight.remove(&id);
                if self.answered.len() >= REMEMBERED_MAX {
                    self.answered.clear();
                }
                self.answered.extend(answered.map(|desktop| (desktop, Instant::now())));
            }
            Err(error) => {
                self.in_flight.remove(&error.id());
                warn!(%error, "A probe broke off");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::pending;
    use std::sync::Mutex;

    use tegata_proto::policy::{Protocol, Security};
    use tokio::sync::watch;
    use tokio::time::timeout;
    use uuid::Uuid;

    use super::*;
    use crate::flows::tests::PATIENCE;

    /// How many desktops there are.
    const DESKTOPS: u128 = 2_000;

    /// One in so many never answers: a hundred, and fewer than are looked at at
    /// once.
    const ONE_DEAD_IN: u128 = 20;

    fn target(n: u128) -> ProbeTarget {
        ProbeTarget {
            desktop: DesktopId(Uuid::from_u128(n)),
            name: format!("keiri-{n:04}").parse().unwrap(),
            address: "192.0.2.1:3389".parse().unwrap(),
            protocol: Protocol::Rdp,
            security: Some(Security::Tls),
            in_doubt: true,
        }
    }

    /// A site and how far its desktops have been looked at.
    #[derive(Default)]
    struct Site {
        left: Mutex<BTreeSet<u128>>,
        recorded: watch::Sender<usize>,
        in_flight: Mutex<(usize, usize)>,
    }

    impl Site {
        async fn look(&self, target: &ProbeTarget) {
            {
                let (now, most) = &mut *self.in_flight.lock().unwrap();
                *now += 1;
                *most = (*most).max(*now);
            }
            tokio::task::yield_now().await;
            if target.desktop.0.as_u128().is_multiple_of(ONE_DEAD_IN) {
                pending::<()>().await;
            }
            self.in_flight.lock().unwrap().0 -= 1;
        }

        async fn until_recorded(&self, desktops: usize) {
            let mut recorded = self.recorded.subscribe();
            let all = recorded.wait_for(|recorded| *recorded == desktops);
            timeout(PATIENCE, all).await.expect("in time").expect("the site is there");
        }
    }

    #[async_trait]
    impl Book for Site {
        async fn due(&self, limit: u32) -> Vec<ProbeTarget> {
            let left = self.left.lock().unwrap();
            left.iter().take(limit as usize).map(|n| target(*n)).collect()
        }

        async fn record(&self, target: &ProbeTarget, _found: Option<Probe>) {
            let first = self.left.lock().unwrap().remove(&target.desktop.0.as_u128());
            assert!(first, "{} is looked at twice", target.name);
            self.recorded.send_modify(|recorded| *recorded += 1);
        }
    }

    #[async_trait]
    impl Prober for Site {
        async fn full(&self, target: &ProbeTarget) -> Option<Probe> {
            self.look(target).await;
            Some(Probe::Answered(None))
        }

        async fn connect(&self, target: &ProbeTarget) -> Option<Probe> {
            self.look(target).await;
            None
        }
    }

    #[tokio::test]
    async fn desktops_that_never_answer_hold_up_no_other() {
        let site = Arc::new(Site::default());
        site.left.lock().unwrap().extend(0..DESKTOPS);
        let cancelled = CancellationToken::new();
        let looking = keep_looking(site.clone(), site.clone(), cancelled.clone());
        let dead = usize::try_from(DESKTOPS / ONE_DEAD_IN).unwrap();
        let others = usize::try_from(DESKTOPS).unwrap() - dead;
        let watching = async {
            site.until_recorded(others).await;
            assert_eq!(*site.in_flight.lock().unwrap(), (dead, PROBES_MAX));
            cancelled.cancel();
        };
        tokio::join!(looking, watching);
    }

    #[tokio::test]
    async fn what_becomes_due_later_is_found_by_a_later_pass() {
        let site = Arc::new(Site::default());
        let cancelled = CancellationToken::new();
        let looking = keep_looking(site.clone(), site.clone(), cancelled.clone());
        let later = async {
            for n in 1..=2 {
                site.left.lock().unwrap().insert(n);
                site.until_recorded(usize::try_from(n).unwrap()).await;
            }
            cancelled.cancel();
        };
        tokio::join!(looking, later);
    }

    /// A desktop that somebody holds, due every half minute.
    #[derive(Default)]
    struct Held {
        looked: Mutex<Option<Instant>>,
        /// What was looked for, each time: more than a connection, or not.
        full: watch::Sender<Vec<bool>>,
    }

    #[async_trait]
    impl Book for Held {
        async fn due(&self, _limit: u32) -> Vec<ProbeTarget> {
            let mut looked = self.looked.lock().unwrap();
            if looked.is_some_and(|at| at.elapsed() < Duration::from_secs(30)) {
                return vec![];
            }
            *looked = Some(Instant::now());
            vec![ProbeTarget { in_doubt: false, ..target(1) }]
        }

        async fn record(&self, _target: &ProbeTarget, found: Option<Probe>) {
            self.full.send_modify(|full| full.push(found.is_some()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_held_desktop_is_only_connected_to_for_five_minutes() {
        let held = Arc::new(Held::default());
        let cancelled = CancellationToken::new();
        let looking = keep_looking(held.clone(), Arc::new(Site::default()), cancelled.clone());
        let watching = async {
            let mut full = held.full.subscribe();
            let looks = full.wait_for(|full| full.len() == 21).await.unwrap().clone();
            cancelled.cancel();
            looks
        };
        let ((), looks) = tokio::join!(looking, watching);
        for (n, full) in looks.into_iter().enumerate() {
            assert_eq!(full, n % 10 == 0, "after {} s", 30 * n);
        }
    }
}
