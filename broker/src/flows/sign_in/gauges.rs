//! What an operator sees of logins at the moment of looking: tables, queues,
//! servers, and the time that refusals wait for.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use tegata_domain::throttle::{PEOPLE_MAX, SOURCES_MAX, SUSPECT_SLOTS};

use super::SignIn;
use crate::flows::turnstile::Lane;
use crate::ports::directory::Breaker;

/// Reads its values when it is asked for them.
pub struct Gauges(pub Arc<SignIn>);

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gauges")
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(sign_in) = self;
        let fill = sign_in.fill();
        let tables = [
            ("sources", fill.sources, SOURCES_MAX),
            ("people", fill.people, PEOPLE_MAX),
            ("names", fill.suspects, SUSPECT_SLOTS),
        ];
        let rows = tables.map(|(table, rows, _)| ([("table", table)], number(rows)));
        write(&mut encoder, "throttle_rows", "Rows in the tables of the throttle", rows)?;
        let most = tables.map(|(table, _, most)| ([("table", table)], number(most)));
        write(&mut encoder, "throttle_rows_max", "Most rows that each may have", most)?;
        let throttled = [([("by", "failures")], number(fill.throttled))];
        let help = "Sources that are over their limit of refused logins";
        write(&mut encoder, "throttled_sources", help, throttled)?;

        let realms =
            || sign_in.realms().iter().map(|realm| (realm, realm.directory.realm().as_str()));
        let lanes = || realms().flat_map(|realm| Lane::ALL.map(|lane| (realm, lane)));
        let standing = lanes().map(|((realm, name), lane)| {
            ([("realm", name), ("lane", lane.as_str())], realm.turnstile.standing(lane))
        });
        let standing: Vec<_> = standing.collect();
        let waiting = standing.iter().map(|(labels, lane)| (*labels, number(lane.waiting)));
        let help = "Logins that wait for their turn at a directory";
        write(&mut encoder, "directory_queue", help, waiting)?;
        let inside = standing.iter().map(|(labels, lane)| (*labels, number(lane.inside)));
        write(&mut encoder, "directory_logins", "Logins that ask a directory now", inside)?;

        let usual = realms().map(|(realm, name)| ([("realm", name)], realm.usual().as_secs_f64()));
        let help = "Time that refusals wait for: the 99th percentile of search and bind";
        write(&mut encoder, "refusal_floor_seconds", help, usual)?;

        let servers: Vec<_> = realms()
            .flat_map(|(realm, name)| realm.directory.servers().into_iter().map(move |s| (name, s)))
            .collect();
        let states = servers.iter().map(|(realm, server)| {
            let labels = [("realm", *realm), ("server", server.server.as_str())];
            let state = match server.breaker {
                Breaker::Closed => 0.0,
                Breaker::HalfOpen => 1.0,
                Breaker::Open => 2.0,
            };
            (labels, state)
        });
        let help = "Directory servers: 0 asked, 1 tried by one login, 2 left alone";
        write(&mut encoder, "directory_server_state", help, states)
    }
}

fn write<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in values {
        ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn number(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}
