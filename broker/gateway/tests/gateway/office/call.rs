//! An agent's connection to the gateway, and what is said over it.

use tegata_edge::wire::{FrameReader, FrameWriter};
use tegata_proto::code::Code;
use tegata_proto::frame::LIMIT_AFTER;
use tegata_proto::session::{AgentMessage, Attach, Attached, Channel, GatewayMessage, Open};
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

use super::{ACK, PATIENCE, within};
use crate::transport::{Connection, RecvStream, SendStream};

/// An agent's connection to the gateway.
pub(crate) struct Call {
    pub(crate) connection: Connection,
    pub(crate) exporter: [u8; 32],
    pub(crate) writer: FrameWriter<SendStream>,
    pub(crate) reader: FrameReader<RecvStream>,
    /// How much has reached the desktop, by the gateway's word.
    pub(crate) acked: u64,
}

/// An agent's channel.
pub(crate) struct Line {
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
}

impl Call {
    pub(crate) async fn say(&mut self, message: &impl serde::Serialize) {
        let value = serde_json::to_value(message).expect("JSON");
        let deadline = Instant::now() + PATIENCE;
        self.writer.write(&value, LIMIT_AFTER, deadline).await.expect("it is sent");
    }

    pub(crate) async fn attach(&mut self, attach: Attach) {
        self.say(&AgentMessage::Attach(attach)).await;
    }

    /// Hears the next message that is no acknowledgement; the last of these is kept.
    pub(crate) async fn hear(&mut self) -> GatewayMessage {
        loop {
            let deadline = Instant::now() + PATIENCE;
            match self.reader.read(LIMIT_AFTER, deadline).await.expect("an answer") {
                GatewayMessage::Ack { channel: Channel::Rdp, received } => self.acked = received,
                other => return other,
            }
        }
    }

    /// Hears acknowledgements until so many bytes have reached the desktop.
    pub(crate) async fn hear_acked(&mut self, received: u64) {
        while self.acked < received {
            let deadline = Instant::now() + PATIENCE;
            match self.reader.read(LIMIT_AFTER, deadline).await.expect("an answer") {
                GatewayMessage::Ack { channel: Channel::Rdp, received } => self.acked = received,
                other => unreachable!("heard {other:?}"),
            }
        }
    }

    pub(crate) async fn attached(&mut self) -> Attached {
        let heard = self.hear().await;
        let GatewayMessage::Attached(attached) = heard else { unreachable!("heard {heard:?}") };
        *attached
    }

    /// Hears a refusal, and closes after it as agents do.
    pub(crate) async fn refused(&mut self) -> Code {
        let heard = self.hear().await;
        let GatewayMessage::Error(failure) = heard else { unreachable!("heard {heard:?}") };
        self.connection.close(0_u32.into(), b"");
        failure.code
    }

    pub(crate) async fn open(&mut self) -> Line {
        let (send, recv) = self.connection.open_bi().await.expect("a stream");
        let mut writer = FrameWriter::new(send);
        let deadline = Instant::now() + PATIENCE;
        let open = Open { channel: Channel::Rdp };
        writer.write(&open, LIMIT_AFTER, deadline).await.expect("it is sent");
        Line { send: writer.into_inner(), recv }
    }

    /// Says how much of the desktop's was written onward.
    pub(crate) async fn ack(&mut self, received: u64) {
        self.say(&AgentMessage::Ack { channel: Channel::Rdp, received }).await;
    }

    pub(crate) async fn bye(&mut self, code: Code) {
        self.say(&AgentMessage::Bye { code }).await;
    }
}

/// Fills `buffer` from a channel of which `before` bytes were read, and acknowledges
/// what comes.
pub(crate) async fn take(recv: &mut RecvStream, call: &mut Call, before: u64, buffer: &mut [u8]) {
    let mut received = before;
    for piece in buffer.chunks_mut(ACK) {
        within(recv.read_exact(piece)).await.expect("all of it");
        received += piece.len() as u64;
        call.ack(received).await;
    }
}
