//! Bytes between a viewer and a desktop's stream.
//!
//! Looks at nothing but the desktop's first answer, which must not lower the
//! security that the broker promised ([`crate::viewer::x224`]).

use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use quinn::{RecvStream, SendStream};
use tegata_proto::policy::Security;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::link::{CHUNK_MAX, LinkError, lost};
use crate::viewer::x224::{self, NotSecured, Verdict};

/// Longest piece read from a viewer at once, in bytes.
const READ_MAX: usize = 64 * 1024;

/// How long the second direction may go on after the first has ended.
const LINGER: Duration = Duration::from_secs(3);

/// Which side ended the stream of bytes.
#[derive(Debug)]
pub(crate) enum End {
    /// The viewer closed its socket.
    Viewer,
    /// The desktop closed its connection.
    Desktop,
    /// The desktop, or whoever carries its bytes, would not secure them.
    NotSecured(NotSecured),
    /// The link is gone.
    Lost(LinkError),
}

/// A desktop's stream, as it is given to a viewer.
pub(crate) struct DesktopStream<'a> {
    pub(crate) send: &'a mut SendStream,
    pub(crate) recv: &'a mut RecvStream,
    /// What the desktop must agree to, where it speaks RDP.
    pub(crate) security: Option<Security>,
    /// Told when the first byte for the viewer is there.
    pub(crate) first_byte: oneshot::Sender<()>,
}

impl DesktopStream<'_> {
    /// Reads and drops what the desktop sends, until it ends.
    pub(crate) async fn drain(self) -> End {
        down(self.recv, tokio::io::sink(), self.security, self.first_byte).await
    }

    /// Carries bytes both ways until both sides have closed, or one has and the
    /// other does not follow.
    pub(crate) async fn splice(
        self,
        from_viewer: impl AsyncRead + Unpin,
        to_viewer: impl AsyncWrite + Unpin,
    ) -> End {
        let Self { send, recv, security, first_byte } = self;
        let mut up = pin!(up(from_viewer, send));
        let mut down = pin!(down(recv, to_viewer, security, first_byte));
        tokio::select! {
            end = &mut up => {
                if matches!(end, End::Viewer) {
                    let _ = timeout(LINGER, down).await;
                }
                end
            }
            end = &mut down => {
                if matches!(end, End::Desktop) {
                    let _ = timeout(LINGER, up).await;
                }
                end
            }
        }
    }
}

async fn up(mut viewer: impl AsyncRead + Unpin, send: &mut SendStream) -> End {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(READ_MAX);
        match viewer.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => {
                let _ = send.finish();
                return End::Viewer;
            }
            Ok(_) => {}
        }
        match send.write_chunk(buffer.split().freeze()).await {
            Ok(()) => {}
            Err(quinn::WriteError::ConnectionLost(error)) => {
                return End::Lost(LinkError::Lost(error));
            }
            Err(
                quinn::WriteError::Stopped(_)
                | quinn::WriteError::ClosedStream
                | quinn::WriteError::ZeroRttRejected,
            ) => {
                return End::Desktop;
            }
        }
    }
}

async fn down(
    recv: &mut RecvStream,
    mut viewer: impl AsyncWrite + Unpin,
    security: Option<Security>,
    first_byte: oneshot::Sender<()>,
) -> End {
    if let Some(asked) = security {
        let mut held = Vec::with_capacity(x224::CONFIRM_LEN);
        loop {
            match x224::confirms(&held, asked) {
                Verdict::Secured => break,
                Verdict::NotSecured(reason) => return End::NotSecured(reason),
                Verdict::More(wanted) => match recv.read_chunk(wanted, true).await {
                    Ok(Some(chunk)) => held.extend_from_slice(&chunk.bytes),
                    Ok(None) => return End::Desktop,
                    Err(error) => return ended(error),
                },
            }
        }
        let _ = first_byte.send(());
        if viewer.write_all(&held).await.is_err() {
            return End::Viewer;
        }
        return pour(recv, viewer, None).await;
    }
    pour(recv, viewer, Some(first_byte)).await
}

async fn pour(
    recv: &mut RecvStream,
    mut viewer: impl AsyncWrite + Unpin,
    mut first_byte: Option<oneshot::Sender<()>>,
) -> End {
    loop {
        match recv.read_chunk(CHUNK_MAX, true).await {
            Ok(Some(chunk)) => {
                if let Some(first_byte) = first_byte.take() {
                    let _ = first_byte.send(());
                }
                if viewer.write_all(&chunk.bytes).await.is_err() {
                    return End::Viewer;
                }
            }
            Ok(None) => {
                let _ = viewer.shutdown().await;
                return End::Desktop;
            }
            Err(error) => return ended(error),
        }
    }
}

fn ended(error: quinn::ReadError) -> End {
    match lost(error) {
        // The gateway dropped the stream alone: the desktop's connection broke.
        LinkError::Silent => End::Desktop,
        error => End::Lost(error),
    }
}
