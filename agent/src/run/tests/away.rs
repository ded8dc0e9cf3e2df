//! Comebacks that must end, or must not be hurried.

use std::time::Instant;

use tegata_proto::policy::Policy;
use tegata_proto::session::{Attached, Mode, Resume};

use super::lost::comes;
use super::*;
use crate::office::attached;

#[tokio::test]
async fn a_gateway_that_was_started_again_with_another_key_is_an_end_with_12() {
    let mut office = Office::new();
    // The same name at another address, which the first link names: the old one is gone.
    let renewed = office.gateway(|_, mut peer: Peer| async move {
        peer.attach().await?;
        panic!("the grant was said");
    });
    let direct = renewed.addresses.clone();
    let mut gateway = office.gateway(move |_, mut peer: Peer| {
        let direct_addresses = direct.clone();
        async move {
            let attach = peer.attach().await?;
            let mut attached = attached(attach.link);
            attached.gateway.direct_addresses = direct_addresses;
            let (mut send, _recv) = peer.carry_as(attached).await?;
            let _ = send.write_chunk(bytes::Bytes::from_static(b"x")).await;
            let _: AgentMessage = peer.hear().await?;
            peer.connection.close(1_u8.into(), b"");
            Ok(())
        }
    });
    let (address, wire) = office.wire(gateway.addresses[0]);
    gateway.addresses = vec![address];
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let (mut person, mut watch) = Recorder::new();
    let stop = CancellationToken::new();
    let run = Box::pin(to(broker, Viewer::Nothing).carry_out(&agent, &mut person, &stop));
    let meanwhile = async {
        comes(&mut watch, "first_byte").await;
        wire.set_dark(true);
        comes(&mut watch, "link_lost").await;
        // The minute passes as soon as there is nothing else to do.
        tokio::time::pause();
    };
    let both = async { tokio::join!(run, meanwhile) };
    let (code, ()) = timeout(Duration::from_hours(1), both).await.expect("an end");
    assert_eq!((code, code.exit()), (Code::TlsFailed, 12));
    assert!(matches!(person.events.last(), Some(Event::Error { code: Code::TlsFailed, .. })));
}

/// How many links a gateway lets in, before it ends the session.
const LINKS: usize = 5;

/// Returns how long each link of a session came after the one before, at a gateway that
/// lets each in as it was asked to, and soon parts with it.
async fn links<F, D>(part: F) -> Vec<Duration>
where
    F: Fn(Peer) -> D + Copy + Send + Sync + 'static,
    D: Future<Output = Result<(), LinkError>> + Send + 'static,
{
    let mut office = Office::new();
    let times: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let come = Arc::clone(&times);
    let gateway = office.gateway(move |number, mut peer: Peer| {
        let come = Arc::clone(&come);
        async move {
            let attach = peer.attach().await?;
            come.lock().expect("no panic").push(Instant::now());
            if number == LINKS {
                return peer.say(&GatewayMessage::Error(Code::TimeLimit.into())).await;
            }
            let mut attached = attached(attach.link);
            if let Some(Resume { incarnation, .. }) = attach.resume {
                attached = Attached { mode: Mode::Resumed, incarnation, ..attached };
            }
            let (mut send, _recv) = peer.carry_as(attached).await?;
            let _ = send.write_chunk(bytes::Bytes::from_static(b"x")).await;
            // The viewer has it.
            let _: AgentMessage = peer.hear().await?;
            part(peer).await
        }
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!(report.code, Code::TimeLimit);
    let times = times.lock().expect("no panic");
    times.windows(2).map(|pair| pair[1] - pair[0]).collect()
}

#[tokio::test]
async fn a_gateway_that_loses_each_link_after_a_byte_is_given_ever_more_time() {
    let pauses = links(|peer| async move {
        peer.connection.close(1_u8.into(), b"");
        Ok(())
    });
    let pauses = pauses.await;
    let least: Vec<_> = [0, 250, 500, 1_000, 2_000].map(Duration::from_millis).into();
    assert!(pauses.iter().zip(&least).all(|(pause, least)| pause >= least), "{pauses:?}");
}

#[tokio::test]
async fn a_gateway_that_changes_the_policy_all_the_time_is_given_ever_more_time() {
    let pauses = links(|mut peer| async move {
        let shown = attached(LinkNumber::FIRST).policy;
        let policy = Policy { sound: !shown.sound, ..shown };
        peer.say(&GatewayMessage::Policy { policy, input_every_ms: None }).await?;
        peer.connection.closed().await;
        Ok(())
    });
    let pauses = pauses.await;
    let least: Vec<_> = [0, 250, 500, 1_000, 2_000].map(Duration::from_millis).into();
    assert!(pauses.iter().zip(&least).all(|(pause, least)| pause >= least), "{pauses:?}");
}
