//! A gateway that keeps its desktop's side over one link after another, as ours do.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tegata_proto::code::Code;
use tegata_proto::id::{Incarnation, LinkNumber};
use tegata_proto::login::Gateway;
use tegata_proto::replay::Replay;
use tegata_proto::session::{
    AgentMessage, Attach, Attached, Channel, GatewayMessage, Mode, Resume,
};
use tokio::time::{Duration, sleep};

use super::{Office, Peer, attached};
use crate::link::LinkError;

/// What the gateway keeps for an agent, in bytes.
const REPLAY: u64 = 256 * 1024;

/// Longest piece that the desktop sends at once, in bytes.
const PIECE: usize = 10_000;

/// A desktop and its gateway.
#[derive(Clone)]
pub(crate) struct Desk(Arc<Mutex<Held>>);

/// What there is of a session at its gateway.
pub(crate) struct Held {
    /// Every attach so far.
    pub(crate) attaches: Vec<Attach>,
    /// What the desktop has received.
    pub(crate) written: Vec<u8>,
    /// What the agent says that its viewer has.
    pub(crate) acknowledged: u64,
    pub(crate) remotes: Vec<std::net::SocketAddr>,
    incarnation: u64,
    replay: Replay,
    /// What the desktop has yet to send.
    down: Bytes,
    has_dialled: bool,
    carried: LinkNumber,
    /// How long it takes to answer who is let in, having ended the link before.
    pub(crate) answers_after: Duration,
}

impl Desk {
    /// A desktop that sends these bytes, and then nothing.
    pub(crate) fn sending(down: Vec<u8>) -> Self {
        Self(Arc::new(Mutex::new(Held {
            attaches: Vec::new(),
            written: Vec::new(),
            acknowledged: 0,
            remotes: Vec::new(),
            incarnation: 1,
            replay: Replay::new(REPLAY),
            down: down.into(),
            has_dialled: false,
            carried: LinkNumber(0),
            answers_after: Duration::ZERO,
        })))
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.0.lock().expect("no panic")
    }

    /// Hears an attach, and answers it as a gateway would.
    pub(crate) async fn answer(&self, peer: &mut Peer) -> Result<Attached, LinkError> {
        let attach = peer.attach().await?;
        self.answer_to(&attach, peer).await
    }

    /// Answers an attach that was heard.
    pub(crate) async fn answer_to(
        &self,
        attach: &Attach,
        peer: &mut Peer,
    ) -> Result<Attached, LinkError> {
        let answer = self.held().answer(attach);
        match answer {
            Ok(attached) => {
                let pause = self.held().answers_after;
                sleep(pause).await;
                Ok(attached)
            }
            Err(code) => {
                peer.say(&GatewayMessage::Error(code.into())).await?;
                Err(LinkError::Silent)
            }
        }
    }

    /// Carries a link until so many bytes have arrived over it at either end, and cuts
    /// it; or until the agent leaves.
    pub(crate) async fn carry(
        &self,
        peer: &mut Peer,
        attached: Attached,
        most: Option<usize>,
    ) -> Result<(), LinkError> {
        let link = attached.link;
        let (mut send, mut recv) = peer.carry_as(attached).await?;
        let (mut passed, mut has_ended) = (0, false);
        loop {
            if most.is_some_and(|most| passed >= most) {
                drop(send);
                peer.connection.close(1_u8.into(), b"");
                return Ok(());
            }
            if self.held().carried != link {
                let cause = Code::Superseded;
                drop(send);
                peer.say(&GatewayMessage::End { cause }).await?;
                peer.connection.close(70_u8.into(), cause.as_str().as_bytes());
                return Ok(());
            }
            let unsent = self.held().unsent();
            let down = async {
                let mut chunk = unsent?;
                Some(send.write(&mut chunk).await)
            };
            tokio::select! {
                Some(written) = down => {
                    let Ok(written) = written else { return Ok(()) };
                    let mut held = self.held();
                    if held.carried == link {
                        held.replay.advance(written);
                    }
                }
                up = recv.read(PIECE), if !has_ended => match up {
                    Ok(Some(bytes)) => {
                        passed += bytes.len();
                        if self.held().carried != link {
                            continue;
                        }
                        let received = self.held().write(&bytes);
                        let channel = Channel::Rdp;
                        peer.say(&GatewayMessage::Ack { channel, received }).await?;
                    }
                    // Whoever has finished may still want to hear the rest.
                    Ok(None) => has_ended = true,
                    Err(_) => return Ok(()),
                },
                heard = peer.hear.next(1024) => match heard? {
                    AgentMessage::Ack { received, .. } => {
                        let mut held = self.held();
                        held.replay.acknowledge(received).expect("an offset that was sent");
                        passed += usize::try_from(received - held.acknowledged).expect("few");
                        held.acknowledged = received;
                    }
                    AgentMessage::Bye { .. } => {
                        peer.connection.closed().await;
                        return Ok(());
                    }
                    AgentMessage::Input { .. } => {}
                    AgentMessage::Attach(_) | AgentMessage::Unsupported => panic!("out of order"),
                },
                // Whether another link has come.
                () = sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    /// Gives the desktop more to send.
    pub(crate) fn send(&self, down: &[u8]) {
        let mut held = self.held();
        held.down = [&held.down[..], down].concat().into();
    }

    /// Forgets the desktop's connection; the next one sends these bytes.
    pub(crate) fn forget(&self, down: Vec<u8>) {
        let mut held = self.held();
        held.incarnation += 1;
        held.has_dialled = false;
        held.written.clear();
        held.replay = Replay::new(REPLAY);
        held.down = down.into();
    }
}

impl Held {
    fn answer(&mut self, attach: &Attach) -> Result<Attached, Code> {
        self.attaches.push(attach.clone());
        if attach.link <= self.carried {
            return Err(Code::LinkStale);
        }
        let (mode, received) = if let Some(Resume { incarnation, received }) = &attach.resume {
            let offset = received.get(&Channel::Rdp).copied().expect("it is always said");
            let is_here = *incarnation == Incarnation(self.incarnation);
            if !is_here || self.replay.resume(offset).is_err() {
                return Err(Code::ResumeLost);
            }
            (Mode::Resumed, self.written.len() as u64)
        } else {
            assert!(!self.has_dialled, "nobody dials beside a desktop that is held");
            self.has_dialled = true;
            (Mode::Fresh, 0)
        };
        self.carried = attach.link;
        let received = BTreeMap::from([(Channel::Rdp, received)]);
        let incarnation = Incarnation(self.incarnation);
        Ok(Attached { mode, received, incarnation, ..attached(attach.link) })
    }

    fn write(&mut self, bytes: &[u8]) -> u64 {
        self.written.extend_from_slice(bytes);
        self.written.len() as u64
    }

    fn unsent(&mut self) -> Option<Bytes> {
        if self.replay.has_room() && !self.down.is_empty() {
            let piece = self.down.split_to(PIECE.min(self.down.len()));
            self.replay.push(piece);
        }
        self.replay.unsent()
    }
}

impl Office {
    /// Starts a gateway for this desktop, whose links are cut after so many bytes,
    /// each in its turn, and no more when there are no more.
    pub(crate) fn desk(&mut self, desk: &Desk, cuts: Vec<usize>) -> Gateway {
        let desk = desk.clone();
        self.gateway(move |number, mut peer: Peer| {
            let (desk, most) = (desk.clone(), cuts.get(number).copied());
            desk.held().remotes.push(peer.connection.remote_address());
            async move {
                let attached = desk.answer(&mut peer).await?;
                desk.carry(&mut peer, attached, most).await
            }
        })
    }
}

/// Returns so many bytes that tell where they stand.
pub(crate) fn known(length: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}
