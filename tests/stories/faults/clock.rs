//! The wall clock of the broker's machine jumps.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use tegata_parts::fake::FakeDesktop;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::login::TicketAnswer;
use tegata_proto::session::GatewayMessage;
use tegata_tests::api::Api;
use tegata_tests::crowd::{Witness, sit_down};
use tegata_tests::evidence::judge;
use tegata_tests::site::{Builder, Site, crowd_name, pool};
use tegata_tests::stranger::{self, Keys};
use tegata_tests::wait;
use tokio::runtime::Runtime;

use super::PASSWORD;

/// Where Debian keeps the library that lies about the time.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

const HOUR: &str = "3600";

/// How long the pool keeps the desktop of whoever is away.
const TEN_MINUTES_MS: u64 = 600_000;

/// The clock on the wall of one process.
struct WallClock(tempfile::NamedTempFile);

impl WallClock {
    fn new() -> Result<Self> {
        let clock = Self(tempfile::NamedTempFile::new()?);
        clock.shows("+0")?;
        Ok(clock)
    }

    /// Sets it so many seconds before or after the true time.
    fn shows(&self, offset: &str) -> Result<()> {
        // In one step, so that nobody reads half of it.
        let next = self.0.path().with_extension("next");
        fs::write(&next, format!("{offset}\n"))?;
        Ok(fs::rename(next, self.0.path())?)
    }

    /// Only the time of day lies; how much time passes is true.
    fn hangs_at(&self, site: Builder) -> Result<Builder> {
        let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
        let library = library.context("no libfaketime; Debian: faketime")?;
        let file = self.0.path().to_str().context("a path that is no text")?;
        Ok(site
            .variable("LD_PRELOAD", library)
            .variable("FAKETIME_TIMESTAMP_FILE", file)
            .variable("FAKETIME_NO_CACHE", "1")
            .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .variable("DONT_FAKE_MONOTONIC", "1"))
    }
}

struct Office {
    runtime: Runtime,
    site: Site,
    api: Api,
    keys: Keys,
    links: u64,
    witness: Witness,
}

impl Office {
    fn login(&self, n: usize) -> Result<TicketAnswer> {
        let name = crowd_name(n);
        let login = stranger::ticket(self.site.listen(), &self.keys, &name, PASSWORD);
        let answer = self.runtime.block_on(login)?;
        self.witness.ticket(&answer)?;
        Ok(answer)
    }

    fn ticket(&self, n: usize) -> Result<Secret> {
        Ok(self.login(n)?.ticket)
    }

    /// Takes a ticket to the gateway, under a link number of its own; returns the
    /// code of the refusal, if it is one.
    fn shows(&mut self, ticket: &Secret) -> Result<Option<Code>> {
        self.links += 1;
        let attach = stranger::attach(self.site.listen(), &self.keys, ticket, self.links);
        refusal(self.runtime.block_on(attach)?.0)
    }

    /// The same with a grant.
    fn comes_back(&mut self, grant: &Secret) -> Result<Option<Code>> {
        self.links += 1;
        let to = self.site.listen();
        let attach = stranger::come_back(to, &self.keys, grant, self.links, None);
        refusal(self.runtime.block_on(attach)?.0)
    }

    /// Waits until the broker has seen so many jumps of its clock.
    fn has_seen(&self, jumps: u32) -> Result<()> {
        let counted = format!("tegata_clock_jumps_total {jumps}");
        wait::until(&format!("{counted} on /metrics"), || {
            Ok(self.api.metrics()?.lines().any(|line| line == counted).then_some(()))
        })
    }

    /// Waits until the sessions are in these states.
    fn settles(&self, states: &[&str]) -> Result<()> {
        wait::until(&format!("sessions to be {states:?}"), || {
            let sessions = self.api.sessions()?;
            let mut now: Vec<_> = sessions.iter().filter_map(|s| s["state"].as_str()).collect();
            now.sort_unstable();
            Ok((now == states).then_some(()))
        })
    }
}

fn refusal(answer: GatewayMessage) -> Result<Option<Code>> {
    match answer {
        GatewayMessage::Attached(_) => Ok(None),
        GatewayMessage::Error(failure) => Ok(Some(failure.code)),
        other => anyhow::bail!("{other:?}"),
    }
}

#[test]
fn a_clock_that_jumps_ends_no_session_and_gives_no_ticket_a_second_life() -> Result<()> {
    let desktops = (0..3).map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<_> = desktops.iter().map(FakeDesktop::address).collect();
    let clock = WallClock::new()?;
    let mut keiri = pool("keiri", "keiri", &addresses);
    keiri["grace_ms"] = TEN_MINUTES_MS.into();
    let site = Site::builder().crowd(1..=3, PASSWORD, "keiri")?.pool(keiri);
    let site = clock.hangs_at(site)?.start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 3)?;
    let (runtime, keys) = (Runtime::new()?, Keys::generate()?);
    let mut office = Office { runtime, site, api, keys, links: 0, witness: Witness::default() };
    let listen = office.site.listen();

    let first = crowd_name(1);
    let sit = sit_down(listen, (&first, PASSWORD), &office.witness);
    let mut at_work = office.runtime.block_on(sit)?;
    let second = crowd_name(2);
    let sit = sit_down(listen, (&second, PASSWORD), &office.witness);
    drop(office.runtime.block_on(sit)?);
    office.settles(&["active", "detached"])?;

    // An hour ahead: a ticket is over, and nobody who is away has lost a minute.
    let early = office.ticket(3)?;
    clock.shows(&format!("+{HOUR}"))?;
    office.has_seen(1)?;
    office.settles(&["active", "detached", "requested"])?;
    let code = office.shows(&early)?;
    ensure!(matches!(code, Some(Code::TicketExpired | Code::SessionEnded)), "{code:?}");
    office.runtime.block_on(at_work.echo("an hour later"))?;
    let TicketAnswer { ticket: ahead, grant, .. } = office.login(3)?;
    assert_eq!(office.shows(&ahead)?, None, "logins go on");
    assert_eq!(office.shows(&ahead)?, Some(Code::TicketUsed));
    office.settles(&["active", "detached", "detached"])?;
    let future = office.ticket(3)?;

    // And back: nothing is young again.
    clock.shows("+0")?;
    office.has_seen(2)?;
    assert_eq!(office.shows(&ahead)?, Some(Code::TicketUsed), "once is once");
    let code = office.shows(&early)?;
    ensure!(matches!(code, Some(Code::TicketExpired | Code::TakenOver)), "{code:?}");
    assert_eq!(office.shows(&future)?, Some(Code::TicketInvalid), "signed in an hour");
    // But whoever is at work goes on.
    assert_eq!(office.comes_back(&grant)?, None, "granted in an hour");
    office.settles(&["active", "detached", "detached", "requested"])?;
    office.runtime.block_on(at_work.echo("and back"))?;

    // An hour behind.
    let present = office.ticket(3)?;
    clock.shows(&format!("-{HOUR}"))?;
    office.has_seen(3)?;
    assert_eq!(office.shows(&present)?, Some(Code::TicketInvalid), "signed in an hour");
    let behind = office.ticket(3)?;
    assert_eq!(office.shows(&behind)?, None, "logins go on");
    let late = office.ticket(3)?;
    clock.shows("+0")?;
    office.has_seen(4)?;
    assert_eq!(office.shows(&behind)?, Some(Code::TicketUsed));
    let code = office.shows(&late)?;
    ensure!(matches!(code, Some(Code::TicketExpired | Code::SessionEnded)), "{code:?}");
    office.runtime.block_on(at_work.echo("to the end"))?;

    let Office { mut site, witness, .. } = office;
    let (ended, log) = site.stop()?;
    assert_eq!(ended, Some(0), "{log}");
    assert_eq!(judge(&site, &witness.heard())?.1, vec![]);
    Ok(())
}
