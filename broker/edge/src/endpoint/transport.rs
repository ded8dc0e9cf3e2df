//! Every value of the transport that we set rather than inherit.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::{hkdf, hmac};
use quinn_proto::crypto::rustls::QuicServerConfig;
use quinn_proto::{
    EndpointConfig, HashedConnectionIdGenerator, IdleTimeout, NoneTokenLog, ServerConfig,
    TransportConfig, ValidationTokenConfig, VarInt,
};

/// A connection from which nothing comes for this long is gone. The agent keeps its
/// own alive; the server never does.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_mins(1);

/// Bidirectional streams that a peer may have open.
const BIDIRECTIONAL_STREAMS: u32 = 4;

/// Unidirectional streams that a peer may have open.
const UNIDIRECTIONAL_STREAMS: u32 = 0;

/// Bytes that a peer may send ahead of its reader on one stream.
const STREAM_WINDOW: u32 = 512 * 1024;

/// Bytes that a peer may send ahead of its readers on one connection once it has shown a
/// right to a session.
pub(crate) const WIDE_WINDOW: u32 = 1024 * 1024;

/// The same before: two of its longest frames.
const NARROW_WINDOW: u32 = 8 * 1024;

/// Bytes that one connection keeps until its peer has acknowledged them; more than are
/// replayed to an agent, so that a desktop's bytes leave room for what the agent is told.
const SEND_WINDOW: u64 = 2 * crate::connection::REPLAY;

/// Bytes of the TLS handshake kept out of order.
const CRYPTO_BUFFER: usize = 8 * 1024;

/// Newcomers that may wait for their handshake to begin.
const WAITING: usize = 1024;

/// Bytes kept of one newcomer that waits.
const WAITING_BUFFER: u64 = 16 * 1024;

/// Bytes kept of all newcomers that wait.
const WAITING_BUFFERS: u64 = 4 * 1024 * 1024;

/// How long a Retry token is good for.
const RETRY_TOKEN_LIFE: Duration = Duration::from_secs(15);

/// Names the use of the node's key for Retry tokens.
const RETRY_KEY_SALT: &[u8] = b"tegata retry token v1";

/// Names the use of the node's key for connection ids.
const CONNECTION_ID_LABEL: &[u8] = b"tegata connection id v1";

/// What the round trip is taken for before one was seen: an answer that is lost is sent
/// again after three of them (RFC 9002 §6.2.2 has 333 ms).
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// QUIC version 1 (RFC 9000), and no draft.
const QUIC_VERSIONS: [u32; 1] = [1];

fn transport() -> TransportConfig {
    let idle = IdleTimeout::try_from(IDLE_TIMEOUT).expect("a minute fits");
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(None)
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(BIDIRECTIONAL_STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(UNIDIRECTIONAL_STREAMS))
        .datagram_receive_buffer_size(None)
        .datagram_send_buffer_size(0)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(NARROW_WINDOW))
        .send_window(SEND_WINDOW)
        .crypto_buffer_size(CRYPTO_BUFFER);
    config
}

/// Builds the two halves of QUIC's configuration from the node's key and the TLS configuration.
///
/// The key makes stateless resets and Retry tokens, so both survive a restart.
/// It also marks connection ids as ours: `quinn-proto` resets only what bears that mark,
/// and would otherwise draw a new one at each start.
pub(super) fn configure(
    node_key: &[u8; 64],
    crypto: Arc<QuicServerConfig>,
) -> (EndpointConfig, ServerConfig) {
    let reset_key = hmac::Key::new(hmac::HMAC_SHA256, node_key);
    let retry_key = hkdf::Salt::new(hkdf::HKDF_SHA256, RETRY_KEY_SALT).extract(node_key);

    // Tokens for later connections are off: each login is a new agent, and a
    // table of used ones would be kept for nobody.
    let mut validation = ValidationTokenConfig::default();
    validation.sent(0).log(Arc::new(NoneTokenLog));

    let mut server = ServerConfig::new(crypto, Arc::new(retry_key));
    server
        .transport_config(Arc::new(transport()))
        .validation_token_config(validation)
        .retry_token_lifetime(RETRY_TOKEN_LIFE)
        .migration(true)
        .max_incoming(WAITING)
        .incoming_buffer_size(WAITING_BUFFER)
        .incoming_buffer_size_total(WAITING_BUFFERS);

    let mut mark = [0; size_of::<u64>()];
    let tag = hmac::sign(&reset_key, CONNECTION_ID_LABEL);
    mark.copy_from_slice(&tag.as_ref()[..size_of::<u64>()]);
    let mark = u64::from_be_bytes(mark);
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint
        .supported_versions(QUIC_VERSIONS.to_vec())
        .cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(mark)));
    (endpoint, server)
}
