//! Every value of HTTP/2 and of TCP that we set rather than inherit.

use std::io;
use std::time::Duration;

use h2::server::Builder;
use socket2::SockRef;
use tokio::net::TcpStream;

use crate::endpoint::IDLE_TIMEOUT;

/// Streams that a peer may have open, and that may wait for the handler.
pub(super) const STREAMS: usize = 4;

/// Bytes that a peer may send ahead of its reader on one stream.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Bytes that a peer may send ahead of its readers on one connection: a whole stream,
/// and still some on the control stream.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW + 64 * 1024;

/// Largest frame that a peer may send, in bytes.
const FRAME_MAX: u32 = 64 * 1024;

/// Largest list of headers that a peer may send, in bytes. A stream of ours has four
/// short ones.
const HEADERS_MAX: u32 = 1024;

/// Bytes of one stream that wait to be sent.
pub(super) const SEND_BUFFER: usize = 256 * 1024;

/// Streams that a peer may open and reset before anybody has looked.
const UNHEARD_RESETS: usize = 8;

/// Streams that we may have to reset for a peer's faults.
const FAULTY_RESETS: usize = 64;

/// Streams that we have reset and that are remembered, so that what a peer sent before
/// it knew is no fault, and for how long.
const OWN_RESETS: usize = 32;
const OWN_RESETS_REMEMBERED: Duration = Duration::from_secs(10);

/// Bytes that the kernel keeps of a connection beyond what is on its way. More would
/// only hold up what is urgent behind it.
const UNSENT: u32 = 128 * 1024;

/// Connections that the kernel may have waiting to be accepted.
pub(super) const BACKLOG: i32 = 1024;

/// What frames that are far smaller than their own bookkeeping may cost while nobody
/// reads them, in bytes: an agent that comes back sends what its viewer said meanwhile,
/// each movement of the mouse a frame, and a whole window of those may wait for the
/// store and the desktop.
const SMALL_FRAMES_MAX: usize = 6 * 1024 * 1024;

/// Returns the rules by which HTTP/2 is spoken. Its other limits against floods (of
/// empty or tiny frames, of settings and pings) are the library's own.
pub(super) fn rules() -> Builder {
    let mut rules = Builder::new();
    rules
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_MAX)
        .max_header_list_size(HEADERS_MAX)
        .max_concurrent_streams(u32::try_from(STREAMS).unwrap_or(u32::MAX))
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(UNHEARD_RESETS)
        .max_local_error_reset_streams(Some(FAULTY_RESETS))
        .max_concurrent_reset_streams(OWN_RESETS)
        .reset_stream_duration(OWN_RESETS_REMEMBERED)
        .data_frame_budget(SMALL_FRAMES_MAX);
    rules
}

/// Sets a peer's socket up: keystrokes are not gathered, little waits in the kernel,
/// and a peer that acknowledges nothing is lost.
pub(super) fn prepare(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_user_timeout(Some(IDLE_TIMEOUT))
}
