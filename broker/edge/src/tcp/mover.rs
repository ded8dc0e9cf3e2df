//! What moves a connection's bytes: HTTP/2 over TLS, and between a stream and the
//! desktop that it is joined to. It runs beside the connection's handler, in one task.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, server};
use http::{Method, Request, Response};
use quinn_proto::VarInt;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::connection::{Lost, Shared};
use super::line::{FAREWELL, Heard, Line};
use super::stream::{RecvStream, SendStream};

/// What every stream of ours asks for. It names no place.
const STREAM_URI: &str = "https://tegata/";

/// Where our own codes begin among HTTP/2's error codes; those below have meanings of
/// their own there.
const CODES_FROM: u32 = 0x100;

/// What speaks HTTP/2 with a peer.
pub(super) type Http = server::Connection<TlsStream<Line>, Bytes>;

/// Moves the bytes of one connection.
pub(super) struct Mover {
    pub(super) http: Http,
    pub(super) heard: Heard,
    pub(super) shared: Arc<Shared>,
}

impl Mover {
    /// Moves bytes until the connection is lost or closed, the peer has been told,
    /// and nothing of it is joined to a desktop any more.
    pub(super) async fn run(self) {
        let Self { mut http, heard, shared } = self;
        let mut silence = pin!(heard.silence());
        let lost = std::future::poll_fn(|cx| match shared.step(&mut http, cx) {
            Poll::Ready(lost) => Poll::Ready(lost),
            Poll::Pending => silence.as_mut().poll(cx).map(|()| Lost::Silent),
        })
        .await;
        shared.lose(lost, None);
        let reason = match lost {
            Lost::Gone => None,
            Lost::Malformed => Some(Reason::PROTOCOL_ERROR),
            Lost::ClosedHere | Lost::Silent => Some(reason(shared.state().closing)),
        };
        if let Some(reason) = reason {
            http.abrupt_shutdown(reason);
            let said = std::future::poll_fn(|cx| {
                shared.turn(cx);
                http.poll_closed(cx)
            });
            // A peer that takes nothing is not waited for.
            let _ = timeout(2 * FAREWELL, said).await;
        }
        drop(http);
        std::future::poll_fn(|cx| shared.poll_parted(cx)).await;
    }
}

/// Returns the error code that says with which of ours a connection is closed.
fn reason(code: Option<VarInt>) -> Reason {
    match code.map_or(0, VarInt::into_inner) {
        0 => Reason::NO_ERROR,
        code => Reason::from(u32::try_from(code).unwrap_or(u32::MAX).saturating_add(CODES_FROM)),
    }
}

impl Shared {
    /// Moves what can be moved now. Is done when the connection is lost, or is to be
    /// closed.
    fn step(self: &Arc<Self>, http: &mut Http, cx: &mut Context<'_>) -> Poll<Lost> {
        loop {
            let has_room = {
                let mut state = self.state();
                if state.lost.is_some() {
                    return Poll::Ready(Lost::ClosedHere);
                }
                state.mover = Some(cx.waker().clone());
                state.has_room()
            };
            // A stream that the handler does not accept waits where the library counts it.
            let opened = if has_room {
                http.poll_accept(cx)
            } else {
                http.poll_closed(cx).map(|closed| closed.err().map(Err))
            };
            match opened {
                Poll::Ready(Some(Ok((request, answer)))) => {
                    if !self.open(request, answer) {
                        return Poll::Ready(Lost::Malformed);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    debug!(%error, "Connection by TCP lost");
                    return Poll::Ready(Lost::Gone);
                }
                Poll::Ready(None) => return Poll::Ready(Lost::Gone),
                Poll::Pending => break,
            }
        }
        self.turn(cx);
        Poll::Pending
    }

    /// Takes a request for the stream that it is, and answers it. Tells whether it is
    /// one.
    fn open(
        self: &Arc<Self>,
        request: Request<h2::RecvStream>,
        mut answer: SendResponse<Bytes>,
    ) -> bool {
        let (head, body) = request.into_parts();
        if head.method != Method::POST || head.uri != *STREAM_URI || !head.headers.is_empty() {
            return false;
        }
        // Fails only where the peer has given it up; it has been opened all the same.
        let stream = answer.send_response(Response::new(()), false).ok();
        self.arrive((SendStream::new(self, stream), RecvStream::new(body)));
        true
    }

    /// Gives what is joined to a desktop its turn.
    fn turn(&self, cx: &mut Context<'_>) {
        let mut state = self.state();
        let lost = state.lost.is_some();
        if let Some(joined) = &mut state.joined {
            joined.turn(cx, lost);
        }
    }

    /// Carries on to the desktop what has come, and is done when nothing is joined.
    fn poll_parted(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.turn(cx);
        let mut state = self.state();
        if state.joined.is_none() {
            return Poll::Ready(());
        }
        state.mover = Some(cx.waker().clone());
        Poll::Pending
    }
}
