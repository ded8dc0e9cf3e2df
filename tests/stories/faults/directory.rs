//! The directory fails in every way, and nobody gets in by it or is put out by it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::port::free_udp;
use tegata_parts::slapd::{BASE, Group, Person, Slapd, group_dn};
use tegata_parts::wire::{Habit, Wire};
use tegata_proto::code::Code;
use tegata_proto::login::BrokerMessage;
use tegata_tests::chaos::relay::Relay;
use tegata_tests::chaos::schedule::Schedule;
use tegata_tests::chaos::weather::Weather;
use tegata_tests::sins::{DEADLINE, SLACK};
use tegata_tests::site::{Builder, Site, pool};
use tegata_tests::staff::{Login, echo};
use tegata_tests::stranger::{self, Keys};
use tegata_tests::wait;
use tokio::task::JoinSet;

use super::{PASSWORD, tell};

/// How often the directory goes and comes back.
const FLAPS: usize = 3;

/// How long a login is under way before the wire changes.
const PAUSE: Duration = Duration::from_millis(30);

/// How many come at once to a directory that is silent: if each of them found that out for
/// themselves, the last would wait for nearly a minute.
const CROWD: usize = 200;

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
    ministry_at(|site| site)
}

fn ministry_at(site: impl FnOnce(Builder) -> Builder) -> Result<Ministry> {
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
    let builder = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &addresses))
        .directory(&format!("ldaps://localhost:{}", wire.address().port()), &ca.certificate());
    let site = site(builder).start()?;
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

    /// A crowd tries to log in at once, and each is told that nobody can be asked now, the
    /// last of them about as soon as the first.
    fn turns_a_crowd_away(&self, fault: &str) -> Result<()> {
        let (to, keys) = (self.site.listen(), Arc::new(Keys::generate()?));
        let began = Instant::now();
        let told = tokio::runtime::Runtime::new()?.block_on(async {
            let mut crowd = JoinSet::new();
            for n in 0..CROWD {
                let (keys, name) = (Arc::clone(&keys), format!("nobody-{n}"));
                crowd.spawn(async move {
                    let answer = stranger::login(to, &keys, &name, PASSWORD).await?;
                    match &answer {
                        BrokerMessage::Error(failure) if failure.code == Code::Unavailable => {
                            Ok(began.elapsed())
                        }
                        _ => bail!("{name}: {answer:?}"),
                    }
                });
            }
            crowd.join_all().await
        });
        let took = told.into_iter().collect::<Result<Vec<_>>>()?;
        let (first, last) = (took.iter().min(), took.iter().max().copied().unwrap_or_default());
        tell(&json!({
            "story": "directory", "fault": fault, "crowd": CROWD,
            "first_ms": first.map(Duration::as_millis), "last_ms": last.as_millis(),
        }));
        ensure!(last < DEADLINE + SLACK, "{fault}: the last was told after {last:?}");
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
        if habit == Habit::Silent {
            ministry.turns_a_crowd_away(fault)?;
        }
        ministry.turns_sato_away(fault, 25)?;
        echo(&mut work, fault)?;
        ministry.wire.set(Habit::Good);
        drop(ministry.lets_sato_in()?);
    }

    ministry.slapd.pause()?;
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
fn who_loses_the_link_comes_back_to_their_desktop_without_a_directory() -> Result<()> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp()?));
    let here = (Ipv4Addr::LOCALHOST, 0).into();
    let relay = Relay::start(here, listen, 1, Schedule::steady(Weather::CLEAR))?;
    let mut ministry = ministry_at(|site| site.behind(listen, relay.address()))?;
    let door = relay.address().to_string();
    // It is started once for each time that the desktop is opened.
    let (script, file) = viewer(&ministry.site)?;
    let starts = || fs::read_to_string(&file).map_or(0, |text| text.lines().count());
    let tanaka = ministry.site.device("tanaka", PASSWORD).server(&door).exec(&script).start()?;
    tanaka.event("attached")?;
    let holder = |site: &Site| -> Result<_> {
        let desktops = site.api()?.desktops("keiri")?;
        let held = desktops.into_iter().find(|desktop| desktop["state"] == "assigned");
        let held = held.context("nobody has a desktop")?;
        Ok(["name", "user", "epoch"].map(|of| held[of].clone()))
    };
    wait::until("Tanaka to be at work", || Ok((active(&ministry.site)? == 1).then_some(())))?;
    let before = holder(&ministry.site)?;
    ministry.slapd.stop()?;

    // The way is dark for a while: the gateway has kept the desktop's connection.
    relay.set(Schedule::steady(Weather::DARK))?;
    tanaka.event("link_lost")?;
    relay.set(Schedule::steady(Weather::CLEAR))?;
    tanaka.event("resumed")?;
    assert_eq!(starts(), 1, "{}", tanaka.log());

    // The broker is killed and started again: nothing is kept but the right to come back.
    ministry.site.kill()?;
    ministry.site.start()?;
    wait::until("Tanaka's desktop to be opened again", || Ok((starts() == 2).then_some(())))
        .with_context(|| tanaka.log())?;
    wait::until("Tanaka to be at work", || Ok((active(&ministry.site)? == 1).then_some(())))?;
    assert_eq!(holder(&ministry.site)?, before, "the same desktop, for the same time");
    let logins = tanaka.events().iter().filter(|told| told["event"] == "authenticated").count();
    assert_eq!(logins, 1, "{}", tanaka.log());
    ministry.turns_sato_away("still down", 25)?;
    assert!(tanaka.is_running());
    Ok(())
}

/// Writes a viewer that shows nothing and types all the time, so that a loss is noticed. Returns its command, and the file with a line for each of
/// its starts.
fn viewer(site: &Site) -> Result<(String, PathBuf)> {
    let (starts, script) = (site.scratch().join("starts"), site.scratch().join("viewer"));
    let started = format!("echo x >> {}\n", starts.display());
    fs::write(
        &script,
        started + "cat <&3 >/dev/null &\nwhile sleep 0.1; do echo typed >&3 || exit; done\n",
    )?;
    Ok((format!("sh {}", script.display()), starts))
}

/// Counts the sessions that are carried.
fn active(site: &Site) -> Result<usize> {
    let sessions = site.api()?.sessions()?;
    Ok(sessions.iter().filter(|session| session["state"] == "active").count())
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
    let text = fs::read_to_string(&config)?;
    let moved = text.replace("people = \"ou=people,", "people = \"ou=away,");
    assert_ne!(moved, text);
    assert_eq!(ministry.site.stop()?.0, Some(0));
    fs::write(&config, moved)?;
    ministry.site.start()?;
    ministry.turns_sato_away("refers everybody", 25)?;
    assert_eq!(elsewhere.accepted(), 0, "nobody was sent there, and no password");
    Ok(())
}
