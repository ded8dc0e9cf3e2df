//! Every address of a broker, tried by both transports at once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use tegata_proto::code::Code;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::narrow;
use crate::agent::Agent;
use crate::link::{Candidate, Connection, LinkError, Transport, interleave};
use crate::trust::Expected;

/// What came of each try.
pub(super) struct Reached(Vec<Try>);

struct Try {
    transport: Transport,
    address: SocketAddr,
    outcome: Result<(Connection, Duration), LinkError>,
}

/// Tries them all, and waits for every answer or its absence.
pub(super) async fn reach(agent: &Agent, addresses: &[SocketAddr]) -> Reached {
    let mut running = JoinSet::new();
    for address in interleave(addresses.iter().copied()) {
        for transport in [Transport::Quic, Transport::Tcp] {
            let candidate = Candidate { address, expected: Expected::Broker };
            let dialled = agent.dialler.measuring(narrow(address)).dial(transport, candidate);
            running.spawn(async move {
                let begun = Instant::now();
                let outcome = dialled.await.map(|(_, connection)| (connection, begun.elapsed()));
                Try { transport, address, outcome }
            });
        }
    }
    Reached(running.join_all().await)
}

impl Reached {
    /// Returns every connection, with its address and how long it took.
    pub(super) fn made(&self) -> impl Iterator<Item = (SocketAddr, &Connection, Duration)> {
        self.0.iter().filter_map(|tried| {
            let (connection, took) = tried.outcome.as_ref().ok()?;
            Some((tried.address, connection, *took))
        })
    }

    /// Returns the connection that was made first.
    pub(super) fn fastest(&self) -> Option<(SocketAddr, &Connection, Duration)> {
        self.made().min_by_key(|(_, _, took)| *took)
    }

    /// Returns the one by this transport that was.
    pub(super) fn best(&self, transport: Transport) -> Option<(SocketAddr, &Connection, Duration)> {
        let by_it = self.made().filter(|(_, connection, _)| connection.transport() == transport);
        by_it.min_by_key(|(_, _, took)| *took)
    }

    /// Returns each address with a connection, by the transport that was first there.
    pub(super) fn fastest_each(&self) -> impl Iterator<Item = (SocketAddr, Transport)> {
        let mut made: Vec<_> = self.made().collect();
        made.sort_by_key(|(address, _, took)| (*address, *took));
        made.dedup_by_key(|(address, ..)| *address);
        made.into_iter().map(|(address, connection, _)| (address, connection.transport()))
    }

    /// Returns who answered and is not ours: by what, where, and why not.
    pub(super) fn strangers(&self) -> impl Iterator<Item = (Transport, SocketAddr, &LinkError)> {
        self.0.iter().filter_map(|tried| {
            let error = tried.outcome.as_ref().err().filter(|error| is_answer(error))?;
            Some((tried.transport, tried.address, error))
        })
    }

    /// Returns where somebody is who takes nobody in at the moment, in order.
    pub(super) fn full(&self) -> Vec<SocketAddr> {
        let is_full = |tried: &&Try| {
            tried.outcome.as_ref().is_err_and(|error| error.code() == Code::Unavailable)
        };
        let full: BTreeSet<_> = self.0.iter().filter(is_full).map(|tried| tried.address).collect();
        full.into_iter().collect()
    }

    /// Tells whether there is a connection to this address.
    pub(super) fn is_reached(&self, address: SocketAddr) -> bool {
        self.made().any(|(made, ..)| made == address)
    }
}

fn is_answer(error: &LinkError) -> bool {
    matches!(error, LinkError::Distrusted { .. } | LinkError::Handshake { .. })
}
