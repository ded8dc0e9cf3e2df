//! A ticket opens one session, once, for the key and the connection it was made
//! for, whoever holds it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;

use anyhow::{Result, bail};
use tegata_parts::fake::FakeDesktop;
use tegata_proto::ALPN_SESSION;
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::LinkNumber;
use tegata_proto::login::BrokerMessage;
use tegata_proto::proof::Purpose;
use tegata_proto::session::{Channel, GatewayMessage, Mode, Resume};
use tegata_tests::crowd::echo;
use tegata_tests::dice::long;
use tegata_tests::evidence::judge;
use tegata_tests::sins::operations;
use tegata_tests::site::{Site, pool};
use tegata_tests::stranger::{
    self, HERE, Keys, Line, Transport, attach, attach_with, come_back, come_back_over, ticket,
    ticket_purpose,
};
use tegata_tests::wait;
use tokio::io::AsyncReadExt as _;

const PASSWORD: &str = "correct horse";

/// An office of two people and two desktops that echo.
fn office() -> Result<(Site, [FakeDesktop; 2])> {
    let desktops = [FakeDesktop::echo(b"")?, FakeDesktop::echo(b"")?];
    let addresses: Vec<SocketAddr> = desktops.iter().map(FakeDesktop::address).collect();
    let site = Site::builder()
        .people(&[("sato", PASSWORD, &["keiri"]), ("tanaka", PASSWORD, &["keiri"])])?
        .pool(pool("keiri", "keiri", &addresses))
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 2)?;
    Ok((site, desktops))
}

/// Waits until as many links were lost, and as many desktops are kept for the next one.
async fn until(site: &Site, so: impl Fn(u64, u64) -> bool) -> Result<()> {
    let look = async {
        loop {
            let metrics = operations::metrics(site.operations()).await?;
            let lost = r#"tegata_gateway_link_ends_total{end="agent_gone"}"#;
            let lost = operations::value(&metrics, lost);
            if so(lost, operations::value(&metrics, "tegata_gateway_held")) {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(wait::LIMIT, look).await?
}

/// Returns how many sessions are carried.
fn carried(metrics: &str) -> u64 {
    let sessions = metrics.lines().filter_map(|line| line.strip_prefix("tegata_gateway_sessions{"));
    sessions.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

fn refused(answer: &GatewayMessage) -> Option<Code> {
    match answer {
        GatewayMessage::Error(failure) => Some(failure.code),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_is_redeemed_once_however_many_try_at_once() -> Result<()> {
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let keys = Keys::generate()?;
    let answer = ticket(site.listen(), &keys, "sato", PASSWORD).await?;

    let tries = (1..=16).map(|link| attach(site.listen(), &keys, &answer.ticket, link));
    let mut tries: Vec<_> = tries.map(Box::pin).collect();
    let mut answers = Vec::new();
    while let Some(next) = tries.pop() {
        // In pairs: both are on their way before either is answered.
        let (one, two) = match tries.pop() {
            Some(other) => {
                let (one, two) = tokio::join!(next, other);
                (Some(one), Some(two))
            }
            None => (Some(next.await), None),
        };
        answers.extend([one, two].into_iter().flatten());
    }
    let answers: Vec<_> = answers.into_iter().collect::<Result<_>>()?;
    let good = answers.iter().filter(|(answer, _)| refused(answer).is_none()).count();
    assert_eq!(good, 1, "{:?}", answers.iter().map(|(answer, _)| answer).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_used_ticket_is_refused_after_a_restart_too() -> Result<()> {
    let (mut site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let keys = Keys::generate()?;
    let answer = ticket(site.listen(), &keys, "sato", PASSWORD).await?;
    let (first, line) = attach(site.listen(), &keys, &answer.ticket, 1).await?;
    let GatewayMessage::Attached(attached) = first else { panic!("{first:?}") };
    assert_eq!((attached.link, attached.mode), (LinkNumber(1), Mode::Fresh));
    drop(line);

    let (again, _) = attach(site.listen(), &keys, &answer.ticket, 2).await?;
    assert_eq!(refused(&again), Some(Code::TicketUsed));
    let site = tokio::task::spawn_blocking(move || {
        site.kill()?;
        site.start()?;
        anyhow::Ok(site)
    })
    .await??;
    let (again, _) = attach(site.listen(), &keys, &answer.ticket, 3).await?;
    assert_eq!(refused(&again), Some(Code::TicketUsed));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_brings_a_session_back_after_a_lost_link_and_after_a_kill() -> Result<()> {
    let (mut site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let (to, keys) = (site.listen(), Keys::generate()?);
    let answer = ticket(to, &keys, "sato", PASSWORD).await?;
    let (early, _) = come_back(to, &keys, &answer.grant, 1, None).await?;
    assert_eq!(refused(&early), Some(Code::ResumeLost), "before its ticket");
    let (first, line) = attach(to, &keys, &answer.ticket, 1).await?;
    let GatewayMessage::Attached(first) = first else { panic!("{first:?}") };
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, "mine").await?;
    drop(line);

    // What came back was lost on the way: it comes again, and nothing of it twice.
    let (incarnation, received) = (first.incarnation, [(Channel::Rdp, 0)].into());
    let resume = Resume { incarnation, received };
    let (back, line) = come_back(to, &keys, &answer.grant, 2, Some(resume.clone())).await?;
    let GatewayMessage::Attached(back) = back else { panic!("{back:?}") };
    assert_eq!((back.sid, back.incarnation, back.mode), (first.sid, incarnation, Mode::Resumed));
    assert_eq!(back.received[&Channel::Rdp], 4, "what reached the desktop");
    let (mut send, mut receive) = line.desktop().await?;
    let mut again = [0; 4];
    receive.read_exact(&mut again).await?;
    assert_eq!(&again, b"mine");
    echo(&mut send, &mut receive, "still mine").await?;

    let mut site = tokio::task::spawn_blocking(move || {
        site.kill()?;
        site.start()?;
        anyhow::Ok(site)
    })
    .await??;
    let (gone, _) = come_back(to, &keys, &answer.grant, 3, Some(resume)).await?;
    assert_eq!(refused(&gone), Some(Code::ResumeLost), "what the process before has kept");
    let (back, line) = come_back(to, &keys, &answer.grant, 4, None).await?;
    let GatewayMessage::Attached(back) = back else { panic!("{back:?}") };
    assert_eq!((back.sid, back.mode), (first.sid, Mode::Fresh), "without a password");
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, "the same desktop").await?;

    let found = tokio::task::spawn_blocking(move || {
        site.stop()?;
        anyhow::Ok(judge(&site, &[])?.1)
    })
    .await??;
    assert_eq!(found, [], "the audit trail and the store tell the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn of_one_ticket_used_twice_at_once_nothing_survives_the_end_and_all_is_listed() -> Result<()>
{
    let (site, desktops) = tokio::task::spawn_blocking(office).await??;
    let (to, keys) = (site.listen(), Keys::generate()?);
    let answer = ticket(to, &keys, "sato", PASSWORD).await?;
    let (one, two) =
        tokio::join!(attach(to, &keys, &answer.ticket, 1), attach(to, &keys, &answer.ticket, 2));
    let (mut good, bad): (Vec<_>, Vec<_>) =
        [one?, two?].into_iter().partition(|(answer, _)| refused(answer).is_none());
    assert_eq!((good.len(), bad.len()), (1, 1));
    let (GatewayMessage::Attached(attached), mut line) = good.remove(0) else { panic!("refused") };
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, "mine").await?;

    let sid = attached.sid;
    let site = tokio::task::spawn_blocking(move || {
        let api = site.api()?;
        let listed = api.sessions()?;
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_eq!(listed[0]["id"], serde_json::json!(sid));
        let whom = serde_json::json!({"session_ids": [sid]});
        let ended = api.post("/v1/sessions/actions/terminate", &whom)?;
        assert_eq!(ended.body["items"][0]["result"], "terminated", "{}", ended.body);
        assert_eq!(api.sessions()?, Vec::<serde_json::Value>::new(), "nothing is left");
        anyhow::Ok(site)
    })
    .await??;
    // Without a further wait: it was answered only after that.
    let metrics = operations::metrics(site.operations()).await?;
    assert_eq!((operations::value(&metrics, "tegata_gateway_held"), carried(&metrics)), (0, 0));
    let told: GatewayMessage = line.hear().await?;
    assert!(matches!(told, GatewayMessage::End { cause: Code::EndedByAdministrator }), "{told:?}");
    tokio::task::spawn_blocking(move || {
        wait::until("the desktop to be left", || {
            let connected = desktops.iter().map(FakeDesktop::connected).sum::<usize>();
            Ok((connected == 0).then_some(()))
        })
    })
    .await??;
    for link in [3, 4] {
        let (again, _) = attach(to, &keys, &answer.ticket, link).await?;
        assert_eq!(refused(&again), Some(Code::TicketUsed));
    }
    Ok(())
}

/// What became of a link that was to take a session over.
async fn claimed(
    (to, by): (SocketAddr, Transport),
    keys: &Keys,
    grant: &Secret,
    number: u64,
    resume: Resume,
) -> Result<Option<(u64, Line)>> {
    let line = Line::open_by(by, HERE, to, ALPN_SESSION).await?;
    match come_back_over(line, keys, grant, number, Some(resume)).await? {
        (GatewayMessage::Attached(attached), line) => {
            assert_eq!((attached.mode, attached.link), (Mode::Resumed, LinkNumber(number)));
            Ok(Some((attached.received[&Channel::Rdp], line)))
        }
        (answer, _) => {
            let code = refused(&answer);
            let others = [Code::LinkStale, Code::Superseded].map(Some);
            assert!(others.contains(&code), "link {number}: {answer:?}");
            Ok(None)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_links_that_claim_a_session_at_once_exactly_one_carries_its_bytes() -> Result<()> {
    two_links_claim_a_session_again_and_again(Transport::Quic).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_links_by_tcp_that_claim_a_session_at_once_one_carries_its_bytes() -> Result<()> {
    two_links_claim_a_session_again_and_again(Transport::Tcp).await
}

async fn two_links_claim_a_session_again_and_again(by: Transport) -> Result<()> {
    const WORD: &str = "one word a round";
    let rounds = if long() { 1_000 } else { 50 };
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let (to, keys) = (site.listen(), Keys::generate()?);
    let answer = ticket(to, &keys, "sato", PASSWORD).await?;
    let (first, line) = attach(to, &keys, &answer.ticket, 1).await?;
    let GatewayMessage::Attached(first) = first else { bail!("{first:?}") };
    let grant = first.grant.clone().unwrap_or(answer.grant);
    // A stream that is dropped says that the viewer has closed.
    let mut last = (line.desktop().await?, line);
    let mut told = 0;
    for round in 1..=rounds {
        let resume =
            Resume { incarnation: first.incarnation, received: [(Channel::Rdp, told)].into() };
        let (lower, higher) = (2 * round, 2 * round + 1);
        let (one, two) = tokio::join!(
            claimed((to, by), &keys, &grant, lower, resume.clone()),
            claimed((to, by), &keys, &grant, higher, resume)
        );
        let Some((there, line)) = two? else { bail!("the higher number is let in") };
        assert_eq!(there, told, "what reached the desktop, once");
        let (mut send, mut receive) = line.desktop().await?;
        echo(&mut send, &mut receive, WORD).await?;
        told += u64::try_from(WORD.len())?;
        let (_streams, before) = std::mem::replace(&mut last, ((send, receive), line));
        for mut line in [Some(before), one?.map(|(_, line)| line)].into_iter().flatten() {
            // It is told, unless its connection was closed first.
            let end = loop {
                match line.hear().await {
                    Ok(GatewayMessage::Ack { .. } | GatewayMessage::Grant { .. }) => {}
                    Ok(GatewayMessage::End { cause: code }) => break code,
                    Ok(GatewayMessage::Error(failure)) => break failure.code,
                    Ok(other) => bail!("{other:?}"),
                    Err(_) => break Code::Superseded,
                }
            };
            assert_eq!(end, Code::Superseded);
        }
    }
    let metrics = operations::metrics(site.operations()).await?;
    assert_eq!((operations::value(&metrics, "tegata_gateway_held"), carried(&metrics)), (0, 1));
    let up = operations::value(&metrics, "tegata_gateway_carried_up_bytes_total");
    assert_eq!(up, told, "no byte reached the desktop twice");
    let found = tokio::task::spawn_blocking(move || {
        let mut site = site;
        site.stop()?;
        anyhow::Ok(judge(&site, &[])?.1)
    })
    .await??;
    assert_eq!(found, [], "the audit trail and the store tell the same");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_desktop_is_kept_connected_for_as_long_as_its_pool_says() -> Result<()> {
    let open = || -> Result<(Site, FakeDesktop)> {
        let desktop = FakeDesktop::echo(b"")?;
        let mut keiri = pool("keiri", "keiri", &[desktop.address()]);
        keiri["hold_ms"] = 1_000.into();
        let site =
            Site::builder().people(&[("sato", PASSWORD, &["keiri"])])?.pool(keiri).start()?;
        site.api()?.wait_for_desktops("keiri", "ready", 1)?;
        Ok((site, desktop))
    };
    let (site, _desktop) = tokio::task::spawn_blocking(open).await??;
    let (to, keys) = (site.listen(), Keys::generate()?);
    let answer = ticket(to, &keys, "sato", PASSWORD).await?;
    let (first, line) = attach(to, &keys, &answer.ticket, 1).await?;
    let GatewayMessage::Attached(first) = first else { panic!("{first:?}") };
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, "mine").await?;
    drop(line);
    until(&site, |lost, kept| lost == 1 && kept == 0).await?;

    let received = [(Channel::Rdp, 4)].into();
    let resume = Resume { incarnation: first.incarnation, received };
    let (gone, _) = come_back(to, &keys, &answer.grant, 2, Some(resume)).await?;
    assert_eq!(refused(&gone), Some(Code::ResumeLost));
    let (back, _line) = come_back(to, &keys, &answer.grant, 3, None).await?;
    assert!(matches!(back, GatewayMessage::Attached(_)), "the desktop is still theirs: {back:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_for_whoever_is_ended_goes_at_once_and_their_grant_with_it() -> Result<()> {
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let (to, keys) = (site.listen(), Keys::generate()?);
    let answer = ticket(to, &keys, "sato", PASSWORD).await?;
    let (first, line) = attach(to, &keys, &answer.ticket, 1).await?;
    let GatewayMessage::Attached(first) = first else { panic!("{first:?}") };
    let (mut send, mut receive) = line.desktop().await?;
    echo(&mut send, &mut receive, "mine").await?;
    drop(line);
    until(&site, |lost, kept| lost == 1 && kept == 1).await?;

    let sid = first.sid;
    let site = tokio::task::spawn_blocking(move || {
        let api = site.api()?;
        let whom = serde_json::json!({"session_ids": [sid]});
        let ended = api.post("/v1/sessions/actions/terminate", &whom)?;
        assert_eq!(ended.body["items"][0]["result"], "terminated", "{}", ended.body);
        assert_eq!(api.sessions()?, Vec::<serde_json::Value>::new(), "it is over");
        anyhow::Ok(site)
    })
    .await??;
    // Without a further wait: it was over only after that.
    let metrics = operations::metrics(site.operations()).await?;
    assert_eq!(operations::value(&metrics, "tegata_gateway_held"), 0);
    let received = [(Channel::Rdp, 4)].into();
    let resume = Resume { incarnation: first.incarnation, received };
    let ended = Code::EndedByAdministrator;
    for (link, resume, code) in [(2, Some(resume), Code::ResumeLost), (3, None, ended)] {
        let (back, _) = come_back(to, &keys, &answer.grant, link, resume).await?;
        assert_eq!(refused(&back), Some(code), "link {link}");
    }
    let (again, _) = attach(to, &keys, &answer.ticket, 4).await?;
    assert_eq!(refused(&again), Some(Code::TicketUsed));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_ticket_opens_nothing() -> Result<()> {
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let (sato, thief) = (Keys::generate()?, Keys::generate()?);
    let answer = ticket(site.listen(), &sato, "sato", PASSWORD).await?;
    let purpose = ticket_purpose(&answer.ticket);
    let first = LinkNumber::FIRST;

    // With the thief's own key, honestly shown.
    let (stolen, _) = attach(site.listen(), &thief, &answer.ticket, 1).await?;
    assert_eq!(refused(&stolen), Some(Code::WrongKey), "another key");

    // With Sato's key shown and the thief's signature.
    let line = Line::open(site.listen(), ALPN_SESSION).await?;
    let proof = thief.prove(purpose, &line.exporter()?, first);
    let (stolen, _) = attach_with(line, sato.public(), &answer.ticket, first, proof).await?;
    assert_eq!(refused(&stolen), Some(Code::WrongKey), "another signature");

    // With a proof that Sato made on a connection of his own.
    let own = Line::open(site.listen(), ALPN_SESSION).await?;
    let proof = sato.prove(purpose, &own.exporter()?, first);
    let line = Line::open(site.listen(), ALPN_SESSION).await?;
    let (stolen, _) = attach_with(line, sato.public(), &answer.ticket, first, proof).await?;
    assert_eq!(refused(&stolen), Some(Code::WrongKey), "another connection");

    // With a proof for something else.
    for (purpose, signed) in
        [(Purpose::Login, first), (ticket_purpose(&answer.grant), first), (purpose, LinkNumber(2))]
    {
        let line = Line::open(site.listen(), ALPN_SESSION).await?;
        let proof = sato.prove(purpose, &line.exporter()?, signed);
        let (stolen, _) = attach_with(line, sato.public(), &answer.ticket, first, proof).await?;
        assert_eq!(refused(&stolen), Some(Code::WrongKey), "{purpose:?} {signed}");
    }
    // The grant is no ticket.
    let (grant, _) = attach(site.listen(), &sato, &answer.grant, 1).await?;
    assert_eq!(refused(&grant), Some(Code::TicketInvalid));

    // And the ticket is as good as it was.
    let (own, _line) = attach(site.listen(), &sato, &answer.ticket, 1).await?;
    assert!(matches!(own, GatewayMessage::Attached(_)), "{own:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_device_of_one_person_takes_the_session_over() -> Result<()> {
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let (office, home) = (Keys::generate()?, Keys::generate()?);
    let first = ticket(site.listen(), &office, "sato", PASSWORD).await?;
    let (attached, mut at_office) = attach(site.listen(), &office, &first.ticket, 1).await?;
    assert!(matches!(attached, GatewayMessage::Attached(_)), "{attached:?}");

    let second = ticket(site.listen(), &home, "sato", PASSWORD).await?;
    assert_eq!(second.desktop.name, first.desktop.name, "one desktop a person");
    let (attached, _at_home) = attach(site.listen(), &home, &second.ticket, 1).await?;
    assert!(matches!(attached, GatewayMessage::Attached(_)), "{attached:?}");
    let told: GatewayMessage = at_office.hear().await?;
    assert!(matches!(told, GatewayMessage::End { cause: Code::TakenOver }), "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_password_or_an_odd_name_is_refused_like_a_wrong_one() -> Result<()> {
    let (site, _desktops) = tokio::task::spawn_blocking(office).await??;
    let keys = Keys::generate()?;
    for (name, password) in [
        ("sato", "wrong"),
        ("sato", ""),
        ("sato", "\0"),
        ("nobody", PASSWORD),
        ("", PASSWORD),
        ("sato\n", PASSWORD),
        ("*", PASSWORD),
    ] {
        let answer = stranger::login(site.listen(), &keys, name, password).await?;
        let BrokerMessage::Error(failure) = answer else { panic!("{answer:?}") };
        assert_eq!((failure.code, failure.retry_after_ms), (Code::Refused, None), "{name:?}");
    }
    Ok(())
}
