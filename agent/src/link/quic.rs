//! Connections by QUIC: the endpoint, its socket and the handshake.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ConnectionError, Endpoint, EndpointConfig, MtuDiscoveryConfig, TokioRuntime, TransportConfig,
    VarInt,
};
use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::time::{Instant, timeout_at};

use super::patience::Patience;
use super::{
    CONNECTION_WINDOW, Candidate, Connection, Fault, HANDSHAKE_DEADLINE, IDLE_TIMEOUT, KEEP_ALIVE,
    LinkError, SEND_WINDOW, SERVER_NAME, STREAM_WINDOW,
};
use crate::trust::{Authority, Distrust};

/// Opens an endpoint of its own for both address families, or for IPv4 where
/// there is no IPv6.
///
/// # Errors
///
/// Fails when the system gives no socket.
pub fn endpoint() -> io::Result<Endpoint> {
    let runtime = Arc::new(TokioRuntime);
    Endpoint::new(EndpointConfig::default(), None, socket()?, runtime)
}

/// Puts every connection of an endpoint on a new socket, from which they go on over
/// whatever way the system has now.
///
/// # Errors
///
/// Fails when the system gives no socket; the old one is kept then.
pub(super) fn rebind(endpoint: &Endpoint) -> io::Result<()> {
    endpoint.rebind(socket()?)
}

fn socket() -> io::Result<UdpSocket> {
    let six = || {
        let kind = (AddressFamily::INET6, SocketType::DGRAM, SocketFlags::CLOEXEC);
        let socket = socket_with(kind.0, kind.1, kind.2, None)?;
        set_ipv6_v6only(&socket, false)?;
        bind(&socket, &SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0))?;
        Ok(UdpSocket::from(socket))
    };
    six().or_else(|_: rustix::io::Errno| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
}

/// What the round trip is taken for before one was seen. A first packet is sent again after
/// three of them, where the library would wait for a second (RFC 9002 §6.2.2): on a longer
/// way that costs a packet, on a bad one it saves most of a handshake.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Returns the limits of the agent's connections.
pub(super) fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(STREAM_WINDOW.into())
        .receive_window(CONNECTION_WINDOW.into())
        .send_window(SEND_WINDOW.into())
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IDLE_TIMEOUT.try_into().expect("a minute is a VarInt")));
    transport
}

/// The smallest datagram that every way of QUIC's carries (RFC 9000 §14), in bytes.
const SMALLEST: u16 = 1200;

/// Returns the same limits for a connection that finds out whether datagrams of this
/// size pass.
pub(super) fn measuring(datagram: u16) -> TransportConfig {
    let mut search = MtuDiscoveryConfig::default();
    // Steps as wide as the whole search have its end tried at once, and nothing else.
    search.upper_bound(datagram).minimum_change(datagram - SMALLEST);
    let mut transport = transport();
    transport.mtu_discovery_config(Some(search));
    transport
}

/// Makes a connection to a candidate.
pub(super) async fn dial(
    endpoint: Endpoint,
    authority: Authority,
    transport: Arc<TransportConfig>,
    candidate: Candidate,
    patience: Patience,
) -> Result<Connection, LinkError> {
    let unreachable = |source| LinkError::Unreachable { tried: 1, source };
    let (tls, verdict) = authority.client(candidate.expected).map_err(LinkError::Tls)?;
    let quic = QuicClientConfig::try_from(tls)
        .map_err(|_| LinkError::Tls(rustls::Error::General("no cipher for QUIC".into())))?;
    let mut config = quinn::ClientConfig::new(Arc::new(quic));
    config.transport_config(transport);
    let begun = Instant::now();
    let connecting = endpoint.connect_with(config, candidate.address, SERVER_NAME);
    let mut connecting = connecting.map_err(|_| unreachable(None))?;
    let answered = patience.answer(async {
        // What was agreed is not looked at.
        connecting.handshake_data().await.map(drop)
    });
    let Some((answer, _answered)) = answered.await else {
        return Err(unreachable(Some(Fault::TimedOut)));
    };
    answer.map_err(|source| failed(candidate.address, &verdict, source))?;
    match timeout_at(begun + HANDSHAKE_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok(connection.into()),
        Ok(Err(source)) => Err(failed(candidate.address, &verdict, source)),
        Err(_) => Err(unreachable(Some(Fault::TimedOut))),
    }
}

/// Crypto errors are the codes 0x100 to 0x1ff (RFC 9000 §20.1).
const CRYPTO_ERRORS: std::ops::RangeInclusive<u64> = 0x100..=0x1ff;

fn failed(address: SocketAddr, verdict: &OnceLock<Distrust>, source: ConnectionError) -> LinkError {
    if let Some(distrust) = verdict.get() {
        return LinkError::Distrusted { address, source: distrust.clone() };
    }
    let crypto = match &source {
        ConnectionError::TransportError(error) => CRYPTO_ERRORS.contains(&error.code.into()),
        ConnectionError::ConnectionClosed(close) => {
            CRYPTO_ERRORS.contains(&close.error_code.into())
        }
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    };
    let source = Fault::Quic(source);
    if crypto {
        LinkError::Handshake { address, source }
    } else {
        LinkError::Unreachable { tried: 1, source: Some(source) }
    }
}
