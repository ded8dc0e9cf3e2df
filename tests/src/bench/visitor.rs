//! People of the bench: the agent library, told and asked by nobody.

use std::net::{Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result};
use tegata_agent::progress::{Event, Person};
use tegata_agent::{Agent, Authority, Identity, Session, Wishes};
use tegata_proto::code::Code;
use tegata_proto::encoding::Secret;
use tegata_proto::id::PoolName;
use tegata_proto::login::PoolOffer;

use super::office::{name_of, password_of};
use crate::site::Site;

/// An agent that logs in whoever comes. Clones share its socket.
#[derive(Clone)]
pub(super) struct Visitor {
    agent: Agent,
    broker: SocketAddr,
}

/// Why somebody has no session.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(pub(super) Code);

impl Visitor {
    /// Opens a socket on the runtime that is entered.
    pub(super) fn new(site: &Site) -> Result<Self> {
        let authority = std::fs::read(site.path("ca.pem")).context("the site has no CA")?;
        let agent = Agent::new(Authority::from_pem(&authority)?)?;
        Ok(Self { agent, broker: site.listen() })
    }

    /// Opens one that reaches nobody by QUIC, which is for the other address family, and so goes by
    /// TCP.
    pub(super) fn by_tcp(site: &Site) -> Result<Self> {
        let authority = std::fs::read(site.path("ca.pem")).context("the site has no CA")?;
        let nowhere = quinn::Endpoint::client((Ipv6Addr::LOCALHOST, 0).into())?;
        let agent = Agent::over(nowhere, Authority::from_pem(&authority)?);
        Ok(Self { agent, broker: site.listen() })
    }

    /// Logs in the person with this number, counted from 0, and attaches.
    pub(super) async fn log_in(&self, person: u32) -> Result<Session, Refused> {
        let password = Secret::new(password_of(person));
        let wishes = Wishes::new(name_of(person), password).map_err(|_| Refused(Code::Refused))?;
        let identity = Identity::generate().map_err(|_| Refused(Code::Internal))?;
        let ticket = self.agent.login(&[self.broker], &identity, &wishes, &mut Nobody).await;
        let ticket = ticket.map_err(|error| Refused(error.code()))?;
        let attached = self.agent.attach(&identity, &ticket).await;
        attached.map_err(|error| Refused(error.code()))
    }
}

struct Nobody;

impl Person for Nobody {
    fn tell(&mut self, _event: &Event) {}

    async fn choose(&mut self, _pools: &[PoolOffer]) -> Option<PoolName> {
        None
    }
}
