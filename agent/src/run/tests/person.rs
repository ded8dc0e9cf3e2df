//! People who take their time.

use std::future::pending;

use tegata_proto::login::PoolOffer;

use super::*;

/// Somebody who is asked for a pool, and looks for their glasses.
struct Undecided(Recorder);

impl Person for Undecided {
    fn tell(&mut self, event: &Event) {
        self.0.tell(event);
    }

    async fn choose(&mut self, _pools: &[PoolOffer]) -> Option<PoolName> {
        pending().await
    }
}

#[tokio::test]
async fn a_choice_that_takes_too_long_ends_with_what_the_broker_says_of_it() {
    let mut office = Office::new();
    let broker = office.broker(|_, mut peer: Peer| async move {
        peer.welcome().await?;
        peer.say(&pools(&["keiri", "soumu"])).await?;
        peer.say(&BrokerMessage::Error(Code::Timeout.into())).await
    });
    let agent = office.agent();
    let (recorder, _watch) = Recorder::new();
    let mut person = Undecided(recorder);
    let stop = CancellationToken::new();
    let run = Box::pin(to(broker, Viewer::Nothing).carry_out(&agent, &mut person, &stop));
    assert_eq!(soon(run).await, Code::Timeout);
}
