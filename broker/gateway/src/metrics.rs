//! What a gateway counts. Labels are bounded: classes come from the
//! configuration, codes and ends from their tables, never a user or session.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tegata_edge::network::NetworkClass;
use tegata_proto::code::Code;
use tegata_proto::session::Mode;

use crate::redeem::LinkEnd;

/// Upper bounds of the buckets for dialling a desktop, in seconds.
const DIAL_BUCKETS: [f64; 9] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 5.0];

/// The gateway's metrics. A clone counts into the same ones.
#[derive(Clone)]
pub struct Metrics {
    links: Family<ClassLabel, Gauge>,
    held: Gauge,
    ends: Family<EndLabel, Counter>,
    attaches: Family<ModeLabel, Counter>,
    refusals: Family<CodeLabel, Counter>,
    dials: Histogram,
    pub(crate) bytes_up: Counter,
    pub(crate) bytes_down: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabel {
    end: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabel {
    mode: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

impl Metrics {
    /// Counts a desktop that is kept connected, unless it takes another's place.
    pub(crate) fn held(&self, another: bool) {
        self.held.inc_by(i64::from(another));
    }

    /// Counts desktops that are kept no longer.
    pub(crate) fn let_go(&self, desktops: usize) {
        self.held.dec_by(i64::try_from(desktops).unwrap_or(i64::MAX));
    }

    /// Starts all at zero and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            links: Family::default(),
            held: Gauge::default(),
            ends: Family::default(),
            attaches: Family::default(),
            refusals: Family::default(),
            dials: Histogram::new(DIAL_BUCKETS),
            bytes_up: Counter::default(),
            bytes_down: Counter::default(),
        };
        let Self { links, held, ends, attaches, refusals, dials, bytes_up, bytes_down } =
            metrics.clone();
        let registry = registry.sub_registry_with_prefix("gateway");
        registry.register("sessions", "Sessions carried now, by class of network", links);
        registry.register("held", "Sessions without a link whose desktop is kept connected", held);
        registry.register("link_ends", "Links that ended, by what ended them", ends);
        let help = "Links begun, with a new connection to the desktop or the one before";
        registry.register("attaches", help, attaches);
        registry.register("attach_refusals", "Attaches refused, by code", refusals);
        let help = "Time until a desktop accepted a connection";
        registry.register_with_unit("dial", help, Unit::Seconds, dials);
        let help = "Bytes written onward to desktops";
        registry.register_with_unit("carried_up", help, Unit::Bytes, bytes_up);
        let help = "Bytes sent onward to agents";
        registry.register_with_unit("carried_down", help, Unit::Bytes, bytes_down);
        // Where a series begins with its first event, no alarm sees a rise.
        for end in LinkEnd::KINDS.map(LinkEnd::as_str) {
            drop(metrics.ends.get_or_create(&EndLabel { end }));
        }
        for code in Code::ALL.iter().map(|code| code.as_str()) {
            drop(metrics.refusals.get_or_create(&CodeLabel { code }));
        }
        metrics
    }

    pub(crate) fn link_began(&self, class: &NetworkClass) {
        self.links.get_or_create(&ClassLabel { class: class.to_string() }).inc();
    }

    pub(crate) fn link_left(&self, class: &NetworkClass) {
        self.links.get_or_create(&ClassLabel { class: class.to_string() }).dec();
    }

    pub(crate) fn link_ended(&self, end: LinkEnd) {
        self.ends.get_or_create(&EndLabel { end: end.as_str() }).inc();
    }

    pub(crate) fn attached(&self, mode: Mode) {
        let mode = match mode {
            Mode::Fresh => "fresh",
            Mode::Resumed => "resumed",
        };
        self.attaches.get_or_create(&ModeLabel { mode }).inc();
    }

    pub(crate) fn refused(&self, code: Code) {
        self.refusals.get_or_create(&CodeLabel { code: code.as_str() }).inc();
    }

    pub(crate) fn dialled(&self, took: Duration) {
        self.dials.observe(took.as_secs_f64());
    }
}
