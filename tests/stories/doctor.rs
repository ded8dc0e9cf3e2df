//! Somebody asks why there is no desktop: `tegata-agent doctor` against a real broker.

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::netns::{Network, SERVER, SERVER_IPV6};
use tegata_parts::screen::Screen;
use tegata_tests::site::{Builder, Site, pool, program};

/// Where Debian keeps the library that lies about the time.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];

struct Office {
    site: Site,
    folder: tempfile::TempDir,
    _desktop: FakeDesktop,
}

/// What the program found, and how it ended.
struct Findings {
    lines: Vec<Value>,
    exit: i32,
}

impl Office {
    fn open(site: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let desktop = FakeDesktop::echo(b"")?;
        let builder = Site::builder().people(&[("sato", "Himitsu-1", &["keiri"])])?;
        let builder = builder.pool(pool("keiri", "keiri", &[desktop.address()]));
        let site = site(builder).start()?;
        let folder = tempfile::tempdir()?;
        // A site without FreeRDP, where it is not about that.
        std::fs::write(folder.path().join("agent.toml"), "[viewer]\nprogram = \"none\"\n")?;
        Ok(Self { site, folder, _desktop: desktop })
    }

    fn without_viewer(&self) -> PathBuf {
        self.folder.path().join("agent.toml")
    }

    /// Asks the program.
    fn examine(&self, more: impl FnOnce(&mut Command)) -> Result<Findings> {
        let server = self.site.listen().to_string();
        examine(&server, &self.site.path("ca.pem"), more)
    }
}

/// Asks the program about a server.
fn examine(server: &str, ca: &Path, more: impl FnOnce(&mut Command)) -> Result<Findings> {
    let mut command = Command::new(program("tegata-agent")?);
    command.args(["doctor", "--server", server, "--progress", "json", "--ca"]).arg(ca);
    more(&mut command);
    let output = command.output()?;
    let text = String::from_utf8(output.stdout)?;
    let exit = output.status.code().context("ended by a signal")?;
    ensure!(!text.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(Findings { lines, exit })
}

impl Findings {
    fn of(&self, check: &str) -> &str {
        let line = self.lines.iter().find(|line| line["check"] == check);
        line.and_then(|line| line["result"].as_str()).unwrap_or("not looked at")
    }

    /// Returns what was found wrong, and how badly.
    fn wrong(&self) -> Vec<(&str, &str)> {
        let wrong = self.lines.iter().filter(|line| line["result"] != "ok");
        // Whether there is a swap is this machine's affair.
        let wrong = wrong.filter(|line| line["check"] != "memory");
        wrong
            .map(|line| {
                assert!(line["advice"].is_string() && line["code"].is_string(), "{line}");
                (line["check"].as_str().unwrap(), line["result"].as_str().unwrap())
            })
            .collect()
    }
}

#[test]
fn where_all_is_well_the_doctor_finds_nothing_and_a_session_would_work() -> Result<()> {
    let office = Office::open(|site| site)?;
    let screen = Screen::start(640, 480)?;
    let found = office.examine(|command| {
        command.env("DISPLAY", screen.display()).env("HOME", screen.folder());
    })?;
    assert_eq!((found.wrong(), found.exit), (vec![], 0), "{:?}", found.lines);
    let parts =
        ["name", "quic", "tcp", "ipv6", "ipv4", "certificate", "gateway", "broker", "clock", "mtu"];
    for check in parts.into_iter().chain(["freerdp"]) {
        assert_eq!(found.of(check), "ok", "{check}");
    }
    let timed = |check: &str| {
        let line = found.lines.iter().find(|line| line["check"] == check);
        line.is_some_and(|line| line["elapsed_ms"].is_u64())
    };
    assert!(timed("quic") && timed("tcp"), "{:?}", found.lines);

    let plain = Command::new(program("tegata-agent")?)
        .args(["doctor", "--lang", "ja", "--server", &office.site.listen().to_string(), "--ca"])
        .arg(office.site.path("ca.pem"))
        .env("DISPLAY", screen.display())
        .env("HOME", screen.folder())
        .output()?;
    let text = String::from_utf8(plain.stdout)?;
    assert!(plain.status.success() && text.contains("接続先は正しいブローカーです。"), "{text}");
    let sessions = office.site.api()?.sessions()?;
    assert!(sessions.is_empty(), "a hello is no login: {sessions:?}");
    Ok(())
}

#[test]
fn a_network_without_udp_is_a_warning_and_one_without_anything_a_failure() -> Result<()> {
    let network = Network::builder().start()?;
    let office = network.server().inside(|| Office::open(|site| site.at(SERVER.into())))?;
    network.forbid_udp()?;
    let config = office.without_viewer();
    let at = |server: &str| {
        network.client().inside(|| {
            examine(server, &office.site.path("ca.pem"), |command| {
                command.arg("--config").arg(&config);
            })
        })
    };
    let found = at(&office.site.listen().to_string())?;
    assert_eq!((found.wrong(), found.exit), (vec![("quic", "warning")], 0), "{:?}", found.lines);
    assert_eq!((found.of("tcp"), found.of("broker")), ("ok", "ok"));

    // Nobody listens there.
    let found = at(&format!("{SERVER}:9"))?;
    assert_eq!(found.exit, 11, "{:?}", found.lines);
    assert_eq!((found.of("quic"), found.of("tcp")), ("failed", "failed"));
    Ok(())
}

#[test]
fn a_narrow_path_is_a_warning_and_one_of_1280_bytes_is_none() -> Result<()> {
    let narrow = vec![("mtu", "warning")];
    for (mtu, server, wrong) in [
        (1240, SERVER.into(), narrow),
        (1280, SERVER.into(), vec![]),
        (1280, SERVER_IPV6.into(), vec![]),
    ] {
        let network = Network::builder().mtu(mtu);
        let network = if IpAddr::is_ipv6(&server) { network.ipv6() } else { network }.start()?;
        let office = network.server().inside(|| Office::open(|site| site.at(server)))?;
        let config = office.without_viewer();
        let found = network.client().inside(|| {
            office.examine(|command| {
                command.arg("--config").arg(&config);
            })
        })?;
        let told = format!("{mtu} to {server}: {:?}", found.lines);
        assert_eq!((found.wrong(), found.exit), (wrong, 0), "{told}");
        assert_ne!(found.of("mtu"), "not looked at", "{told}");
    }
    Ok(())
}

#[test]
fn a_server_of_another_authority_is_not_believed() -> Result<()> {
    let office = Office::open(|site| site)?;
    let config = office.without_viewer();
    let other = TestCa::new("somebody else")?;
    let server = office.site.listen().to_string();
    let found = examine(&server, &other.certificate(), |command| {
        command.arg("--config").arg(&config);
    })?;
    assert_eq!((found.of("certificate"), found.exit), ("failed", 12), "{:?}", found.lines);
    assert_eq!(found.of("clock"), "not looked at", "it is not to blame");
    let found = examine(&server, Path::new("/nonexistent/ca.pem"), |command| {
        command.arg("--config").arg(&config);
    })?;
    assert_eq!((found.of("authority"), found.exit), ("failed", 10), "{:?}", found.lines);
    Ok(())
}

#[test]
fn a_clock_that_is_off_is_told_from_one_that_is_to_blame() -> Result<()> {
    let office = Office::open(|site| site)?;
    let config = office.without_viewer();
    let library = LIBRARIES.into_iter().find(|library| Path::new(library).exists());
    let library = library.context("no libfaketime; Debian: faketime")?;
    let at = |offset: &str| {
        office.examine(|command| {
            command.arg("--config").arg(&config).env("LD_PRELOAD", library);
            command.env("FAKETIME", offset).env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command.env("DONT_FAKE_MONOTONIC", "1");
        })
    };
    let found = at("+3600")?;
    assert_eq!((found.wrong(), found.exit), (vec![("clock", "warning")], 0), "{:?}", found.lines);
    let found = at("-10y")?;
    assert_eq!((found.of("certificate"), found.of("clock")), ("failed", "failed"));
    assert_eq!(found.exit, 12, "{:?}", found.lines);
    Ok(())
}

#[test]
fn without_freerdp_or_a_known_name_the_exit_number_says_so() -> Result<()> {
    let office = Office::open(|site| site)?;
    let empty = tempfile::tempdir()?;
    let found = office.examine(|command| {
        command.env("PATH", empty.path());
    })?;
    assert_eq!((found.wrong(), found.exit), (vec![("freerdp", "failed")], 10), "{:?}", found.lines);

    let config = office.without_viewer();
    let ca = office.site.path("ca.pem");
    let found = examine("vdi.invalid", &ca, |command| {
        command.arg("--config").arg(&config);
    })?;
    assert_eq!((found.wrong(), found.exit), (vec![("name", "failed")], 11), "{:?}", found.lines);
    Ok(())
}
