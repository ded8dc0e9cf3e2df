//! Peers that leave an agent no room to speak.

use tegata_proto::session::{Attached, Mode};

use super::*;
use crate::office::{Guest, attached};

/// An office whose peers let so many streams be opened, each for so many bytes.
fn office(streams: u8, window: u32) -> Office {
    let mut office = Office::new();
    let transport = Arc::get_mut(&mut office.transport).expect("nothing is started");
    transport.max_concurrent_bidi_streams(streams.into());
    transport.stream_receive_window(window.into());
    office
}

fn lets_open(peer: &Peer, streams: u8) {
    let Guest::Quic(connection) = &peer.connection else { panic!("nobody comes by TCP") };
    connection.set_max_concurrent_bi_streams(streams.into());
}

#[tokio::test]
async fn a_broker_that_lets_nothing_be_said_is_not_waited_for() {
    for (streams, window) in [(0, 4_096), (1, 16)] {
        let mut office = office(streams, window);
        let broker = office.broker(|_, peer: Peer| async move {
            peer.connection.closed().await;
            Ok(())
        });
        let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
        assert_eq!((report.code, report.code.exit()), (Code::Unreachable, 11));
    }
}

#[tokio::test]
async fn a_gateway_that_lets_no_channel_be_opened_is_left_for_another_try() {
    let mut office = office(1, 4_096);
    let gateway = office.gateway(|number, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        let attached = match number {
            0 => attached(attach.link),
            1 => {
                lets_open(&peer, 2);
                let (mut send, _recv) = peer.carry(attach.link).await?;
                let _ = send.write_chunk(bytes::Bytes::from_static(b"x")).await;
                let _: AgentMessage = peer.hear().await?;
                peer.connection.close(1_u8.into(), b"");
                return Ok(());
            }
            2 => Attached { mode: Mode::Resumed, ..attached(attach.link) },
            _ => return peer.say(&GatewayMessage::Error(Code::TimeLimit.into())).await,
        };
        peer.say(&GatewayMessage::Attached(Box::new(attached))).await?;
        peer.connection.closed().await;
        Ok(())
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::TimeLimit, 51));
    let names = report.names();
    let links: Vec<_> = names.iter().filter(|name| *name == "attached").collect();
    assert_eq!(links.len(), 1, "{names:?}");
}
