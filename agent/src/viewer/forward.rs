//! A loopback port for one connection of another viewer.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::relay::{DesktopStream, End};
use crate::viewer::{Shown, ViewerError};

/// A port that waits for its one connection.
#[derive(Debug)]
pub(crate) struct Forward {
    /// Until its one connection has come.
    listener: Option<TcpListener>,
    address: SocketAddr,
}

impl Forward {
    pub(crate) async fn listen(address: SocketAddr) -> Result<Self, ViewerError> {
        let taken = |source| ViewerError::Port { address, source };
        if !address.ip().is_loopback() {
            return Err(taken(std::io::ErrorKind::AddrNotAvailable.into()));
        }
        let listener = TcpListener::bind(address).await.map_err(taken)?;
        let address = listener.local_addr().map_err(taken)?;
        Ok(Self { listener: Some(listener), address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whether the one connection may still come.
    pub(crate) fn is_open(&self) -> bool {
        self.listener.is_some()
    }

    pub(crate) async fn show(&mut self, desktop: DesktopStream<'_>) -> Shown {
        let Some(listener) = &self.listener else { return Shown::by(End::Viewer) };
        let accepted = listener.accept().await;
        // One connection only: nobody else may come in beside it.
        self.listener = None;
        let Ok((stream, _)) = accepted else { return Shown::by(End::Viewer) };
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        Shown::by(desktop.splice(read, write).await)
    }
}
