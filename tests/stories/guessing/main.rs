//! Strangers try passwords, names and their own patience; staff log in meanwhile.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::slapd::{Group, Person, Slapd, group_dn};
use tegata_proto::code::Code;
use tegata_tests::site::{Site, pool};
use tegata_tests::slow::SlowLine;
use tegata_tests::staff::echo;
use tegata_tests::stranger::try_from;
use tegata_tests::timing::{self, Plan};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

mod names;

const PASSWORD: &str = "Himitsu-1";

/// Where staff sit.
const DESK: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// Hanako and José are in accounting; Suzuki is locked. The
/// directory itself locks nobody here, and remembers each failure.
fn directory(ca: &TestCa) -> Result<Slapd> {
    Slapd::builder()
        .person(Person::new("hanako", "Sato Hanako", PASSWORD))
        .person(Person::new("josé", "Tanaka José", PASSWORD))
        .person(Person::new("suzuki", "Suzuki Ichiro", PASSWORD).locked())
        .group(Group::new("keiri").member("hanako").member("josé"))
        .locks_after(100, Duration::from_secs(5))
        .start(ca)
}

fn stranger(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 9, n)
}

/// Every way to write a name in small and capital letters.
fn spellings(name: &str) -> impl Iterator<Item = String> {
    (0..1_u32 << name.len()).map(move |capitals| {
        let letter = |(n, letter): (usize, char)| {
            if capitals & (1 << n) == 0 { letter } else { letter.to_ascii_uppercase() }
        };
        name.chars().enumerate().map(letter).collect()
    })
}

#[test]
fn fifty_spellings_of_a_name_have_one_persons_tries() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &[desktop.address()]))
        .slapd(&slapd, &ca.certificate())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    let runtime = Runtime::new()?;
    let broker = site.listen();
    let at_desk = runtime.block_on(try_from(DESK, broker, "hanako", PASSWORD))?;
    assert_eq!(at_desk.code()?, None, "she was here before");

    // All at once, each from somewhere else.
    let forms =
        ["ｈａｎａｋｏ", "ＨＡＮＡＫＯ", " hanako", "hanako ", "hanako\u{200b}", "hanako\u{ad}"];
    let told = runtime.block_on(async {
        let mut tries = JoinSet::new();
        let names = forms.map(str::to_owned).into_iter().chain(spellings("hanako"));
        for (n, name) in (1..).zip(names.take(50)) {
            tries.spawn(async move { try_from(stranger(n), broker, &name, "wrong").await });
        }
        tries.join_all().await
    });
    for tried in told {
        assert_eq!(tried?.code()?, Some(Code::Refused));
    }
    assert_eq!(slapd.failed_binds("hanako")?, 3, "what reached the directory");
    let from_elsewhere = runtime.block_on(try_from(stranger(99), broker, "hanako", PASSWORD))?;
    assert_eq!(from_elsewhere.code()?, Some(Code::Refused), "strangers have no try left");
    assert_eq!(slapd.failed_binds("hanako")?, 3);
    let at_desk = runtime.block_on(try_from(DESK, broker, "HANAKO", PASSWORD))?;
    assert_eq!(at_desk.code()?, None, "she comes in at her desk");

    // A restart forgets failures, and nobody who was known.
    let mut site = site;
    site.stop()?;
    site.start()?;
    for n in 1..=5 {
        let tried = runtime.block_on(try_from(stranger(n), broker, "hanako", "wrong"))?;
        assert_eq!(tried.code()?, Some(Code::Refused));
    }
    assert_eq!(slapd.failed_binds("hanako")?, 3);
    let at_desk = runtime.block_on(try_from(DESK, broker, "hanako", PASSWORD))?;
    assert_eq!(at_desk.code()?, None);
    let metrics = site.api()?.metrics()?;
    let budget = metrics.lines().find(|line| line.contains("reason=\"Budget\""));
    assert!(budget.is_some_and(|line| line.ends_with(" 2")), "{budget:?}");
    Ok(())
}

#[test]
fn every_refusal_is_the_same_bytes() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let site = Site::builder().slapd(&slapd, &ca.certificate()).start()?;
    let runtime = Runtime::new()?;
    let broker = site.listen();
    let longest_name = "a".repeat(3_000);
    let mut answers = BTreeSet::new();
    for (n, (name, password)) in (1..).zip([
        ("hanako", "wrong"),
        ("hanako", " "),
        ("hanako", ""),
        ("hanako", "\0"),
        ("hanako", "Himitsu-1\0"),
        ("nobody", PASSWORD),
        ("suzuki", PASSWORD),
        ("suzuki", "wrong"),
        ("", PASSWORD),
        ("*", PASSWORD),
        (longest_name.as_str(), PASSWORD),
    ]) {
        let tried = runtime.block_on(try_from(stranger(n), broker, name, password))?;
        assert_eq!(tried.code()?, Some(Code::Refused), "{name} {password}");
        answers.insert(tried.bytes);
    }
    for n in 1..=4 {
        let tried = runtime.block_on(try_from(stranger(n), broker, "hanako", "wrong"))?;
        answers.insert(tried.bytes);
    }
    assert_eq!(slapd.failed_binds("hanako")?, 3, "the rest is refused without a bind");
    assert_eq!(answers.len(), 1, "{answers:?}");
    Ok(())
}

#[test]
fn a_name_in_any_form_is_refused_or_one_persons() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses: Vec<_> = desktops.iter().map(FakeDesktop::address).collect();
    let site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &addresses))
        .slapd(&slapd, &ca.certificate())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;
    let runtime = Runtime::new()?;
    let broker = site.listen();
    let (mut let_in, mut refused) = (Vec::new(), 0);
    for name in [
        "hanako",
        "HaNaKo",
        "ｈａｎａｋｏ",
        "hanako\0",
        "hana\0ko",
        "hanako\nforged line",
        "hanako\r\nforged line",
        "\u{1b}[31mhanako",
        "hanako\u{200b}",
        "\u{202e}okanah",
        " hanako",
        "hanako ",
        "ha  nako",
        "hanako)(uid=*",
        "*)(uid=hanako",
        "han*",
        "hanako\\00",
        "uid=hanako,ou=people,dc=test,dc=lan",
        "${jndi:ldap://127.0.0.1/forged line}",
        "jos\u{e9}",
        "jose\u{301}",
        "JOS\u{c9}",
        "JOSE\u{301}",
    ] {
        let tried = runtime.block_on(try_from(DESK, broker, name, PASSWORD))?;
        match tried.code()? {
            None => let_in.push(name),
            Some(Code::Refused) => refused += 1,
            Some(other) => panic!("{name:?}: {other}"),
        }
    }
    let hanako = format!("honsho/{}", slapd.entry_uuid("hanako")?);
    let jose = format!("honsho/{}", slapd.entry_uuid("josé")?);
    let users: BTreeSet<_> = site
        .api()?
        .sessions()?
        .iter()
        .map(|session| session["user"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(users, BTreeSet::from([hanako, jose]));
    assert!(let_in.contains(&"hanako") && let_in.contains(&"HaNaKo"), "{let_in:?}");
    assert!(refused >= 14, "{let_in:?}");
    let log = site.log();
    for text in ["forged line", "\u{1b}[31mhanako", "\u{202e}", "\0", "jndi"] {
        assert!(!log.contains(text), "{text:?} is in the log");
    }
    for line in log.lines() {
        assert!(line.starts_with("20") && line.contains('Z'), "a line of its own: {line:?}");
    }
    Ok(())
}

#[test]
fn a_source_that_tries_too_much_is_told_so_and_its_neighbour_is_not() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .office("failures_per_minute = 3\n")
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    let runtime = Runtime::new()?;
    let broker = site.listen();
    let mut codes = Vec::new();
    for n in 0..6 {
        let name = format!("nobody-{n}");
        codes.push(runtime.block_on(try_from(DESK, broker, &name, "x"))?.code()?);
    }
    ensure!(codes[..3] == [Some(Code::Refused); 3], "{codes:?}");
    ensure!(codes.contains(&Some(Code::Throttled)), "{codes:?}");
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 22, "{}", sato.log());
    assert!(sato.event("error")?["retry_after_ms"].as_u64().is_none_or(|wait| wait <= 20_000));
    let elsewhere = runtime.block_on(try_from(stranger(1), broker, "sato", PASSWORD))?;
    assert_eq!(elsewhere.code()?, None);
    Ok(())
}

#[test]
fn a_directory_that_cannot_answer_is_no_refusal_and_no_end_of_work() -> Result<()> {
    let (ca, other) = (TestCa::new("directory")?, TestCa::new("other")?);
    let mut slapd = directory(&ca)?;
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses: Vec<_> = desktops.iter().map(FakeDesktop::address).collect();
    let site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &addresses))
        .slapd(&slapd, &ca.certificate())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;
    let hanako = site.login("hanako", PASSWORD)?;
    let mut desk = hanako.desktop()?;
    echo(&mut desk, "before")?;

    let refused = |how: &str, desk: &mut std::net::TcpStream| -> Result<()> {
        for password in [PASSWORD, "wrong"] {
            let mut late = site.login("josé", password)?;
            assert_eq!(late.exit()?, 25, "{how}: {}", late.log());
            println!("{how}: exit 25 after {} ms", late.event("error")?["elapsed_ms"]);
        }
        echo(desk, how)
    };
    slapd.pause()?;
    refused("frozen", &mut desk)?;
    slapd.resume();
    slapd.stop()?;
    refused("down", &mut desk)?;
    slapd.restart_as(&other)?;
    refused("of another authority", &mut desk)?;
    let metrics = site.api()?.metrics()?;
    let state = metrics.lines().find(|line| line.starts_with("tegata_directory_server_state{"));
    let state = state.context("no state of the server")?;
    assert!(!state.ends_with(" 0") && !state.ends_with(" 0.0"), "{state}");
    slapd.restart_as(&ca)?;
    let runtime = Runtime::new()?;
    tegata_tests::wait::until("the directory to be asked again", || {
        let tried = runtime.block_on(try_from(DESK, site.listen(), "josé", PASSWORD))?;
        Ok(tried.code()?.is_none().then_some(()))
    })?;
    echo(&mut desk, "after")
}

/// Distance between the points at which refusals are answered.
const GRID: Duration = Duration::from_millis(500);

/// Prints how far the kinds are apart, and does not judge it: on a busy machine the
/// medians of equals may be a step of the grid apart. What it judges is what no machine
/// is too slow for: nobody is refused before the grid says so, nor, where every step at
/// the directory takes its time, sooner than a search and a bind would have been done.
#[test]
fn refusals_of_every_kind_are_the_same_bytes_and_none_is_quicker_than_a_bind() -> Result<()> {
    let long = std::env::var_os("TEGATA_LONG").is_some();
    let plan = if long { Plan::WHOLE } else { Plan { people: 40, tries: 48, in_flight: 8 } };
    let ca = TestCa::new("directory")?;
    let slapd = timing::crowd(plan).locks_after(100, Duration::from_secs(5)).start(&ca)?;
    let runtime = Runtime::new()?;
    for delay in [Duration::ZERO, Duration::from_millis(400)] {
        let line = runtime.block_on(SlowLine::to(slapd.ldaps_port(), delay))?;
        let url = format!("ldaps://localhost:{}", line.port());
        let site = Site::builder().directory(&url, &ca.certificate()).start()?;
        let figures = runtime.block_on(timing::interleaved(site.listen(), plan))?;
        println!(
            "{}",
            serde_json::json!({
                "bench": "guessing", "directory_step_ms": delay.as_millis(), "figures": figures,
            })
        );
        assert_eq!(figures.answers.len(), 1, "{:?}", figures.answers);
        let least_ms = GRID.max(2 * delay).as_secs_f64() * 1e3;
        for seen in &figures.kinds {
            ensure!(seen.fastest_ms >= least_ms, "before {least_ms} ms: {seen:?}");
        }
        assert!(figures.answers.iter().all(|answer| answer.contains("refused")), "{figures:?}");
    }
    Ok(())
}

/// Prints figures, and judges none of them but that each good login is let in.
#[test]
fn good_logins_come_in_while_sixteen_bad_ones_run() -> Result<()> {
    let long = std::env::var_os("TEGATA_LONG").is_some();
    let plan = if long { Plan::WHOLE } else { Plan { people: 40, ..Plan::WHOLE } };
    let ca = TestCa::new("directory")?;
    let slapd = timing::crowd(plan)
        .person(Person::new("hanako", "Sato Hanako", PASSWORD))
        .group(Group::new("keiri").member("hanako"))
        .locks_after(100, Duration::from_secs(5))
        .start(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &[desktop.address()]))
        .slapd(&slapd, &ca.certificate())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    let who = ("hanako", PASSWORD);
    let good = if long { 400 } else { 20 };
    let beside = timing::beside_bad(site.listen(), who, (good, 16), plan);
    let figures = Runtime::new()?.block_on(beside)?;
    println!("{}", serde_json::json!({"bench": "beside_bad", "figures": figures}));
    Ok(())
}
