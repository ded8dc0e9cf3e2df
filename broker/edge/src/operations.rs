//! The operations port: liveness, readiness, metrics, and whatever else a
//! program wants to be asked by those who run it.
//!
//! Plain HTTP/1.1, for this machine only: any address but loopback is refused.
//! Connections that only stand there give way to newcomers ([`seats`]).

mod seats;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::seats::{Seat, Seats};
use crate::supervisor::Tasks;

/// Longest body of a request, in bytes.
const BODY_LIMIT: usize = 64 * 1024;

/// Longest head of a request, in bytes. hyper takes no less than 8 KiB.
const HEAD_LIMIT: usize = 16 * 1024;

/// By when the head of a request must be here.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// By when a request must be answered, its body received included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection is kept, however busy.
const CONNECTION_LIFE: Duration = Duration::from_mins(10);

/// Connections open at once; a newcomer beyond them takes the place of an idle one.
const CONNECTIONS: usize = 128;

/// Connections that wait in the kernel's queue to be accepted.
const WAITING: i32 = 1024;

/// How long requests in progress may take when the port closes.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait after the kernel could not give a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What must hold for a program to be ready. Clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<&'static str, Condition>>>,
}

/// One thing that must hold. It does not until it is [`set`](Self::set).
#[derive(Debug, Clone, Default)]
pub struct Condition(Arc<AtomicBool>);

impl Readiness {
    /// Starts without a condition: ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the condition of this name, or returns the one that is there.
    pub fn condition(&self, name: &'static str) -> Condition {
        // A condition is whole at any time, so a poisoned lock hides nothing.
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        conditions.entry(name).or_default().clone()
    }

    /// Names the conditions that do not hold.
    pub fn missing(&self) -> Vec<&'static str> {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        conditions.iter().filter(|(_, holds)| !holds.holds()).map(|(name, _)| *name).collect()
    }
}

impl Condition {
    /// Says whether it holds from now on.
    pub fn set(&self, holds: bool) {
        self.0.store(holds, Ordering::Relaxed);
    }

    /// Tells whether it holds.
    pub fn holds(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why the operations port does not open.
#[derive(Debug, thiserror::Error)]
pub enum OperationsError {
    /// The address can be reached from outside.
    #[error("{listen} is not a loopback address")]
    NotLoopback {
        /// The address.
        listen: SocketAddr,
    },
    /// The socket cannot be had.
    #[error("cannot listen on TCP {listen}")]
    Socket {
        /// The address.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An operations port, open and not yet served.
#[derive(Debug)]
pub struct Operations {
    listener: tokio::net::TcpListener,
    local: SocketAddr,
    router: Router,
    tasks: Tasks,
}

impl Operations {
    /// Opens the port. `extra` is served beside `/livez`, `/readyz` and
    /// `/metrics`, under the same limits; its handlers take bodies by axum's
    /// extractors. Panics in a request add to `panics`.
    ///
    /// Needs the tokio runtime that will serve it.
    ///
    /// # Errors
    ///
    /// Refuses an address that is not loopback; fails without the socket.
    pub fn bind(
        listen: SocketAddr,
        registry: Arc<Registry>,
        readiness: Readiness,
        extra: Router,
        panics: Counter,
    ) -> Result<Self, OperationsError> {
        if !listen.ip().to_canonical().is_loopback() {
            return Err(OperationsError::NotLoopback { listen });
        }
        let failed = |source| OperationsError::Socket { listen, source };
        let listener = socket(listen).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let router = Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz).with_state(readiness))
            .route("/metrics", get(metrics).with_state(registry))
            .merge(extra)
            .layer(middleware::from_fn(by_the_deadline))
            .layer(DefaultBodyLimit::max(BODY_LIMIT));
        Ok(Self { listener, local, router, tasks: Tasks::new(panics) })
    }

    /// Returns the address it listens on, with the port that it was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Serves until `cancelled`, then lets requests in progress finish.
    pub async fn run(self, cancelled: CancellationToken) {
        info!(listen = %self.local, "Operations port open");
        let seats = Seats::new(CONNECTIONS);
        let next = async || {
            let (stream, _) = self.listener.accept().await?;
            io::Result::Ok((stream, seats.take().await))
        };
        let mut failing = false;
        while let Some(accepted) = cancelled.run_until_cancelled(next()).await {
            match accepted {
                Ok((stream, seat)) => {
                    if std::mem::take(&mut failing) {
                        info!("The operations port takes connections again");
                    }
                    let served = serve(stream, seat, self.router.clone(), cancelled.child_token());
                    self.tasks.spawn("operations connection", served);
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(%error, "The operations port cannot take connections");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        self.tasks.end(Instant::now() + GRACE).await;
    }
}

/// Opens the socket, with a queue that outlasts a burst of newcomers.
fn socket(listen: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    socket.listen(WAITING)?;
    Ok(socket.into())
}

async fn serve(stream: TcpStream, seat: Seat, router: Router, cancelled: CancellationToken) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let (busy, answered) = (seat.busy(), router.call(request));
        async move {
            let answer = answered.await;
            drop(busy);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let time_is_up = async {
        tokio::select! {
            () = cancelled.cancelled() => {}
            () = tokio::time::sleep(CONNECTION_LIFE) => {}
        }
    };
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = seat.given_up() => return debug!("An idle operations connection made room"),
        () = time_is_up => {
            // Answers the request in progress and takes no other.
            connection.as_mut().graceful_shutdown();
            timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        debug!(%error, "An operations connection ended badly");
    }
}

async fn by_the_deadline(request: Request, next: Next) -> Response {
    let answered = timeout(REQUEST_DEADLINE, next.run(request)).await;
    answered.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

#[derive(Serialize)]
struct Ready {
    ready: bool,
    missing: Vec<&'static str>,
}

async fn readyz(State(readiness): State<Readiness>) -> (StatusCode, Json<Ready>) {
    let missing = readiness.missing();
    let ready = missing.is_empty();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(Ready { ready, missing }))
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPENMETRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
