//! The administrator and the operator: pools by API, sessions ended, and what a
//! broker says of itself.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use anyhow::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::process::Child;
use tegata_tests::api::Api;
use tegata_tests::site::{Site, pool, program};
use tegata_tests::staff::echo;
use tegata_tests::wait;

const PASSWORD: &str = "Himitsu-1";

#[test]
fn a_pool_made_by_the_api_is_used_at_once() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.start()?;
    let api = site.api()?;
    assert_eq!(api.get("/v1/pools")?.body, json!({"items": []}));
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 30);

    let keiri = pool("keiri", "keiri", &[desktop.address()]);
    assert_eq!(api.put("/v1/pools/keiri", &keiri)?.status, 201);
    assert_eq!(api.put("/v1/pools/keiri", &keiri)?.status, 200, "the same again");
    let listed = api.get("/v1/pools")?.body["items"][0].clone();
    assert_eq!((&listed["name"], listed.get("desktops")), (&"keiri".into(), None));
    assert_eq!(api.put("/v1/pools/keiri", &listed)?.body["code"], "malformed", "it withdraws none");
    api.wait_for_desktops("keiri", "ready", 1)?;
    let sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "hello")?;
    Ok(())
}

#[test]
fn a_broker_takes_all_the_descriptors_that_it_may() -> Result<()> {
    let may = getrlimit(Resource::Nofile);
    // What systemd gives a service that asks for nothing.
    setrlimit(Resource::Nofile, Rlimit { current: Some(1024), ..may })?;
    let site = Site::builder().start()?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", site.process()?))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let words: Vec<_> = line.split_whitespace().rev().skip(1).take(2).collect();
    assert_eq!(words[0], words[1], "soft and hard: {line}");
    assert_ne!(words[0], "1024", "this machine allows more");
    Ok(())
}

#[test]
fn a_bad_request_changes_nothing_and_says_what_is_wrong() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder().start()?;
    let api = site.api()?;
    let keiri = pool("keiri", "keiri", &[desktop.address()]);

    let mut bad = keiri.clone();
    bad["label"] = "".into();
    bad["protocol"] = "rdp".into();
    let answer = api.put("/v1/pools/keiri", &bad)?;
    let faults = answer.body["faults"].as_array().unwrap();
    let keys: Vec<_> = faults.iter().filter_map(|fault| fault["key"].as_str()).collect();
    assert_eq!((answer.status, keys), (422, vec!["label", "security"]), "all faults at once");

    let mut outside = keiri.clone();
    outside["desktops"][0]["address"] = "192.0.2.1:3389".into();
    let answer = api.put("/v1/pools/keiri", &outside)?;
    assert_eq!(answer.status, 422, "outside the gateway's targets: {}", answer.body);

    let mut asked = keiri.clone();
    asked["reuse"] = "after-logoff".into();
    let answer = api.put("/v1/pools/keiri", &asked)?;
    assert!(answer.body.to_string().contains("desktop_cannot_be_asked"), "{}", answer.body);

    let mut odd = keiri.clone();
    odd["colour"] = "red".into();
    assert_eq!(api.put("/v1/pools/keiri", &odd)?.body["code"], "malformed", "an unknown key");
    assert_eq!(api.put("/v1/pools/soumu", &keiri)?.status, 400, "another name in the path");
    assert_eq!(api.put("/v1/pools/KEIRI", &keiri)?.status, 400, "no name");
    assert_eq!(api.get("/v1/desktops?pool=keiri&limit=0")?.status, 400);
    assert_eq!(api.get("/v1/sessions?cursor=x")?.status, 400);
    assert_eq!(api.get("/v1/pools")?.body, json!({"items": []}), "nothing was made");
    Ok(())
}

#[test]
fn without_a_key_there_is_nothing_to_see() -> Result<()> {
    let site = Site::builder().start()?;
    for key in ["", "tegata_wrong"] {
        let api = site.api()?.with_key(key);
        for path in ["/v1/pools", "/v1/desktops?pool=x", "/v1/sessions"] {
            let answer = api.get(path)?;
            assert_eq!(
                (answer.status, &answer.body["code"]),
                (401, &json!("unauthorized")),
                "{path}"
            );
        }
        assert_eq!(api.put("/v1/pools/x", &json!({}))?.status, 401);
        for action in ["disconnect", "terminate", "terminate-all"] {
            let answer = api.post(&format!("/v1/sessions/actions/{action}"), &json!({}))?;
            assert_eq!(answer.status, 401, "{action}");
        }
        assert_eq!(api.get("/livez")?.status, 200, "but it says that it lives");
    }
    Ok(())
}

#[test]
fn a_disconnected_session_ends_on_the_thin_client_and_keeps_its_desktop() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;
    let mut sato = site.login("sato", PASSWORD)?;
    let mut desktop = sato.desktop()?;
    echo(&mut desktop, "working")?;
    let id = wait::until("the session to be active", || {
        let sessions = api.sessions()?;
        Ok(sessions.iter().find(|s| s["state"] == "active").map(|s| s["id"].clone()))
    })?;
    let nobody = "0190e6c7-0000-7000-8000-000000000001";
    let answer =
        api.post("/v1/sessions/actions/disconnect", &json!({"session_ids": [id, nobody]}))?;
    let results: Vec<_> =
        answer.body["items"].as_array().unwrap().iter().map(|item| &item["result"]).collect();
    assert_eq!(results, ["disconnected", "no_such_session"], "{}", answer.body);
    let last_byte_at = answer.body["items"][0]["last_byte_at"].as_str();
    assert!(last_byte_at.is_some_and(|at| at.ends_with('Z')), "{}", answer.body);
    assert_eq!(sato.exit()?, 53, "{}", sato.log());
    assert_eq!(api.sessions()?[0]["state"], "detached");
    assert_eq!(api.desktops("keiri")?[0]["state"], "assigned");

    let sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "back on it")?;
    Ok(())
}

/// A pool of two desktops for these people.
fn two_desktops<const N: usize>(staff: [&str; N]) -> Result<(Site, Api, [FakeDesktop; 2])> {
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses = desktops.each_ref().map(FakeDesktop::address);
    let site = Site::builder()
        .people(&staff.map(|name| (name, PASSWORD, &["keiri"][..])))?
        .pool(pool("keiri", "keiri", &addresses))
        .start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 2)?;
    Ok((site, api, desktops))
}

#[test]
fn a_terminated_session_is_over_on_both_sides_and_says_when_its_last_byte_was() -> Result<()> {
    let (site, api, _desktops) = two_desktops(["sato", "tanaka"])?;
    let (mut sato, mut tanaka) = (site.login("sato", PASSWORD)?, site.login("tanaka", PASSWORD)?);
    let (mut satos, mut tanakas) = (sato.desktop()?, tanaka.desktop()?);
    echo(&mut satos, "working")?;
    echo(&mut tanakas, "working too")?;
    let sessions = wait::until("both sessions to be active", || {
        let sessions = api.sessions()?;
        let active = sessions.iter().filter(|s| s["state"] == "active").count();
        Ok((active == 2).then_some(sessions))
    })?;
    let of = |name| sessions.iter().find(|s| s["display_name"] == name).unwrap();
    let all = "/v1/sessions/actions/terminate-all";
    let answer = api.post(all, &json!({"user": of("sato")["user"]}))?;
    let ended = answer.body["items"].as_array().unwrap();
    assert_eq!((ended.len(), &ended[0]["result"]), (1, &json!("terminated")), "{}", answer.body);
    assert!(ended[0]["last_byte_at"].as_str().unwrap().ends_with('Z'), "{}", answer.body);
    assert_eq!(sato.exit()?, 53, "{}", sato.log());
    echo(&mut tanakas, "still working")?;

    let id = of("tanaka")["id"].clone();
    let answer = api.post("/v1/sessions/actions/terminate", &json!({"session_ids": [id]}))?;
    assert_eq!(answer.body["items"][0]["result"], "terminated", "{}", answer.body);
    assert_eq!(tanaka.exit()?, 53, "{}", tanaka.log());
    assert_eq!(api.sessions()?, Vec::<serde_json::Value>::new(), "both are over");
    assert_eq!(api.post(all, &json!({}))?.status, 400, "of whom?");
    Ok(())
}

#[test]
fn who_is_revoked_while_they_wait_for_a_desktop_gets_none() -> Result<()> {
    let (site, api, _desktops) = two_desktops(["sato", "tanaka", "suzuki"])?;
    // Who somebody is, is known once they have been here. Their desktop is nobody else's then.
    let mut sato = site.login("sato", PASSWORD)?;
    sato.event("attached")?;
    let user = api.sessions()?[0]["user"].clone();
    let all = "/v1/sessions/actions/terminate-all";
    api.post(all, &json!({"user": user}))?;
    assert_eq!(sato.exit()?, 53, "{}", sato.log());

    let tanaka = site.login("tanaka", PASSWORD)?;
    let mut tanakas = tanaka.desktop()?;
    echo(&mut tanakas, "working")?;
    let mut sato = site.login("sato", PASSWORD)?;
    sato.event("queued")?;
    let suzuki = site.login("suzuki", PASSWORD)?;
    suzuki.event("queued")?;
    let answer = api.post(all, &json!({"user": user}))?;
    assert_eq!(answer.body["items"], json!([]), "there is no session yet");
    assert_eq!(sato.exit()?, 53, "{}", sato.log());
    assert!(suzuki.is_running(), "it is not about them: {}", suzuki.log());
    echo(&mut tanakas, "still working")?;
    Ok(())
}

#[test]
fn metrics_tell_of_logins_desktops_and_sessions() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;
    let mut wrong = site.login("sato", "wrong")?;
    assert_eq!(wrong.exit()?, 20);
    let sato = site.login("sato", PASSWORD)?;
    let mut at_work = sato.desktop()?;
    echo(&mut at_work, "hello")?;
    for line in [
        r#"tegata_logins_total{result="ok"} 1"#,
        r#"tegata_logins_total{result="refused"} 1"#,
        r#"tegata_redeems_total{result="ok"} 1"#,
        r#"tegata_time_to_desktop_seconds_count{phase="Login"} 1"#,
        r#"tegata_directory_seconds_count{realm="honsho",operation="verify",answered="yes"} 2"#,
        r#"tegata_desktops{pool="keiri",state="assigned"} 1"#,
        r#"tegata_sessions{class="office",state="active"} 1"#,
    ] {
        let mut text = String::new();
        wait::until(line, || {
            text = api.metrics()?;
            Ok(text.lines().any(|other| other == line).then_some(()))
        })
        .map_err(|error| error.context(text))?;
    }
    Ok(())
}

#[test]
fn check_config_names_every_fault_at_once_and_opens_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let site = folder.path().join("site");
    let broker = program("tegata-broker")?;
    assert!(Command::new(&broker).args(["init", "--dir"]).arg(&site).status()?.success());
    let again = Command::new(&broker).args(["init", "--dir"]).arg(&site).output()?;
    assert_eq!(again.status.code(), Some(70), "nothing is overwritten");

    let config = site.join("broker.toml");
    let check = || Command::new(&broker).args(["check-config", "--config"]).arg(&config).output();
    assert!(check()?.status.success(), "what init makes is good");

    let text = fs::read_to_string(&config)?
        .replace("issuer = \"tegata\"", "issuer = \"\"")
        .replace("format = \"plain\"", "format = \"loud\"")
        .replace("filter = \"info\"", "filter = \"info,tegata_edge=loud\"")
        .replace("127.0.0.1:9464", "0.0.0.0:9464")
        .replace("ports = [3389]", "ports = [\"9-1\"]")
        .replace("bootstrap = \"pools.toml\"", "bootstrap = \"none.toml\"");
    fs::write(&config, text)?;
    fs::set_permissions(site.join("signing.key"), fs::Permissions::from_mode(0o644))?;
    fs::set_permissions(site.join("broker.key"), fs::Permissions::from_mode(0o640))?;
    let checked = check()?;
    assert_eq!(checked.status.code(), Some(78));
    let told = String::from_utf8(checked.stderr)?;
    for key in [
        "issuer:",
        "log.format:",
        "log.filter:",
        "operations.listen:",
        "targets[0].ports[0]:",
        "bootstrap:",
        "keys.signing_key:",
        "keys.broker_certificate:",
    ] {
        assert!(told.contains(key), "{key} in {told}");
    }
    assert!(!site.join("tegata.db").exists(), "no store was made");

    fs::write(&config, "issuer = 1\nlisten = nowhere\n")?;
    assert_eq!(check()?.status.code(), Some(78), "no TOML");
    let usage = Command::new(&broker).arg("dance").output()?;
    assert_eq!(usage.status.code(), Some(64));
    Ok(())
}

#[test]
fn a_rule_for_a_network_that_the_site_does_not_have_is_refused_everywhere() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let mut site = Site::builder().network("telework", "127.8.0.0/16").start()?;
    let keiri = |class: &str| {
        let mut keiri = pool("keiri", "keiri", &[desktop.address()]);
        keiri["by_class"] = json!([{"class": "office"}, {"class": class, "allowed": false}]);
        keiri
    };
    let api = site.api()?;
    let refused = api.put("/v1/pools/keiri", &keiri("train"))?;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.body.to_string().contains("by_class[1].class"), "{refused:?}");
    assert_eq!(api.get("/v1/pools")?.body, json!({"items": []}), "nothing of it is kept");
    assert_eq!(api.put("/v1/pools/keiri", &keiri("telework"))?.status, 201);

    // The pool is kept, and the network is taken out of the configuration.
    site.stop()?;
    let config = site.path("broker.toml");
    let text = fs::read_to_string(&config)?;
    fs::write(&config, text.replace("name = \"telework\"", "name = \"home\""))?;
    let mut broker = site.launch()?;
    let ended = broker.wait(wait::LIMIT)?.code();
    let log = broker.log();
    assert_ne!(ended, Some(0), "what it forbids would be allowed: {log}");
    for word in ["keiri", "by_class[1].class", "is no network class of this site"] {
        assert!(log.contains(word), "{word} in {log}");
    }

    // A file of pools is looked at before anything is opened.
    let bootstrap = toml::to_string(&json!({ "pools": [keiri("telework")] }))?;
    fs::write(site.path("pools.toml"), bootstrap)?;
    let mut check = Command::new(program("tegata-broker")?);
    let checked = check.args(["check-config", "--config"]).arg(&config).output()?;
    let told = String::from_utf8(checked.stderr)?;
    assert_eq!(checked.status.code(), Some(78), "{told}");
    assert!(told.contains("bootstrap: pools[0].by_class[1].class:"), "{told}");

    fs::write(&config, text)?;
    site.start()
}

#[test]
fn a_second_broker_on_the_same_store_does_not_start() -> Result<()> {
    let site = Site::builder().start()?;
    let text = fs::read_to_string(site.path("broker.toml"))?;
    let listen = format!("127.0.0.1:{}", tegata_parts::port::free_udp()?);
    let operations = format!("127.0.0.1:{}", tegata_parts::port::free_tcp()?);
    let mut second: toml::Table = toml::from_str(&text)?;
    second["listen"] = vec![listen].into();
    second["operations"]["listen"] = operations.into();
    fs::write(site.path("second.toml"), toml::to_string(&second)?)?;
    let mut command = Command::new(program("tegata-broker")?);
    command.args(["run", "--config"]).arg(site.path("second.toml"));
    let mut broker = Child::spawn("second", &mut command, site.scratch())?;
    assert_eq!(broker.wait(wait::LIMIT)?.code(), Some(70), "{}", broker.log());
    assert!(site.api()?.is_ready(), "the first one goes on");
    Ok(())
}

#[test]
fn a_target_outside_the_list_is_refused_by_the_api_and_again_by_the_dial() -> Result<()> {
    let desktop = FakeDesktop::echo(b"")?;
    let mut site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"])])?
        .targets("[[targets]]\nprefixes = [\"127.0.0.1/32\", \"0.0.0.0/0\", \"::/0\"]\nports = [\"20000-29999\"]\n")
        .start()?;
    let api = site.api()?;
    let keiri = |address: &str| {
        let mut keiri = pool("keiri", "keiri", &[desktop.address()]);
        keiri["desktops"][0]["address"] = address.into();
        keiri
    };
    for address in [
        "127.0.0.1:9464",           // a port that is not listed
        "127.0.0.2:20001",          // loopback, but not that one
        "[::1]:20001",              // loopback, by no rule of its own
        "[::ffff:127.0.0.2]:20001", // the same, written as IPv6
        "169.254.169.254:20001",    // link-local, by no rule of its own
        "[fe80::1]:20001",
        "0.0.0.0:20001",
        "[::]:20001",
        "255.255.255.255:20001",
        "224.0.0.1:20001",
        "[ff02::1]:20001",
        "192.0.2.1:0",
    ] {
        let answer = api.put("/v1/pools/keiri", &keiri(address))?;
        assert_eq!(answer.status, 422, "{address}: {}", answer.body);
        assert_eq!(answer.body["faults"][0]["key"], "desktops[0].address", "{address}");
    }
    for no_address in
        ["localhost:20001", "127.1:20001", "0x7f000001:20001", "127.0.0.1", "2130706433:20001"]
    {
        let answer = api.put("/v1/pools/keiri", &keiri(no_address))?;
        assert!([400, 422].contains(&answer.status), "{no_address}: {}", answer.body);
    }
    assert_eq!(api.put("/v1/pools/keiri", &keiri(&desktop.address().to_string()))?.status, 201);
    api.wait_for_desktops("keiri", "ready", 1)?;
    let mut sato = site.login("sato", PASSWORD)?;
    echo(&mut sato.desktop()?, "it is in the list")?;
    sato.leave()?;
    drop(api);

    // The store still has the desktop; the list of the gateway has it no longer.
    site.stop()?;
    let text = fs::read_to_string(site.path("broker.toml"))?;
    fs::write(site.path("broker.toml"), text.replace("127.0.0.1/32", "127.0.0.3/32"))?;
    site.start()?;
    let mut sato = site.login("sato", PASSWORD)?;
    assert_eq!(sato.exit()?, 40, "{}", sato.log());
    let log = site.log();
    assert!(log.contains("the target is not in the list of desktops"), "{log}");
    Ok(())
}

#[test]
fn a_bad_configuration_is_told_whole_and_opens_no_socket() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let site = folder.path().join("site");
    let broker = program("tegata-broker")?;
    assert!(Command::new(&broker).args(["init", "--dir"]).arg(&site).status()?.success());
    let (udp, tcp) = (tegata_parts::port::free_udp()?, tegata_parts::port::free_tcp()?);
    let config = site.join("broker.toml");
    let mut text: toml::Table = toml::from_str(&fs::read_to_string(&config)?)?;
    text.insert("listen".to_owned(), vec![format!("127.0.0.1:{udp}"), "nowhere".to_owned()].into());
    text["operations"]["listen"] = format!("127.0.0.1:{tcp}").into();
    text["operations"]["api_keys"] = "no-such-file.toml".into();
    text["keys"].as_table_mut().unwrap().insert("colour".to_owned(), "red".into());
    text.insert("colour".to_owned(), toml::toml! { shade = "red" }.into());
    text["keys"]["broker_certificate"] = "no-such-file.pem".into();
    text.insert(
        "classes".to_owned(),
        toml::Value::Array(vec![
            toml::toml! { name = "office"
            prefixes = ["10.0.0.0/33"]
            color = 1 }
            .into(),
        ]),
    );
    let realm = toml::toml! {
        name = "honsho"
        [ldap]
        servers = ["http://dc1.example"]
        bind_dn = "cn=tegata"
        bind_password_file = "no-such-file"
        people = "ou=people"
        connect_timeout = "soon"
        operation_timeout = "10 parsecs"
        patience = "2h"
    };
    text.insert("realms".to_owned(), toml::Value::Array(vec![realm.into()]));
    fs::write(&config, toml::to_string(&text)?)?;
    fs::set_permissions(site.join("signing.key"), fs::Permissions::from_mode(0o644))?;

    // Whoever opened a socket first would find that it is taken, and end with 70.
    let _taken = (
        UdpSocket::bind(("127.0.0.1", udp))?,
        TcpListener::bind(("127.0.0.1", udp))?,
        TcpListener::bind(("127.0.0.1", tcp))?,
    );
    for command in ["check-config", "run"] {
        let output = Command::new(&broker).args([command, "--config"]).arg(&config).output()?;
        assert_eq!(output.status.code(), Some(78), "{command}");
        let told = String::from_utf8(output.stderr)?;
        for key in [
            "listen[1]:",
            "colour:",
            "keys.colour:",
            "keys.broker_certificate:",
            "keys.signing_key:",
            "operations.api_keys:",
            "classes[0].color:",
            "classes[0].prefixes[0]:",
            "realms[0].ldap.servers[0]:",
            "realms[0].ldap.bind_password_file:",
            "realms[0].ldap.connect_timeout:",
            "realms[0].ldap.operation_timeout:",
            "realms[0].ldap.patience:",
        ] {
            let named = told.lines().any(|line| line.contains(&format!(": {key}")));
            assert!(named, "{command}: {key} in {told}");
        }
        assert!(!site.join("tegata.db").exists(), "{command} made no store");
        assert!(
            !told.contains("Endpoint open") && !told.contains("Operations port open"),
            "{told}"
        );
    }

    // A value of the wrong kind ends the search, and is named all the same.
    text["store"]["sqlite"] = 7.into();
    fs::write(&config, toml::to_string(&text)?)?;
    let output = Command::new(&broker).args(["check-config", "--config"]).arg(&config).output()?;
    let told = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(78));
    assert!(told.contains(": store.sqlite: ") && told.contains(": colour: "), "{told}");
    Ok(())
}
