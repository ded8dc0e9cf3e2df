//! What shows the desktop: `FreeRDP`, a command of the site, or a loopback port.
//!
//! A viewer is made ready before the login, so that a fault in the settings does
//! not cost a desktop; it is shown the desktop's stream after the attach.

mod forward;
pub mod freerdp;
mod process;
pub mod redirection;
pub mod x224;

use std::io;
use std::net::SocketAddr;

use tegata_proto::code::Code;
use tegata_proto::encoding::{Secret, Sha256};
use tegata_proto::login::{Desktop, TicketAnswer};
use tegata_proto::policy::{Policy, Protocol, Security, SignOn};

use crate::relay::{DesktopStream, End};
use crate::viewer::forward::Forward;
use crate::viewer::process::Process;

/// Which viewer the person wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Viewer {
    /// `FreeRDP`, with these options.
    Freerdp(freerdp::Options),
    /// A command and its arguments; never a shell.
    Exec(Vec<String>),
    /// Whatever connects to this loopback address.
    Forward(SocketAddr),
    /// None; what the desktop sends is dropped.
    Nothing,
}

/// Why a viewer cannot show the desktop.
#[derive(Debug, thiserror::Error)]
pub enum ViewerError {
    /// `FreeRDP` is not installed.
    #[error("no program {} in the search path", freerdp::PROGRAMS.join(" or "))]
    NotInstalled,
    /// The loopback port cannot be had.
    #[error("{address} cannot be listened on")]
    Port {
        /// Which one.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The desktop speaks something that `FreeRDP` does not.
    #[error("the desktop does not speak RDP; FreeRDP cannot show it")]
    NotRdp,
    /// The ticket answer lacks what an RDP desktop needs, or holds what cannot be
    /// an account's name.
    #[error("the broker's answer does not describe the desktop")]
    Incomplete,
    /// The viewer's program did not start.
    #[error("{program} did not start")]
    Start {
        /// Which one.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ViewerError {
    /// Returns the code that the run ends with.
    pub fn code(&self) -> Code {
        match self {
            // What the thin client lacks now it may have a moment later.
            Self::Start { source, .. } if lacks_means(source) => Code::Internal,
            Self::NotInstalled | Self::Port { .. } | Self::NotRdp | Self::Start { .. } => {
                Code::Configuration
            }
            Self::Incomplete => Code::Malformed,
        }
    }
}

/// Tells whether a program did not start for want of a file, memory or a process.
fn lacks_means(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];
    Errno::from_io_error(error).is_some_and(|error| lacks.contains(&error))
}

/// What a viewer needs to know of the desktop.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) rdp: Option<Rdp>,
    pub(crate) user: Option<String>,
    /// The password to log on with, once.
    pub(crate) secret: Option<Secret>,
    pub(crate) policy: Policy,
}

/// How an RDP desktop proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rdp {
    pub(crate) security: Security,
    pub(crate) certificate_sha256: Sha256,
}

impl Scene {
    /// Reads the broker's answer; `password` is the one that the person typed.
    pub(crate) fn new(answer: &TicketAnswer, password: &Secret) -> Result<Self, ViewerError> {
        let Desktop { protocol, security, certificate_sha256, user_hint, .. } = &answer.desktop;
        let rdp = match (protocol, security, certificate_sha256) {
            (Protocol::Rdp, Some(security), Some(pin)) => {
                Some(Rdp { security: *security, certificate_sha256: *pin })
            }
            (Protocol::Rdp, _, _) => return Err(ViewerError::Incomplete),
            (Protocol::Tcp, _, _) => None,
        };
        let user = user_hint.clone();
        if user.as_ref().is_some_and(|user| user.is_empty() || user.contains(char::is_control)) {
            return Err(ViewerError::Incomplete);
        }
        // A line is what viewers read; such a password has to be typed there.
        let one_line = !password.expose().contains(['\n', '\r', '\0']);
        let secret = match answer.sign_on {
            SignOn::Person if rdp.is_some() && user.is_some() && one_line => Some(password.clone()),
            SignOn::Person | SignOn::Prompt => None,
        };
        Ok(Self { rdp, user, secret, policy: answer.policy })
    }

    /// Returns the same without the password, which is used once.
    pub(crate) fn without_secret(&self) -> Self {
        Self { rdp: self.rdp, user: self.user.clone(), secret: None, policy: self.policy }
    }
}

/// A viewer that is ready.
#[derive(Debug)]
pub(crate) enum Stage {
    Process(Process),
    Forward(Forward),
    Nothing,
}

impl Stage {
    /// Finds the program, or takes the port.
    pub(crate) async fn open(viewer: &Viewer) -> Result<Self, ViewerError> {
        Ok(match viewer {
            Viewer::Freerdp(options) => Self::Process(Process::freerdp(options.clone())?),
            Viewer::Exec(command) => Self::Process(Process::exec(command.clone())),
            Viewer::Forward(address) => Self::Forward(Forward::listen(*address).await?),
            Viewer::Nothing => Self::Nothing,
        })
    }

    /// Returns where a viewer may connect.
    pub(crate) fn forward(&self) -> Option<SocketAddr> {
        match self {
            Self::Forward(forward) => Some(forward.address()),
            Self::Process(_) | Self::Nothing => None,
        }
    }

    /// Tells whether the viewer can show this desktop at all.
    pub(crate) fn suits(&self, scene: &Scene) -> Result<(), ViewerError> {
        match self {
            Self::Process(process) => process.suits(scene),
            Self::Forward(_) | Self::Nothing => Ok(()),
        }
    }

    /// Tells whether the viewer can be shown the desktop from its beginning again.
    pub(crate) fn may_restart(&self) -> bool {
        match self {
            Self::Forward(forward) => forward.is_open(),
            Self::Process(_) | Self::Nothing => true,
        }
    }

    /// Shows the desktop until the viewer or the desktop ends, and says why.
    /// Dropped, it ends the viewer.
    pub(crate) async fn show(
        &mut self,
        desktop: DesktopStream<'_>,
        scene: Scene,
    ) -> Result<Shown, ViewerError> {
        match self {
            Self::Process(process) => process.show(desktop, scene).await,
            Self::Forward(forward) => Ok(forward.show(desktop).await),
            Self::Nothing => Ok(Shown::by(desktop.drain().await)),
        }
    }
}

/// How a viewer's stay ended.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) code: Code,
    /// What ended the bytes, where that is known.
    pub(crate) end: Option<End>,
}

impl Shown {
    /// Says what it means that the bytes ended, where no viewer knows more.
    fn by(end: End) -> Self {
        let code = match &end {
            End::Viewer => Code::Disconnected,
            End::NotSecured(_) => Code::PinMismatch,
            End::Desktop | End::Lost => Code::DesktopLost,
        };
        Self { code, end: Some(end) }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn want_of_a_file_is_no_wrong_configuration() {
        for (errno, code) in [(Errno::MFILE, Code::Internal), (Errno::NOENT, Code::Configuration)] {
            let error = ViewerError::Start { program: "xfreerdp".into(), source: errno.into() };
            assert_eq!(error.code(), code, "{errno}");
        }
    }
}
