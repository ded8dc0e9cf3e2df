//! An office in memory: the code under test, driven as a store drives it. Each
//! method is one transaction: load, let the domain decide, write back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tegata_domain::assignment::{Assignment, Effect, Refused};
use tegata_domain::desktop::{self, Desktop, Holder, Observation, Probe};
use tegata_domain::placement::{Placement, candidates, place};
use tegata_domain::pool::Rules;
use tegata_domain::pool::terms::{Arrival, Terms};
use tegata_domain::session;
use tegata_domain::ticket::{self, Standing};
use tegata_domain::time::Timestamp;
use tegata_proto::claims::{Claims, Confirmation, TICKET_LIFE_S};
use tegata_proto::code::Code;
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{DesktopId, LinkNumber, SessionId, TicketId, UserId};
use tegata_proto::policy::Policy;
use uuid::Uuid;

/// A pool, by its place in [`Office::pools`].
pub(crate) type PoolNumber = usize;

/// Something to do, for which desktop, and after which link of its session.
pub(crate) type Order = (DesktopId, Effect, LinkNumber);

/// A person, by name; the name is also their account, where it is known.
pub(crate) type Name = &'static str;

/// A row of the store's desktops.
#[derive(Clone)]
pub(crate) struct Seat {
    pub(crate) pool: PoolNumber,
    pub(crate) desktop: Desktop,
}

/// A row of the store's sessions.
#[derive(Clone)]
pub(crate) struct Stay {
    pub(crate) desktop: DesktopId,
    pub(crate) person: Name,
    pub(crate) state: session::State,
    pub(crate) highest_link: LinkNumber,
    pub(crate) arrival: Arrival,
    pub(crate) ends_at: Option<Timestamp>,
}

/// What holds where nobody has said anything.
const OPEN: Terms = Terms {
    allowed: true,
    policy: Policy {
        clipboard: false,
        drive: false,
        printer: false,
        usb: false,
        sound: false,
        profile: None,
    },
    idle: None,
    session: None,
    password_age: None,
};

/// The store, and the clock on its wall.
#[derive(Clone)]
pub(crate) struct Office {
    pub(crate) now: Timestamp,
    pub(crate) pools: Vec<Rules>,
    /// On what terms each pool is used, from wherever anybody is.
    pub(crate) terms: Vec<Terms>,
    pub(crate) seats: BTreeMap<DesktopId, Seat>,
    pub(crate) stays: BTreeMap<SessionId, Stay>,
    ids: u128,
}

/// Suzuki's account is in no directory.
fn account(person: Name) -> Option<String> {
    (person != "suzuki").then(|| person.to_owned())
}

pub(crate) fn user(person: Name) -> UserId {
    format!("honsho/{person}").parse().expect("a user")
}

pub(crate) fn pin(number: u8) -> Sha256 {
    Sha256([number; 32])
}

impl Office {
    /// Opens an office with these pools, and no desktop yet.
    pub(crate) fn with(pools: impl IntoIterator<Item = Rules>) -> Self {
        let pools: Vec<_> = pools.into_iter().collect();
        Self {
            now: Timestamp::from_millis(1_700_000_000_000),
            terms: vec![OPEN; pools.len()],
            pools,
            seats: BTreeMap::new(),
            stays: BTreeMap::new(),
            ids: 0,
        }
    }

    /// Lists a new desktop in a pool.
    pub(crate) fn list(&mut self, pool: PoolNumber, owner: Option<Name>) -> DesktopId {
        let id = DesktopId(self.id());
        let desktop = Desktop::listed(owner.map(|_| pin(1)), owner.map(user));
        self.seats.insert(id, Seat { pool, desktop });
        id
    }

    /// A person logs in and gets a ticket, or has to wait.
    pub(crate) fn log_in(&mut self, person: Name, pool: PoolNumber) -> Option<Claims> {
        let rules = self.pools[pool];
        let desktops = self.seats.iter().filter(|(_, seat)| seat.pool == pool);
        let (held, idle) =
            candidates(&user(person), desktops.map(|(id, seat)| (*id, &seat.desktop)));
        let desktop = match place(held, idle) {
            Placement::Return(own) => own,
            Placement::Take(free) => free,
            Placement::Wait => return None,
        };
        let sid = SessionId(self.id());
        let jti = TicketId(self.id());
        let mut assignment = self.load(desktop, None);
        let holder = Holder { user: user(person), account: account(person) };
        assignment.assign(sid, holder, rules, self.now).expect("the place was just found");
        let epoch = assignment.desktop.epoch;
        let state = assignment.sessions[&sid];
        let arrival = Arrival { began: self.now, password_at: self.now };
        let highest_link = LinkNumber(0);
        let stay = Stay { desktop, person, state, highest_link, arrival, ends_at: None };
        self.stays.insert(sid, stay);
        self.write_back(desktop, assignment, &[]);
        Some(Claims {
            iss: "tegata".into(),
            aud: "default".parse().expect("a name"),
            sub: user(person),
            sid,
            epoch,
            jti,
            iat: self.now.as_secs(),
            exp: self.now.as_secs() + TICKET_LIFE_S,
            cnf: Confirmation { jkt: Bytes([0; 32]) },
        })
    }

    /// A gateway brings a ticket.
    pub(crate) fn redeem(&mut self, claims: &Claims) -> Result<(DesktopId, Vec<Order>), Code> {
        let stay = self.stays.get(&claims.sid).ok_or(Code::TicketInvalid)?.clone();
        let id = stay.desktop;
        let seat = self.seats.get(&id).ok_or(Code::SessionEnded)?;
        let owner = user(stay.person);
        let standing =
            Standing { user: &owner, state: stay.state, highest_link: stay.highest_link };
        ticket::judge(claims, LinkNumber::FIRST, &standing, &seat.desktop, self.now)?;
        self.terms[seat.pool].judge(stay.arrival, self.now)?;
        let rules = self.pools[seat.pool];
        let mut assignment = self.load(id, Some(claims.sid));
        let effects = assignment
            .redeemed(claims.sid, rules, self.now)
            .expect("a ticket that was judged good is redeemed");
        self.linked(claims.sid, LinkNumber::FIRST);
        Ok((id, self.write_back(id, assignment, &effects)))
    }

    /// A gateway brings a grant, for its link of this number.
    pub(crate) fn come_back(
        &mut self,
        claims: &Claims,
        link: LinkNumber,
    ) -> Result<(DesktopId, Vec<Order>), Code> {
        let stay = self.stays.get(&claims.sid).ok_or(Code::TicketInvalid)?.clone();
        let id = stay.desktop;
        let seat = self.seats.get(&id).ok_or(Code::SessionEnded)?;
        let owner = user(stay.person);
        let standing =
            Standing { user: &owner, state: stay.state, highest_link: stay.highest_link };
        ticket::judge_grant(claims, link, &standing, &seat.desktop, self.now)?;
        self.terms[seat.pool].judge(stay.arrival, self.now)?;
        let rules = self.pools[seat.pool];
        let mut assignment = self.load(id, Some(claims.sid));
        let effects = assignment
            .returned(claims.sid, rules, self.now)
            .expect("a grant that was judged good opens a link");
        self.linked(claims.sid, link);
        Ok((id, self.write_back(id, assignment, &effects)))
    }

    /// A link was let in, on the terms of the place that it comes from.
    fn linked(&mut self, sid: SessionId, link: LinkNumber) {
        let stay = self.stays.get_mut(&sid).expect("it was just there");
        let terms = self.terms[self.seats[&stay.desktop].pool];
        stay.highest_link = link;
        stay.ends_at = terms.ends_at(stay.arrival);
    }

    /// The link of a session comes from another place than before; tells whether the
    /// session may go on from there.
    pub(crate) fn moved(&mut self, sid: SessionId, session: Option<Duration>) -> bool {
        let stay = self.stays.get_mut(&sid).expect("it has a link");
        let terms = Terms { session, ..OPEN };
        stay.ends_at = terms.ends_at(stay.arrival);
        terms.judge(stay.arrival, self.now).is_ok()
    }

    /// Something happened to a session or to a link of it, now or long ago.
    pub(crate) fn session_event(
        &mut self,
        sid: SessionId,
        link: Option<LinkNumber>,
        event: session::Event,
    ) -> Result<Vec<Order>, Refused> {
        let Some(stay) = self.stays.get(&sid) else { return Ok(vec![]) };
        // What happened to a link that has been followed by another one.
        if link.is_some_and(|link| link != stay.highest_link) {
            return Ok(vec![]);
        }
        // A desktop leaves the store after its last session.
        if !self.seats.contains_key(&stay.desktop) {
            return Ok(vec![]);
        }
        self.change(stay.desktop, Some(sid), |assignment, rules, now| {
            assignment.session_event(sid, event, rules, now)
        })
    }

    pub(crate) fn probed(&mut self, id: DesktopId, probe: Probe) -> Vec<Order> {
        self.change(id, None, |a, rules, now| a.probed(probe, rules, now)).expect("a probe fits")
    }

    pub(crate) fn observed(&mut self, id: DesktopId, seen: Observation) -> Vec<Order> {
        self.change(id, None, |a, rules, now| a.observed(seen, rules, now)).expect("it fits")
    }

    pub(crate) fn withdraw(&mut self, id: DesktopId) -> Vec<Order> {
        self.change(id, None, Assignment::withdrawn).expect("every desktop may leave")
    }

    /// An administrator lists a known desktop again, or accepts what it shows.
    pub(crate) fn administer(&mut self, id: DesktopId, event: desktop::Event) {
        let seat = self.seats.get_mut(&id).expect("the desktop is known");
        let effects = seat.desktop.step(event, self.pools[seat.pool], self.now);
        assert_eq!(effects, Ok(vec![]), "an administrator's word needs nothing more");
    }

    /// The pass that settles deadlines and repeats what nobody confirmed.
    pub(crate) fn due(&mut self) -> Vec<Order> {
        let ids: Vec<_> = self.seats.keys().copied().collect();
        let pass = |id| self.change(id, None, Assignment::due).expect("time fits every state");
        ids.into_iter().flat_map(pass).collect()
    }

    pub(crate) fn wait(&mut self, span: Duration) {
        self.now = self.now.after(span);
    }

    /// Who holds a desktop.
    pub(crate) fn holder(&self, id: DesktopId) -> Option<String> {
        let holder = self.seats.get(&id)?.desktop.holder.as_ref()?;
        Some(holder.user.id().to_owned())
    }

    pub(crate) fn state(&self, id: DesktopId) -> Option<desktop::State> {
        self.seats.get(&id).map(|seat| seat.desktop.state)
    }

    /// The sessions of a desktop that are not over.
    pub(crate) fn live(&self, id: DesktopId) -> BTreeSet<SessionId> {
        let on_it = |stay: &Stay| stay.desktop == id && stay.state.is_live();
        self.stays.iter().filter(|(_, stay)| on_it(stay)).map(|(sid, _)| *sid).collect()
    }

    fn change(
        &mut self,
        id: DesktopId,
        sid: Option<SessionId>,
        decide: impl FnOnce(&mut Assignment, Rules, Timestamp) -> Result<Vec<Effect>, Refused>,
    ) -> Result<Vec<Order>, Refused> {
        let Some(seat) = self.seats.get(&id) else { return Ok(vec![]) };
        let rules = self.pools[seat.pool];
        let mut assignment = self.load(id, sid);
        let effects = decide(&mut assignment, rules, self.now)?;
        Ok(self.write_back(id, assignment, &effects))
    }

    fn load(&self, id: DesktopId, sid: Option<SessionId>) -> Assignment {
        let wanted = self.live(id).into_iter().chain(sid);
        let wanted: Vec<_> = wanted.collect();
        let sessions = wanted.iter().map(|sid| (*sid, self.stays[sid].state));
        let ends = wanted.iter().filter_map(|sid| Some((*sid, self.stays[sid].ends_at?)));
        Assignment::new(self.seats[&id].desktop.clone(), sessions).with_ends(ends)
    }

    fn write_back(&mut self, id: DesktopId, changed: Assignment, effects: &[Effect]) -> Vec<Order> {
        for (sid, state) in changed.sessions {
            self.stays.get_mut(&sid).expect("it was loaded").state = state;
        }
        self.seats.get_mut(&id).expect("it was loaded").desktop = changed.desktop;
        if effects.contains(&Effect::Remove) {
            self.seats.remove(&id);
        }
        let order = |effect: &Effect| {
            let link = match effect {
                Effect::CloseLinks { sid, .. } => self.stays[sid].highest_link,
                Effect::AskOccupancy | Effect::LogOff | Effect::Freed | Effect::Remove => {
                    LinkNumber(0)
                }
            };
            (id, *effect, link)
        };
        effects.iter().map(order).collect()
    }

    fn id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }
}
