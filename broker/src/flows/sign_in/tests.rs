//! Sign-in on a paused clock, with a directory that does as told.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use prometheus_client::registry::Registry;
use tegata_domain::throttle::{DOUBT, KEPT_FOR_FAMILIAR, STRANGERS_TRIES};
use tegata_domain::time::Timestamp;
use tegata_proto::encoding::{Bytes, Secret};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{Event, Level, Metadata, Subscriber, span};

use super::lines::LINES_MAX;
use super::*;
use crate::flows::tests::Noon;
use crate::ports::directory::Reason;
use crate::ports::store::StoreError;

/// The one known place.
const DESK: &str = "192.0.2.1";

/// Everybody has come from their desk before.
struct Desk;

#[async_trait]
impl Familiarity for Desk {
    async fn is_familiar(
        &self,
        _user: &UserId,
        source: &str,
        _now: Timestamp,
    ) -> Result<bool, StoreError> {
        Ok(source == "192.0.2.1/32")
    }
}

/// A directory of people whose names begin with `user`, and whose password is
/// `right`. Each name has two spellings; `slow` is as long as told.
struct Fake {
    realm: RealmName,
    search: Duration,
    bind: Duration,
    down: bool,
    hangs_up: bool,
    panics: AtomicBool,
    binds: AtomicUsize,
}

#[async_trait]
impl Directory for Fake {
    fn realm(&self) -> &RealmName {
        &self.realm
    }

    fn serves_at_once(&self) -> usize {
        16
    }

    async fn find(&self, name: &LoginName) -> Result<Option<Found>, DirectoryError> {
        sleep(self.search).await;
        if self.down {
            let realm = self.realm.clone();
            return Err(DirectoryError::Unavailable { realm, source: "down".into() });
        }
        let id = name.as_str().to_lowercase();
        if !id.starts_with("user") {
            return Ok(None);
        }
        let person = Person {
            user: UserId::new(self.realm.clone(), id.clone()).unwrap(),
            display_name: id.clone(),
            account: None,
            unit: None,
            groups: std::collections::BTreeSet::new(),
        };
        Ok(Some(Found::new(id, person)))
    }

    async fn verify(
        &self,
        found: &Found,
        password: &NonEmptyPassword,
    ) -> Result<Verdict, DirectoryError> {
        self.binds.fetch_add(1, Ordering::Relaxed);
        sleep(self.bind).await;
        assert!(!self.panics.load(Ordering::Relaxed), "as told");
        if self.hangs_up {
            let realm = self.realm.clone();
            return Err(DirectoryError::CutOff { realm, source: "gone".into() });
        }
        Ok(match password.expose() {
            "right" => Verdict::Correct(found.claimed().clone()),
            _ => Verdict::Wrong { reason: Reason::Password },
        })
    }

    async fn probe(&self) -> Result<(), DirectoryError> {
        Ok(())
    }
}

struct Scene {
    sign_in: SignIn,
    fake: Arc<Fake>,
    limits: SourceLimits,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn scene(search: Duration, bind: Duration, change: impl FnOnce(&mut Fake)) -> Scene {
    let realm = RealmName::new("honsho").unwrap();
    let (down, hangs_up, panics, binds) =
        (false, false, AtomicBool::default(), AtomicUsize::new(0));
    let mut fake = Fake { realm, search, bind, down, hangs_up, panics, binds };
    change(&mut fake);
    let fake = Arc::new(fake);
    let directory: Arc<dyn Directory> = Arc::<Fake>::clone(&fake);
    let metrics = Metrics::register(&mut Registry::default());
    let clock = Arc::new(Noon(Timestamp::from_millis(1_800_000_000_000)));
    let sign_in = SignIn::new(vec![directory], [1, 2], Arc::new(Desk), clock, metrics);
    Scene { sign_in, fake, limits: SourceLimits::default() }
}

impl Scene {
    /// Tries to sign in, and returns the code with the time that it took.
    async fn tries(&self, from: &str, name: &str, password: &str) -> (Option<Code>, Duration) {
        let password = Password {
            txn: Bytes([0; 16]),
            realm: None,
            name: name.to_owned(),
            password: Secret::new(password),
        };
        let source = Prefix::of(from.parse().unwrap());
        let visitor = Visitor { source, limits: &self.limits };
        let began = Instant::now();
        let outcome = self.sign_in.authenticate(password, visitor, |_| {}).await;
        (outcome.err().map(|denied| denied.code), began.elapsed())
    }

    fn binds(&self) -> usize {
        self.fake.binds.load(Ordering::Relaxed)
    }
}

/// Makes all tries at once, and returns what they were told.
async fn at_once(
    tries: impl Iterator<Item = impl Future<Output = Option<Code>>>,
) -> Vec<Option<Code>> {
    futures_util::future::join_all(tries).await
}

#[test]
fn a_refusal_waits_for_the_next_point_of_the_grid() {
    let asked = Instant::now();
    for (worked_ms, answered_ms) in [(0, 500), (3, 500), (499, 500), (500, 1_000), (620, 1_000)] {
        let wanted = asked + ms(answered_ms);
        assert_eq!(next_point(asked, asked + ms(worked_ms)), wanted, "{worked_ms} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_is_wrong_is_answered_after_the_time_of_a_search_and_a_bind() {
    // Search and bind, and when a refusal is answered once that is known.
    let table = [
        (ms(10), ms(20), ms(500)),
        (ms(400), ms(400), ms(1_000)),
        (ms(100), ms(900), ms(1_500)),
        (ms(10), ms(2_000), ms(2_500)),
    ];
    for (search, bind, point) in table {
        let scene = scene(search, bind, |_| {});
        let (in_, _) = scene.tries("198.51.100.1", "user-1", "right").await;
        assert_eq!(in_, None);
        for (what, name, password) in [
            ("a wrong password", "user-2", "wrong"),
            ("an unknown name", "nobody", "right"),
            ("a name that none can have", "no\0body", "right"),
            ("no password", "user-3", ""),
            ("a password that no directory may see", "user-3", "\0right"),
        ] {
            let told = scene.tries("198.51.100.1", name, password).await;
            assert_eq!(told, (Some(Code::Refused), point), "{what} at {search:?} + {bind:?}");
        }
        for _ in 0..STRANGERS_TRIES {
            scene.tries("198.51.100.1", "user-4", "wrong").await;
        }
        let binds = scene.binds();
        let told = scene.tries("198.51.100.1", "USER-4", "right").await;
        assert_eq!(told, (Some(Code::Refused), point), "a spent budget");
        assert_eq!(scene.binds(), binds, "no bind");
    }
}

#[tokio::test(start_paused = true)]
async fn before_a_bind_was_seen_refusals_wait_for_what_is_likely() {
    let scene = scene(ms(10), ms(200), |_| {});
    let told = scene.tries("198.51.100.1", "nobody", "right").await;
    assert_eq!(told, (Some(Code::Refused), ms(1_000)));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_wrong_tries_at_once_are_as_many_binds_as_the_budget() {
    let scene = scene(ms(10), ms(50), |_| {});
    let tries = (0..100).map(|n| {
        let scene = &scene;
        async move { scene.tries(&format!("198.51.100.{n}"), "user-1", "wrong").await.0 }
    });
    let told = at_once(tries).await;
    assert_eq!(scene.binds(), STRANGERS_TRIES);
    assert_eq!(told, vec![Some(Code::Refused); 100]);
}

#[tokio::test(start_paused = true)]
async fn leaving_while_the_directory_is_asked_counts_as_a_failure() {
    let scene = scene(ms(10), ms(200), |_| {});
    for _ in 0..10 {
        let left = tokio::time::timeout(ms(100), scene.tries("198.51.100.1", "user-1", "wrong"));
        assert!(left.await.is_err());
    }
    assert_eq!(scene.binds(), STRANGERS_TRIES);
}

#[tokio::test(start_paused = true)]
async fn a_good_password_that_waits_for_the_outcome_of_another_is_let_in() {
    let scene = scene(ms(10), ms(200), |_| {});
    let one = || scene.tries("198.51.100.1", "user-1", "right");
    let (a, b, c, d) = tokio::join!(one(), one(), one(), one());
    let mut took = [a, b, c, d].map(|(code, took)| code.is_none().then_some(took));
    took.sort();
    let [third, fourth] = [ms(210), ms(410)].map(Some);
    assert_eq!(took, [third, third, third, fourth], "the fourth waits, and is not refused");
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_cannot_answer_refuses_nobody() {
    let down = scene(ms(1), ms(1), |fake| fake.down = true);
    for _ in 0..10 {
        let told = down.tries("198.51.100.1", "user-1", "wrong").await;
        assert_eq!(told, (Some(Code::Unavailable), ms(1)));
    }
    assert_eq!(down.sign_in.fill().throttled, 0, "it is no failure of theirs");

    for (search, bind) in [(ms(60_000), ms(1)), (ms(1), ms(60_000))] {
        let slow = scene(search, bind, |_| {});
        let told = slow.tries("198.51.100.1", "user-1", "right").await;
        assert_eq!(told, (Some(Code::Unavailable), DIRECTORY_LIMIT), "{search:?} + {bind:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bind_without_an_answer_is_in_doubt_and_never_refused() {
    let slow = scene(ms(1), ms(60_000), |_| {});
    let cut_off = scene(ms(1), ms(1), |fake| fake.hangs_up = true);
    for scene in [slow, cut_off] {
        for _ in 0..2 * STRANGERS_TRIES {
            let (code, _) = scene.tries("198.51.100.1", "user-1", "right").await;
            assert_eq!(code, Some(Code::Unavailable));
        }
        assert_eq!(scene.binds(), STRANGERS_TRIES, "no more may have reached the directory");
        assert_eq!(scene.sign_in.fill().throttled, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_ours_is_nobodys_wrong_password() {
    let scene = Arc::new(scene(ms(10), ms(20), |_| {}));
    for _ in 0..2 * STRANGERS_TRIES {
        scene.fake.panics.store(true, Ordering::Relaxed);
        let (mut trying, there) = (JoinSet::new(), Arc::clone(&scene));
        trying.spawn(async move { there.tries(DESK, "user-1", "right").await });
        let tried = trying.join_next().await.unwrap();
        assert!(tried.is_err_and(|error| error.is_panic()));
        scene.fake.panics.store(false, Ordering::Relaxed);
        sleep(DOUBT).await;
    }
    assert_eq!(scene.tries(DESK, "user-1", "right").await.0, None);
}

#[tokio::test(start_paused = true)]
async fn a_source_over_its_limit_is_told_so_on_the_grid_and_no_directory_is_asked() {
    let mut scene = scene(ms(10), ms(20), |_| {});
    scene.limits.failures_per_minute = NonZeroU32::new(6).unwrap();
    assert_eq!(scene.tries("198.51.100.1", "user-1", "right").await.0, None);
    // Good ones from there are throttled too: it knows no user.
    for (name, password) in [("user-1", "right"), ("user-2", "wrong"), ("nobody", "right")] {
        let mut refused = 0;
        loop {
            let told = scene.tries("198.51.100.1", "unknown", "x").await;
            if told == (Some(Code::Throttled), ms(500)) {
                break;
            }
            assert_eq!(told, (Some(Code::Refused), ms(500)));
            refused += 1;
        }
        assert!((6..=7).contains(&refused), "{refused}");
        let binds = scene.binds();
        let told = scene.tries("198.51.100.1", name, password).await;
        assert_eq!(told, (Some(Code::Throttled), ms(500)), "{name}");
        assert_eq!(scene.binds(), binds, "no directory was asked");
        sleep(Duration::from_mins(2)).await;
    }
    assert_eq!(scene.tries("198.51.100.2", "user-1", "right").await.0, None, "elsewhere");
}

#[tokio::test(start_paused = true)]
async fn tries_at_once_from_one_source_are_as_many_as_its_failures_and_the_slots() {
    let scene = scene(ms(10), ms(50), |_| {});
    let limits = SourceLimits::default();
    let tries = (0..300).map(|n| {
        let scene = &scene;
        async move { scene.tries("198.51.100.1", &format!("user-{n}"), "wrong").await.0 }
    });
    let told = at_once(tries).await;
    let failures = usize::try_from(limits.failures_per_minute.get()).unwrap();
    let most = failures + scene.fake.serves_at_once();
    assert!((failures..=most).contains(&scene.binds()), "{} binds", scene.binds());
    let refused = told.iter().filter(|code| **code == Some(Code::Refused)).count();
    assert_eq!(refused, scene.binds());
    assert!(told.iter().all(|code| matches!(code, Some(Code::Refused | Code::Throttled))));
}

#[tokio::test(start_paused = true)]
async fn an_office_behind_one_address_is_let_in_however_many_come_at_once() {
    let scene = scene(ms(10), ms(50), |_| {});
    let tries = (0..300).map(|n| {
        let scene = &scene;
        async move { scene.tries("198.51.100.1", &format!("user-{n}"), "right").await.0 }
    });
    assert_eq!(at_once(tries).await, vec![None; 300]);
}

#[tokio::test(start_paused = true)]
async fn what_strangers_can_bring_about_is_told_in_few_lines() {
    let scene_of = |change: fn(&mut Fake)| scene(ms(10), ms(20), change);
    let most = usize::try_from(LINES_MAX).unwrap();
    for (what, scene, name, most) in [
        ("a directory that is down", scene_of(|fake| fake.down = true), "user-1", most),
        ("a slow one", scene_of(|fake| fake.search = ms(60_000)), "user-1", most),
        ("a spent budget", scene_of(|_| ()), "user-1", STRANGERS_TRIES),
        ("a name that nobody has", scene_of(|_| ()), "nobody", 0),
    ] {
        let lines = Counted::default();
        let counting = tracing::subscriber::set_default(lines.clone());
        let tries = (0..300).map(|n| {
            let (from, scene) = (format!("198.51.{}.{}", n / 200, n % 200), &scene);
            async move { scene.tries(&from, name, "wrong").await.0 }
        });
        let told = at_once(tries).await;
        drop(counting);
        assert!(told.iter().all(Option::is_some), "{what}");
        let lines = lines.0.load(Ordering::Relaxed);
        assert!(lines <= most, "{what}: {lines} lines");
    }
}

/// Counts events that an operator's log has.
#[derive(Clone, Default)]
struct Counted(Arc<AtomicUsize>);

impl Subscriber for Counted {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }

    fn new_span(&self, _span: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, _event: &Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}

#[tokio::test(start_paused = true)]
async fn somebody_known_comes_in_where_strangers_have_used_up_the_tries() {
    let scene = scene(ms(10), ms(20), |_| {});
    for n in 0..10 {
        scene.tries(&format!("203.0.113.{n}"), "user-1", "wrong").await;
    }
    assert_eq!(scene.binds(), STRANGERS_TRIES);
    let (elsewhere, _) = scene.tries("203.0.113.9", "user-1", "right").await;
    assert_eq!(elsewhere, Some(Code::Refused), "a stranger, even with the password");
    assert_eq!(scene.tries(DESK, "user-1", "right").await.0, None);
    for _ in 0..10 {
        scene.tries(DESK, "user-1", "wrong").await;
    }
    let most = STRANGERS_TRIES + KEPT_FOR_FAMILIAR;
    assert_eq!(scene.binds(), most + 1, "failures there have an end too");
}

#[tokio::test(start_paused = true)]
async fn names_that_were_refused_lately_wait_apart() {
    let scene = scene(ms(10), ms(1_000), |_| {});
    let guess = |n: usize| {
        let scene = &scene;
        async move { scene.tries(&format!("203.0.113.{n}"), &format!("user-{n}"), "wrong").await.0 }
    };
    let guesses = 3 * scene.fake.serves_at_once();
    assert_eq!(at_once((0..guesses).map(guess)).await, vec![Some(Code::Refused); guesses]);

    let innocent = |n: usize| {
        let scene = &scene;
        async move { scene.tries("198.51.100.1", &format!("user-other-{n}"), "right").await }
    };
    let innocents = async {
        // Those who guess are there first.
        sleep(ms(5)).await;
        let slots = scene.fake.serves_at_once();
        futures_util::future::join_all((0..slots).map(innocent)).await
    };
    let (_, told) = tokio::join!(at_once((0..guesses).map(guess)), innocents);
    assert!(told.iter().all(|told| *told == (None, ms(1_010))), "{told:?}");
}
