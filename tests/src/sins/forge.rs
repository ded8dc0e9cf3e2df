//! A QUIC client that sends what a QUIC library never would.
//!
//! quinn keeps the rules of the wire, so it is lied to about its cryptography:
//! the TLS session it is given drops or changes handshake bytes on their way out,
//! and the packet key it is given puts other frames into a packet just before
//! they are encrypted. Numbers, keys, headers and acknowledgements stay right.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::crypto::{
    ClientConfig, CryptoError, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey,
    Session,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};

/// Fills a packet with this number and so much room with frames.
pub type Filler = Arc<dyn Fn(u64, usize) -> Vec<u8> + Send + Sync>;

/// What is done to the wire.
#[derive(Clone, Default)]
pub struct Forge {
    /// How many bytes of the handshake are sent, of both flights together.
    pub cut: Option<usize>,
    /// A text in the handshake, and what stands there instead.
    pub patch: Option<(Vec<u8>, Vec<u8>)>,
    /// What packets of an open connection hold, once [`armed`](Self::armed).
    pub filler: Option<Filler>,
    /// Whether packets are filled.
    pub armed: Arc<AtomicBool>,
}

impl Forge {
    /// Returns quinn's configuration for a client that does this.
    pub fn client(&self, honest: QuicClientConfig) -> quinn::ClientConfig {
        let forged = Forged { honest: Arc::new(honest), forge: self.clone() };
        quinn::ClientConfig::new(Arc::new(forged))
    }
}

struct Forged {
    honest: Arc<QuicClientConfig>,
    forge: Forge,
}

impl ClientConfig for Forged {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let honest = Arc::clone(&self.honest).start_session(version, server_name, params)?;
        let forge = self.forge.clone();
        Ok(Box::new(ForgedSession { honest, forge, written: 0, keys: 0 }))
    }
}

struct ForgedSession {
    honest: Box<dyn Session>,
    forge: Forge,
    /// Bytes of the handshake that were written, the dropped ones included.
    written: usize,
    /// How many sets of keys were made: those of the handshake, then those of
    /// the open connection.
    keys: u8,
}

impl ForgedSession {
    fn forged(&self, key: Box<dyn PacketKey>) -> Box<dyn PacketKey> {
        match &self.forge.filler {
            None => key,
            Some(filler) => Box::new(ForgedKey {
                honest: key,
                filler: Arc::clone(filler),
                armed: Arc::clone(&self.forge.armed),
            }),
        }
    }
}

impl Session for ForgedSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.honest.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.honest.handshake_data()
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.honest.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.honest.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.honest.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.honest.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.honest.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let Some(said) = self.honest.transport_parameters()? else { return Ok(None) };
        if self.forge.filler.is_none() {
            return Ok(Some(said));
        }
        // The server's limits are no limits to a client that means to break them.
        let mut bytes = Vec::new();
        said.write(&mut bytes);
        let unbound = unbound(&bytes);
        let read = TransportParameters::read(Side::Client, &mut &unbound[..]);
        Ok(Some(read.unwrap_or(said)))
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let start = buf.len();
        let keys = self.honest.write_handshake(buf);
        if let Some((text, instead)) = &self.forge.patch {
            let found = buf[start..].windows(text.len()).position(|window| window == text);
            if let Some(at) = found {
                buf.splice(start + at..start + at + text.len(), instead.iter().copied());
            }
        }
        let new = buf.len() - start;
        if let Some(cut) = self.forge.cut {
            buf.truncate(start + new.min(cut.saturating_sub(self.written)));
        }
        self.written += new;
        let mut keys = keys?;
        self.keys += 1;
        if self.keys > 1 {
            keys.packet.local = self.forged(keys.packet.local);
        }
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let KeyPair { local, remote } = self.honest.next_1rtt_keys()?;
        Some(KeyPair { local: self.forged(local), remote })
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.honest.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.honest.export_keying_material(output, label, context)
    }
}

struct ForgedKey {
    honest: Box<dyn PacketKey>,
    filler: Filler,
    armed: Arc<AtomicBool>,
}

impl PacketKey for ForgedKey {
    fn encrypt(&self, packet: u64, buf: &mut [u8], header_len: usize) {
        if self.armed.load(Ordering::Relaxed) {
            let end = buf.len() - self.honest.tag_len();
            let payload = &mut buf[header_len..end];
            let frames = (self.filler)(packet, payload.len());
            if frames.len() <= payload.len() {
                let (front, rest) = payload.split_at_mut(frames.len());
                front.copy_from_slice(&frames);
                // PADDING
                rest.fill(0);
            }
        }
        self.honest.encrypt(packet, buf, header_len);
    }

    fn decrypt(
        &self,
        packet: u64,
        header: &[u8],
        payload: &mut BytesMut,
    ) -> Result<(), CryptoError> {
        self.honest.decrypt(packet, header, payload)
    }

    fn tag_len(&self) -> usize {
        self.honest.tag_len()
    }

    fn confidentiality_limit(&self) -> u64 {
        self.honest.confidentiality_limit()
    }

    fn integrity_limit(&self) -> u64 {
        self.honest.integrity_limit()
    }
}

/// Raises the limits on data in a list of transport parameters (RFC 9000 §18).
fn unbound(parameters: &[u8]) -> Vec<u8> {
    const INITIAL_MAX_DATA: u64 = 0x04;
    const INITIAL_MAX_STREAM_DATA_BIDI_REMOTE: u64 = 0x06;
    const PLENTY: u64 = 1 << 40;
    let mut rest = parameters;
    let mut raised = Vec::new();
    while let (Some(id), Some(length)) = (take_number(&mut rest), take_number(&mut rest)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(rest.len());
        let (value, after) = rest.split_at(length);
        rest = after;
        put_number(&mut raised, id);
        if id == INITIAL_MAX_DATA || id == INITIAL_MAX_STREAM_DATA_BIDI_REMOTE {
            put_number(&mut raised, 8);
            put_number(&mut raised, PLENTY);
        } else {
            put_number(&mut raised, length as u64);
            raised.extend(value);
        }
    }
    raised
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let first = *bytes.first()?;
    let length = 1_usize << (first >> 6);
    let (number, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    let value = number.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    Some(value & (u64::MAX >> (66 - 8 * length)))
}

/// Writes a variable-length number (RFC 9000 §16) in as many bytes as it needs.
pub fn put_number(bytes: &mut Vec<u8>, number: u64) {
    let (length, mark) = match number {
        0..0x40 => (1, 0),
        0x40..0x4000 => (2, 0x40),
        0x4000..0x4000_0000 => (4, 0x80),
        _ => (8, 0xc0),
    };
    let mut written = number.to_be_bytes()[8 - length..].to_vec();
    written[0] |= mark;
    bytes.extend(written);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_back_as_written() {
        for number in [0, 1, 63, 64, 16_383, 16_384, 1 << 29, 1 << 30, (1 << 62) - 1] {
            let mut bytes = Vec::new();
            put_number(&mut bytes, number);
            assert_eq!(take_number(&mut &bytes[..]), Some(number), "{bytes:x?}");
        }
    }

    #[test]
    fn only_the_limits_on_data_are_raised() {
        let before = [0x04, 0x01, 0x05, 0x08, 0x01, 0x04];
        let mut after = vec![0x04, 0x08];
        put_number(&mut after, 1 << 40);
        after.extend([0x08, 0x01, 0x04]);
        assert_eq!(unbound(&before), after);
    }
}
