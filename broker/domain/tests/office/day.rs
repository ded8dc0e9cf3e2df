//! A working day: people, gateways, machines and administrators, and between
//! them a post that is late, delivers twice, and loses orders.

use std::collections::BTreeSet;
use std::time::Duration;

use tegata_domain::assignment::Effect;
use tegata_domain::desktop::{self, Observation, Probe, Quarantine};
use tegata_domain::pool::{Kind, Reuse, Rules};
use tegata_domain::session::{self, Cause, Event};
use tegata_domain::ticket::GRANT_LIFE_MAX;
use tegata_proto::claims::Claims;
use tegata_proto::code::Code;
use tegata_proto::encoding::Sha256;
use tegata_proto::id::{DesktopId, Epoch, LinkNumber, SessionId, TicketId};

use crate::building::{Answer, Attempt, Building, Dialled};
use crate::dice::Dice;
use crate::office::{Name, Office, Order, PoolNumber, pin, user};

pub(crate) const PEOPLE: [Name; 4] = ["sato", "tanaka", "suzuki", "takahashi"];

/// What a gateway says has happened to a link.
pub(crate) type Report = (SessionId, LinkNumber, Event);

/// Everything at once: the store's rows, the truth, and what is on its way.
#[derive(Clone)]
pub(crate) struct Day {
    pub(crate) office: Office,
    pub(crate) building: Building,
    /// Tickets that were ever issued; people keep them all.
    pub(crate) tickets: Vec<Claims>,
    /// What gateways have reported and the store has not heard yet.
    pub(crate) reports: Vec<Report>,
    /// What the store wants done and nobody has done yet.
    pub(crate) orders: Vec<Order>,
    /// What desktops have answered and the store has not heard yet.
    pub(crate) answers: Vec<Answer>,
    redeemed: BTreeSet<TicketId>,
    /// How often somebody came back by a grant, and with the wire that was there.
    pub(crate) returns: (u32, u32),
}

/// The grant that came with a ticket.
pub(crate) fn grant_of(ticket: &Claims) -> Claims {
    Claims { exp: ticket.iat + GRANT_LIFE_MAX.as_secs(), ..ticket.clone() }
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
            returns: (0, 0),
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
        self.begins(claims.sid, desktop, person, LinkNumber::FIRST, false);
        self.orders.extend(orders);
        Ok(desktop)
    }

    /// Somebody shows the grant that came with this ticket, for the next link.
    pub(crate) fn comes_back(&mut self, ticket: &Claims, resumes: bool) -> Result<DesktopId, Code> {
        let last = self.office.stays.get(&ticket.sid).map_or(0, |stay| stay.highest_link.0);
        self.shows_grant(&grant_of(ticket), LinkNumber(last + 1), resumes)
    }

    /// A grant comes to a gateway, which looks for the wire that it keeps, or dials.
    pub(crate) fn shows_grant(
        &mut self,
        claims: &Claims,
        link: LinkNumber,
        resumes: bool,
    ) -> Result<DesktopId, Code> {
        let before = self.office.stays.get(&claims.sid).map(|stay| stay.highest_link);
        let (desktop, orders) = self.office.come_back(claims, link)?;
        assert!(self.redeemed.contains(&claims.jti), "a grant opens what its ticket has not");
        assert!(before.is_some_and(|before| before < link), "an old link comes up again");
        let seat = &self.office.seats[&desktop];
        assert_eq!(claims.epoch, seat.desktop.epoch, "I5: a grant of another epoch");
        let person = self.office.stays[&claims.sid].person;
        assert_eq!(claims.sub, user(person), "I5: a grant of another person");
        self.begins(claims.sid, desktop, person, link, resumes);
        self.returns.0 += 1;
        self.orders.extend(orders);
        Ok(desktop)
    }

    fn begins(
        &mut self,
        sid: SessionId,
        desktop: DesktopId,
        person: Name,
        link: LinkNumber,
        resumes: bool,
    ) {
        let attempt = Attempt { desktop, person, link, resumes };
        if let Some(before) = self.building.begins(sid, attempt) {
            self.reports.push((sid, before, Event::LinkLost));
        }
    }

    /// A dial ends, and the gateway writes its report: of the link before too, if
    /// it has not noticed until now that this one is gone.
    pub(crate) fn dialled(&mut self, sid: SessionId) {
        let Attempt { link, resumes, .. } = self.building.attempts[&sid];
        let (dialled, before) = self.building.dialled(sid);
        if let Some(before) = before {
            self.reports.push((sid, before, Event::LinkLost));
        }
        let event = match dialled {
            Dialled::Reached => Event::Attached,
            Dialled::Unreachable => Event::DialFailed,
            Dialled::WireGone => Event::LinkLost,
        };
        self.returns.1 += u32::from(resumes && event == Event::Attached);
        self.reports.push((sid, link, event));
    }

    /// The link that a session is carried over.
    fn carried(&self, sid: SessionId) -> Option<LinkNumber> {
        self.building.wires.get(&sid).and_then(|wire| wire.link)
    }

    /// A link ends: the gateway lets the desktop go, then writes its report.
    pub(crate) fn link_ends(&mut self, sid: SessionId, report: Event) {
        let link = self.carried(sid).expect("it is carried");
        self.building.lets_go(sid);
        self.reports.push((sid, link, report));
    }

    /// A link is gone, and the gateway keeps the desktop connected for the next one.
    pub(crate) fn link_breaks(&mut self, sid: SessionId) {
        let link = self.carried(sid).expect("it is carried");
        self.building.keeps(sid);
        self.reports.push((sid, link, Event::LinkLost));
    }

    /// A gateway ends all that it has of a session, and confirms it.
    fn closes(&mut self, sid: SessionId, after: LinkNumber) {
        let attempt = self.building.attempts.get(&sid).map(|attempt| attempt.link);
        let links: Vec<_> = self.carried(sid).into_iter().chain(attempt).collect();
        self.building.cut(sid);
        self.reports.extend(links.into_iter().map(|link| (sid, link, Event::LinkLost)));
        self.reports.push((sid, after, Event::Closed));
    }

    /// The store hears what somebody says of a session. What does not fit any more
    /// is refused there.
    pub(crate) fn hear(&mut self, sid: SessionId, event: Event) {
        if let Ok(orders) = self.office.session_event(sid, None, event) {
            self.orders.extend(orders);
        }
    }

    /// The store hears a report. One of an older link changes nothing.
    pub(crate) fn hear_report(&mut self, (sid, link, event): Report) {
        if let Ok(orders) = self.office.session_event(sid, Some(link), event) {
            self.orders.extend(orders);
        }
    }

    pub(crate) fn hear_all(&mut self) {
        for report in std::mem::take(&mut self.reports) {
            self.hear_report(report);
        }
    }

    /// Somebody carries out what the store ordered.
    pub(crate) fn carry_out(&mut self, (id, effect, after): Order) {
        match effect {
            Effect::CloseLinks { sid, .. } => self.closes(sid, after),
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
        // A used desktop that is left is due to be looked at, at once.
        if self.office.state(answer.desktop) == Some(desktop::State::Starting) {
            self.probe(answer.desktop);
        }
    }

    pub(crate) fn due(&mut self) {
        let orders = self.office.due();
        self.orders.extend(orders);
        for (sid, stay) in &self.office.stays {
            let is_over =
                matches!(stay.state, session::State::Ending { .. } | session::State::Ended { .. });
            let is_due = stay.ends_at.is_some_and(|ends| ends <= self.office.now);
            let is_listed = self.office.seats.contains_key(&stay.desktop);
            assert!(is_over || !is_due || !is_listed, "{sid} goes on beyond its time");
        }
    }

    /// The gateway's process dies with its wires and its reports; the next one
    /// tells the store that nothing of those sessions is left.
    pub(crate) fn gateway_restarts(&mut self) {
        self.reports.clear();
        self.building.cut_all();
        let open = |state: session::State| match state {
            session::State::Starting { .. }
            | session::State::Active
            | session::State::Returning { .. }
            | session::State::Ending { .. } => true,
            session::State::Requested { .. }
            | session::State::Detached { .. }
            | session::State::Ended { .. } => false,
        };
        let stays = self.office.stays.iter().filter(|(_, stay)| open(stay.state));
        let sids: Vec<_> = stays.map(|(sid, _)| *sid).collect();
        for sid in sids {
            self.hear(sid, Event::Closed);
        }
    }

    /// One thing happens, whatever the dice say.
    pub(crate) fn happens(&mut self, dice: &mut Dice) {
        let small = u64::try_from(dice.roll(800)).expect("a small number");
        self.office.wait(Duration::from_millis(1 + small));
        let ids: Vec<_> = self.office.seats.keys().copied().collect();
        let Some(id) = dice.pick(ids) else { return };
        match dice.roll(35) {
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
            8..=14 | 32..=33 => self.something_at_a_gateway(dice),
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
            30..=31 => self.somebody_comes_back(dice),
            34 => self.somebody_moves(dice),
            side => assert!(side < 35, "the dice have 35 sides"),
        }
    }

    /// Somebody shows an old ticket or grant, or one that a thief has put together.
    fn somebody_cheats(&mut self, dice: &mut Dice) {
        let Some(mut claims) = dice.pick(self.tickets.clone()) else { return };
        match dice.roll(4) {
            0 => claims.epoch = Epoch(claims.epoch.0 + 1),
            1 => claims.epoch = Epoch(claims.epoch.0.saturating_sub(1)),
            2 => claims.sub = user(PEOPLE[dice.roll(PEOPLE.len())]),
            _ => {}
        }
        if dice.once_in(2) {
            let _ = self.redeem(&claims);
        } else {
            let link = u64::try_from(dice.roll(4)).expect("a small number");
            let _ = self.shows_grant(&grant_of(&claims), LinkNumber(link), dice.once_in(2));
        }
    }

    /// Somebody whose link is gone, or who thinks so, wants the next one.
    fn somebody_comes_back(&mut self, dice: &mut Dice) {
        let lives = |claims: &&Claims| {
            let stay = &self.office.stays[&claims.sid];
            stay.state.is_live() && (stay.highest_link >= LinkNumber::FIRST || dice.once_in(8))
        };
        let theirs: Vec<_> = self.tickets.iter().rev().filter(lives).take(8).cloned().collect();
        if let Some(claims) = dice.pick(theirs) {
            // A gateway asks for what it has, and may have lost it by the answer.
            let kept = self.building.wires.contains_key(&claims.sid);
            let _ = self.comes_back(&claims, kept != dice.once_in(4));
        }
    }

    /// A link is found to come from another network, where sessions may be longer or
    /// shorter; its gateway ends it where the session may not go on.
    fn somebody_moves(&mut self, dice: &mut Dice) {
        let is_linked = |sid: &SessionId| self.carried(*sid).is_some();
        let linked: Vec<_> = self.building.wires.keys().copied().filter(is_linked).collect();
        let Some(sid) = dice.pick(linked) else { return };
        let minutes = u64::try_from(dice.roll(4)).expect("a small number");
        let session = (minutes > 0).then(|| Duration::from_mins(minutes));
        if !self.office.moved(sid, session) {
            self.link_ends(sid, Event::LinkLost);
        }
    }

    fn something_at_a_gateway(&mut self, dice: &mut Dice) {
        let (attempts, wires) = (self.building.attempts.len(), self.building.wires.len());
        if attempts + wires == 0 {
            return;
        }
        if dice.roll(attempts + wires) < attempts {
            self.a_dial_ends(dice);
        } else {
            self.something_on_a_wire(dice);
        }
    }

    fn a_dial_ends(&mut self, dice: &mut Dice) {
        let Some((sid, attempt)) = dice.pick(self.building.attempts.clone()) else { return };
        if dice.once_in(4) {
            self.building.machine(attempt.desktop).answers = false;
        }
        self.dialled(sid);
    }

    fn something_on_a_wire(&mut self, dice: &mut Dice) {
        let Some((sid, wire)) = dice.pick(self.building.wires.clone()) else { return };
        if wire.link.is_none() {
            // Nobody tells the store when the time to keep it is over.
            if dice.once_in(8) {
                self.building.lets_go(sid);
            }
            return;
        }
        match dice.roll(12) {
            0..=3 => self.building.logs_on(sid),
            4..=7 => self.link_breaks(sid),
            8 => self.link_ends(sid, Event::LinkLost),
            9 => self.link_ends(sid, Event::DesktopClosed),
            10 => {
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
                let report = if again { self.reports[n] } else { self.reports.swap_remove(n) };
                self.hear_report(report);
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
        for sid in self.building.attempts.keys().copied().collect::<Vec<_>>() {
            self.dialled(sid);
        }
        for sid in self.building.wires.keys().copied().collect::<Vec<_>>() {
            if self.carried(sid).is_some() {
                self.link_breaks(sid);
            }
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
