//! Where everything is put together, started and stopped.
//!
//! The only place that names concrete adapters. Stopping goes in stages: the
//! public port first (it takes nobody in and lets its handlers end), then the
//! passes, then the operations port, so that an operator sees the drain, and
//! the store at the end.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use tegata_domain::pool::{DEFAULT_GROUP, Pool};
use tegata_domain::time::Timestamp;
use tegata_edge::endpoint::{BindError, Endpoint, EndpointConfig, Handler, Limits, Role};
use tegata_edge::metrics::EdgeMetrics;
use tegata_edge::network::NetworkClasses;
use tegata_edge::operations::{Operations, OperationsError, Readiness};
use tegata_edge::supervisor::{Stage, Supervisor, TaskError, Tasks};
use tegata_edge::tls;
use tegata_gateway::handler::{Gateway, Identity};
use tegata_gateway::sessions::Sessions;
use tegata_gateway::verify::TokenKeys;
use tegata_proto::id::{GatewayGroup, GatewayId};
use tegata_proto::key::PublicKey;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION, login};
use tokio::time::Instant;
use tracing::info;
use uuid::Uuid;

pub use self::config::{Config, Fault, Faults, chain};
pub use self::descriptors::raise as raise_descriptor_limit;
pub use self::export::{ExportError, export_audit};
use crate::adapters::command::OccupancyCommand;
use crate::adapters::desktop_probe::DesktopProbe;
use crate::adapters::file::{self, FileDirectory};
use crate::adapters::key_file::KeyFile;
use crate::adapters::sqlite::{self, OpenError};
use crate::adapters::system_clock::SystemClock;
use crate::api::act::Acts;
use crate::api::{self, Api, Site, SiteFault};
use crate::flows::assignment::Assignments;
use crate::flows::catalogue::Catalogue;
use crate::flows::followup::{Asking, Followups};
use crate::flows::login::LoginDesk;
use crate::flows::redeem::RedeemDesk;
use crate::flows::refusals::Refusals;
use crate::flows::returns::Returns;
use crate::flows::revocations::Revocations;
use crate::flows::sign_in::{Gauges, SignIn};
use crate::flows::tokens::Tokens;
use crate::flows::waiting::WaitingRooms;
use crate::metrics::Metrics;
use crate::ports::clock::Clock;
use crate::ports::directory::Directory;
use crate::ports::store::{Actor, PutPool, PutPoolError, Store, StoreError};
use crate::reconcile::{Outage, Passes};

mod config;
mod descriptors;
mod export;
mod raw;
mod realms;

/// How long each stage of stopping may take.
const GRACE: Duration = Duration::from_secs(8);

/// How long questions to desktops may take to end.
const TASKS_GRACE: Duration = Duration::from_secs(6);

/// How long handlers of the public port may take to end.
const HANDLER_GRACE: Duration = Duration::from_secs(5);

/// The public port, with everybody on it.
const PUBLIC: Stage = Stage(0);
/// What works on by itself.
const PASSES: Stage = Stage(1);
/// What an operator looks at.
const OPERATIONS: Stage = Stage(2);
/// What everything before writes to.
const STORE: Stage = Stage(3);

/// A broker that can be run.
pub struct App {
    endpoints: Vec<Endpoint>,
    operations: Operations,
    passes: Arc<Passes>,
    /// Whether desktops can be asked who is logged on.
    asks_desktops: bool,
    tasks: Tasks,
    supervisor: Supervisor,
    /// Held to the end: the writer ends with the last handle of its store.
    store: Arc<dyn Store>,
}

/// Why a broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be opened.
    #[error("the store cannot be opened")]
    Open(#[from] OpenError),
    /// The store was opened and does not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A pool of the bootstrap file cannot be made.
    #[error("pool {0} of the bootstrap file cannot be made")]
    Bootstrap(tegata_proto::id::PoolName, #[source] PutPoolError),
    /// A pool of the store has a rule for a class that the configuration does not name.
    #[error("pool {pool}: {key} {problem}")]
    Class {
        /// Which pool.
        pool: tegata_proto::id::PoolName,
        /// Which rule.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The public port cannot be opened.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The operations port cannot be opened.
    #[error(transparent)]
    Operations(#[from] OperationsError),
    /// The process may not have enough files open.
    #[error(transparent)]
    Descriptors(#[from] descriptors::TooFew),
    /// The operating system gave no random bytes.
    #[error("there are no random bytes")]
    NoRandomness,
    /// TLS for probes cannot be set up.
    #[error("TLS for probes cannot be set up")]
    Probe(#[source] rustls::Error),
}

impl App {
    /// Opens the store, takes over from the process before, and opens the ports.
    /// The process may have `open_files` files open.
    ///
    /// # Errors
    ///
    /// Opens no port unless everything before went well.
    pub async fn build(config: Config, open_files: u64) -> Result<Self, StartError> {
        let limits = config.limits_within(open_files)?;
        let mut registry = tegata_edge::metrics::registry("broker", env!("CARGO_PKG_VERSION"));
        let edge = EdgeMetrics::register(&mut registry);
        let metrics = Metrics::register(&mut registry);
        let gateway_metrics = tegata_gateway::metrics::Metrics::register(&mut registry);
        let tasks = Tasks::new(edge.panics.clone());
        let readiness = Readiness::new();

        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let boot = Uuid::now_v7();
        let mut supervisor = Supervisor::new();
        let store = opened(&config.sqlite, &mut registry, &mut supervisor).await?;
        take_over(&*store, boot, &config.bootstrap, clock.now()).await?;
        let catalogue = catalogue(&store, &config.site).await?;

        let sessions = Sessions::new(gateway_metrics.clone());
        let classes = config.classes;
        watch(&mut supervisor, &sessions, &classes);
        let rooms = Arc::new(WaitingRooms::new());
        let refusals = Arc::new(Refusals::new());
        let followups = Followups {
            store: Arc::clone(&store),
            sessions: Arc::clone(&sessions),
            occupancy: Arc::new(OccupancyCommand::new(config.occupancy)),
            rooms: Arc::clone(&rooms),
            clock: Arc::clone(&clock),
            tasks: tasks.clone(),
            asking: Asking::default(),
        };

        let (keys, tokens) = tokens_of(config.signing_key, config.issuer);
        let returns = Arc::new(Returns::new());
        let redeem = RedeemDesk {
            keys: keys.clone(),
            tokens: tokens.clone(),
            catalogue: Arc::clone(&catalogue),
            followups: followups.clone(),
            refusals: Arc::clone(&refusals),
            returns: Arc::clone(&returns),
            metrics: metrics.clone(),
        };
        let gateways = gateways(&config.gateway, &config.advertise, &config.gateway_certificate);
        let gateway = Gateway {
            identity: identity(config.gateway, boot, config.advertise),
            keys,
            classes: Arc::clone(&classes),
            targets: config.site.targets.clone(),
            broker: Arc::new(redeem),
            sessions,
            metrics: gateway_metrics,
        };
        let revocations = Arc::new(Revocations::default());
        let login = LoginDesk {
            sign_in: sign_in(&mut registry, config.realms, &store, &clock, &metrics)?,
            assignments: Assignments {
                store: Arc::clone(&store),
                tokens,
                rooms,
                clock,
                metrics: metrics.clone(),
                gateways,
            },
            catalogue: Arc::clone(&catalogue),
            classes,
            sources: config.sources,
            refusals: Arc::clone(&refusals),
            revocations: Arc::clone(&revocations),
            returns,
            minimum_agent: config.minimum_agent,
        };
        let asks_desktops = config.site.asks_desktops;
        let prober = DesktopProbe::new(config.site.targets.clone()).map_err(StartError::Probe)?;
        let api = Api {
            catalogue: Arc::clone(&catalogue),
            followups: followups.clone(),
            revocations,
            acts: Acts::new(tasks.clone()),
            keys: config.api_keys,
            site: config.site,
        };
        let passes = Arc::new(Passes {
            followups,
            prober: Arc::new(prober),
            catalogue,
            refusals,
            metrics,
            store_answers: readiness.condition("store"),
            outage: Outage::default(),
        });

        let roles = vec![
            role(ALPN_LOGIN, &config.broker_certificate, login),
            role(ALPN_SESSION, &config.gateway_certificate, gateway),
        ];
        keep_fresh(&mut supervisor, &roles, config.files, edge.clone());
        let routes = api::routes(Arc::new(api));
        let (listen, registry) = (config.operations, Arc::new(registry));
        let operations =
            Operations::bind(listen, registry, readiness, routes, edge.panics.clone())?;
        let doors = Doors { reset_key: config.reset_key, limits, balancers: config.balancers };
        let endpoints = doors.open(config.listen, &roles, &edge)?;
        Ok(Self { endpoints, operations, passes, asks_desktops, tasks, supervisor, store })
    }

    /// Runs until `stop`, then drains.
    ///
    /// # Errors
    ///
    /// Names a task that ended unasked; everything is stopped then.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), TaskError> {
        let listening: Vec<SocketAddr> = self.endpoints.iter().map(Endpoint::local_addr).collect();
        info!(listen = ?listening, operations = %self.operations.local_addr(), "Broker ready");
        let mut supervisor = self.supervisor;
        for endpoint in self.endpoints {
            supervisor.spawn("endpoint", PUBLIC, |cancelled| endpoint.run(cancelled));
        }
        let passes = self.passes;
        let (one, two) = (Arc::clone(&passes), Arc::clone(&passes));
        if self.asks_desktops {
            let passes = Arc::clone(&passes);
            supervisor.spawn("detached", PASSES, |cancelled| passes.detached(cancelled));
        }
        supervisor.spawn("deadlines", PASSES, |cancelled| one.deadlines(cancelled));
        supervisor.spawn("probes", PASSES, |cancelled| two.probes(cancelled));
        supervisor.spawn("bookkeeping", PASSES, |cancelled| passes.bookkeeping(cancelled));
        let operations = self.operations;
        supervisor.spawn("operations", OPERATIONS, |cancelled| operations.run(cancelled));
        let tasks = self.tasks;
        supervisor.spawn("tasks", PASSES, |cancelled| async move {
            cancelled.cancelled().await;
            tasks.end(Instant::now() + TASKS_GRACE).await;
        });
        let outcome = supervisor.run(stop, GRACE).await;
        drop(self.store);
        info!("Broker stopped");
        outcome
    }
}

/// What the public ports have in common.
struct Doors {
    reset_key: [u8; 64],
    limits: Limits,
    balancers: Vec<IpNet>,
}

impl Doors {
    fn open(
        self,
        listen: Vec<SocketAddr>,
        roles: &[Role],
        edge: &EdgeMetrics,
    ) -> Result<Vec<Endpoint>, BindError> {
        let open = |listen| {
            let (reset_key, limits, balancers) =
                (self.reset_key, self.limits, self.balancers.clone());
            let at = EndpointConfig { listen, reset_key, limits, grace: HANDLER_GRACE, balancers };
            Endpoint::bind(at, roles.to_vec(), edge.clone())
        };
        listen.into_iter().map(open).collect()
    }
}

/// Reads the pools, unless the site no longer knows where one of their rules holds: what
/// it forbids would be allowed from here on.
async fn catalogue(store: &Arc<dyn Store>, site: &Site) -> Result<Arc<Catalogue>, StartError> {
    let catalogue = Catalogue::new(Arc::clone(store));
    catalogue.refresh().await?;
    for pool in catalogue.all().iter() {
        if let Some(SiteFault { key, problem }) = site.unknown_classes(pool).into_iter().next() {
            return Err(StartError::Class { pool: pool.name().clone(), key, problem });
        }
    }
    Ok(Arc::new(catalogue))
}

/// Returns what reads tokens and what makes them.
fn tokens_of(key: KeyFile, issuer: String) -> (TokenKeys, Tokens) {
    let known = (key.kid().to_owned(), PublicKey::new(key.public()));
    (TokenKeys::new(&issuer, [known]), Tokens { signer: Arc::new(key), issuer })
}

/// Takes the store over from the process before, and makes the pools of the
/// bootstrap file that are not there yet.
async fn take_over(
    store: &dyn Store,
    boot: Uuid,
    bootstrap: &[Pool],
    now: Timestamp,
) -> Result<(), StartError> {
    let recovered = store.recover(boot, now).await?;
    info!(sessions = recovered, "Store open");
    for pool in bootstrap {
        let pool = pool.clone();
        let name = pool.name().clone();
        let put = PutPool { pool, actor: Actor::Broker, reason: None, only_if_absent: true, now };
        let put = store.put_pool(put).await;
        put.map_err(|error| StartError::Bootstrap(name, error))?;
    }
    Ok(())
}

/// Opens the store and has its writer run.
async fn opened(
    sqlite: &Path,
    registry: &mut Registry,
    supervisor: &mut Supervisor,
) -> Result<Arc<dyn Store>, OpenError> {
    let (store, writer) = sqlite::open(sqlite).await?;
    store.register(registry);
    supervisor.spawn("writer", STORE, |cancelled| writer.run(cancelled));
    Ok(Arc::new(store))
}

/// Has desktops let go that the gateway has kept for long enough, and it looked at where
/// links come from.
fn watch(supervisor: &mut Supervisor, sessions: &Arc<Sessions>, classes: &Arc<NetworkClasses>) {
    let (held, placed, classes) = (sessions.clone(), sessions.clone(), Arc::clone(classes));
    supervisor.spawn("holds", PASSES, |cancelled| async move {
        cancelled.run_until_cancelled(held.watch_holds()).await;
    });
    supervisor.spawn("places", PASSES, |cancelled| async move {
        cancelled.run_until_cancelled(placed.watch_places(&classes)).await;
    });
}

/// Puts the directories behind their queues, where an operator can see them.
fn sign_in(
    registry: &mut Registry,
    realms: Vec<Arc<dyn Directory>>,
    store: &Arc<dyn Store>,
    clock: &Arc<dyn Clock>,
    metrics: &Metrics,
) -> Result<Arc<SignIn>, StartError> {
    // What keeps the throttle's hash from being guessed.
    let mut halves = [[0; 8]; 2];
    for half in &mut halves {
        SystemRandom::new().fill(half).map_err(|_| StartError::NoRandomness)?;
    }
    let seed = halves.map(u64::from_ne_bytes);
    let familiarity = Arc::<dyn Store>::clone(store);
    let sign_in = SignIn::new(realms, seed, familiarity, Arc::clone(clock), metrics.clone());
    let sign_in = Arc::new(sign_in);
    registry.register_collector(Box::new(Gauges(Arc::clone(&sign_in))));
    Ok(sign_in)
}

/// Has what may be replaced while the broker runs read again every minute.
fn keep_fresh(
    supervisor: &mut Supervisor,
    roles: &[Role],
    files: Vec<Arc<FileDirectory>>,
    edge: EdgeMetrics,
) {
    let certificate = |role: &Role| (role.alpn, Arc::clone(&role.certificate));
    let certificates = roles.iter().map(certificate).collect();
    supervisor
        .spawn("certificates", PASSES, |cancelled| tls::keep_fresh(certificates, edge, cancelled));
    supervisor.spawn("people", PASSES, |cancelled| file::keep_fresh(files, cancelled));
}

fn role(
    alpn: &'static [u8],
    certificate: &Arc<tls::RoleCertificate>,
    handler: impl Handler,
) -> Role {
    Role { alpn, certificate: Arc::clone(certificate), handler: Arc::new(handler) }
}

/// Returns who the gateway in this process is.
fn identity(id: GatewayId, boot: Uuid, direct_addresses: Vec<SocketAddr>) -> Identity {
    let group = GatewayGroup::new(DEFAULT_GROUP).expect("the constant is a name");
    Identity { id, group, boot, direct_addresses }
}

/// Returns what agents are told of this machine's gateway; its certificate may
/// be replaced while it runs.
fn gateways(
    id: &GatewayId,
    addresses: &[SocketAddr],
    certificate: &Arc<tls::RoleCertificate>,
) -> Arc<dyn Fn() -> Vec<login::Gateway> + Send + Sync> {
    let (id, addresses, certificate) = (id.clone(), addresses.to_vec(), Arc::clone(certificate));
    Arc::new(move || {
        vec![login::Gateway {
            id: id.clone(),
            addresses: addresses.clone(),
            spki_sha256: certificate.spki_sha256(),
        }]
    })
}
