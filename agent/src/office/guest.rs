//! An agent's connection as its peer sees it, by QUIC or TCP.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use quinn::{Connection, VarInt};
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::link::{LinkError, RecvStream, SendStream, server_side};

/// An agent's connection.
#[derive(Clone)]
pub(crate) enum Guest {
    Quic(Connection),
    Tcp(Arc<ByTcp>),
}

pub(crate) struct ByTcp {
    address: SocketAddr,
    exporter: [u8; EXPORTER_LEN],
    streams: Mutex<mpsc::Receiver<(SendStream, RecvStream)>>,
    cut: CancellationToken,
    over: CancellationToken,
}

impl Guest {
    /// Lets an agent in by TCP; nothing where there is no agent.
    #[allow(clippy::disallowed_methods, reason = "a fake has no limits to keep")]
    pub(super) async fn by_tcp(acceptor: TlsAcceptor, socket: TcpStream) -> Option<Self> {
        let address = socket.peer_addr().ok()?;
        let tls = acceptor.accept(socket).await.ok()?;
        tls.get_ref().1.alpn_protocol()?;
        let exporter = [0; EXPORTER_LEN];
        let exporter =
            tls.get_ref().1.export_keying_material(exporter, EXPORTER_LABEL, Some(b"")).ok()?;
        let mut builder = h2::server::Builder::new();
        builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 21);
        let mut connection = builder.handshake::<_, Bytes>(tls).await.ok()?;
        let (give, streams) = mpsc::channel(4);
        let (cut, over) = (CancellationToken::new(), CancellationToken::new());
        let (is_cut, is_over) = (cut.clone(), over.clone());
        tokio::spawn(async move {
            let _over = is_over.drop_guard();
            loop {
                let accepted = tokio::select! {
                    () = is_cut.cancelled() => return,
                    accepted = connection.accept() => accepted,
                };
                let Some(Ok((request, mut respond))) = accepted else { return };
                assert_eq!(request.method(), http::Method::POST);
                let answer = http::Response::new(());
                let Ok(send) = respond.send_response(answer, false) else { return };
                let _ = give.try_send(server_side(send, request.into_body()));
            }
        });
        let streams = Mutex::new(streams);
        Some(Self::Tcp(Arc::new(ByTcp { address, exporter, streams, cut, over })))
    }

    pub(crate) fn remote_address(&self) -> SocketAddr {
        match self {
            Self::Quic(connection) => connection.remote_address(),
            Self::Tcp(tcp) => tcp.address,
        }
    }

    /// Waits for the agent's next stream.
    pub(crate) async fn accept(&self) -> Result<(SendStream, RecvStream), LinkError> {
        match self {
            Self::Quic(connection) => {
                let (send, recv) = connection.accept_bi().await.map_err(|_| LinkError::Silent)?;
                Ok((send.into(), recv.into()))
            }
            Self::Tcp(tcp) => tcp.streams.lock().await.recv().await.ok_or(LinkError::Silent),
        }
    }

    pub(super) fn exporter(&self) -> [u8; EXPORTER_LEN] {
        match self {
            Self::Quic(connection) => {
                let mut bytes = [0; EXPORTER_LEN];
                connection
                    .export_keying_material(&mut bytes, EXPORTER_LABEL, b"")
                    .expect("after the handshake");
                bytes
            }
            Self::Tcp(tcp) => tcp.exporter,
        }
    }

    /// Cuts the connection; by TCP nobody hears why.
    pub(crate) fn close(&self, code: VarInt, reason: &[u8]) {
        match self {
            Self::Quic(connection) => connection.close(code, reason),
            Self::Tcp(tcp) => tcp.cut.cancel(),
        }
    }

    pub(crate) async fn closed(&self) {
        match self {
            Self::Quic(connection) => drop(connection.closed().await),
            Self::Tcp(tcp) => tcp.over.cancelled().await,
        }
    }
}
