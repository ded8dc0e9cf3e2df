use super::*;
use crate::pool::{Faults, RawPool};

const MINUTE: u64 = 60_000;
const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn raw(more: &str) -> RawPool {
    let text = format!(
        r#"{{"name": "keiri", "label": "経理", "kind": "floating", "reuse": "never",
            "protocol": "tcp", "entitlements": [], "desktops": []{more}}}"#
    );
    serde_json::from_str(&text).expect("a pool as it is written")
}

fn pool(more: &str) -> Pool {
    Pool::try_from(raw(more)).expect("a good pool")
}

#[test]
fn a_pool_of_before_there_were_terms_is_open_from_everywhere_without_limits() {
    let pool = pool("");
    assert_eq!((pool.raw().takeover, pool.raw().by_class.len()), (Takeover::Allow, 0));
    for class in ["office", "telework", ""] {
        let Terms { allowed, idle, session, password_age, .. } = pool.terms(class);
        assert!(allowed);
        assert_eq!((idle, session, password_age), (None, None, None));
    }
}

#[test]
fn a_class_takes_away_from_the_policy_and_has_limits_of_its_own() {
    let pool = pool(
        r#", "policy": {"clipboard": true, "drive": true, "sound": true},
           "limits": {"idle_ms": 900000, "session_ms": 36000000},
           "by_class": [
             {"class": "telework", "policy": {"sound": true, "usb": true, "profile": "home"},
              "limits": {"idle_ms": 300000}, "password_age_ms": 3600000},
             {"class": "street", "allowed": false},
             {"class": "branch"}]"#,
    );
    let all = Policy { clipboard: true, drive: true, sound: true, ..Policy::default() };
    let hour = Some(Duration::from_hours(1));
    let minutes = |n| Some(Duration::from_mins(n));
    for (class, allowed, policy, idle, age) in [
        ("office", true, all, minutes(15), None),
        ("branch", true, all, minutes(15), None),
        (
            "telework",
            true,
            Policy { sound: true, profile: "home".parse().ok(), ..Policy::default() },
            minutes(5),
            hour,
        ),
        ("street", false, all, minutes(15), None),
    ] {
        let session = minutes(600);
        let terms = Terms { allowed, policy, idle, session, password_age: age };
        assert_eq!(pool.terms(class), terms, "{class}");
    }
    let text = serde_json::to_string(&pool).expect("JSON");
    assert_eq!(serde_json::from_str::<Pool>(&text).expect("its own text"), pool);
}

#[test]
fn a_link_is_judged_by_where_it_is_how_long_the_session_is_and_how_old_the_password() {
    let ago = |ms| NOW.before(Duration::from_millis(ms));
    let open = Terms {
        allowed: true,
        policy: Policy::default(),
        idle: None,
        session: Some(Duration::from_hours(1)),
        password_age: Some(Duration::from_mins(10)),
    };
    let judge = |terms: Terms, began: u64, password: u64| {
        let arrival = Arrival { began: ago(began), password_at: ago(password) };
        terms.judge(arrival, NOW)
    };
    assert_eq!(judge(open, 0, 0), Ok(()));
    assert_eq!(judge(open, 60 * MINUTE - 1, 10 * MINUTE), Ok(()), "to the last moment");
    assert_eq!(judge(open, 60 * MINUTE, 0), Err(Code::TimeLimit));
    assert_eq!(judge(open, 20 * MINUTE, 10 * MINUTE + 1), Err(Code::LoginAgain));
    let shut = Terms { allowed: false, ..open };
    assert_eq!(judge(shut, 60 * MINUTE, 60 * MINUTE), Err(Code::NotAllowedHere));
    let free = Terms { session: None, password_age: None, ..open };
    assert_eq!(judge(free, 9_000 * MINUTE, 9_000 * MINUTE), Ok(()));
    let ahead = Arrival { began: NOW, password_at: NOW.after(Duration::from_hours(1)) };
    assert_eq!(open.judge(ahead, NOW), Ok(()), "a clock that was set back");
}

#[test]
fn every_fault_of_the_terms_is_named_with_its_place() {
    let bad = raw(r#", "limits": {"idle_ms": 0, "session_ms": 604800001},
           "by_class": [
             {"class": "telework", "limits": {"idle_ms": 86400001, "session_ms": 0}},
             {"class": "Home"}, {"class": ""}, {"class": "telework"},
             {"class": "train", "password_age_ms": 18446744073709551615}]"#);
    let Faults(faults) = Pool::try_from(bad).expect_err("it has faults");
    let keys: Vec<_> = faults.iter().map(|fault| fault.key.as_str()).collect();
    let wanted = [
        "limits.idle_ms",
        "limits.session_ms",
        "by_class[0].limits.idle_ms",
        "by_class[0].limits.session_ms",
        "by_class[1].class",
        "by_class[2].class",
        "by_class[3].class",
        "by_class[4].password_age_ms",
    ];
    assert_eq!(keys, wanted);
    let mut many = raw("");
    let row = |n| ByClass {
        class: format!("class-{n}"),
        allowed: true,
        policy: None,
        limits: Limits::default(),
        password_age_ms: None,
    };
    many.by_class = (0..=CLASSES_MAX).map(row).collect();
    let Faults(faults) = Pool::try_from(many).expect_err("they are too many");
    assert_eq!(faults[0].key, "by_class");
}

#[test]
fn a_key_that_nobody_knows_is_no_row() {
    let row = |text: &str| serde_json::from_str::<ByClass>(text);
    assert!(row(r#"{"class": "telework"}"#).is_ok());
    for bad in [
        r#"{"class": "telework", "alowed": false}"#,
        r#"{"class": "telework", "limits": {"idle": 1}}"#,
        r#"{"class": "telework", "password_age_ms": -1}"#,
        r#"{"class": "telework", "policy": {"profile": "much-longer-than-fits"}}"#,
        r#"{"allowed": false}"#,
    ] {
        assert!(row(bad).is_err(), "{bad}");
    }
}
