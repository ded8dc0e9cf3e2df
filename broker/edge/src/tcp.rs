//! The public port on TCP: TLS 1.3, and HTTP/2 for the streams in it, for networks
//! that let no QUIC through.
//!
//! The port's accept loop waits for no peer. Each one that may come in has one task,
//! which takes it through its handshake by a deadline, then moves its bytes and runs
//! its handler. A stream of ours is one request whose body is what the peer sends and
//! whose answer's body is what we send; nothing is read from a header. Who may come
//! in is decided by [`crate::endpoint`].

mod balancer;
mod connection;
mod joined;
mod line;
mod mover;
mod newcomer;
mod stream;
mod transport;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use self::line::reset;
use self::newcomer::{Newcomer, Terms};
use self::transport::BACKLOG;
use crate::connection::Transport;
use crate::endpoint::{Answer, Reception};
use crate::source::canonical;

pub use self::connection::{Connection, Lost};
pub use self::stream::{RecvStream, SendStream};

/// How long nobody is accepted after the kernel had no file or memory for one more.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A public port on TCP.
pub(crate) struct Listener {
    socket: TcpListener,
    terms: Arc<Terms>,
}

impl Listener {
    /// Opens the port. Nobody is answered before [`run`](Self::run).
    pub(crate) fn open(
        listen: SocketAddr,
        tls: Arc<rustls::ServerConfig>,
        balancers: Vec<IpNet>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
        if listen.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        // Connections of the process before may still be on their way out.
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        socket.listen(BACKLOG)?;
        let socket = TcpListener::from_std(socket.into())?;
        Ok(Self { socket, terms: Arc::new(Terms { tls: TlsAcceptor::from(tls), balancers }) })
    }

    /// Takes peers in, for ever.
    pub(crate) async fn run(self, reception: Reception) -> Infallible {
        let mut failing = false;
        loop {
            match self.socket.accept().await {
                Ok((socket, remote)) => {
                    if std::mem::take(&mut failing) {
                        info!("Connections by TCP are accepted again");
                    }
                    self.judge(socket, canonical(remote), &reception);
                }
                // The peer's own doing.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "Connections by TCP cannot be accepted");
                    }
                    reception.not_accepted();
                    sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// Decides about a newcomer, at once.
    fn judge(&self, socket: TcpStream, remote: SocketAddr, reception: &Reception) {
        match reception.judge(remote, Transport::Tcp, true) {
            Answer::Accept(slot) => {
                let newcomer = Newcomer { socket, remote, slot };
                let terms = Arc::clone(&self.terms);
                reception.serve(remote, |door, closing| newcomer.serve(terms, door, closing));
            }
            // Nothing is kept of it, not even in the kernel.
            Answer::Retry | Answer::Refuse(_) => reset(&socket),
        }
    }
}
