//! The public port: one UDP socket, one handler for each ALPN.
//!
//! The accept loop judges each newcomer by the budget and never waits for one;
//! a task of its own takes it through the handshake, by a deadline, and then to
//! its handler. What a handler says on its connection is its own affair.

mod budget;
mod transport;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use prometheus_client::metrics::gauge::Gauge;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Incoming, VarInt};
use tegata_proto::proof::{EXPORTER_LABEL, EXPORTER_LEN};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, debug, debug_span, info};

use self::budget::{Answer, Budget, Slot};
use crate::metrics::{EdgeMetrics, Refusal, RefusedLabels, RoleLabels};
use crate::source::{Prefix, canonical};
use crate::supervisor::Tasks;
use crate::tls::{self, RoleCertificate};

pub use self::budget::Limits;

/// By when a handshake must be complete.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// By when a handler should have the first frame of a connection.
pub const FIRST_FRAME_DEADLINE: Duration = Duration::from_secs(5);

/// How long closed connections may take to say so before the socket goes.
const FAREWELL: Duration = Duration::from_secs(1);

/// Application code of a connection that ends because its handler has ended.
const CLOSE_DONE: VarInt = VarInt::from_u32(0);

/// One accepted connection, its handshake complete.
#[derive(Debug)]
pub struct Link {
    /// The connection itself.
    pub connection: quinn::Connection,
    /// Where it came from, canonical. It may move later.
    pub remote: SocketAddr,
    /// The TLS exporter that proofs on this connection are bound to.
    pub exporter: [u8; EXPORTER_LEN],
    /// Cancelled when the endpoint drains; the handler then ends politely, within
    /// [`EndpointConfig::grace`].
    pub closing: CancellationToken,
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
}

/// Why an endpoint does not open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket cannot be had.
    #[error("cannot listen on UDP {listen}")]
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
    socket: quinn::Endpoint,
    local: SocketAddr,
    grace: Duration,
    door: Arc<Door>,
    tasks: Tasks,
}

/// What each connection's task needs.
struct Door {
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
    #[expect(clippy::needless_pass_by_value, reason = "the caller is to keep no copy of the key")]
    pub fn bind(
        config: EndpointConfig,
        roles: Vec<Role>,
        metrics: EdgeMetrics,
    ) -> Result<Self, BindError> {
        let EndpointConfig { listen, reset_key, limits, grace } = config;
        let mut alpns: Vec<_> = roles.iter().map(|role| role.alpn).collect();
        alpns.sort_unstable();
        alpns.dedup();
        if alpns.is_empty() || alpns.len() != roles.len() {
            return Err(BindError::Roles);
        }
        let shown = roles.iter().map(|role| (role.alpn, Arc::clone(&role.certificate))).collect();
        let crypto = tls::server_config(shown).map_err(BindError::Tls)?;
        let crypto = QuicServerConfig::try_from(crypto)
            .expect("the provider has TLS_AES_128_GCM_SHA256, which QUIC starts with");
        let (config, server) = transport::configure(&reset_key, Arc::new(crypto));

        let failed = |source| BindError::Socket { listen, source };
        let socket = transport::socket(listen).map_err(failed)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        let socket = quinn::Endpoint::new(config, Some(server), socket, runtime).map_err(failed)?;
        let local = socket.local_addr().map_err(failed)?;

        let tasks = Tasks::new(metrics.panics.clone());
        let budget = Budget::new(limits);
        let door = Arc::new(Door { roles, budget, metrics });
        Ok(Self { socket, local, grace, door, tasks })
    }

    /// Returns the address it listens on, with the port that it was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `cancelled`, then drains: takes nobody in, asks the handlers
    /// to end, drops those that have not within the grace period, and closes.
    ///
    /// Returns earlier only when the socket is lost.
    pub async fn run(self, cancelled: CancellationToken) {
        info!(listen = %self.local, "Endpoint open");
        loop {
            tokio::select! {
                biased;
                () = cancelled.cancelled() => break,
                incoming = self.socket.accept() => match incoming {
                    Some(incoming) => self.judge(incoming, &cancelled),
                    None => break,
                },
            }
        }
        self.socket.set_server_config(None);
        self.tasks.end(Instant::now() + self.grace).await;
        self.socket.close(CLOSE_DONE, b"");
        let _all_have_heard = timeout(FAREWELL, self.socket.wait_idle()).await;
        info!(listen = %self.local, "Endpoint closed");
    }

    fn judge(&self, incoming: Incoming, cancelled: &CancellationToken) {
        let door = &self.door;
        let remote = canonical(incoming.remote_address());
        let source = Prefix::of(remote.ip());
        match door.budget.judge(source, incoming.remote_address_validated()) {
            Answer::Accept(slot) => {
                let closing = cancelled.child_token();
                let task = Arc::clone(door).serve(incoming, remote, slot, closing);
                let task = task.instrument(debug_span!("connection", %remote));
                self.tasks.spawn("connection", task);
            }
            Answer::Retry => {
                door.metrics.retried.inc();
                // An address that is not validated may always be asked.
                if let Err(error) = incoming.retry() {
                    error.into_incoming().ignore();
                }
            }
            Answer::Refuse(reason) => {
                door.refused(remote, reason);
                incoming.refuse();
            }
        }
    }
}

impl Door {
    async fn serve(
        self: Arc<Self>,
        incoming: Incoming,
        remote: SocketAddr,
        mut slot: Slot,
        closing: CancellationToken,
    ) {
        let begun = Instant::now();
        let connection = match timeout(HANDSHAKE_DEADLINE, incoming.into_future()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                debug!(%remote, %error, "Handshake failed");
                return self.refused(remote, Refusal::Handshake);
            }
            Err(_) => return self.refused(remote, Refusal::TooSlow),
        };
        slot.established();
        self.metrics.handshake.observe(begun.elapsed().as_secs_f64());

        let mut exporter = [0; EXPORTER_LEN];
        let keyed = connection.export_keying_material(&mut exporter, EXPORTER_LABEL, b"");
        let (Some(role), Ok(())) = (self.role(&connection), keyed) else {
            return self.refused(remote, Refusal::Handshake);
        };
        let labels = RoleLabels { alpn: String::from_utf8_lossy(role.alpn).into_owned() };
        self.metrics.accepted.get_or_create(&labels).inc();
        let open = self.metrics.open.get_or_create(&labels).clone();
        open.inc();
        let _place = Place { connection: connection.clone(), open, _slot: slot };
        role.handler.serve(Link { connection, remote, exporter, closing }).await;
    }

    /// Returns the role whose ALPN was agreed on.
    fn role(&self, connection: &quinn::Connection) -> Option<&Role> {
        let agreed = connection.handshake_data()?.downcast::<HandshakeData>().ok()?.protocol?;
        self.roles.iter().find(|role| role.alpn == agreed)
    }

    fn refused(&self, remote: SocketAddr, reason: Refusal) {
        debug!(%remote, ?reason, "Connection not taken in");
        self.metrics.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}

/// An established connection's place. Leaving it, by a panic too, closes the
/// connection, whoever else still holds it.
struct Place {
    connection: quinn::Connection,
    open: Gauge,
    _slot: Slot,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connection.close(CLOSE_DONE, b"");
        self.open.dec();
    }
}
