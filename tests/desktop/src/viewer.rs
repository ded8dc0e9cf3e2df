//! A viewer without a screen: connects to an RDP desktop, checks its pin, keeps its first picture.
//!
//! It offers TLS, and network level authentication where it has a secret, and accepts nothing less; it
//! never sends a name or a secret before the certificate has matched the pin.

mod client;
mod pinned;

use std::time::Duration;

use ironrdp_connector::{ConnectorError, ConnectorErrorKind};
use ironrdp_graphics::image_processing::PixelFormat;
use ironrdp_pdu::Action;
use ironrdp_pdu::nego::FailureCode;
use ironrdp_session::image::DecodedImage;
use ironrdp_session::{ActiveStage, ActiveStageBuilder, ActiveStageOutput, SessionError};
use ironrdp_tokio::{FramedWrite as _, TokioFramed};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::client::TlsStream;

use crate::fingerprint::Fingerprint;

/// How long the desktop may take to hear that the viewer leaves.
const GOODBYE: Duration = Duration::from_millis(200);
/// Bytes of one decoded pixel: red, green, blue and one unused.
const PIXEL: usize = 4;

/// What to show the desktop and what to expect of it.
pub struct Visit {
    /// The certificate it must show.
    pub pin: Fingerprint,
    /// The account to sign on with; may be empty.
    pub user: String,
    /// The account's secret; without one, network level authentication is not offered.
    pub secret: Option<String>,
    /// How long everything up to the first picture may take.
    pub deadline: Duration,
}

/// What a desktop looked like.
pub struct Picture {
    /// Width in pixels.
    pub width: u16,
    /// Height in pixels.
    pub height: u16,
    /// Red, green and blue of each pixel, row by row from the top.
    pub rgb: Vec<u8>,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum VisitError {
    /// The desktop would not secure the connection; nothing was sent to it.
    #[error("the desktop would not secure the connection")]
    Insecure(#[source] ConnectorError),
    /// The desktop showed another certificate; nothing was sent to it.
    #[error("the desktop's certificate is not the pinned one")]
    PinMismatch,
    /// TLS failed for another reason than the pin.
    #[error("cannot speak TLS with the desktop")]
    Tls(#[source] std::io::Error),
    /// The desktop refused the connection after it was secured.
    #[error("the desktop refused the connection")]
    Refused(#[source] ConnectorError),
    /// The desktop's certificate does not hold a key that can be read.
    #[error("the desktop's certificate has no readable key")]
    UnreadableKey,
    /// The connection broke.
    #[error("the connection to the desktop broke")]
    Broken(#[source] std::io::Error),
    /// The desktop sent what cannot be decoded.
    #[error("the desktop sent something unreadable")]
    Unreadable(#[source] SessionError),
    /// The desktop ended the session before it was painted.
    #[error("the desktop ended the session: {0}")]
    Ended(String),
    /// The desktop wants to start over at another size, which this viewer cannot do.
    #[error("the desktop asks for a reactivation")]
    Reactivation,
    /// Nothing was painted in time.
    #[error("the desktop was not painted within {0:?}")]
    Late(Duration),
}

impl VisitError {
    /// Returns the exit number, the same as that of the usual viewer, so that one table serves both.
    pub fn exit(&self) -> u8 {
        match self {
            Self::Insecure(_) | Self::PinMismatch => 143,
            Self::Tls(_) => 133,
            Self::Refused(_)
            | Self::UnreadableKey
            | Self::Broken(_)
            | Self::Unreadable(_)
            | Self::Ended(_)
            | Self::Reactivation
            | Self::Late(_) => 1,
        }
    }

    /// Sorts a failure of the negotiation by what it says about security.
    fn of_negotiation(error: ConnectorError) -> Self {
        match error.kind() {
            // A protocol that was not offered, standard RDP security among them.
            ConnectorErrorKind::Reason(_) => Self::Insecure(error),
            ConnectorErrorKind::Negotiation(failure)
                if failure.code() == FailureCode::SSL_NOT_ALLOWED_BY_SERVER =>
            {
                Self::Insecure(error)
            }
            _ => Self::Refused(error),
        }
    }
}

/// Connects over `stream` and returns once the desktop has painted something that is not black.
///
/// # Errors
///
/// See [`VisitError`]; the connection is closed then.
pub async fn first_frame<S>(stream: S, visit: Visit) -> Result<FirstFrame<S>, VisitError>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin,
{
    let deadline = visit.deadline;
    let painting = async {
        let (framed, connected) = client::connect(stream, visit).await?;
        let size = connected.desktop_size;
        let mut desktop = FirstFrame {
            painted: Instant::now(),
            framed,
            image: DecodedImage::new(PixelFormat::RgbX32, size.width, size.height),
            stage: ActiveStageBuilder {
                static_channels: connected.static_channels,
                user_channel_id: connected.user_channel_id,
                io_channel_id: connected.io_channel_id,
                message_channel_id: connected.message_channel_id,
                share_id: connected.share_id,
                compression_type: connected.compression_type,
                enable_server_pointer: connected.enable_server_pointer,
                pointer_software_rendering: connected.pointer_software_rendering,
            }
            .build(),
        };
        while !desktop.update().await? {}
        desktop.painted = Instant::now();
        Ok(desktop)
    };
    timeout(deadline, painting).await.map_err(|_elapsed| VisitError::Late(deadline))?
}

/// A desktop that has begun to paint.
pub struct FirstFrame<S> {
    painted: Instant,
    framed: TokioFramed<TlsStream<S>>,
    image: DecodedImage,
    stage: ActiveStage,
}

impl<S> FirstFrame<S>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin,
{
    /// Goes on painting for `linger`, so that the picture is complete, and leaves the desktop.
    ///
    /// What happens to the connection in the meantime does not take the picture away.
    pub async fn complete(mut self, linger: Duration) -> Picture {
        let until = self.painted + linger;
        while let Ok(Ok(_painted)) = timeout_at(until, self.update()).await {}
        let mut stream = self.framed.into_inner_no_leftover();
        let _goodbye = timeout(GOODBYE, stream.shutdown()).await;

        let mut rgb = Vec::with_capacity(self.image.data().len() / PIXEL * 3);
        for pixel in self.image.data().chunks_exact(PIXEL) {
            rgb.extend_from_slice(&pixel[..3]);
        }
        Picture { width: self.image.width(), height: self.image.height(), rgb }
    }

    /// Returns when the first update that was not black had been painted.
    pub fn painted(&self) -> Instant {
        self.painted
    }

    /// Takes one message of the desktop and tells whether it painted something that is not black.
    async fn update(&mut self) -> Result<bool, VisitError> {
        let (action, message): (Action, _) =
            self.framed.read_pdu().await.map_err(VisitError::Broken)?;
        let outputs = self
            .stage
            .process(&mut self.image, action, &message)
            .map_err(VisitError::Unreadable)?;
        let mut visible = false;
        for output in outputs {
            match output {
                ActiveStageOutput::ResponseFrame(answer) => {
                    self.framed.write_all(&answer).await.map_err(VisitError::Broken)?;
                }
                ActiveStageOutput::GraphicsUpdate(area) => {
                    let pixels = self.image.data_for_rect(&area);
                    visible |= pixels.chunks_exact(PIXEL).any(|pixel| pixel[..3] != [0; 3]);
                }
                ActiveStageOutput::Terminate(reason) => {
                    return Err(VisitError::Ended(reason.description()));
                }
                ActiveStageOutput::DeactivateAll => return Err(VisitError::Reactivation),
                ActiveStageOutput::PointerDefault
                | ActiveStageOutput::PointerHidden
                | ActiveStageOutput::PointerPosition { .. }
                | ActiveStageOutput::PointerBitmap(_)
                | ActiveStageOutput::MultitransportRequest(_)
                | ActiveStageOutput::AutoDetect(_) => {}
            }
        }
        Ok(visible)
    }
}
