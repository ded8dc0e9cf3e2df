//! The throttle on ordinary days, on bad ones, and on random ones.

use std::collections::{BTreeMap, BTreeSet};

use super::table::Table;
use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn user(id: &str) -> UserId {
    format!("honsho/{id}").parse().unwrap()
}

fn realm() -> RealmName {
    "honsho".parse().unwrap()
}

fn limits(logins: u32, failures: u32) -> SourceLimits {
    let number = |n| NonZeroU32::new(n).unwrap();
    SourceLimits {
        logins_per_minute: number(logins),
        failures_per_minute: number(failures),
        share: number(1),
    }
}

fn throttle() -> Throttle<u32> {
    Throttle::new([1, 2])
}

const WRONG: Outcome = Outcome::Wrong;

/// Tries a password and fails, if it may be tried.
fn fails(throttle: &mut Throttle<u32>, who: &UserId, familiar: bool, now: Duration) -> Try {
    let tried = throttle.reserve(who, familiar, now);
    if tried == Try::Go {
        throttle.settle(who, WRONG, now);
    }
    tried
}

/// Why, who tries as (familiar, minute), and what they are told.
type Row = (&'static str, &'static [(bool, u64)], &'static [Try]);

#[test]
fn budgets_are_for_a_person_with_two_tries_kept_for_known_places() {
    use Try::{Go, Spent};
    let table: &[Row] = &[
        ("strangers", &[(false, 0), (false, 0), (false, 0), (false, 0)], &[Go, Go, Go, Spent]),
        ("known", &[(true, 0); 6], &[Go, Go, Go, Go, Go, Spent]),
        (
            "strangers first",
            &[(false, 0), (false, 0), (false, 0), (true, 0), (true, 0), (true, 0)],
            &[Go, Go, Go, Go, Go, Spent],
        ),
        (
            "known first",
            &[(true, 0), (true, 0), (true, 0), (false, 0), (true, 0), (true, 0), (true, 0)],
            &[Go, Go, Go, Spent, Go, Go, Spent],
        ),
        (
            "each failure is forgotten after its own quarter of an hour",
            &[
                (false, 0),
                (false, 10),
                (false, 14),
                (false, 14),
                (false, 15),
                (false, 15),
                (false, 25),
            ],
            &[Go, Go, Go, Spent, Go, Spent, Go],
        ),
    ];
    for (why, tries, told) in table {
        let mut throttle = throttle();
        let answers: Vec<_> = tries
            .iter()
            .map(|(familiar, minute)| {
                fails(&mut throttle, &user("sato"), *familiar, s(minute * 60))
            })
            .collect();
        assert_eq!(answers, *told, "{why}");
        assert_eq!(
            throttle.reserve(&user("tanaka"), false, s(0)),
            Go,
            "{why}: others are not touched"
        );
    }
}

#[test]
fn fifty_spellings_are_one_person_in_the_budget() {
    let mut throttle = throttle();
    // The directory says who it is; what was typed plays no part.
    let went = (0..50).filter(|_| fails(&mut throttle, &user("sato"), false, s(1)) == Try::Go);
    assert_eq!(went.count(), STRANGERS_TRIES);
}

#[test]
fn a_bind_on_its_way_holds_its_place() {
    let (mut throttle, sato) = (throttle(), user("sato"));
    let went = (0..100).filter(|_| throttle.reserve(&sato, false, s(0)) == Try::Go).count();
    assert_eq!(went, STRANGERS_TRIES, "a hundred at once");
    assert_eq!(throttle.reserve(&sato, false, s(0)), Try::Wait, "the outcome is not known yet");
    assert_eq!(throttle.reserve(&sato, true, s(0)), Try::Go, "those kept for known places");
    throttle.settle(&sato, Outcome::Right, s(1));
    assert_eq!(
        throttle.reserve(&sato, false, s(1)),
        Try::Wait,
        "one more is out than for strangers"
    );
    for _ in 0..STRANGERS_TRIES {
        throttle.settle(&sato, WRONG, s(1));
    }
    assert_eq!(throttle.reserve(&sato, false, s(1)), Try::Spent);
    // However long a bind takes, its place is held.
    let mut slow = self::throttle();
    for _ in 0..STRANGERS_TRIES {
        slow.reserve(&sato, false, s(0));
    }
    assert_eq!(slow.reserve(&sato, false, s(86_400)), Try::Wait);
}

#[test]
fn a_bind_counts_as_it_ended() {
    let table = [
        (Outcome::Right, [Try::Go, Try::Go]),
        (Outcome::NotDone, [Try::Go, Try::Go]),
        (Outcome::Wrong, [Try::Spent, Try::Spent]),
        // In doubt for a minute, then no failure of the person's.
        (Outcome::Unknown, [Try::Doubtful, Try::Go]),
    ];
    for (outcome, told) in table {
        let (mut throttle, sato) = (throttle(), user("sato"));
        for _ in 0..STRANGERS_TRIES {
            assert_eq!(throttle.reserve(&sato, false, s(0)), Try::Go);
            throttle.settle(&sato, outcome, s(0));
        }
        let after = [s(1), DOUBT].map(|now| {
            let tried = throttle.reserve(&sato, false, now);
            if tried == Try::Go {
                throttle.settle(&sato, Outcome::NotDone, now);
            }
            tried
        });
        assert_eq!(after, told, "{outcome:?}");
    }
}

#[test]
fn a_source_has_so_many_logins_and_failures_a_minute() {
    let (mut throttle, limits) = (throttle(), limits(60, 6));
    for n in 0..60 {
        assert_eq!(throttle.arrives(1, &limits, s(0)), Ok(()), "{n}");
    }
    assert_eq!(throttle.arrives(1, &limits, s(0)), Err(Throttled { retry_after: s(1) }));
    assert_eq!(throttle.arrives(2, &limits, s(0)), Ok(()), "another source");
    assert_eq!(throttle.arrives(1, &limits, s(1)), Ok(()), "as was promised");

    for n in 0..6 {
        assert_eq!(throttle.arrives(3, &limits, s(0)), Ok(()), "{n}");
        throttle.refused(3, &limits, s(0));
    }
    assert_eq!(throttle.arrives(3, &limits, s(0)), Err(Throttled { retry_after: s(10) }));
    assert_eq!(throttle.fill(s(0)).throttled, 1);
    assert_eq!(throttle.arrives(3, &limits, s(10)), Ok(()));
    // Those that were under way when the limit was reached cost a minute at most.
    for _ in 0..1_000 {
        throttle.refused(3, &limits, s(10));
    }
    assert_eq!(throttle.arrives(3, &limits, s(10)), Err(Throttled { retry_after: s(10) }));
    assert_eq!((throttle.arrives(3, &limits, s(20)), throttle.fill(s(20)).throttled), (Ok(()), 0));
}

#[test]
fn a_source_whose_tries_failed_while_others_waited_has_no_more_of_them_tried() {
    let (mut throttle, limits) = (throttle(), limits(60, 6));
    for failed in 0..6 {
        assert_eq!(throttle.may_try(1, &limits, s(0)), Ok(()), "{failed}");
        throttle.refused(1, &limits, s(0));
    }
    assert_eq!(throttle.may_try(1, &limits, s(0)), Err(Throttled { retry_after: s(10) }));
    assert_eq!(throttle.may_try(2, &limits, s(0)), Ok(()), "another source");
    assert_eq!(throttle.may_try(1, &limits, s(10)), Ok(()));
    for n in 0..60 {
        assert_eq!(throttle.arrives(3, &limits, s(0)), Ok(()), "{n}");
    }
    assert_eq!(throttle.may_try(3, &limits, s(0)), Ok(()), "it was counted when it came");
}

#[test]
fn refused_names_are_suspect_for_a_quarter_of_an_hour() {
    let mut throttle = throttle();
    let (realm, other) = (realm(), "chiho".parse().unwrap());
    throttle.refused(1, &limits(60, 60), s(100));
    throttle.suspect(&realm, "Sato", s(100));
    for spelling in ["Sato", "sato", "SATO"] {
        assert!(throttle.is_suspect(&realm, spelling, s(100)), "{spelling}");
    }
    assert!(!throttle.is_suspect(&realm, "tanaka", s(100)));
    assert!(!throttle.is_suspect(&other, "sato", s(100)), "of another realm");
    assert!(throttle.is_suspect(&realm, "sato", s(99) + SUSPECT_FOR));
    assert!(!throttle.is_suspect(&realm, "sato", s(100) + SUSPECT_FOR));
    assert!(!Throttle::<u32>::new([1, 3]).is_suspect(&realm, "sato", s(100)));
}

#[test]
fn unknown_names_take_no_memory_and_few_innocent_names_are_suspected() {
    let (realm, limits) = (realm(), limits(600, 600));
    for sources in [1, 1_000] {
        let mut throttle = throttle();
        for n in 0..10_000 {
            throttle.refused(n % sources, &limits, s(1));
            throttle.suspect(&realm, &format!("unknown-{n}"), s(1));
        }
        let fill = throttle.fill(s(1));
        assert_eq!((fill.people, fill.sources), (0, usize::try_from(sources).unwrap()));
        assert!(fill.suspects <= 20_000);
        let innocent = |n: &u32| throttle.is_suspect(&realm, &format!("staff-{n}"), s(1));
        let suspected = (0..10_000).filter(innocent).count();
        assert!(suspected < 500, "{suspected} of 10,000 from {sources} sources");
        // A day later nothing of it is left but the room that it had.
        throttle.suspect(&realm, "x", s(86_400));
        assert_eq!(throttle.fill(s(86_400)).suspects, 2);
    }
}

#[test]
fn a_flood_from_everywhere_fills_the_tables_and_no_more() {
    let (mut throttle, limits) = (throttle(), limits(60, 6));
    // One who is over the limit, and then more sources than fit.
    for _ in 0..6 {
        throttle.refused(0, &limits, s(0));
    }
    for source in 1..=u32::try_from(SOURCES_MAX).unwrap() + 1_000 {
        assert_eq!(throttle.arrives(source, &limits, s(0)), Ok(()), "nobody is refused for room");
    }
    assert_eq!(throttle.fill(s(0)).sources, SOURCES_MAX);
    assert!(throttle.arrives(0, &limits, s(0)).is_err(), "who weighs most is remembered longest");
    // And it shrinks again by itself.
    for n in 0..SOURCES_MAX {
        let _counted = throttle.arrives(1, &limits, s(120 + u64::try_from(n).unwrap()));
    }
    assert_eq!(throttle.fill(s(200)).sources, 1);
}

/// Random tries against a model that keeps everything for ever.
#[test]
fn no_random_day_passes_a_budget_or_keeps_out_who_has_tries_left() {
    for seed in 0..60_u64 {
        let mut state = seed;
        let mut roll = |sides: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % sides
        };
        let mut throttle = throttle();
        let mut model: BTreeMap<UserId, (Vec<Duration>, Vec<Duration>)> = BTreeMap::new();
        let mut flying: Vec<UserId> = Vec::new();
        let mut now = s(0);
        for step in 0..2_000 {
            now += Duration::from_millis(roll(20_000));
            if roll(3) == 0 && !flying.is_empty() {
                let at = usize::try_from(roll(flying.len() as u64)).unwrap();
                let who = flying.swap_remove(at);
                let (failed, doubts) = model.entry(who.clone()).or_default();
                let outcome = match roll(4) {
                    0 => Outcome::Right,
                    1 => Outcome::NotDone,
                    2 => {
                        doubts.push(now);
                        Outcome::Unknown
                    }
                    _ => {
                        failed.push(now);
                        WRONG
                    }
                };
                throttle.settle(&who, outcome, now);
                continue;
            }
            let (who, familiar) = (user(&format!("user-{}", roll(4))), roll(2) == 0);
            let (failed, doubts) = model.entry(who.clone()).or_default();
            let recent = failed.iter().filter(|at| now < **at + WINDOW).count();
            let doubted = doubts.iter().filter(|at| now < **at + DOUBT).count();
            let out = flying.iter().filter(|other| **other == who).count();
            let budget = if familiar { 5 } else { 3 };
            let wanted = if recent >= budget {
                Try::Spent
            } else if recent + doubted >= budget {
                Try::Doubtful
            } else if recent + doubted + out >= budget {
                Try::Wait
            } else {
                Try::Go
            };
            let tried = throttle.reserve(&who, familiar, now);
            assert_eq!(tried, wanted, "seed {seed}, step {step}");
            if tried == Try::Go {
                flying.push(who);
            }
        }
    }
}

/// The table against one that forgets nothing, where neither is full.
#[test]
fn a_table_loses_nothing_that_still_means_something() {
    let mut table: Table<u64, u64> = Table::new(64);
    let mut all: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    let mut state = 7_u64;
    for now in 0..20_000_u64 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let (key, end) = ((state >> 33) % 60, now + (state >> 45) % 50);
        let seen = table.change(&key, s(now), |row| {
            *row += 1;
            (*row, s(end))
        });
        let old = all.get(&key).filter(|(until, _)| *until > now).map_or(0, |(_, n)| *n);
        // A row that is over may be forgotten, and may still be there.
        let kept = all.get(&key).map_or(0, |(_, n)| *n);
        assert!(BTreeSet::from([old + 1, kept + 1]).contains(&seen), "at {now}");
        all.insert(key, (end, seen));
    }
}
