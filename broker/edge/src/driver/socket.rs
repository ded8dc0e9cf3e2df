//! The one UDP socket of an address, with what the kernel does in batches.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::BytesMut;
use quinn_proto::Transmit;
use quinn_udp::{EcnCodepoint, RecvMeta, UdpSocketState};
use socket2::{Domain, Protocol, Socket as Plain, Type};
use tracing::warn;

/// Socket buffers that are asked for, in bytes; the kernel may give less.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;

/// Most batches that one call receives.
pub(super) const RECEIVES: usize = 16;

/// Longest batch that the kernel puts together, in bytes.
const BATCH: usize = 64 * 1024;

/// Datagrams of a batch that share their memory. One of them may have it kept for as long as
/// a peer likes, while the library counts its own length alone.
const TOGETHER: usize = 8;

/// A UDP socket and the thread's own buffers for it.
pub(super) struct Socket {
    plain: UdpSocket,
    state: UdpSocketState,
    received: Vec<u8>,
    /// What is being sent.
    pub(super) out: Vec<u8>,
    /// What the kernel had no room for; its bytes are still in `out`.
    held: Option<Transmit>,
}

impl Socket {
    /// Opens the one socket of an address. An IPv6 one takes IPv6 only, so that
    /// IPv4 can have its own on the same port.
    pub(super) fn open(listen: SocketAddr) -> io::Result<Self> {
        let socket = Plain::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_recv_buffer_size(SOCKET_BUFFER)?;
        socket.set_send_buffer_size(SOCKET_BUFFER)?;
        let (receive, send) = (socket.recv_buffer_size()?, socket.send_buffer_size()?);
        if receive.min(send) < SOCKET_BUFFER {
            warn!(
                receive,
                send,
                wanted = SOCKET_BUFFER,
                "The kernel allows only small UDP buffers"
            );
        }
        socket.bind(&listen.into())?;
        let plain = UdpSocket::from(socket);
        let state = UdpSocketState::new((&plain).into())?;
        let (received, out) = (vec![0; RECEIVES * BATCH], Vec::new());
        Ok(Self { plain, state, received, out, held: None })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.plain.local_addr()
    }

    /// Tells whether the kernel may cut datagrams into pieces.
    pub(super) fn may_fragment(&self) -> bool {
        self.state.may_fragment()
    }

    /// Returns how many packets the kernel takes as one piece.
    pub(super) fn segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Tells whether a piece waits for room.
    pub(super) fn is_full(&self) -> bool {
        self.held.is_some()
    }

    /// Receives what is there, at most [`RECEIVES`] batches.
    pub(super) fn receive(&mut self, metas: &mut [RecvMeta; RECEIVES]) -> io::Result<usize> {
        let mut batches = self.received.chunks_exact_mut(BATCH);
        let mut slices: [_; RECEIVES] = std::array::from_fn(|_| {
            IoSliceMut::new(batches.next().expect("as many batches as there is buffer for"))
        });
        match self.state.recv((&self.plain).into(), &mut slices, metas) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            // Of an earlier packet to somebody who is not there.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
            received => received,
        }
    }

    /// Returns bytes of a batch that was received.
    pub(super) fn piece(&self, index: usize, of: Range<usize>) -> BytesMut {
        BytesMut::from(&self.received[index * BATCH..][of])
    }

    /// Sends what is in `out`, or keeps it until [`flush`](Self::flush).
    pub(super) fn send(&mut self, transmit: Transmit) {
        let sent = self.state.send(
            (&self.plain).into(),
            &quinn_udp::Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn.map(|ecn| match ecn {
                    quinn_proto::EcnCodepoint::Ect0 => EcnCodepoint::Ect0,
                    quinn_proto::EcnCodepoint::Ect1 => EcnCodepoint::Ect1,
                    quinn_proto::EcnCodepoint::Ce => EcnCodepoint::Ce,
                }),
                contents: &self.out[..transmit.size],
                segment_size: transmit.segment_size,
                src_ip: transmit.src_ip,
            },
        );
        // The only error there is: everything else is a lost packet.
        self.held = sent.is_err().then_some(transmit);
    }

    /// Sends what was kept. Returns whether there is room now.
    pub(super) fn flush(&mut self) -> bool {
        if let Some(transmit) = self.held.take() {
            self.send(transmit);
        }
        !self.is_full()
    }
}

/// Parts a batch of datagrams that are `stride` bytes long, the last one perhaps shorter,
/// into those that share their memory: few, and none that is shorter than the others.
pub(super) fn pieces(length: usize, stride: usize) -> impl Iterator<Item = Range<usize>> {
    let stride = stride.clamp(1, length.max(1));
    let whole = length - length % stride;
    let step = stride * TOGETHER;
    let shared = (0..whole).step_by(step).map(move |from| from..(from + step).min(whole));
    shared.chain((whole < length).then_some(whole..length))
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.plain.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_datagrams_share_their_memory_and_a_short_one_has_its_own() {
        let parted = |length, stride| {
            pieces(length, stride).map(|piece| (piece.start, piece.end)).collect::<Vec<_>>()
        };
        assert_eq!(parted(0, 0), []);
        assert_eq!(parted(30, 1_200), [(0, 30)]);
        assert_eq!(parted(1_200, 1_200), [(0, 1_200)]);
        assert_eq!(parted(2_430, 1_200), [(0, 2_400), (2_400, 2_430)]);
        assert_eq!(parted(200, 10), [(0, 80), (80, 160), (160, 200)]);
        assert_eq!(parted(161, 10), [(0, 80), (80, 160), (160, 161)]);
    }
}
