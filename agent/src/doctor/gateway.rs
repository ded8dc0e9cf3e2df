//! Whether sessions are served where logins are, and by a gateway of ours.
//!
//! A ticket's answer may name gateways elsewhere; these are not known without a login.

use std::net::SocketAddr;

use rustls::AlertDescription;
use tegata_proto::encoding::Sha256;
use tokio::task::JoinSet;

use super::reach::Reached;
use super::remarks::Remark;
use super::{Check, Finding, Report, list, reason};
use crate::agent::Agent;
use crate::link::{Candidate, Fault, LinkError};
use crate::trust::{Distrust, Expected};

/// What a TLS alert adds to become a code of QUIC's (RFC 9001 §4.8).
const QUIC_ALERT: u64 = 0x100;

struct Gate {
    address: SocketAddr,
    /// The hash of the gateway's key, where one was shown.
    outcome: Result<Option<Sha256>, LinkError>,
}

/// Asks for a gateway at every address where a broker is, the way that was the fastest.
pub(super) async fn examined(agent: &Agent, reached: &Reached, report: &mut impl Report) {
    let mut running = JoinSet::new();
    for (address, transport) in reached.fastest_each() {
        let candidate = Candidate { address, expected: Expected::AnyGateway };
        let dialled = agent.dialler.dial(transport, candidate);
        running.spawn(async move {
            let outcome = dialled.await.map(|(_, connection)| {
                connection.close();
                connection.peer_key()
            });
            Gate { address, outcome }
        });
    }
    let mut gates = running.join_all().await;
    gates.sort_by_key(|gate| gate.address);
    let (elsewhere, here): (Vec<_>, Vec<_>) = gates.into_iter().partition(Gate::is_absent);
    // Sessions go to a good one, if there is any.
    let is_served = here.iter().any(|gate| gate.outcome.is_ok());
    for gate in &here {
        report.add(gate.judged(is_served));
    }
    if !elsewhere.is_empty() {
        let addresses: Vec<_> = elsewhere.iter().map(|gate| gate.address).collect();
        report.add(Finding::ok(Check::Gateway, Remark::GatewayElsewhere, list(&addresses)));
    }
}

impl Gate {
    /// Tells whether whoever is there says that it serves no sessions.
    fn is_absent(&self) -> bool {
        let alert = AlertDescription::NoApplicationProtocol;
        match &self.outcome {
            Err(LinkError::Handshake { source, .. }) => match source {
                Fault::Quic(quinn::ConnectionError::ConnectionClosed(close)) => {
                    u64::from(close.error_code) == QUIC_ALERT + u64::from(u8::from(alert))
                }
                Fault::Socket(error) => {
                    let error = error.get_ref().and_then(|error| error.downcast_ref());
                    error == Some(&rustls::Error::AlertReceived(alert))
                }
                Fault::OtherProtocol => true,
                Fault::Quic(_) | Fault::Streams(_) | Fault::TimedOut | Fault::Closed => false,
            },
            Ok(_) | Err(_) => false,
        }
    }

    fn judged(&self, is_served: bool) -> Finding {
        let Self { address, outcome } = self;
        let error = match outcome {
            Ok(key) => {
                let key = key.map_or_else(String::new, |key| format!(" (SPKI SHA-256 {key})"));
                let value = format!("{address}{key}");
                return Finding::ok(Check::Gateway, Remark::GatewayGood, value);
            }
            Err(error) => error,
        };
        let remark = match error {
            LinkError::Distrusted { source: Distrust::Authority(_), .. } => Remark::GatewayForeign,
            LinkError::Distrusted { source: Distrust::Clock { .. }, .. } => Remark::GatewayClock,
            LinkError::Distrusted { source: Distrust::Role { .. } | Distrust::Key, .. } => {
                Remark::GatewayRole
            }
            _ => Remark::GatewaySilent,
        };
        let (code, value) = (error.code(), format!("{address} ({})", reason(error)));
        if is_served {
            Finding::warning(Check::Gateway, code, remark, value)
        } else {
            Finding::failed(Check::Gateway, code, remark, value)
        }
    }
}
