//! How a link is lost, and how the next one is sought and taken.

use tegata_proto::session::Mode;
use tokio::time::Instant;

use super::outage::{Outage, since};
use super::{ENTRY_PATIENCE, Road};
use crate::claim::received;
use crate::comeback::Wish;
use crate::link::Transport;
use crate::network::Network;
use crate::progress::{Event, Person};
use crate::relay::Line;
use crate::run::stay::Ended;
use crate::session::Session;

impl Road<'_> {
    /// Takes the next link.
    pub(super) fn enter(
        &mut self,
        session: Box<Session>,
        person: &mut impl Person,
        network: &impl Network,
    ) -> Result<(), Ended> {
        self.close();
        if session.attached.mode == Mode::Fresh {
            return Err(Ended::Returned(session));
        }
        let there = received(&session.attached);
        let Session { attached, gateway, send, recv, control, from, .. } = *session;
        let every_ms = attached.input_every_ms;
        let line = Line { link: attached.link, send, recv, from };
        if self.account.resume(line, there).is_err() {
            control.close();
            self.come_back(Wish::Fresh);
            return Ok(());
        }
        let source = network.source(gateway);
        let is_crossed =
            self.crossings.is_some() && control.connection.transport() == Transport::Quic;
        let outage = self.outage.map(|outage| {
            let has_moved = self.is_leaving || (is_crossed && !outage.is_told);
            Outage { has_moved, ..outage }
        });
        let asked = control.asked;
        let reports = self.reports.again(every_ms);
        let Self { agent, claim, account, .. } = *self;
        let fresh = Self::new(agent, claim, account, control, gateway, source, reports);
        *self = Self { outage, ..fresh };
        if self.outage.is_some() {
            self.recovered(person);
        } else {
            // Until it was asked for, the old one carried.
            let (gap_ms, transport) = (since(asked), self.transport());
            person.tell(&Event::Migrated { gap_ms, transport });
        }
        Ok(())
    }

    pub(super) fn lost(&mut self, person: &mut impl Person) {
        let is_bound = self.is_bound();
        if is_bound {
            // A gateway ends one link before it lets the next one in.
            let fresh = Outage::new(Instant::now(), ENTRY_PATIENCE);
            self.outage.get_or_insert(fresh);
        } else {
            self.stands_still(person);
        }
        self.close();
        self.claim.lost(self.account.progress() > self.began);
        if self.race.is_none() && !is_bound {
            self.come_back(Wish::Resume);
        }
    }

    pub(super) fn come_back(&mut self, wish: Wish) {
        self.crossing = None;
        self.stood = self.account.progress();
        self.race = Some(Box::pin(self.claim.come_back(self.agent, self.account, wish)));
    }
}
