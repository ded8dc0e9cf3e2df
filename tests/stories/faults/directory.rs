//! The directory fails in every way, and nobody gets in by it or is put out by it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::slapd::{BASE, Group, Person, Slapd, group_dn};
use tegata_parts::wire::{Habit, Wire};
use tegata_proto::code::Code;
use tegata_proto::login::BrokerMessage;
use tegata_tests::site::{Site, pool};
use tegata_tests::staff::{Login, echo};
use tegata_tests::stranger::{self, Keys};
use tegata_tests::wait;

use super::{PASSWORD, tell};

/// How often the directory goes and comes back.
const FLAPS: usize = 3;

/// How long a login is under way before the wire changes.
const PAUSE: Duration = Duration::from_millis(30);

/// A ministry whose directory is behind a wire.
struct Ministry {
    slapd: Slapd,
    wire: Wire,
    site: Site,
    _desktops: [FakeDesktop; 3],
    /// Its certificate is read at each start of the directory.
    _ca: TestCa,
}

fn ministry() -> Result<Ministry> {
    let ca = TestCa::new("directory")?;
    let people = ["sato", "tanaka", "suzuki"];
    let mut slapd = Slapd::builder();
    let mut group = Group::new("keiri");
    for name in people {
        slapd = slapd.person(Person::new(name, name, PASSWORD));
        group = group.member(name);
    }
    let slapd = slapd.group(group).start(&ca)?;
    let url = slapd.ldaps_url();
    let port = url.rsplit(':').next().and_then(|port| port.parse().ok()).context("no port")?;
    let wire = Wire::to(port)?;
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses = desktops.each_ref().map(FakeDesktop::address);
    let site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &addresses))
        .directory(&format!("ldaps://localhost:{}", wire.address().port()), &ca.certificate())
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 3)?;
    Ok(Ministry { slapd, wire, site, _desktops: desktops, _ca: ca })
}

impl Ministry {
    /// Sato tries to log in, and is told by this exit number that it is not to be;
    /// nothing is granted meanwhile.
    fn turns_sato_away(&self, fault: &str, exit: i32) -> Result<()> {
        let before = self.site.api()?.sessions()?.len();
        let began = Instant::now();
        let mut sato = self.site.login("sato", PASSWORD)?;
        let told = sato.exit()?;
        let took = began.elapsed();
        tell(&json!({
            "story": "directory", "fault": fault, "exit": told, "took_ms": took.as_millis(),
        }));
        ensure!(told == exit, "{fault}: {told}, {}", sato.log());
        ensure!(self.site.api()?.sessions()?.len() == before, "{fault}: something was granted");
        Ok(())
    }

    /// Sato gets in, as soon as the directory is used again.
    fn lets_sato_in(&self) -> Result<Login> {
        wait::until("the directory to be used again", || {
            let mut sato = self.site.login("sato", PASSWORD)?;
            if sato.event("attached").is_ok() {
                return Ok(Some(sato));
            }
            let told = sato.exit()?;
            ensure!(told == 25, "a directory that comes back is no refusal: {told}");
            Ok(None)
        })
    }
}

#[test]
fn a_directory_that_does_not_answer_lets_nobody_in_and_puts_nobody_out() -> Result<()> {
    let mut ministry = ministry()?;
    let tanaka = ministry.site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;
    echo(&mut work, "before")?;

    for (fault, habit) in [
        ("accepts and says nothing", Habit::Silent),
        ("answers late", Habit::Late(Duration::from_secs(10))),
        ("closes what it accepts", Habit::Cut),
    ] {
        ministry.wire.set(habit);
        ministry.turns_sato_away(fault, 25)?;
        echo(&mut work, fault)?;
        ministry.wire.set(Habit::Good);
        drop(ministry.lets_sato_in()?);
    }

    ministry.slapd.pause();
    ministry.turns_sato_away("frozen", 25)?;
    echo(&mut work, "frozen")?;
    ministry.slapd.resume();
    drop(ministry.lets_sato_in()?);

    ministry.slapd.stop()?;
    ministry.turns_sato_away("down", 25)?;
    echo(&mut work, "down")?;
    ministry.slapd.restart()?;
    drop(ministry.lets_sato_in()?);
    assert!(tanaka.is_running());
    Ok(())
}

#[test]
fn a_directory_that_comes_and_goes_is_never_taken_for_a_refusal() -> Result<()> {
    let Ministry { wire, site, slapd: _slapd, _desktops, _ca } = ministry()?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;
    let (runtime, keys) = (tokio::runtime::Runtime::new()?, Keys::generate()?);
    let login = |name| stranger::login(site.listen(), &keys, name, PASSWORD);
    let mut answers = Vec::new();
    for _ in 0..FLAPS {
        // It goes while somebody logs in, and is away for the next one.
        let (answer, ()) = runtime.block_on(async {
            tokio::join!(login("sato"), async {
                tokio::time::sleep(PAUSE).await;
                wire.set(Habit::Cut);
            })
        });
        answers.extend([answer?, runtime.block_on(login("suzuki"))?]);
        echo(&mut work, "still here")?;
        wire.set(Habit::Good);
        wait::until("the directory to be used again", || {
            let answer = runtime.block_on(login("sato"))?;
            let granted = matches!(answer, BrokerMessage::Ticket(_));
            answers.push(answer);
            Ok(granted.then_some(()))
        })?;
    }
    let granted = answers.iter().filter(|answer| matches!(answer, BrokerMessage::Ticket(_)));
    tell(&json!({
        "story": "directory", "fault": "flapping", "logins": answers.len(),
        "granted": granted.count(),
    }));
    for answer in &answers {
        let honest = match answer {
            BrokerMessage::Ticket(_) => true,
            BrokerMessage::Error(failure) => failure.code == Code::Unavailable,
            _ => false,
        };
        assert!(honest, "{answer:?}");
    }
    Ok(())
}

#[test]
fn a_referral_is_not_followed_and_two_entries_of_one_name_are_nobody() -> Result<()> {
    let mut ministry = ministry()?;
    let tanaka = ministry.site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;
    let elsewhere = FakeDesktop::silent()?;
    let referral = format!("ldap://{}/ou=people,{BASE}", elsewhere.address());

    // A person who is said to be elsewhere is not here.
    ministry.slapd.remove("sato")?;
    ministry.slapd.modify(&format!(
        "dn: uid=sato,ou=people,{BASE}\nchangetype: add\nobjectClass: referral\n\
         objectClass: extensibleObject\nuid: sato\nref: {referral}\n"
    ))?;
    ministry.turns_sato_away("refers a person", 20)?;

    // Two people of one name are none.
    for name in ["one", "other"] {
        ministry.slapd.modify(&format!(
            "dn: cn={name},ou=people,{BASE}\nchangetype: add\nobjectClass: inetOrgPerson\n\
             uid: sato\nsn: Sato\nuserPassword: {PASSWORD}\n"
        ))?;
    }
    ministry.turns_sato_away("has two entries", 20)?;
    echo(&mut work, "two entries")?;

    // All people are said to be elsewhere.
    ministry.slapd.modify(&format!(
        "dn: ou=away,{BASE}\nchangetype: add\nobjectClass: referral\n\
         objectClass: extensibleObject\nou: away\nref: {referral}\n"
    ))?;
    let config = ministry.site.path("broker.toml");
    let text = std::fs::read_to_string(&config)?;
    let moved = text.replace("people = \"ou=people,", "people = \"ou=away,");
    assert_ne!(moved, text);
    assert_eq!(ministry.site.stop()?.0, Some(0));
    std::fs::write(&config, moved)?;
    ministry.site.start()?;
    ministry.turns_sato_away("refers everybody", 25)?;
    assert_eq!(elsewhere.accepted(), 0, "nobody was sent there, and no password");
    Ok(())
}
