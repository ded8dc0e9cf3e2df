//! Comebacks that must end.

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
