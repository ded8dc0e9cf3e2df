//! The disk of the store fills, and has room again.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use serde_json::json;
use tegata_parts::disk::SmallDisk;
use tegata_parts::fake::FakeDesktop;
use tegata_proto::code::Code;
use tegata_proto::login::BrokerMessage;
use tegata_proto::session::GatewayMessage;
use tegata_tests::api::Api;
use tegata_tests::crowd::{Witness, sit_down};
use tegata_tests::evidence::{integrity, judge};
use tegata_tests::site::{Site, crowd_name, pool};
use tegata_tests::stranger::{self, Keys};
use tegata_tests::wait;
use tokio::runtime::Runtime;

use super::{PASSWORD, tell};

/// Room for a store and little more.
const DISK: u64 = 8 * 1024 * 1024;

const PEOPLE: usize = 5;

#[test]
fn a_full_disk_lets_nobody_in_nobody_out_and_nothing_happen_unrecorded() -> Result<()> {
    let runtime = Runtime::new()?;
    let disk = SmallDisk::new(DISK)?;
    let desktops = (0..PEOPLE).map(|_| FakeDesktop::echo(b"")).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<SocketAddr> = desktops.iter().map(FakeDesktop::address).collect();
    let mut site = Site::builder()
        .crowd(1..=PEOPLE, PASSWORD, "keiri")?
        .pool(pool("keiri", "keiri", &addresses))
        .store(disk.path().join("tegata.db"))
        .start()?;
    let (api, listen, witness) = (site.api()?, site.listen(), Witness::default());
    api.wait_for_desktops("keiri", "ready", PEOPLE)?;
    let name = |n| crowd_name(n);
    let sit = |n| runtime.block_on(sit_down(listen, (&name(n), PASSWORD), &witness));

    let mut at_work = sit(1)?;
    let leaves = sit(2)?;
    let keys = Keys::generate()?;
    let early = runtime.block_on(stranger::ticket(listen, &keys, &name(3), PASSWORD))?;
    let waiting = witness.ticket(&early)?;

    disk.fill()?;
    wait::until("the broker to see that its disk is full", || Ok((!api.is_ready()).then_some(())))?;
    // New logins are refused with a code, by hand and by the agent.
    let answer = runtime.block_on(stranger::login(listen, &keys, &name(4), PASSWORD))?;
    assert!(refused(&answer), "{answer:?}");
    let mut agent = site.login(&name(4), PASSWORD)?;
    assert_eq!(agent.exit()?, 25, "{}", agent.log());
    // A ticket from before opens nothing that could not be recorded, and is kept.
    let (answer, _) = runtime.block_on(stranger::attach(listen, &keys, &early.ticket, 1))?;
    let busy = matches!(&answer, GatewayMessage::Error(failure) if failure.code == Code::Busy);
    assert!(busy, "{answer:?}");
    // An administrator's word is not acted on either, and live sessions go on.
    let wish = json!({"session_ids": [at_work.sid.to_string()]});
    let answer = api.post("/v1/sessions/actions/disconnect", &wish)?;
    assert_eq!(answer.body["items"][0]["result"], "unavailable", "{}", answer.body);
    runtime.block_on(at_work.echo("the disk is full"))?;
    let gone = leaves.sid.to_string();
    drop(leaves);
    assert_eq!(state_of(&api, &gone)?, "active", "what cannot be recorded has not happened");
    ensure!(!api.is_ready(), "it was full all the while");
    let metrics = api.metrics()?;
    let failures = "tegata_store_write_failures_total ";
    let failures = metrics.lines().find_map(|line| line.strip_prefix(failures));
    ensure!(failures.is_some_and(|count| count != "0"), "{failures:?} failures are counted");

    disk.free()?;
    // By itself: what was refused works, what was left undone is done.
    wait::until("logins to work again", || {
        let answer = runtime.block_on(stranger::login(listen, &keys, &name(4), PASSWORD))?;
        match &answer {
            BrokerMessage::Ticket(answer) => witness.ticket(answer).map(Some),
            other => {
                ensure!(refused(other), "{other:?}");
                Ok(None)
            }
        }
    })?;
    wait::until("the broker to be ready", || Ok(api.is_ready().then_some(())))?;
    wait::until("the lost link to be recorded", || {
        Ok((state_of(&api, &gone)? == "detached").then_some(()))
    })?;
    let (answer, line) = runtime.block_on(stranger::attach(listen, &keys, &early.ticket, 2))?;
    let attached = match &answer {
        GatewayMessage::Attached(_) => true,
        GatewayMessage::Error(failure) if failure.code == Code::TicketExpired => false,
        other => anyhow::bail!("{other:?}"),
    };
    drop(line);
    runtime.block_on(at_work.echo("and has room again"))?;
    runtime.block_on(async { sit_down(listen, (&name(5), PASSWORD), &witness).await })?;

    let (ended, log) = site.stop()?;
    assert_eq!(ended, Some(0), "{log}");
    assert_eq!(integrity(&site.store())?, "ok");
    let (trail, found) = judge(&site, &witness.heard())?;
    tell(&json!({
        "story": "full disk", "records": trail.len(), "violations": found.len(),
        "early_ticket_in_time": attached, "failures_logged": log.matches("The store failed").count(),
    }));
    assert_eq!(found, vec![]);
    let began: Vec<_> = trail
        .iter()
        .filter(|record| record.action == "session.starting")
        .filter(|record| record.sid == Some(waiting.sid.to_string()))
        .collect();
    assert_eq!(began.len(), usize::from(attached), "redeemed once at most");
    Ok(())
}

fn refused(answer: &BrokerMessage) -> bool {
    matches!(answer, BrokerMessage::Error(failure) if failure.code == Code::Unavailable)
}

fn state_of(api: &Api, sid: &str) -> Result<String> {
    let sessions = api.sessions()?;
    let found = sessions.iter().find(|session| session["id"] == sid);
    Ok(found.and_then(|session| session["state"].as_str()).unwrap_or("ended").to_owned())
}
