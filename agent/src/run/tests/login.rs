//! Logins whose broker goes away.

use super::*;

/// How far a login comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Hello,
    Password,
    Pools,
}

/// Runs against a broker that goes away at this point in the first so many logins, and lets
/// the next one in, to a gateway that ends it.
async fn with_logins_lost(lost: usize, at: Until, has_tcp: bool) -> Report {
    let mut office = Office::new();
    office.has_tcp = has_tcp;
    let gateway = office.gateway(|_, mut peer: Peer| async move {
        peer.attach().await?;
        peer.say(&GatewayMessage::Error(Code::TimeLimit.into())).await
    });
    let broker = office.broker(move |number, mut peer: Peer| {
        let answer = answer(vec![gateway.clone()]);
        async move {
            if number >= lost {
                return peer.admit(answer).await;
            }
            if at != Until::Hello {
                peer.welcome().await?;
            }
            if at == Until::Pools {
                peer.say(&pools(&["keiri"])).await?;
                // It has to be there before the end is.
                peer.say.finish();
                peer.say.arrived().await;
            }
            peer.connection.close(0_u8.into(), b"");
            Ok(())
        }
    });
    let (broker, wire) = office.wire(broker);
    wire.set_udp_dark(has_tcp);
    alone(&office.agent(), to(broker, Viewer::Nothing)).await
}

#[tokio::test]
async fn a_login_is_begun_again_where_nothing_was_said_and_where_the_password_is_right() {
    for (lost, at, begun) in [
        (2, Until::Hello, 3),
        (3, Until::Hello, 3),
        (1, Until::Password, 1),
        (2, Until::Pools, 3),
        (3, Until::Pools, 3),
    ] {
        // By TCP nobody here knows when a word has arrived.
        let ways = if at == Until::Pools { &[false][..] } else { &[false, true] };
        for has_tcp in ways {
            let report = with_logins_lost(lost, at, *has_tcp).await;
            let code = if begun > lost { Code::TimeLimit } else { Code::Unreachable };
            assert_eq!(report.code, code, "{lost} lost: {:?}", report.events);
            let connected = |event: &&Event| matches!(event, Event::Connected { .. });
            assert_eq!(report.events.iter().filter(connected).count(), begun);
        }
    }
}
