//! How somebody comes in by TCP: what its balancer says, TLS, and HTTP/2's beginning,
//! all by one deadline.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::balancer::{Origin, origin};
use super::connection::{Connection, Peer, Shared};
use super::line::{Line, reset};
use super::mover::Mover;
use super::transport::{prepare, rules};
use crate::connection;
use crate::connection::Transport;
use crate::endpoint::{Answer, Door, HANDSHAKE_DEADLINE, Slot};
use crate::metrics::Refusal;

/// By what terms peers come in.
pub(super) struct Terms {
    pub(super) tls: TlsAcceptor,
    /// Who tells where peers are.
    pub(super) balancers: Vec<IpNet>,
}

/// Somebody who has connected, and has a place.
pub(super) struct Newcomer {
    pub(super) socket: TcpStream,
    /// Canonical.
    pub(super) remote: SocketAddr,
    pub(super) slot: Slot,
}

/// Why somebody does not come in.
enum NotIn {
    /// And is counted for it.
    Refused(Refusal),
    /// There is no room where it comes from, which is counted by now.
    Judged,
    /// It was a balancer that only looked.
    HealthCheck,
}

/// Somebody who is in.
struct Arrived {
    mover: Mover,
    remote: SocketAddr,
    slot: Slot,
}

impl Newcomer {
    /// Takes a peer in and serves it, to its end.
    pub(super) async fn serve(
        self,
        terms: Arc<Terms>,
        door: Arc<Door>,
        closing: CancellationToken,
    ) {
        let (begun, remote) = (Instant::now(), self.remote);
        // In a box of its own, so that a connection does not keep its room.
        let arriving = Box::pin(self.arrive(&terms, &door));
        let arrived = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            arrived = timeout_at(begun + HANDSHAKE_DEADLINE, arriving) => arrived,
        };
        let Arrived { mover, remote, mut slot } = match arrived {
            Ok(Ok(arrived)) => arrived,
            Ok(Err(NotIn::Refused(reason))) => return door.refused(remote, reason),
            Ok(Err(NotIn::Judged | NotIn::HealthCheck)) => return,
            Err(_) => return door.refused(remote, Refusal::TooSlow),
        };
        let shared = Arc::clone(&mover.shared);
        let connection = connection::Connection::Tcp(Connection { shared });
        let served = door.serve(connection, remote, begun.elapsed(), &mut slot, closing);
        tokio::join!(mover.run(), served);
    }

    async fn arrive(self, terms: &Terms, door: &Door) -> Result<Arrived, NotIn> {
        let Self { mut socket, mut remote, mut slot } = self;
        prepare(&socket).map_err(|_| NotIn::Refused(Refusal::Handshake))?;
        if terms.is_balancer(remote) {
            let told = tokio::select! {
                biased;
                () = slot.displaced() => return Err(NotIn::Refused(Refusal::Handshakes)),
                told = origin(&mut socket) => told,
            };
            match told {
                Ok(Origin::Peer(told)) => remote = told,
                Ok(Origin::Balancer) => return Err(NotIn::HealthCheck),
                Err(_) => return Err(NotIn::Refused(Refusal::Balancer)),
            }
            drop(slot);
            slot = match door.judge(remote, Transport::Tcp, true) {
                Answer::Accept(slot) => slot,
                Answer::Retry | Answer::Refuse(_) => {
                    reset(&socket);
                    return Err(NotIn::Judged);
                }
            };
        }
        let mover = tokio::select! {
            biased;
            () = slot.displaced() => return Err(NotIn::Refused(Refusal::Handshakes)),
            mover = handshake(socket, &terms.tls, remote) => mover?,
        };
        Ok(Arrived { mover, remote, slot })
    }
}

/// Goes through both handshakes.
async fn handshake(
    socket: TcpStream,
    tls: &TlsAcceptor,
    remote: SocketAddr,
) -> Result<Mover, NotIn> {
    let failed = NotIn::Refused(Refusal::Handshake);
    let wide = Arc::default();
    let line = Line::new(socket, Arc::clone(&wide));
    let mut tls = match tls.accept(line).await {
        Ok(tls) => tls,
        Err(error) => {
            debug!(%remote, %error, "Handshake failed");
            return Err(failed);
        }
    };
    let mut exporter = [0; EXPORTER_LEN];
    let session = tls.get_ref().1;
    let keyed = session.export_keying_material(&mut exporter, EXPORTER_LABEL, Some(b""));
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let (Ok(_), Some(alpn)) = (keyed, alpn) else { return Err(failed) };
    let heard = tls.get_mut().0.established();
    match rules().handshake(tls).await {
        Ok(http) => {
            let shared = Shared::new(Peer { remote, alpn, exporter }, wide);
            Ok(Mover { http, heard, shared })
        }
        Err(error) => {
            debug!(%remote, %error, "Handshake failed");
            Err(failed)
        }
    }
}

impl Terms {
    fn is_balancer(&self, remote: SocketAddr) -> bool {
        self.balancers.iter().any(|prefix| prefix.contains(&remote.ip()))
    }
}
