//! Desktops die or misbehave at each moment of a session; only the one who sits
//! there notices.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Result, ensure};
use tegata_parts::fake::FakeDesktop;
use tegata_tests::site::{Site, pool};
use tegata_tests::staff::echo;

use super::PASSWORD;

/// How long a write may wait before it counts as stuck.
const STUCK: Duration = Duration::from_secs(2);

/// More than all the buffers between a viewer and a desktop hold together.
const ENOUGH: usize = 64 * 1024 * 1024;

/// An office in which each person has a pool of their own, and Tanaka works.
fn office(pools: &[(&str, &[SocketAddr])]) -> Result<Site> {
    let people: Vec<_> = pools.iter().map(|(name, _)| [*name]).collect();
    let people: Vec<(&str, &str, &[&str])> =
        people.iter().map(|name| (name[0], PASSWORD, &name[..])).collect();
    let mut builder = Site::builder().people(&people)?;
    for (name, desktops) in pools {
        let mut own = pool(name, name, desktops);
        own["queue_wait_ms"] = 0.into();
        builder = builder.pool(own);
    }
    let site = builder.start()?;
    for (name, desktops) in pools {
        site.api()?.wait_for_desktops(name, "ready", desktops.len())?;
    }
    Ok(site)
}

#[test]
fn a_desktop_that_is_dead_is_passed_over_and_two_dead_ones_are_the_end() -> Result<()> {
    let dead = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let (late, alive, own) =
        (FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?);
    let site = office(&[
        ("sato", &dead.each_ref().map(FakeDesktop::address)),
        ("suzuki", &[late.address(), alive.address()]),
        ("tanaka", &[own.address()]),
    ])?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;

    // Before anybody probes them again.
    drop((dead, late));
    let mut sato = site.login("sato", PASSWORD)?;
    let told = sato.exit()?;
    // The second login may find that a probe has seen the other one dead.
    ensure!([31, 40].contains(&told), "{told}: {}", sato.log());
    let suzuki = site.login("suzuki", PASSWORD)?;
    echo(&mut suzuki.desktop()?, "the one that lives")?;
    echo(&mut work, "undisturbed")?;
    let mut states: Vec<_> = site.api()?.desktops("sato")?;
    states.retain(|desktop| !desktop["user"].is_null());
    assert!(states.is_empty(), "nobody is left on a dead desktop: {states:?}");
    Ok(())
}

#[test]
fn a_desktop_that_was_switched_off_is_given_up() -> Result<()> {
    let (off, own) = (FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?);
    let address = off.address();
    let site = office(&[("sato", &[address]), ("tanaka", &[own.address()])])?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;

    // Nobody says no there: with its queue full, the kernel drops what asks for a connection.
    drop(off);
    let listener = TcpListener::bind(address)?;
    rustix::net::listen(&listener, 0)?;
    let _queued = TcpStream::connect(address)?;
    let late = TcpStream::connect_timeout(&address, Duration::from_millis(100));
    ensure!(late.is_err_and(|error| error.kind() == ErrorKind::TimedOut), "it takes connections");
    let mut sato = site.login("sato", PASSWORD)?;
    let told = sato.exit()?;
    // The second login may find that it is out of use.
    ensure!([31, 40].contains(&told), "{told}: {}", sato.log());
    let log = site.log();
    let mut dials = log.lines().filter(|line| line.contains("Desktop not reached"));
    ensure!(dials.any(|line| line.contains("did not answer within")), "{log}");
    let api = site.api()?;
    let states = api.desktops("sato")?;
    ensure!(states[0]["user"].is_null() && states[0]["state"] == "quarantined", "{states:?}");
    echo(&mut work, "beside one that is off")
}

#[test]
fn a_desktop_that_goes_takes_its_own_session_only() -> Result<()> {
    let (brief, crash, own) =
        (FakeDesktop::brief()?, FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?);
    let site = office(&[
        ("sato", &[brief.address()]),
        ("suzuki", &[crash.address()]),
        ("tanaka", &[own.address()]),
    ])?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;

    // At the attach.
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 41, "{}", sato.log());
    echo(&mut work, "Sato's is gone")?;

    // After it.
    let mut suzuki = site.login("suzuki", PASSWORD)?;
    let mut stream = suzuki.desktop()?;
    echo(&mut stream, "works")?;
    crash.hang_up();
    assert_eq!(suzuki.exit()?, 41, "{}", suzuki.log());
    echo(&mut work, "Suzuki's is gone too")?;

    // It is back, and still hers.
    let suzuki = site.login("suzuki", PASSWORD)?;
    echo(&mut suzuki.desktop()?, "works again")?;
    Ok(())
}

#[test]
fn a_desktop_that_is_silent_deaf_or_endless_harms_its_own_session_only() -> Result<()> {
    let (silent, deaf, flood, own) = (
        FakeDesktop::silent()?,
        FakeDesktop::deaf()?,
        FakeDesktop::flood()?,
        FakeDesktop::echo(b"")?,
    );
    let site = office(&[
        ("sato", &[silent.address()]),
        ("suzuki", &[deaf.address()]),
        ("kato", &[flood.address()]),
        ("tanaka", &[own.address()]),
    ])?;
    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut work = tanaka.desktop()?;

    let mut sato = site.login("sato", PASSWORD)?;
    let nothing = sato.desktop()?;
    let mut suzuki = site.login("suzuki", PASSWORD)?;
    let mut unheard = suzuki.desktop()?;
    unheard.set_write_timeout(Some(STUCK))?;
    let sent = write_until_stuck(&mut unheard);
    assert!(sent < ENOUGH, "what nobody reads is not taken without end: {sent}");
    let mut kato = site.login("kato", PASSWORD)?;
    let mut endless = kato.desktop()?;
    let mut some = vec![0; 8 * 1024 * 1024];
    endless.read_exact(&mut some)?;
    assert!(some.iter().all(|byte| *byte == 0x55), "its own bytes and no others");

    for n in 0..50 {
        echo(&mut work, &format!("line {n} beside the three"))?;
    }
    assert!(sato.is_running() && suzuki.is_running() && kato.is_running());
    assert_eq!(site.api()?.sessions()?.len(), 4);
    drop((nothing, endless));
    for (name, login) in [("sato", &mut sato), ("kato", &mut kato)] {
        assert_eq!(login.exit()?, 50, "{name}: {}", login.log());
    }
    // A full window hides the end of its viewer; the agent is told by its person.
    assert_eq!(suzuki.leave()?, Some(50), "{}", suzuki.log());
    echo(&mut work, "after them")?;
    Ok(())
}

fn write_until_stuck(stream: &mut TcpStream) -> usize {
    let block = vec![0; 64 * 1024];
    let mut sent = 0;
    while sent < ENOUGH {
        match stream.write(&block) {
            Ok(written) => sent += written,
            Err(_) => break,
        }
    }
    sent
}
