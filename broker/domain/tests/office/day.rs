//! A working day: people, gateways, machines and administrators, and between
//! them a post that is late, delivers twice, and loses orders.

use std::collections::BTreeSet;
use std::time::Duration;

use tegata_domain::assignment::Effect;
use tegata_domain::desktop::{self, Observation, Probe, Quarantine};
use tegata_domain::pool::{Kind, Reuse, Rules};
use tegata_domain::session::{self, Cause, Event};
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{DesktopId, Epoch, SessionId, TicketId};

use crate::building::{Answer, Building};
use crate::dice::Dice;
use crate::office::{Name, Office, Order, PoolNumber, pin, user};

pub(crate) const PEOPLE: [Name; 4] = ["sato", "tanaka", "suzuki", "takahashi"];

/// Everything at once: the store's rows, the truth, and what is on its way.
#[derive(Clone)]
pub(crate) struct Day {
    pub(crate) office: Office,
    pub(crate) building: Building,
    /// Tickets that were ever issued; people keep them all.
    pub(crate) tickets: Vec<Claims>,
    /// What gateways have reported and the store has not heard yet.
    pub(crate) reports: Vec<(SessionId, Event)>,
    /// What the store wants done and nobody has done yet.
    pub(crate) orders: Vec<Order>,
    /// What desktops have answered and the store has not heard yet.
    pub(crate) answers: Vec<Answer>,
    redeemed: BTreeSet<TicketId>,
}

impl Day {
    pub(crate) fn begin(pools: impl IntoIterator<Item = Rules>) -> Self {
        Self {
            office: Office::with(pools),
            building: Building::default(),
            tickets: vec![],
            reports: vec![],
            orders: vec![],
            answers: vec![],
            redeemed: BTreeSet::new(),
        }
    }

    /// Puts a desktop into a pool, and waits until it is ready.
    pub(crate) fn install(&mut self, pool: PoolNumber, owner: Option<Name>) -> DesktopId {
        let id = self.office.list(pool, owner);
        self.building.install(id);
        self.probe(id);
        id
    }

    pub(crate) fn probe(&mut self, id: DesktopId) {
        let machine = self.building.machine(id);
        let probe = if machine.answers {
            Probe::Answered(Some(pin(machine.certificate)))
        } else {
            Probe::Failed
        };
        let orders = self.office.probed(id, probe);
        self.orders.extend(orders);
    }

    pub(crate) fn log_in(&mut self, person: Name, pool: PoolNumber) -> Option<Claims> {
        let claims = self.office.log_in(person, pool)?;
        self.tickets.push(claims.clone());
        self.building.inspect(&self.office);
        Some(claims)
    }

    /// A ticket comes to a gateway, which begins to dial if it is good.
    pub(crate) fn redeem(&mut self, claims: &Claims) -> Result<DesktopId, Code> {
        let (desktop, orders) = self.office.redeem(claims)?;
        assert!(self.redeemed.insert(claims.jti), "I4: a ticket is redeemed twice");
        let seat = &self.office.seats[&desktop];
        assert_eq!(claims.epoch, seat.desktop.epoch, "I5: a ticket of another epoch");
        let person = self.office.stays[&claims.sid].person;
        assert_eq!(claims.sub, user(person), "I5: a ticket of another person");
        self.building.dials(claims.sid, desktop, person);
        self.orders.extend(orders);
        Ok(desktop)
    }

    /// A dial ends, and the gateway writes its report.
    pub(crate) fn dialled(&mut self, sid: SessionId) {
        let reached = self.building.dialled(sid);
        self.reports.push((sid, if reached { Event::Attached } else { Event::DialFailed }));
    }

    /// A link ends: the gateway lets the desktop go, then writes its report.
    pub(crate) fn link_ends(&mut self, sid: SessionId, report: Event) {
        self.building.cut(sid);
        self.reports.push((sid, report));
    }

    /// The store hears a report. One that does not fit any more is refused there.
    pub(crate) fn hear(&mut self, sid: SessionId, event: Event) {
        if let Ok(orders) = self.office.session_event(sid, event) {
            self.orders.extend(orders);
        }
    }

    pub(crate) fn hear_all(&mut self) {
        for (sid, event) in std::mem::take(&mut self.reports) {
            self.hear(sid, event);
        }
    }

    /// Somebody carries out what the store ordered.
    pub(crate) fn carry_out(&mut self, (id, effect): Order) {
        match effect {
            Effect::CloseLinks { sid, .. } => self.link_ends(sid, Event::Closed),
            Effect::AskOccupancy => self.ask(id),
            Effect::LogOff => {
                let holder = self.office.holder(id);
                if let Some(machine) = self.building.machines.get_mut(&id) {
                    machine.logged_on.retain(|person| Some(*person) != holder.as_deref());
                }
                self.ask(id);
            }
            Effect::Freed | Effect::Remove => {}
        }
    }

    /// Reports are heard, orders carried out and answers learnt until none is left.
    pub(crate) fn settle(&mut self) {
        while !(self.reports.is_empty() && self.orders.is_empty() && self.answers.is_empty()) {
            self.hear_all();
            for order in std::mem::take(&mut self.orders) {
                self.carry_out(order);
            }
            for answer in std::mem::take(&mut self.answers) {
                self.learn(&answer, false);
            }
            self.building.inspect(&self.office);
        }
    }

    pub(crate) fn ask(&mut self, id: DesktopId) {
        if self.building.machines.contains_key(&id) {
            let answer = self.building.looks(id, self.office.now);
            self.answers.push(answer);
        }
    }

    /// The store hears an answer, in the spelling of the desktop's own system.
    pub(crate) fn learn(&mut self, answer: &Answer, shouting: bool) {
        let Some(seat) = self.office.seats.get(&answer.desktop) else { return };
        self.building.learnt(answer, self.office.pools[seat.pool].reuse);
        let spell = |name: &Name| if shouting { name.to_uppercase() } else { (*name).to_owned() };
        let logged_on = answer.logged_on.iter().map(spell).collect();
        let seen = Observation { logged_on, asked: answer.asked };
        let orders = self.office.observed(answer.desktop, seen);
        self.orders.extend(orders);
    }

    pub(crate) fn due(&mut self) {
        let orders = self.office.due();
        self.orders.extend(orders);
    }

    /// The gateway's process dies with its wires and its reports; the next one
    /// tells the store that those links are gone.
    pub(crate) fn gateway_restarts(&mut self) {
        self.reports.clear();
        let open = |state: session::State| match state {
            session::State::Starting { .. }
            | session::State::Active
            | session::State::Ending { .. } => true,
            session::State::Requested { .. }
            | session::State::Detached { .. }
            | session::State::Ended { .. } => false,
        };
        let stays = self.office.stays.iter().filter(|(_, stay)| open(stay.state));
        let sids: Vec<_> = stays.map(|(sid, _)| *sid).collect();
        for sid in sids {
            self.building.cut(sid);
            self.hear(sid, Event::LinkLost);
        }
    }

    /// One thing happens, whatever the dice say.
    pub(crate) fn happens(&mut self, dice: &mut Dice) {
        let small = u64::try_from(dice.roll(800)).expect("a small number");
        self.office.wait(Duration::from_millis(1 + small));
        let ids: Vec<_> = self.office.seats.keys().copied().collect();
        let Some(id) = dice.pick(ids) else { return };
        match dice.roll(30) {
            0..=3 => {
                let person = PEOPLE[dice.roll(PEOPLE.len())];
                let ticket = self.log_in(person, dice.roll(self.office.pools.len()));
                if let Some(claims) = ticket
                    && dice.once_in(2)
                {
                    let _ = self.redeem(&claims);
                }
            }
            4..=6 => {
                let recent = self.tickets.iter().rev().take(3).cloned().collect::<Vec<_>>();
                if let Some(claims) = dice.pick(recent) {
                    let _ = self.redeem(&claims);
                }
            }
            7 => self.somebody_cheats(dice),
            8..=14 => self.something_on_a_wire(dice),
            15..=19 => self.the_post_comes(dice),
            20 => self.ask(id),
            21 => self.due(),
            22 => {
                let machine = self.building.machine(id);
                machine.answers = !machine.answers;
                if dice.once_in(8) {
                    machine.certificate = 3 - machine.certificate;
                }
                // Otherwise a gateway is the first to notice.
                if dice.once_in(2) {
                    self.probe(id);
                }
            }
            23 => self.probe(id),
            24..=26 => self.an_administrator_acts(id, dice),
            27 => self.office.wait(Duration::from_secs(20)),
            28 if dice.once_in(4) => self.office.wait(Duration::from_hours(8)),
            29 if dice.once_in(4) => self.gateway_restarts(),
            28 | 29 => {}
            side => assert!(side < 30, "the dice have 30 sides"),
        }
    }

    /// Somebody shows an old ticket, or one that a thief has put together.
    fn somebody_cheats(&mut self, dice: &mut Dice) {
        let Some(mut claims) = dice.pick(self.tickets.clone()) else { return };
        match dice.roll(4) {
            0 => claims.epoch = Epoch(claims.epoch.0 + 1),
            1 => claims.epoch = Epoch(claims.epoch.0.saturating_sub(1)),
            2 => claims.sub = user(PEOPLE[dice.roll(PEOPLE.len())]),
            _ => {}
        }
        let _ = self.redeem(&claims);
    }

    fn something_on_a_wire(&mut self, dice: &mut Dice) {
        let Some((sid, wire)) = dice.pick(self.building.wires.clone()) else { return };
        if !wire.open {
            if dice.once_in(4) {
                self.building.machine(wire.desktop).answers = false;
            }
            return self.dialled(sid);
        }
        match dice.roll(8) {
            0..=3 => self.building.logs_on(sid),
            4 => self.link_ends(sid, Event::LinkLost),
            5 => self.link_ends(sid, Event::DesktopClosed),
            6 => {
                self.building.machine(wire.desktop).logged_on.remove(wire.person);
                self.link_ends(sid, Event::LoggedOff);
            }
            // The viewer says so, and it is not true.
            _ => self.link_ends(sid, Event::LoggedOff),
        }
    }

    /// A letter arrives. Some arrive again later, and some orders get lost.
    fn the_post_comes(&mut self, dice: &mut Dice) {
        let again = dice.once_in(4);
        match dice.roll(3) {
            0 if !self.reports.is_empty() => {
                let n = dice.roll(self.reports.len());
                let (sid, event) =
                    if again { self.reports[n] } else { self.reports.swap_remove(n) };
                self.hear(sid, event);
            }
            1 if !self.orders.is_empty() => {
                let n = dice.roll(self.orders.len());
                let order = if again { self.orders[n] } else { self.orders.swap_remove(n) };
                if !dice.once_in(6) {
                    self.carry_out(order);
                }
            }
            _ if !self.answers.is_empty() => {
                let n = dice.roll(self.answers.len());
                let answer =
                    if again { self.answers[n].clone() } else { self.answers.swap_remove(n) };
                self.learn(&answer, dice.once_in(2));
            }
            _ => {}
        }
    }

    fn an_administrator_acts(&mut self, id: DesktopId, dice: &mut Dice) {
        let seat = self.office.seats[&id].clone();
        match dice.roll(10) {
            0..=2 => {
                if let Some(sid) = dice.pick(self.office.live(id)) {
                    self.hear(sid, Event::Disconnected);
                }
            }
            3..=5 => {
                if let Some(sid) = dice.pick(self.office.live(id)) {
                    self.hear(sid, Event::EndWanted(Cause::Administrator));
                }
            }
            6 => {
                let orders = self.office.withdraw(id);
                self.orders.extend(orders);
            }
            7 => self.office.administer(id, desktop::Event::Listed),
            8 => self.accept_certificate(id),
            _ => {
                let rules = &mut self.office.pools[seat.pool];
                if dice.once_in(4) {
                    rules.reuse = match rules.reuse {
                        Reuse::Never => Reuse::AfterLogoff,
                        Reuse::AfterLogoff => Reuse::Never,
                    };
                }
            }
        }
        self.building.inspect(&self.office);
        if self.office.seats.len() < 8 {
            self.install(seat.pool, None);
        }
    }

    fn accept_certificate(&mut self, id: DesktopId) {
        let shown: Sha256 = pin(self.building.machine(id).certificate);
        self.office.administer(id, desktop::Event::PinAccepted(shown));
    }

    /// Everybody goes home, and each owner of a state does their duty once more:
    /// the gateway, the clock, Occupancy, the prober, the administrator.
    pub(crate) fn evening(&mut self) {
        for sid in self.building.wires.keys().copied().collect::<Vec<_>>() {
            self.link_ends(sid, Event::LinkLost);
        }
        self.settle();
        let grace = self.office.pools.iter().map(|rules| rules.grace).max();
        for _ in 0..2 {
            self.office.wait(grace.expect("an office has pools"));
            self.due();
            self.settle();
        }
        for id in self.office.seats.keys().copied().collect::<Vec<_>>() {
            self.building.machine(id).answers = true;
            self.accept_certificate(id);
            self.probe(id);
        }
    }

    /// Tells which desktop is still stuck after an evening, if one is.
    pub(crate) fn stuck(&self) -> Option<(DesktopId, desktop::State)> {
        let free = |seat: &crate::office::Seat| match seat.desktop.state {
            desktop::State::Ready { .. }
            | desktop::State::Quarantined { reason: Quarantine::Used, .. } => true,
            desktop::State::Assigned => self.office.pools[seat.pool].kind == Kind::Dedicated,
            desktop::State::Starting
            | desktop::State::Recycling { .. }
            | desktop::State::Draining
            | desktop::State::Quarantined {
                reason: Quarantine::Unreachable | Quarantine::CertificateChanged,
                ..
            } => false,
        };
        let stuck = self
            .office
            .seats
            .iter()
            .find(|(id, seat)| !free(seat) || !self.office.live(**id).is_empty())?;
        Some((*stuck.0, stuck.1.desktop.state))
    }
}
