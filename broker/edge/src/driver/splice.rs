//! A stream of QUIC joined to a desktop. The driver carries the bytes, see
//! [`super::joined`].

use std::sync::Arc;

use quinn_proto::VarInt;

use super::connection::{Connection, Shared};
use super::joined::Joined;
use super::stream::{RecvStream, SendStream};
use crate::connection::carrying::Carrying;
use crate::connection::{self, NotJoined, Seam};

/// Code of a stream whose session has ended.
const ENDED: VarInt = VarInt::from_u32(0);

impl Connection {
    /// Joins a stream of this connection to a desktop; see
    /// [`splice`](crate::Connection::splice).
    pub(crate) fn join(
        &self,
        (to_agent, from_agent): (SendStream, RecvStream),
        (say, hear): (SendStream, RecvStream),
        carrying: Carrying,
    ) -> Result<Arc<dyn Seam>, NotJoined> {
        let shared = Arc::clone(&self.shared);
        // Both halves are of one stream, as they came.
        say.into_id();
        let control = hear.into_id();
        let joined = Joined::new(carrying, from_agent.into_id(), to_agent.into_id(), control);
        let mut state = shared.state();
        if let Some(lost) = state.lost.clone() {
            drop(state);
            let (side, _) = joined.carrying.into_parts();
            let side = Box::new(side);
            return Err(NotJoined::Lost { source: lost.into(), side });
        }
        let socket = joined.carrying.socket();
        shared.doorbell().watch(&**socket, shared.key()).map_err(NotJoined::Socket)?;
        state.joined = Some(Box::new(joined));
        drop(state);
        Ok(shared)
    }
}

impl Seam for Shared {
    fn look(&self, at: &mut dyn FnMut(&mut Carrying)) {
        if let Some(joined) = &mut self.state().joined {
            at(&mut joined.carrying);
        }
    }

    fn ring(&self) {
        Self::ring(self);
    }

    fn part(self: Arc<Self>) -> Option<(Carrying, connection::SendStream)> {
        let mut state = self.state();
        let joined = state.joined.take()?;
        if state.lost.is_none() {
            // Both fail where the agent has everything, or has ended them itself.
            let (from_agent, to_agent) = joined.streams();
            let _ = state.quic.recv_stream(from_agent).stop(ENDED);
            let _ = state.quic.send_stream(to_agent).reset(ENDED);
        }
        drop(state);
        self.doorbell().forget(&**joined.carrying.socket());
        Self::ring(&self);
        let say = SendStream::new(&self, joined.control());
        Some((joined.carrying, connection::SendStream::Quic(say)))
    }
}
