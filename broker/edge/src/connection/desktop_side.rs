//! The desktop's side of a session: its connection, and what is between the two
//! ends. It is joined to one stream after another, as links come and go.

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tegata_proto::replay::{BadOffset, Receipt, Replay};

/// Bytes of a desktop's that are kept until the agent has acknowledged them.
pub const REPLAY: u64 = 1024 * 1024;

/// A desktop's connection and its account of bytes. Dropped, the connection is
/// reset.
#[derive(Debug)]
pub struct DesktopSide {
    socket: Arc<TcpStream>,
    /// What goes to the agent.
    pub(crate) replay: Replay,
    /// What came from it.
    pub(crate) receipt: Receipt,
    in_order: bool,
}

impl DesktopSide {
    /// Takes a connection that nothing has passed yet and that does not block.
    pub fn new(socket: TcpStream) -> Self {
        let (replay, receipt) = (Replay::new(REPLAY), Receipt::default());
        Self { socket: Arc::new(socket), replay, receipt, in_order: false }
    }

    /// Returns how many bytes of the agent's were written onward to the desktop.
    pub fn received(&self) -> u64 {
        self.receipt.written()
    }

    /// Goes back to what the agent has written onward, for its next link.
    ///
    /// # Errors
    ///
    /// Refuses an offset that the agent cannot have reached, or whose bytes are
    /// forgotten. Nothing is changed then.
    pub fn resume(&mut self, received: u64) -> Result<(), BadOffset> {
        self.replay.resume(received)
    }

    /// Tells whether [`resume`](Self::resume) would succeed.
    pub fn may_resume(&self, received: u64) -> bool {
        self.replay.may_resume(received)
    }

    /// Tells whether nothing more can come of it: the desktop has closed its connection,
    /// and the agent has acknowledged everything before that.
    pub fn is_over(&self) -> bool {
        if self.replay.acknowledged() < self.replay.end() {
            return false;
        }
        match self.socket.peek(&mut [0]) {
            Ok(bytes) => bytes == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    pub(crate) fn socket(&self) -> &Arc<TcpStream> {
        &self.socket
    }

    /// Closes the connection in order: what was written to it still arrives.
    pub fn close(mut self) {
        self.in_order = true;
    }
}

impl Drop for DesktopSide {
    fn drop(&mut self) {
        if !self.in_order {
            // A socket that refuses the option is closed in order instead.
            let _ = SockRef::from(&*self.socket).set_linger(Some(Duration::ZERO));
        }
    }
}
