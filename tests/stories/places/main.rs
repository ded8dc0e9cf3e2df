//! Where people are, and for how long they may stay: what a pool says about a class of
//! network, about time, and about a second device.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tegata_parts::fake::FakeDesktop;
use tegata_parts::netns::{Network, SERVER, Uplink};
use tegata_parts::screen::Screen;
use tegata_proto::code::Code;
use tegata_proto::session::GatewayMessage;
use tegata_tests::site::{Builder, Site, pool};
use tegata_tests::staff::{Login, echo};
use tegata_tests::stranger::{Keys, attach, come_back, ticket};
use tegata_tests::wait;

mod balancer;
mod screens;

const PASSWORD: &str = "Himitsu-1";

/// An office of one desktop, which sends back whatever it gets, for Sato.
struct Office {
    site: Site,
    _desktop: FakeDesktop,
}

impl Office {
    fn open(terms: &Value, site: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let desktop = FakeDesktop::echo(b"")?;
        let mut keiri = pool("keiri", "keiri", &[desktop.address()]);
        for (key, value) in terms.as_object().context("terms are an object")? {
            keiri[key] = value.clone();
        }
        let builder = Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.pool(keiri);
        let site = site(builder).start()?;
        site.api()?.wait_for_desktops("keiri", "ready", 1)?;
        Ok(Self { site, _desktop: desktop })
    }

    fn state(&self) -> Result<String> {
        let sessions = self.site.api()?.sessions()?;
        Ok(sessions.first().map_or("none", |session| session["state"].as_str().unwrap()).to_owned())
    }

    fn wait_for_state(&self, state: &str) -> Result<()> {
        wait::until(&format!("the session to be {state}"), || {
            Ok((self.state()? == state).then_some(()))
        })
    }
}

/// At the desk by one uplink, at home by the other.
fn networks(site: Builder) -> Builder {
    site.at(SERVER.into())
        .network("desk", &format!("{}/32", Uplink::Wifi.address()))
        .network("telework", &format!("{}/32", Uplink::Lte.address()))
}

fn notices(sato: &Login, code: &str) -> usize {
    let of = |event: &&Value| event["event"] == "notice" && event["code"] == code;
    sato.events().iter().filter(of).count()
}

fn last(sato: &Login) -> Value {
    sato.events().last().cloned().unwrap_or_default()
}

#[test]
fn a_pool_that_is_shut_at_home_ends_there_and_is_the_same_back_in_the_office() -> Result<()> {
    let network = Network::builder().start()?;
    let terms = json!({"by_class": [{"class": "telework", "allowed": false}]});
    let office = network.server().inside(|| Office::open(&terms, networks))?;
    let site = &office.site;
    let login = || network.client().inside(|| site.login("sato", PASSWORD));
    let mut sato = login()?;
    let mut desktop = network.client().inside(|| sato.desktop())?;
    echo(&mut desktop, "at the desk")?;
    let before = network.server().inside(|| site.api()?.desktops("keiri"))?;

    network.switch_to(Uplink::Lte)?;
    assert_eq!(sato.exit()?, 30, "{}", sato.log());
    assert_eq!(notices(&sato, "not_allowed_here"), 1);
    assert_eq!(last(&sato)["code"], "not_allowed_here", "{}", sato.log());
    network.server().inside(|| office.wait_for_state("detached"))?;

    let mut at_home = login()?;
    assert_eq!(at_home.exit()?, 30, "{}", at_home.log());
    assert_eq!(last(&at_home)["code"], "not_allowed_here");
    let offered = at_home.events().iter().any(|event| event["event"] == "assigned");
    assert!(!offered, "nor is it offered");

    network.switch_to(Uplink::Wifi)?;
    let mut sato = login()?;
    let mut desktop = network.client().inside(|| sato.desktop())?;
    echo(&mut desktop, "back at the desk")?;
    let after = network.server().inside(|| site.api()?.desktops("keiri"))?;
    assert_eq!((&after[0]["user"], &after[0]["epoch"]), (&before[0]["user"], &before[0]["epoch"]));
    drop(desktop);
    assert_eq!(sato.exit()?, 50, "{}", sato.log());
    Ok(())
}

#[test]
fn a_notebook_that_wakes_up_at_home_asks_for_the_password_where_it_is_too_old() -> Result<()> {
    let network = Network::builder().start()?;
    let terms = json!({"by_class": [{"class": "telework", "password_age_ms": 1}]});
    let office = network.server().inside(|| Office::open(&terms, networks))?;
    let site = &office.site;
    let mut sato = network.client().inside(|| site.login("sato", PASSWORD))?;
    let mut desktop = network.client().inside(|| sato.desktop())?;
    echo(&mut desktop, "at the desk")?;
    network.switch_to(Uplink::Lte)?;
    assert_eq!(sato.exit()?, 51, "{}", sato.log());
    assert_eq!(last(&sato)["code"], "login_again", "{}", sato.log());
    network.server().inside(|| office.wait_for_state("detached"))
}

#[test]
fn a_session_whose_time_is_over_ends_clearly_after_a_warning() -> Result<()> {
    let office = Office::open(&json!({"limits": {"session_ms": 12_000}}), |site| site)?;
    let folder = tempfile::tempdir()?;
    let shown = folder.path().join("shown");
    let script = folder.path().join("show");
    fs::write(
        &script,
        format!(
            "printf '%s %s\\n' \"$TEGATA_NOTICE_CODE\" \"$TEGATA_NOTICE\" >> {}\n",
            shown.display()
        ),
    )?;
    let mut sato = office
        .site
        .device("sato", PASSWORD)
        .argument("--notice")
        .argument(&format!("exec:sh {}", script.display()))
        .argument("--lang")
        .argument("ja")
        .start()?;
    let mut desktop = sato.desktop()?;
    echo(&mut desktop, "working")?;
    let soon = sato.event("notice")?;
    assert_eq!((&soon["code"], &soon["args"]["left_s"]), (&"time_limit_soon".into(), &"10".into()));
    echo(&mut desktop, "saving")?;
    assert_eq!(sato.exit()?, 51, "{}", sato.log());
    assert_eq!(
        (&last(&sato)["event"], &last(&sato)["code"]),
        (&"ended".into(), &"time_limit".into())
    );
    office.wait_for_state("none")?;
    let lines = wait::until("both to be shown", || {
        let text = fs::read_to_string(&shown).unwrap_or_default();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        Ok((lines.len() == 2).then_some(lines))
    })?;
    assert!(lines[0].starts_with("time_limit_soon あと 10 秒"), "{lines:?}");
    assert!(lines[1].starts_with("time_limit 利用時間"), "{lines:?}");
    Ok(())
}

#[test]
fn a_thin_client_that_nobody_touches_is_disconnected_and_its_desktop_kept() -> Result<()> {
    let office = Office::open(&json!({"limits": {"idle_ms": 8_000}}), |site| site)?;
    let screen = Screen::start(640, 480)?;
    let at_the_screen = || office.site.device("sato", PASSWORD).beside(&screen).start();
    screen.press("Shift_L")?;
    let mut sato = at_the_screen()?;
    let mut desktop = sato.desktop()?;
    // For longer than the limit, a hand on the keyboard now and then.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(10) {
        screen.press("Shift_L")?;
        echo(&mut desktop, "typing")?;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(notices(&sato, "idle_soon"), 0, "{}", sato.log());
    let soon = sato.event("notice")?;
    assert_eq!(soon["code"], "idle_soon", "{soon}");
    assert_eq!(sato.exit()?, 51, "{}", sato.log());
    assert_eq!(last(&sato)["code"], "idle_limit", "{}", sato.log());
    office.wait_for_state("detached")?;

    screen.press("Shift_L")?;
    let again = at_the_screen()?;
    echo(&mut again.desktop()?, "back")?;
    let without = office.site.api()?.sessions()?;
    assert_eq!(without.len(), 1, "the same desktop: there is only one");
    Ok(())
}

#[test]
fn a_second_device_takes_over_once_it_is_there_and_not_before() -> Result<()> {
    let office = Office::open(&json!({}), |site| site)?;
    let site = &office.site;
    let mut first = site.login("sato", PASSWORD)?;
    let mut desktop = first.desktop()?;
    echo(&mut desktop, "first")?;
    let runtime = tokio::runtime::Runtime::new()?;
    // It has logged in, and never attaches.
    runtime
        .block_on(async { ticket(site.listen(), &Keys::generate()?, "sato", PASSWORD).await })?;
    echo(&mut desktop, "untouched")?;
    let mut states: Vec<_> =
        site.api()?.sessions()?.iter().map(|session| session["state"].to_string()).collect();
    states.sort();
    assert_eq!(states, ["\"active\"", "\"requested\""]);

    let second = site.login("sato", PASSWORD)?;
    let mut there = second.desktop()?;
    echo(&mut there, "second")?;
    assert_eq!(first.exit()?, 52, "{}", first.log());
    assert_eq!(last(&first)["code"], "taken_over");
    assert!(second.is_running());
    Ok(())
}

#[test]
fn where_nobody_may_be_taken_over_a_second_device_waits_until_the_first_has_left() -> Result<()> {
    let office = Office::open(&json!({"takeover": "refuse"}), |site| site)?;
    let site = &office.site;
    let mut first = site.login("sato", PASSWORD)?;
    let mut desktop = first.desktop()?;
    echo(&mut desktop, "first")?;
    let mut second = site.login("sato", PASSWORD)?;
    assert_eq!(second.exit()?, 31, "{}", second.log());
    assert_eq!(last(&second)["code"], "in_use");
    echo(&mut desktop, "untouched")?;
    drop(desktop);
    assert_eq!(first.exit()?, 50);
    office.wait_for_state("detached")?;
    let third = site.login("sato", PASSWORD)?;
    echo(&mut third.desktop()?, "third")
}

#[test]
fn what_a_lost_notebook_has_opens_nothing_any_more() -> Result<()> {
    let mut office = Office::open(&json!({}), |site| site)?;
    let mut at_the_desk = office.site.login("sato", PASSWORD)?;
    drop(at_the_desk.desktop()?);
    assert_eq!(at_the_desk.exit()?, 50);
    let runtime = tokio::runtime::Runtime::new()?;
    let (keys, to) = (Keys::generate()?, office.site.listen());
    let (right, line) = runtime.block_on(async {
        let right = ticket(to, &keys, "sato", PASSWORD).await?;
        let (attached, line) = attach(to, &keys, &right.ticket, 1).await?;
        ensure!(matches!(attached, GatewayMessage::Attached(_)), "{attached:?}");
        Ok::<_, anyhow::Error>((right, line))
    })?;
    let user = office.site.api()?.sessions()?[0]["user"].clone();
    let ended =
        office.site.api()?.post("/v1/sessions/actions/terminate-all", &json!({"user": user}))?;
    assert_eq!(ended.body["items"][0]["result"], "terminated", "{ended:?}");
    runtime.block_on(async {
        let mut line = line;
        let told: GatewayMessage = line.hear().await?;
        let cause = Code::EndedByAdministrator;
        assert_eq!(told, GatewayMessage::End { cause });
        Ok::<_, anyhow::Error>(())
    })?;
    let shows = |to, number| {
        runtime.block_on(async {
            let (by_grant, _) = come_back(to, &keys, &right.grant, number, None).await?;
            let (by_ticket, _) = attach(to, &keys, &right.ticket, number).await?;
            let code = |answer| match answer {
                GatewayMessage::Error(failure) => Some(failure.code),
                _ => None,
            };
            Ok::<_, anyhow::Error>((code(by_grant), code(by_ticket)))
        })
    };
    let dead = (Some(Code::EndedByAdministrator), Some(Code::TicketUsed));
    assert_eq!(shows(to, 2)?, dead);
    // Nor does anything forget it: the grant could have lived for hours.
    office.site.kill()?;
    office.site.start()?;
    assert_eq!(shows(office.site.listen(), 3)?, dead);
    Ok(())
}

/// Reads how many desktops are kept for sessions without a link.
fn held(site: &Site) -> Result<u64> {
    let metrics = site.api()?.metrics()?;
    let line = metrics.lines().find_map(|line| line.strip_prefix("tegata_gateway_held "));
    Ok(line.context("no gauge")?.trim().parse()?)
}

/// Longest time until a gateway has noticed that a thin client is silent, and more.
const SILENT: Duration = Duration::from_secs(90);

/// Waits longer than stories do otherwise.
fn patiently(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + SILENT;
    while !look()? {
        ensure!(Instant::now() < end, "waited {SILENT:?} for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A notebook whose lid is closed, until it is opened again or dropped.
struct Asleep(u32);

impl Asleep {
    fn lid_closes(sato: &Login) -> Result<Self> {
        signal(sato.process(), "-STOP")?;
        Ok(Self(sato.process()))
    }
}

impl Drop for Asleep {
    fn drop(&mut self) {
        let _ = signal(self.0, "-CONT");
    }
}

fn signal(process: u32, which: &str) -> Result<()> {
    let done = Command::new("kill").args([which, &process.to_string()]).status()?;
    ensure!(done.success(), "{which} was not taken");
    Ok(())
}

/// What stands for what: the gateway notices after its 60 s as ever; `hold_ms` of 8 s
/// stands for the three minutes of a real pool, `grace_ms` of an hour for eight.
///
/// A lid that is closed for two minutes is opened while the gateway keeps the desktop's
/// connection, one that is closed for ten after that.
fn lid(opens: impl FnOnce(&Office) -> Result<()>) -> Result<(Office, Login, usize)> {
    let terms = json!({"hold_ms": 8_000, "grace_ms": 3_600_000});
    let office = Office::open(&terms, |site| site)?;
    let starts = office.site.scratch().join("starts");
    let script = office.site.scratch().join("viewer");
    fs::write(&script, format!("echo x >> {}\nexec cat <&3 >/dev/null\n", starts.display()))?;
    let viewer = format!("sh {}", script.display());
    let sato = office.site.device("sato", PASSWORD).exec(&viewer).start()?;
    sato.event("attached")?;
    office.wait_for_state("active")?;
    let asleep = Asleep::lid_closes(&sato)?;
    patiently("the gateway to notice", || Ok(office.state()? == "detached"))?;
    assert_eq!(held(&office.site)?, 1, "its desktop is kept connected");
    opens(&office)?;
    drop(asleep);
    patiently("Sato to be back", || Ok(office.state()? == "active"))?;
    assert_eq!(held(&office.site)?, 0, "nothing is kept twice");
    let started = || fs::read_to_string(&starts).map_or(0, |text| text.lines().count());
    Ok((office, sato, started()))
}

#[test]
fn a_lid_that_was_closed_for_two_minutes_opens_on_the_same_viewer() -> Result<()> {
    let (office, sato, started) = lid(|_| Ok(()))?;
    assert_eq!(started, 1, "{}", sato.log());
    sato.event("resumed")?;
    let metrics = office.site.api()?.metrics()?;
    for mode in ["fresh", "resumed"] {
        let line = format!("tegata_gateway_attaches_total{{mode=\"{mode}\"}} ");
        assert!(metrics.lines().any(|other| other.starts_with(&line)), "{mode}: {metrics}");
    }
    Ok(())
}

#[test]
fn a_lid_that_was_closed_for_ten_minutes_keeps_nothing_connected_and_opens_anew() -> Result<()> {
    let (office, sato, _) = lid(|office| {
        wait::until("the desktop to be let go", || Ok((held(&office.site)? == 0).then_some(())))?;
        assert_eq!(office.state()?, "detached", "the desktop is still Sato's");
        Ok(())
    })?;
    wait::until("the viewer to be started again", || {
        let attached = sato.events().iter().filter(|event| event["event"] == "attached").count();
        Ok((attached == 2).then_some(()))
    })
    .with_context(|| sato.log())?;
    let desktops = office.site.api()?.desktops("keiri")?;
    assert_eq!(desktops[0]["epoch"], 1, "it was never anybody else's: {desktops:?}");
    Ok(())
}

#[test]
fn a_lid_that_was_closed_in_the_office_opens_to_the_news_that_home_took_over() -> Result<()> {
    let office = Office::open(&json!({}), |site| site)?;
    let mut first = office.site.login("sato", PASSWORD)?;
    let mut desktop = first.desktop()?;
    echo(&mut desktop, "in the office")?;
    let asleep = Asleep::lid_closes(&first)?;
    patiently("the gateway to notice", || Ok(office.state()? == "detached"))?;
    let at_home = office.site.login("sato", PASSWORD)?;
    let mut there = at_home.desktop()?;
    echo(&mut there, "at home")?;
    drop(asleep);
    assert_eq!(first.exit()?, 52, "{}", first.log());
    assert_eq!(last(&first)["code"], "taken_over", "{}", first.log());
    assert!(at_home.is_running());
    Ok(())
}

#[test]
fn a_lid_that_was_closed_in_the_office_opens_at_home_with_what_is_allowed_there() -> Result<()> {
    let network = Network::builder().start()?;
    let terms = json!({
        "policy": {"clipboard": true},
        "by_class": [{"class": "telework", "policy": {}}]
    });
    let office = network.server().inside(|| Office::open(&terms, networks))?;
    let starts = office.site.scratch().join("starts");
    let script = office.site.scratch().join("viewer");
    fs::write(&script, format!("echo x >> {}\nexec cat <&3 >/dev/null\n", starts.display()))?;
    let started = || fs::read_to_string(&starts).map_or(0, |text| text.lines().count());
    let viewer = format!("sh {}", script.display());
    let sato =
        network.client().inside(|| office.site.device("sato", PASSWORD).exec(&viewer).start())?;
    sato.event("attached")?;
    network.server().inside(|| office.wait_for_state("active"))?;
    let asleep = Asleep::lid_closes(&sato)?;
    network.server().inside(|| {
        patiently("the gateway to notice", || Ok(office.state()? == "detached"))?;
        assert_eq!(held(&office.site)?, 1, "what it was made for is kept");
        Ok(())
    })?;
    network.switch_to(Uplink::Lte)?;
    drop(asleep);
    wait::until("the viewer to be started again", || Ok((started() == 2).then_some(())))
        .with_context(|| sato.log())?;
    network.server().inside(|| {
        let sessions = office.site.api()?.sessions()?;
        assert_eq!((sessions.len(), &sessions[0]["class"]), (1, &"telework".into()));
        assert_eq!(held(&office.site)?, 0, "and nothing of it is left");
        Ok(())
    })?;
    let told: Vec<_> = sato.events().iter().map(|event| event["event"].to_string()).collect();
    assert_eq!(notices(&sato, "policy_changed"), 1, "Sato is told why: {told:?}");
    let resumed = told.iter().any(|event| event.contains("resumed"));
    assert!(!resumed, "the old redirections do not go on: {told:?}");
    Ok(())
}

#[test]
fn the_command_for_notices_that_is_shipped_shows_a_window() -> Result<()> {
    let screen = Screen::start(640, 480)?;
    let tools = tempfile::tempdir()?;
    let program = Path::new("/usr/bin/xmessage");
    ensure!(program.exists(), "no xmessage; Debian: x11-utils");
    symlink(program, tools.path().join("xmessage"))?;
    let mut shown = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/notice"))
        .env("PATH", tools.path())
        .env("DISPLAY", screen.display())
        .env("TEGATA_NOTICE", "-5 minutes are left: \"save\" $HOME")
        .spawn()?;
    let seen = wait::until("the window", || Ok(screen.focus("Xmessage").ok()));
    // As the agent ends it.
    shown.kill()?;
    shown.wait()?;
    seen
}
