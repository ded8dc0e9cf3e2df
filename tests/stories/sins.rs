//! Misbehaving clients: whatever they do, they get their answer, and nobody else
//! notices.

#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tegata_proto::code::Code;
use tegata_proto::login::TicketAnswer;
use tegata_proto::session::GatewayMessage;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tegata_tests::crowd::echo;
use tegata_tests::sins::place::{Cost, PASSWORD, Place};
use tegata_tests::sins::{
    Answer, conversation, crowd, flood, forge, grants, handshakes, is_long, login, operations,
    packets, seed, session, tcp, tickets, vagrant,
};
use tegata_tests::stranger::{self, HERE, Keys, Line, Transport, attach_with, ticket_purpose};
use tegata_tests::timing::Honest;
use tegata_tests::wait;
use tokio::task::{JoinSet, spawn_blocking};

/// How many sin at once.
const LANES: usize = 8;

async fn place(people: usize) -> Result<Arc<Place>> {
    spawn_blocking(move || Place::open(people)).await?
}

/// Commits a table, and returns the metrics after it.
async fn all_of(way: (Transport, &'static [u8]), sins: Vec<conversation::Sin>) -> Result<String> {
    let place = place(LANES).await?;
    let before = place.before().await?;
    let cost = Cost::of_table(sins.len());
    conversation::commit_all(&place, way, LANES, sins).await?;
    place.has_endured(before, cost).await?;
    operations::metrics(place.site.operations()).await
}

/// Returns how many links were opened.
fn opened(metrics: &str) -> u64 {
    operations::value(metrics, r#"tegata_redeems_total{result="ok"}"#)
}

/// Checks that an operator sees each refusal by its code.
fn are_counted(sins: &[conversation::Sin], metrics: &str) -> Result<()> {
    let mut told: BTreeMap<&str, u64> = BTreeMap::new();
    for sin in sins {
        if let Answer::Code(code) = sin.gets {
            *told.entry(code.as_str()).or_default() += 1;
        }
    }
    ensure!(told.len() > 2, "the table has few codes: {told:?}");
    for (code, told) in told {
        let name = format!(r#"tegata_gateway_attach_refusals_total{{code="{code}"}}"#);
        let counted = operations::value(metrics, &name);
        ensure!(counted >= told, "{name} is {counted}, and {told} heard it");
    }
    Ok(())
}

/// Counts the sins that are none.
fn honest(sins: &[conversation::Sin]) -> u64 {
    sins.iter().filter(|sin| sin.name.starts_with("none:")).count() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_of_a_login_gets_its_answer() -> Result<()> {
    all_of((Transport::Quic, ALPN_LOGIN), login::table()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_of_a_login_gets_the_same_answer_by_tcp() -> Result<()> {
    all_of((Transport::Tcp, ALPN_LOGIN), login::table()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_of_a_session_gets_its_answer() -> Result<()> {
    all_of((Transport::Quic, ALPN_SESSION), session::table()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_of_a_session_gets_the_same_answer_by_tcp() -> Result<()> {
    all_of((Transport::Tcp, ALPN_SESSION), session::table()).await.map(drop)
}

async fn no_forged_ticket_and_no_false_proof_opens_anything(by: Transport) -> Result<()> {
    let sins = [tickets::forged(), tickets::unproven()].concat();
    let metrics = all_of((by, ALPN_SESSION), sins.clone()).await?;
    assert_eq!(opened(&metrics), honest(&sins), "only the honest ones");
    are_counted(&sins, &metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_ticket_and_no_false_proof_opens_anything_by_quic() -> Result<()> {
    no_forged_ticket_and_no_false_proof_opens_anything(Transport::Quic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_ticket_and_no_false_proof_opens_anything_by_tcp() -> Result<()> {
    no_forged_ticket_and_no_false_proof_opens_anything(Transport::Tcp).await
}

async fn no_stale_grant_opens_anything_or_disturbs_who_is_at_work(by: Transport) -> Result<()> {
    let sins = grants::table();
    let metrics = all_of((by, ALPN_SESSION), sins.clone()).await?;
    assert_eq!(opened(&metrics), sins.len() as u64 + honest(&sins), "only the honest ones");
    are_counted(&sins, &metrics)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stale_grant_opens_anything_or_disturbs_who_is_at_work_by_quic() -> Result<()> {
    no_stale_grant_opens_anything_or_disturbs_who_is_at_work(Transport::Quic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_stale_grant_opens_anything_or_disturbs_who_is_at_work_by_tcp() -> Result<()> {
    no_stale_grant_opens_anything_or_disturbs_who_is_at_work(Transport::Tcp).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_used_by_a_hundred_at_once_opens_one_link() -> Result<()> {
    let place = place(1).await?;
    let to = place.site.listen();
    let keys = Arc::new(Keys::generate()?);
    let answer = Arc::new(stranger::ticket(to, &keys, "p0", PASSWORD).await?);
    // Half of them with one number, half of them with a number each.
    let mut hundred = JoinSet::new();
    let start = Arc::new(tokio::sync::Barrier::new(100));
    for n in 0..100_u64 {
        let (keys, answer, start) = (Arc::clone(&keys), Arc::clone(&answer), Arc::clone(&start));
        let number = if n % 2 == 0 { 1 } else { n };
        hundred.spawn(async move {
            let line = Line::open(to, ALPN_SESSION).await;
            start.wait().await;
            uses(line?, &keys, &answer, number).await
        });
    }
    let mut held = Vec::new();
    let mut opened = 0;
    for outcome in hundred.join_all().await {
        let (heard, line) = outcome?;
        match heard {
            GatewayMessage::Attached(_) => opened += 1,
            GatewayMessage::Error(failure) => {
                let known = [Code::TicketUsed, Code::LinkStale, Code::Superseded, Code::Busy];
                ensure!(known.contains(&failure.code), "{failure:?}");
            }
            GatewayMessage::End { cause: Code::Superseded } => {}
            other => panic!("{other:?}"),
        }
        held.push(line);
    }
    ensure!(opened <= 1, "{opened} links");
    drop(held);
    let metrics = operations::metrics(place.site.operations()).await?;
    assert_eq!(operations::value(&metrics, r#"tegata_redeems_total{result="ok"}"#), 1);
    place.is_well().await?;
    place.log_is_clean()
}

async fn uses(
    line: Line,
    keys: &Keys,
    answer: &TicketAnswer,
    number: u64,
) -> Result<(GatewayMessage, Line)> {
    let number = tegata_proto::id::LinkNumber(number);
    let proof = keys.prove(ticket_purpose(&answer.ticket), &line.exporter()?, number);
    attach_with(line, keys.public(), &answer.ticket, number, proof).await
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_that_quic_forbids_end_their_own_connection() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    let sins = packets::forbidden();
    let cost = Cost::of_table(sins.len());
    packets::commit_all(&place, sins).await?;
    place.has_endured(before, cost).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_small_frames_cost_next_to_nothing() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    for sin in packets::floods(100_000) {
        let cost = packets::flood(&place, &sin).await?;
        ensure!(cost <= packets::FLOOD_KIB, "{}: {cost} KiB", sin.name);
        place.is_well().await?;
    }
    place.has_endured(before, Cost::FLOOD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_send_far_ahead_are_closed_and_cost_little_together() -> Result<()> {
    const CROWD: usize = 100;
    /// For each of them, in KiB: half of what they send.
    const EACH: u64 = 256;
    let place = place(1).await?;
    let before = place.before().await?;
    let alone = place.memory_kib()?;
    let mut most = alone;
    let mut crowd = JoinSet::new();
    for _ in 0..CROWD {
        let place = Arc::clone(&place);
        crowd.spawn(async move {
            let sin = packets::far_ahead();
            let answer = packets::commit(&place, &sin).await?;
            ensure!(sin.gets.is(answer), "{answer:?}");
            Ok(())
        });
    }
    let watching = async {
        while let Some(done) = crowd.join_next().await {
            done??;
            most = most.max(place.memory_kib()?);
        }
        Ok(())
    };
    let ((), fared) = place.meanwhile(watching).await?;
    println!("{CROWD} of them: {} KiB, {fared:?}", most - alone);
    ensure!(most - alone < CROWD as u64 * EACH, "{} KiB", most - alone);
    place.has_endured(before, Cost::FLOOD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn offers_that_are_none_of_ours_are_refused() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    let sins = handshakes::table();
    let cost = Cost::of_table(sins.len());
    handshakes::commit_all(&place, sins).await?;
    assert!(!handshakes::sends_early(&place).await?, "no early data");
    place.has_endured(before, cost).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_peers_that_stop_half_way_hold_up_nobody() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    let gathering = crowd::gathers(&place, crowd::stops(500, seed()));
    let ((), fared) = place.meanwhile(gathering).await?;
    println!("{fared:?}");
    ensure!(fared.greeted > 0);
    place.has_endured(before, Cost::FLOOD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_never_showed_its_address_gets_three_bytes_for_one_at_most() -> Result<()> {
    let place = place(1).await?;
    let to = place.site.listen();
    let mut initials = flood::Initials::new(to)?;
    let mut mutes = Vec::new();
    for n in 0..240 {
        let mut mute = flood::Mute::open(place.caller(), to)?;
        let datagram = initials.write()?;
        match n % 6 {
            0 => mute.send(&datagram)?,
            1 => {
                for _ in 0..3 {
                    mute.send(&datagram)?;
                }
            }
            2 => mute.send(&datagram[..1_199])?,
            // Of a version that nobody speaks.
            3 => mute.send(&[&[0xc0, 0xfa, 0xce, 0xb0, 0x0c][..], &datagram[5..]].concat())?,
            // With its last byte changed, and so of nobody who knows its key.
            4 => {
                let (last, rest) = datagram.split_last().unwrap();
                mute.send(&[rest, &[last ^ 1]].concat())?;
            }
            // As of a connection that was open once.
            _ => mute.send(&[&[0x40][..], &datagram[1..]].concat())?,
        }
        mutes.push(mute);
    }
    // Longer than the broker keeps a handshake.
    let counting = async { Ok(flood::count_for(&mut mutes, Duration::from_secs(7)).await) };
    let (exchanges, fared) = place.meanwhile(counting).await?;
    println!("{fared:?}");
    for (n, exchange) in exchanges.iter().enumerate() {
        ensure!(exchange.received <= 3 * exchange.sent, "{n}: {exchange:?}");
        match n % 6 {
            2 => ensure!(exchange.answers == 0, "1,199 bytes are answered: {exchange:?}"),
            3 | 5 => ensure!(exchange.received < exchange.sent, "{n}: {exchange:?}"),
            _ => {}
        }
    }
    let answered = exchanges.iter().filter(|exchange| exchange.answers > 0).count();
    ensure!(answered > 0, "nobody was answered, so nothing was shown");
    place.is_well().await
}

/// A packet of a path challenge and nothing else (RFC 9000 §19.17).
fn challenge(number: u64, _room: usize) -> Vec<u8> {
    [&[0x1a][..], &number.to_be_bytes()].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_claims_to_have_moved_gets_three_bytes_for_one_until_it_answers() -> Result<()>
{
    /// As many as one call receives, and as many challenges as the library keeps.
    const PORTS: usize = 16;
    let place = place(1).await?;
    let to = place.site.listen();
    let filler: Option<forge::Filler> = Some(Arc::new(challenge));
    let forged = forge::Forge { filler, ..forge::Forge::default() };
    let (honest, challenger) = (stranger::credulous(&[ALPN_SESSION])?, forged.armed.clone());
    let forged = forged.client(stranger::credulous(&[ALPN_SESSION])?);
    let honest = quinn::ClientConfig::new(Arc::new(honest));
    let mut mover = vagrant::Vagrant::connect(honest, HERE, to)?;
    let mut prober = vagrant::Vagrant::connect(forged, HERE, to)?;
    challenger.store(true, Ordering::Relaxed);
    let mut victims = Vec::new();
    for n in 0..16 {
        let mut victim = flood::Mute::open(place.caller(), to)?;
        match n % 4 {
            0 => victim.send(&mover.ping()?)?,
            1 => {
                for _ in 0..20 {
                    victim.send(&mover.ping()?)?;
                }
            }
            2 => victim.send(&mover.say(900)?)?,
            _ => victim.send(&prober.say(40)?)?,
        }
        victims.push(victim);
        // One after the other, each a move of its own.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Many ports of one host at a time, each of which asks once.
    let alone = victims.len();
    for _ in 0..8 {
        let host = place.caller();
        let mut ports = Vec::new();
        for port in 0..PORTS {
            let said = if port == 0 { 400 } else { 12 };
            ports.push((flood::Mute::open(host, to)?, prober.say(said)?));
        }
        for (port, said) in &mut ports {
            port.send(said)?;
        }
        victims.extend(ports.into_iter().map(|(port, _)| port));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let counting = async { Ok(flood::count_for(&mut victims, Duration::from_secs(7)).await) };
    let (exchanges, fared) = place.meanwhile(counting).await?;
    println!("{fared:?}");
    let hosts = exchanges[..alone].chunks(1).chain(exchanges[alone..].chunks(PORTS));
    let mut answered = 0;
    for (n, ports) in hosts.enumerate() {
        let of = |count: fn(&flood::Exchange) -> usize| ports.iter().map(count).sum::<usize>();
        let (sent, received) = (of(|port| port.sent), of(|port| port.received));
        ensure!(received <= 3 * sent, "{n}: {received} bytes for {sent}");
        answered += usize::from(received > 0);
    }
    println!("{answered} hosts were answered");
    ensure!(answered > 0, "nobody was believed to have moved, so nothing was shown");
    place.is_well().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_the_door_full_is_told_to_try_again_and_then_gets_in() -> Result<()> {
    const PLACES: usize = 4;
    let limits = format!("connections_per_source = {PLACES}");
    let place = spawn_blocking(move || Place::limited(1, &limits)).await??;
    let mut standing = Vec::new();
    for _ in 0..PLACES {
        let mut line = Line::open(place.site.listen(), ALPN_LOGIN).await?;
        stranger::hello(&mut line, &Keys::generate()?).await?;
        standing.push(line);
    }
    let there = Arc::clone(&place);
    spawn_blocking(move || {
        let mut agent = there.site.login("p0", PASSWORD)?;
        ensure!(agent.exit()? == 25, "{}", agent.log());
        let said = agent.event("error")?["code"].clone();
        ensure!(said == "unavailable", "{said}");
        anyhow::Ok(())
    })
    .await??;
    drop(standing);
    // Those who stood there leave by and by.
    let gets_in = move || {
        wait::until("room for a login", || {
            Ok(place.site.login("p0", PASSWORD)?.event("attached").ok())
        })
    };
    spawn_blocking(gets_in).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_hello_and_no_more_keep_nobody_out() -> Result<()> {
    const PLACES: usize = 200;
    let limits = format!("connections = {PLACES}");
    let place = spawn_blocking(move || Place::limited(2, &limits)).await??;
    let (to, keys) = (place.site.listen(), Keys::generate()?);
    let answer = stranger::ticket(to, &keys, "p0", PASSWORD).await?;
    let (attached, at_work) = stranger::attach(to, &keys, &answer.ticket, 1).await?;
    ensure!(matches!(attached, GatewayMessage::Attached(_)), "{attached:?}");

    let sources = [(); 3].map(|()| place.caller());
    let mut strangers = Vec::new();
    for n in 0..PLACES + 20 {
        let mut line = Line::open_from(sources[n % 3], to, ALPN_LOGIN).await?;
        stranger::hello(&mut line, &keys).await.with_context(|| format!("stranger {n}"))?;
        strangers.push(line);
    }
    let standing = || strangers.iter().filter(|line| !line.is_closed());
    let end = tokio::time::Instant::now() + wait::LIMIT;
    while standing().count() > PLACES / 4 {
        ensure!(tokio::time::Instant::now() < end, "{} still stand there", standing().count());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    ensure!(standing().count() > 0, "nobody stands there, so nothing was shown");

    // Who knows a password, who has a grant, and who is at work.
    stranger::ticket(to, &Keys::generate()?, "p1", PASSWORD).await?;
    let (mut send, mut receive) = at_work.desktop().await?;
    echo(&mut send, &mut receive, "still at work").await?;
    let (back, _line) = stranger::come_back(to, &keys, &answer.grant, 2, None).await?;
    ensure!(matches!(back, GatewayMessage::Attached(_)), "{back:?}");
    place.is_well().await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_are_bounded_and_gone_within_ten_seconds() -> Result<()> {
    let count = if is_long() { 20_000 } else { 2_000 };
    let place = place(1).await?;
    let (before, to) = (place.before().await?, place.site.listen());
    let mut initials = flood::Initials::new(to)?;
    let mut mutes =
        (0..64).map(|_| flood::Mute::open(place.caller(), to)).collect::<Result<Vec<_>>>()?;
    let flooding = async {
        for n in 0..count {
            mutes[n % 64].send(&initials.write()?)?;
            if n % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
        Ok(())
    };
    let ((), fared) = place.meanwhile(flooding).await?;
    println!("{count} half-open: {fared:?}");
    place.has_endured(before, Cost::FLOOD).await?;
    let full = retries(&place).await?;
    println!("{full} of them were asked for their address");
    ensure!(full >= count as u64 / 2, "the flood was no flood");
    // Once they are gone, nobody is asked for an address any more.
    let end = tokio::time::Instant::now() + Duration::from_secs(10);
    loop {
        let asked = retries(&place).await?;
        place.is_well().await?;
        if retries(&place).await? == asked {
            return Ok(());
        }
        ensure!(tokio::time::Instant::now() < end, "they are still held");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn retries(place: &Place) -> Result<u64> {
    let metrics = operations::metrics(place.site.operations()).await?;
    Ok(operations::value(&metrics, "tegata_edge_retries_total"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_by_tcp_gets_its_answer() -> Result<()> {
    let place = place(1).await?;
    tcp::comes_in(&place).await?;
    let before = place.before().await?;
    let sins = tcp::table();
    let cost = Cost::of_table(sins.len());
    tcp::commit_all(&place, LANES, sins).await?;
    tcp::comes_in(&place).await?;
    place.has_endured(before, cost).await
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_peers_by_tcp_that_go_silent_anywhere_hold_up_nobody() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    let ((), fared) = place.meanwhile(tcp::gathers(&place, 500)).await?;
    println!("{fared:?}");
    ensure!(fared.greeted > 0);
    tcp::comes_in(&place).await?;
    place.has_endured(before, Cost::FLOOD).await
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_by_tcp_are_bounded_and_gone_and_shut_out_nobody() -> Result<()> {
    let count = if is_long() { 8_000 } else { 1_500 };
    let place = place(1).await?;
    let before = place.before().await?;
    let flooding = async {
        let standing = tcp::stand_half_way(&place, count).await?;
        // All places are taken, and somebody else comes all the same, by either way.
        for _ in 0..10 {
            tcp::comes_in(&place).await?;
        }
        Ok(standing)
    };
    let (standing, fared) = place.meanwhile(flooding).await?;
    println!("{count} half-open: {fared:?}");
    place.has_endured(before, Cost::FLOOD).await?;
    let metrics = operations::metrics(place.site.operations()).await?;
    let displaced = operations::value(
        &metrics,
        r#"tegata_edge_connections_refused_total{reason="handshakes"}"#,
    );
    ensure!(displaced > 0, "the flood was no flood");
    tcp::are_gone(standing, Duration::from_secs(10)).await?;
    place.is_well().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sin_against_the_operations_port_gets_its_answer() -> Result<()> {
    let place = place(1).await?;
    let before = place.before().await?;
    let key = std::fs::read_to_string(place.site.path("api.key"))?;
    let sins = operations::table();
    let cost = Cost::of_table(sins.len());
    operations::commit_all(&place, key.trim(), sins).await?;
    ensure!(!place.site.log().contains(key.trim()), "the log holds a key");
    place.has_endured(before, cost).await
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_only_stand_there_keep_no_operator_out() -> Result<()> {
    let count = if is_long() { 10_000 } else { 1_500 };
    let place = place(1).await?;
    let (before, to) = (place.before().await?, place.site.operations());
    let ((standing, asked), fared) = place
        .meanwhile(async {
            let standing = operations::stand_there(to, count).await?;
            let asked = operations::ask_within(to, "/readyz", Duration::from_secs(5)).await?;
            Ok((standing, asked))
        })
        .await?;
    println!("{count} stand there: {fared:?}");
    ensure!(asked.starts_with("HTTP/1.1 200"), "{asked}");
    place.meanwhile(operations::are_ended(standing)).await?;
    place.has_endured(before, Cost::FLOOD).await
}

/// How many come at once of those who only stand there.
const ARRIVING: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_at_the_operations_port_is_refused_and_keeps_no_login_out() -> Result<()> {
    let (requests, standing, logins) =
        if is_long() { (4_000, 10_000, 200) } else { (160, 1_500, 10) };
    let place = place(1).await?;
    let key = std::fs::read_to_string(place.site.path("api.key"))?;
    let (key, to) = (key.trim(), place.site.operations());
    let (broker, name, password) = (place.site.listen(), "p0", PASSWORD);
    let honest = Honest { broker, from: HERE, name, password };
    let alone = honest.alone(logins).await?;
    let before = place.before().await?;
    let used = place.site.cpu()?;
    operations::pester(&place, key, requests).await?;
    let used = place.site.cpu()?.saturating_sub(used);
    let cpu_ms = used.as_secs_f64() * 1e3 / f64::from(u32::try_from(requests)?);

    let standing_there = async {
        let mut idle = Vec::new();
        for _ in 0..standing / ARRIVING {
            idle.extend(operations::stand_there(to, ARRIVING).await?);
            tokio::time::sleep(operations::REST).await;
        }
        Ok(idle)
    };
    let pestering = operations::pester(&place, key, requests);
    let crowd = async { tokio::try_join!(pestering, standing_there) };
    let ((unheard, idle), beside) = honest.beside(crowd).await?;
    println!(
        "{}",
        serde_json::json!({
            "bench": "operations_crowd", "requests": requests, "standing": standing,
            "cpu_ms_per_refusal": cpu_ms, "made_room_unheard": unheard,
            "alone": alone, "beside": beside,
        })
    );
    operations::are_ended(idle).await?;
    ensure!(!place.site.log().contains(key), "the log holds a key");
    place.has_endured(before, Cost::FLOOD.and_logins(beside.logins)).await
}
