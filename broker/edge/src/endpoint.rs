//! The public port: a UDP socket and a TCP one of the same number, one handler for
//! each ALPN.
//!
//! Each newcomer is judged by the budget, at once; [`crate::driver`] or [`crate::tcp`]
//! takes it through the handshake, by a deadline, and a task of its own then serves it
//! with its role's handler. What a handler says on its connection is its own affair.

mod budget;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use prometheus_client::metrics::gauge::Gauge;
use quinn_proto::VarInt;
use quinn_proto::crypto::rustls::QuicServerConfig;
use tegata_proto::proof::EXPORTER_LEN;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, error, info};

use self::budget::Budget;
use crate::connection::{Connection, Transport};
use crate::driver::{Arrival, Doorbell, Driver, Stage};
use crate::metrics::{ConnectionLabels, EdgeMetrics, Refusal, RefusedLabels};
use crate::source::Prefix;
use crate::supervisor::{Tasks, Thread};
use crate::tcp::Listener;
use crate::tls::{self, RoleCertificate};

pub use self::budget::{Limits, Stranger};

pub(crate) use self::budget::{Answer, Slot};
pub(crate) use self::transport::{IDLE_TIMEOUT, WIDE_WINDOW};

/// By when a handshake must be complete.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// By when a handler should have the first frame of a connection.
pub const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(5);

/// Ports that are tried until one is free for both transports, where none is named.
const PORTS_TRIED: usize = 16;

/// Application code of a connection that ends because its handler has ended.
pub const CLOSE_DONE: VarInt = VarInt::from_u32(0);

/// One accepted connection, its handshake complete.
#[derive(Debug)]
pub struct Link {
    /// The connection itself.
    pub connection: Connection,
    /// Where it came from, canonical; by the word of its balancer, where it has one. By
    /// QUIC it may move later.
    pub remote: SocketAddr,
    /// The TLS exporter that proofs on this connection are bound to.
    pub exporter: [u8; EXPORTER_LEN],
    /// Cancelled when the endpoint drains; the handler then ends politely, within
    /// [`EndpointConfig::grace`].
    pub closing: CancellationToken,
    /// What the handler tells when the peer has shown a right to be here. Until then it may
    /// be closed at any moment.
    pub stranger: Stranger,
}

/// Serves the connections of one role.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Serves one connection. It is closed when this returns or panics.
    async fn serve(&self, link: Link);
}

/// One thing that a client can come for.
#[derive(Clone)]
pub struct Role {
    /// How a client asks for it.
    pub alpn: &'static [u8],
    /// What it is shown.
    pub certificate: Arc<RoleCertificate>,
    /// Who serves it.
    pub handler: Arc<dyn Handler>,
}

/// What an endpoint needs to be told.
pub struct EndpointConfig {
    /// The address to listen on. An IPv6 one takes no IPv4.
    pub listen: SocketAddr,
    /// The node's secret, kept across restarts: agents of the process before are
    /// told at once that it is gone.
    pub reset_key: [u8; 64],
    /// How many connections it takes in.
    pub limits: Limits,
    /// How long handlers may take to end when the endpoint drains.
    pub grace: Duration,
    /// From where connections by TCP come through a balancer, which says by the PROXY
    /// protocol where each is from. Nobody else is believed.
    pub balancers: Vec<IpNet>,
}

/// Why an endpoint does not open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket cannot be had.
    #[error("cannot listen on {listen}")]
    Socket {
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no role, or two ask for the same ALPN.
    #[error("the roles' ALPNs are not one or more different ones")]
    Roles,
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
}

/// A public port, open and not yet served.
pub struct Endpoint {
    driver: Driver,
    listener: Listener,
    reception: Reception,
    local: SocketAddr,
    grace: Duration,
    tasks: Tasks,
    closing: CancellationToken,
}

/// Decides who comes in, and hands them over.
#[derive(Clone)]
pub(crate) struct Reception {
    door: Arc<Door>,
    tasks: Tasks,
    closing: CancellationToken,
}

/// What each connection's task needs.
pub(crate) struct Door {
    roles: Vec<Role>,
    budget: Arc<Budget>,
    metrics: EdgeMetrics,
}

impl Endpoint {
    /// Opens the port. Nobody is answered before [`run`](Self::run).
    ///
    /// Needs the tokio runtime that will serve it.
    ///
    /// # Errors
    ///
    /// Refuses roles without or with equal ALPNs; fails without the socket.
    pub fn bind(
        config: EndpointConfig,
        roles: Vec<Role>,
        metrics: EdgeMetrics,
    ) -> Result<Self, BindError> {
        let EndpointConfig { listen, reset_key, limits, grace, balancers } = config;
        let mut alpns: Vec<_> = roles.iter().map(|role| role.alpn).collect();
        alpns.sort_unstable();
        alpns.dedup();
        if alpns.is_empty() || alpns.len() != roles.len() {
            return Err(BindError::Roles);
        }
        let shown = roles.iter().map(|role| (role.alpn, Arc::clone(&role.certificate))).collect();
        let tls = Arc::new(tls::server_config(shown).map_err(BindError::Tls)?);
        let crypto = QuicServerConfig::try_from(Arc::clone(&tls))
            .expect("the provider has TLS_AES_128_GCM_SHA256, which QUIC starts with");
        let crypto = Arc::new(crypto);

        let tasks = Tasks::new(metrics.panics.clone());
        let budget = Budget::new(limits);
        let door = Arc::new(Door { roles, budget, metrics });
        let closing = CancellationToken::new();
        let reception = Reception { door, tasks: tasks.clone(), closing: closing.clone() };
        let open = || {
            let (config, server) = transport::configure(&reset_key, Arc::clone(&crypto));
            let driver = Driver::open(listen, config, server, reception.clone())?;
            let local = driver.local_addr()?;
            let listener = Listener::open(local, Arc::clone(&tls), balancers.clone())?;
            io::Result::Ok((driver, listener, local))
        };
        let mut opened = open();
        // The system gives a number that is free by UDP alone.
        for _ in 1..PORTS_TRIED {
            match &opened {
                Err(error) if listen.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {
                    opened = open();
                }
                Ok(_) | Err(_) => break,
            }
        }
        let (driver, listener, local) =
            opened.map_err(|source| BindError::Socket { listen, source })?;
        Ok(Self { driver, listener, reception, local, grace, tasks, closing })
    }

    /// Returns the address it listens on, with the port that it was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `cancelled`, then drains: takes nobody in, asks the handlers
    /// to end, drops those that have not within the grace period, and closes.
    ///
    /// Returns earlier only when the socket is lost, and panics with its driver.
    pub async fn run(self, cancelled: CancellationToken) {
        let Self { driver, listener, reception, local, grace, tasks, closing } = self;
        let abandoned = Abandon(Arc::clone(driver.doorbell()));
        let Abandon(doorbell) = &abandoned;
        let runtime = Handle::current();
        let started = Thread::start("quic", move || {
            let _tasks_start_there = runtime.enter();
            if let Err(error) = driver.run() {
                error!(%error, "The public port's socket is lost");
            }
        });
        let mut thread = match started {
            Ok(thread) => thread,
            Err(error) => return error!(%error, "The public port has no thread"),
        };
        info!(listen = %local, "Endpoint open");
        tokio::select! {
            biased;
            () = cancelled.cancelled() => {}
            () = thread.ended() => return,
            never = listener.run(reception) => match never {},
        }
        doorbell.order(Stage::Draining);
        closing.cancel();
        tasks.end(Instant::now() + grace).await;
        doorbell.order(Stage::Closing);
        thread.ended().await;
        info!(listen = %local, "Endpoint closed");
    }
}

/// Ends the driver with whoever ran the endpoint.
struct Abandon(Arc<Doorbell>);

impl Drop for Abandon {
    fn drop(&mut self) {
        self.0.order(Stage::Abandoned);
    }
}

impl Reception {
    /// Judges a newcomer whose address is `proven` or not.
    pub(crate) fn judge(&self, remote: SocketAddr, transport: Transport, proven: bool) -> Answer {
        self.door.judge(remote, transport, proven)
    }

    /// Has somebody served whose handshake by QUIC is complete.
    pub(crate) fn welcome(&self, arrival: Arrival) {
        let Arrival { connection, remote, mut slot, took } = arrival;
        self.serve(remote, |door, closing| async move {
            let connection = Connection::Quic(connection);
            door.serve(connection, remote, took, &mut slot, closing).await;
        });
    }

    /// Starts the task of somebody's connection.
    pub(crate) fn serve<F>(
        &self,
        remote: SocketAddr,
        body: impl FnOnce(Arc<Door>, CancellationToken) -> F,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let span = debug_span!("connection", %remote);
        let body = body(Arc::clone(&self.door), self.closing.child_token());
        self.tasks.spawn("connection", body.instrument(span));
    }

    /// Counts that the kernel had no room for a connection by TCP.
    pub(crate) fn not_accepted(&self) {
        self.door.metrics.not_accepted.inc();
    }

    /// Counts a panic of the driver, which ended one connection.
    pub(crate) fn panicked(&self) {
        self.door.metrics.panics.inc();
        error!("The public port's thread panicked, the other connections go on");
    }

    /// Counts somebody who did not come in.
    pub(crate) fn refused(&self, remote: SocketAddr, reason: Refusal) {
        self.door.refused(remote, reason);
    }
}

impl Door {
    /// Judges a newcomer whose address is `proven` or not.
    pub(crate) fn judge(&self, remote: SocketAddr, transport: Transport, proven: bool) -> Answer {
        let answer = self.budget.judge(Prefix::of(remote.ip()), transport, proven);
        match answer {
            Answer::Accept(_) => {}
            Answer::Retry => {
                self.metrics.retried.inc();
            }
            Answer::Refuse(reason) => self.refused(remote, reason),
        }
        answer
    }

    /// Has a connection's role serve it. Its place stays the caller's.
    pub(crate) async fn serve(
        &self,
        connection: Connection,
        remote: SocketAddr,
        took: Duration,
        slot: &mut Slot,
        closing: CancellationToken,
    ) {
        let stranger = slot.established();
        self.metrics.handshake.observe(took.as_secs_f64());

        let (Some(role), Some(exporter)) = (self.role(&connection), connection.exporter()) else {
            connection.close(CLOSE_DONE, b"");
            return self.refused(remote, Refusal::Handshake);
        };
        let labels = ConnectionLabels {
            alpn: String::from_utf8_lossy(role.alpn).into_owned(),
            transport: connection.transport(),
        };
        self.metrics.accepted.get_or_create(&labels).inc();
        let open = self.metrics.open.get_or_create(&labels).clone();
        open.inc();
        let displaced = stranger.displaced();
        let link = Link { connection: connection.clone(), remote, exporter, closing, stranger };
        let mut served = role.handler.serve(link);
        // A handler that is cut off is dropped after it: its streams, dropped before the
        // connection is closed, would take back what the peer did not read yet.
        let _place = Place { connection, open };
        tokio::select! {
            biased;
            () = displaced => self.refused(remote, Refusal::Displaced),
            () = &mut served => {}
        }
    }

    /// Returns the role whose ALPN was agreed on.
    fn role(&self, connection: &Connection) -> Option<&Role> {
        let agreed = connection.alpn()?;
        self.roles.iter().find(|role| role.alpn == agreed)
    }

    /// Counts somebody who did not come in.
    pub(crate) fn refused(&self, remote: SocketAddr, reason: Refusal) {
        debug!(%remote, ?reason, "Connection not taken in");
        self.metrics.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

/// An established connection that is served. When that ends, by a panic too, it is
/// closed, whoever else still holds it.
struct Place {
    connection: Connection,
    open: Gauge,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.close(CLOSE_DONE, b"");
        self.open.dec();
    }
}
