//! What the gateway says over the link, and what it is told.

use std::convert::Infallible;
use std::future::pending;

use tegata_proto::code::Code;
use tegata_proto::login::Failure;
use tegata_proto::replay::ACK_DELAY;
use tegata_proto::session::{AgentMessage, GatewayMessage};
use tokio::time::{Instant, sleep};

use super::{Link, Road};
use crate::comeback::is_final;
use crate::link::{LinkError, Transport};
use crate::progress::{Event, Person};
use crate::run::stay::Ended;
use crate::session::Control;

impl Road<'_> {
    pub(super) fn heard(
        &mut self,
        heard: Result<GatewayMessage, LinkError>,
        person: &mut impl Person,
    ) -> Result<Link, Ended> {
        let word = match heard {
            Ok(GatewayMessage::Ack { received, .. }) => {
                return self.account.acknowledged(received).map(|()| Link::Kept).map_err(|error| {
                    tracing::warn!(%error, "The gateway acknowledged what was never sent");
                    Ended::Here(Code::Malformed)
                });
            }
            Ok(GatewayMessage::Grant { grant }) => {
                let renewed = self.claim.renew(grant);
                return renewed.map(|()| Link::Kept).map_err(|_| Ended::Here(Code::Malformed));
            }
            Ok(GatewayMessage::Notice { code, args }) => {
                person.tell(&Event::Notice { code, args });
                return Ok(Link::Kept);
            }
            // One that changes what the viewer may do has been taken note of before.
            Ok(GatewayMessage::Policy { input_every_ms, .. }) => {
                self.reports.wanted(input_every_ms);
                return Ok(Link::Kept);
            }
            Ok(GatewayMessage::Unsupported) => return Ok(Link::Kept),
            Ok(GatewayMessage::Attached(_)) | Err(LinkError::Frame(_)) => {
                return Err(Ended::Here(Code::Malformed));
            }
            Ok(GatewayMessage::End { cause }) => Some(cause),
            Ok(GatewayMessage::Error(Failure { code, .. })) => Some(code),
            Err(error) => {
                tracing::info!(%error, "The link to the gateway is gone");
                error.farewell()
            }
        };
        match word {
            Some(code) if is_final(code) => Err(Ended::There(code)),
            Some(_) | None => Ok(Link::Lost),
        }
    }

    /// Begins to tell the gateway what was written to the viewer.
    pub(super) fn acknowledge(&mut self) -> Link {
        if self.is_bound() {
            self.word_due = Some(Instant::now() + ACK_DELAY);
            return Link::Kept;
        }
        self.word_due = None;
        let Some(link) = &mut self.link else { return Link::Kept };
        if link.acknowledge(self.account.say()).is_err() {
            return Link::Lost;
        }
        self.watch();
        Link::Kept
    }

    /// Tells the gateway what is still written to the viewer, and nothing else.
    pub(in crate::run::stay) async fn acknowledge_rest(&mut self) -> Infallible {
        if let Some(link) = &mut self.link {
            // One that cannot be written to brings nothing more, either.
            let _: Result<Infallible, LinkError> = async {
                loop {
                    link.say.flush().await?;
                    self.account.owed(1).await;
                    sleep(ACK_DELAY).await;
                    link.acknowledge(self.account.say())?;
                }
            }
            .await;
        }
        pending().await
    }

    /// Says enough from another network for the gateway to ask whether this agent is there.
    pub(super) fn speak_up(&mut self) {
        if self.is_bound() {
            return;
        }
        let Some(link) = self.link.as_mut().filter(|link| link.say.is_idle()) else { return };
        if link.connection.transport() == Transport::Quic {
            self.word_due = None;
            // A link that cannot be written to is found lost by whoever reads from it.
            let _ = link.acknowledge_from_elsewhere(self.account.say());
        }
    }

    /// Begins to tell the gateway when the thin client was last touched.
    pub(super) fn tell_of_input(&mut self) -> Link {
        let Some(Control { say, .. }) = &mut self.link else { return Link::Kept };
        let input = AgentMessage::Input { idle_ms: self.reports.tell() };
        if say.begin(&input).is_err() { Link::Lost } else { Link::Kept }
    }
}
