//! What the door counts, and the registry that everybody counts in.

use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
pub use prometheus_client::registry::Registry;

use crate::connection::Transport;
use crate::process::Process;

/// First part of every metric's name.
const PREFIX: &str = "tegata";

/// Upper bounds of the handshake's histogram, in seconds. The last one is the
/// handshake's deadline.
const HANDSHAKE_BUCKETS: [f64; 8] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0];

/// Makes the one registry of a process, with its build written in.
pub fn registry(program: &'static str, version: &'static str) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Info::new([("program", program), ("version", version)]);
    registry.register("build", "Which program this is", build);
    registry.register_collector(Box::new(Process));
    registry
}

/// Why a connection was not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// All connections that the server allows are open.
    Full,
    /// The source has all the connections it may have.
    SourceFull,
    /// All handshakes that the server allows are in progress.
    Handshakes,
    /// The source has all the handshakes in progress that it may have.
    SourceHandshakes,
    /// The handshake failed: no ALPN of ours, an old TLS, a peer that gave up.
    Handshake,
    /// The handshake took too long.
    TooSlow,
    /// A listed balancer did not say whom it brings.
    Balancer,
    /// It had shown no right yet, and there were too many of those.
    Displaced,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::Full,
        Self::SourceFull,
        Self::Handshakes,
        Self::SourceHandshakes,
        Self::Handshake,
        Self::TooSlow,
        Self::Balancer,
        Self::Displaced,
    ];
}

impl EncodeLabelValue for Refusal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Full => "full",
            Self::SourceFull => "source_full",
            Self::Handshakes => "handshakes",
            Self::SourceHandshakes => "source_handshakes",
            Self::Handshake => "handshake",
            Self::TooSlow => "too_slow",
            Self::Balancer => "balancer",
            Self::Displaced => "displaced",
        })
    }
}

/// Labels of [`EdgeMetrics::refused`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RefusedLabels {
    /// Why.
    pub reason: Refusal,
}

/// Labels by role.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabels {
    /// The role's ALPN.
    pub alpn: String,
}

/// Labels of [`EdgeMetrics::open`] and [`EdgeMetrics::accepted`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ConnectionLabels {
    /// The role's ALPN.
    pub alpn: String,
    /// What carries the connection.
    pub transport: Transport,
}

/// What the door counts.
#[derive(Debug, Clone)]
pub struct EdgeMetrics {
    /// Connections that a handler holds now, by role.
    pub open: Family<ConnectionLabels, Gauge>,
    /// Connections handed to a handler, by role.
    pub accepted: Family<ConnectionLabels, Counter>,
    /// Connections not taken in, by reason.
    pub refused: Family<RefusedLabels, Counter>,
    /// Peers that were asked to show their address first.
    pub retried: Counter,
    /// Times that the kernel had no room for a connection by TCP.
    pub not_accepted: Counter,
    /// How long complete handshakes took, in seconds.
    pub handshake: Histogram,
    /// Panics while one connection was served, which ended it.
    pub panics: Counter,
    /// When each role's certificate ends, in Unix seconds.
    pub certificate_ends: Family<RoleLabels, Gauge<f64, AtomicU64>>,
}

impl EdgeMetrics {
    /// Registers all of them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            open: Family::default(),
            accepted: Family::default(),
            refused: Family::default(),
            retried: Counter::default(),
            not_accepted: Counter::default(),
            handshake: Histogram::new(HANDSHAKE_BUCKETS),
            panics: Counter::default(),
            certificate_ends: Family::default(),
        };
        let edge = registry.sub_registry_with_prefix("edge");
        edge.register("connections_open", "Connections being served", metrics.open.clone());
        edge.register("connections_accepted", "Connections handed over", metrics.accepted.clone());
        edge.register("connections_refused", "Connections not taken in", metrics.refused.clone());
        edge.register(
            "accept_failures",
            "Times that the kernel had no room for a connection by TCP",
            metrics.not_accepted.clone(),
        );
        edge.register("retries", "Peers asked to show their address", metrics.retried.clone());
        edge.register("handshake_seconds", "Time of a handshake", metrics.handshake.clone());
        edge.register("panics", "Panics that ended one connection", metrics.panics.clone());
        edge.register(
            "certificate_ends_seconds",
            "End of a certificate's validity, Unix time",
            metrics.certificate_ends.clone(),
        );
        // Where a series begins with its first event, no alarm sees a rise.
        for reason in Refusal::ALL {
            drop(metrics.refused.get_or_create(&RefusedLabels { reason }));
        }
        metrics
    }
}
