//! What is really so, whatever the store believes: which wires reach which
//! desktop, and who is logged on there. It shares no code with what it judges.

use std::collections::{BTreeMap, BTreeSet};

use tegata_domain::pool::{Kind, Reuse};
use tegata_domain::time::Timestamp;
use tegata_domain::{desktop, session};
use tegata_proto::id::{DesktopId, Epoch, LinkNumber, SessionId};

use crate::office::{Name, Office};

/// A gateway's connection to a desktop.
#[derive(Clone)]
pub(crate) struct Wire {
    pub(crate) desktop: DesktopId,
    pub(crate) person: Name,
    /// The link that it is carried over; nothing while it is kept for the next one.
    pub(crate) link: Option<LinkNumber>,
}

/// A link that the store has let in, until its gateway has the desktop for it.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) desktop: DesktopId,
    pub(crate) person: Name,
    pub(crate) link: LinkNumber,
    /// Whether it goes on with the wire that is there.
    pub(crate) resumes: bool,
}

/// How an attempt went.
pub(crate) enum Dialled {
    Reached,
    Unreachable,
    /// The wire that it should have gone on with is not there any more.
    WireGone,
}

/// A machine as it stands in the rack.
#[derive(Clone, Default)]
pub(crate) struct Machine {
    pub(crate) answers: bool,
    pub(crate) certificate: u8,
    pub(crate) logged_on: BTreeSet<Name>,
    /// Who has had a wire since the machine was last seen clean.
    left_behind: BTreeSet<Name>,
    /// The step at which a wire was last on it.
    wired_at: u64,
    /// Whom the store gave it to last, and at which epoch.
    given: Option<(String, Epoch)>,
}

/// The answer of a desktop's operating system, on its way to the store.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) desktop: DesktopId,
    pub(crate) asked: Timestamp,
    pub(crate) logged_on: BTreeSet<Name>,
    looked_at: u64,
}

#[derive(Clone, Default)]
pub(crate) struct Building {
    pub(crate) machines: BTreeMap<DesktopId, Machine>,
    pub(crate) wires: BTreeMap<SessionId, Wire>,
    pub(crate) attempts: BTreeMap<SessionId, Attempt>,
    steps: u64,
}

impl Building {
    pub(crate) fn install(&mut self, id: DesktopId) {
        self.machines.insert(id, Machine { answers: true, certificate: 1, ..Machine::default() });
    }

    pub(crate) fn machine(&mut self, id: DesktopId) -> &mut Machine {
        self.machines.get_mut(&id).expect("the machine is in the rack")
    }

    /// A gateway was told to get the desktop; returns the link whose attempt has
    /// to stand back for that.
    pub(crate) fn begins(&mut self, sid: SessionId, attempt: Attempt) -> Option<LinkNumber> {
        self.attempts.insert(sid, attempt).map(|before| before.link)
    }

    /// An attempt is over. The link before it, which has carried the session until
    /// now, is returned beside how it went.
    pub(crate) fn dialled(&mut self, sid: SessionId) -> (Dialled, Option<LinkNumber>) {
        self.note();
        let Attempt { desktop, person, link, resumes } =
            self.attempts.remove(&sid).expect("somebody dials");
        let before = self.wires.get_mut(&sid).and_then(|wire| wire.link.take());
        let machine = self.machines.get_mut(&desktop).expect("in the rack");
        if !resumes {
            self.wires.remove(&sid);
            if machine.answers {
                self.wires.insert(sid, Wire { desktop, person, link: Some(link) });
            }
        } else if let Some(wire) = self.wires.get_mut(&sid) {
            wire.link = Some(link);
        }
        let dialled = match (self.wires.contains_key(&sid), resumes) {
            (true, _) => {
                machine.left_behind.insert(person);
                Dialled::Reached
            }
            (false, true) => Dialled::WireGone,
            (false, false) => Dialled::Unreachable,
        };
        self.note();
        (dialled, before)
    }

    /// A link is gone, and its wire is kept for the next one.
    pub(crate) fn keeps(&mut self, sid: SessionId) {
        self.wires.get_mut(&sid).expect("it is carried").link = None;
    }

    /// Whatever there is of a session at its gateway is let go.
    pub(crate) fn cut(&mut self, sid: SessionId) {
        self.note();
        self.wires.remove(&sid);
        self.attempts.remove(&sid);
    }

    /// A wire is let go; an attempt at another one goes on.
    pub(crate) fn lets_go(&mut self, sid: SessionId) {
        self.note();
        self.wires.remove(&sid);
    }

    /// The gateway's process dies.
    pub(crate) fn cut_all(&mut self) {
        self.note();
        self.wires.clear();
        self.attempts.clear();
    }

    /// The person on a wire logs on, as only they can.
    pub(crate) fn logs_on(&mut self, sid: SessionId) {
        let wire = self.wires[&sid].clone();
        self.machine(wire.desktop).logged_on.insert(wire.person);
    }

    pub(crate) fn looks(&mut self, desktop: DesktopId, asked: Timestamp) -> Answer {
        self.note();
        let logged_on = self.machine(desktop).logged_on.clone();
        Answer { desktop, asked, logged_on, looked_at: self.steps }
    }

    /// The store has learnt an answer: from now on the machine is clean, if the
    /// pool lets a log-off clean it, everybody was off, and no wire has been on it
    /// since.
    pub(crate) fn learnt(&mut self, answer: &Answer, reuse: Reuse) {
        let Some(machine) = self.machines.get_mut(&answer.desktop) else { return };
        let off = machine.left_behind.is_disjoint(&answer.logged_on);
        if reuse == Reuse::AfterLogoff && off && machine.wired_at < answer.looked_at {
            machine.left_behind.clear();
        }
    }

    /// Holds everything that must always be so against the store's rows.
    pub(crate) fn inspect(&mut self, office: &Office) {
        self.note();
        let there = self.wires.iter().map(|(sid, wire)| (sid, wire.desktop, wire.person));
        let coming = self.attempts.iter().map(|(sid, to)| (sid, to.desktop, to.person));
        for (sid, desktop, person) in there.chain(coming) {
            let holder = office.holder(desktop);
            assert_eq!(holder.as_deref(), Some(person), "I1: {sid} is on the wire");
            assert!(office.stays[sid].state.is_live(), "I1: {sid} is over and on the wire");
        }
        let mut held = BTreeSet::new();
        for (id, seat) in &office.seats {
            if let Some(holder) = &seat.desktop.holder {
                let first = held.insert((seat.pool, holder.user.clone()));
                assert!(first, "I2: {} holds two desktops of a pool", holder.user);
            }
            self.inspect_seat(office, *id);
        }
        let racked: Vec<_> = self.machines.keys().copied().collect();
        for id in racked {
            if !office.seats.contains_key(&id) {
                let wired = self.wires.values().any(|wire| wire.desktop == id);
                assert!(!wired, "{id} left the pool with somebody on it");
                self.machines.remove(&id);
            }
        }
    }

    fn inspect_seat(&mut self, office: &Office, id: DesktopId) {
        let seat = &office.seats[&id];
        let desktop = &seat.desktop;
        let machine = self.machines.get_mut(&id).expect("a listed desktop is in the rack");

        let given = desktop.holder.as_ref().map(|holder| holder.user.id().to_owned());
        if let Some(holder) = given {
            let before = machine.given.replace((holder.clone(), desktop.epoch));
            let epoch_before = before.as_ref().map_or(Epoch(0), |(_, epoch)| *epoch);
            if before.is_none_or(|before| before != (holder.clone(), desktop.epoch)) {
                assert!(desktop.epoch > epoch_before, "{id} changed hands without a new epoch");
                assert!(machine.left_behind.is_empty(), "I3: {id} goes to {holder} unseen");
                assert!(machine.logged_on.is_empty(), "I3: somebody is on {id}, now {holder}'s");
            }
        }

        let live = office.live(id);
        let (held, free) = match desktop.state {
            desktop::State::Starting | desktop::State::Ready { .. } => (false, true),
            desktop::State::Assigned | desktop::State::Draining => (true, false),
            desktop::State::Recycling { .. } => {
                assert!(live.is_empty(), "{id} recycles under a session");
                (true, false)
            }
            desktop::State::Quarantined { .. } => (false, false),
        };
        assert_eq!(desktop.holder.is_some(), held, "{id} is {:?}", desktop.state);
        assert!(held || live.is_empty(), "{id} has a session and no holder");
        assert!(!(free && desktop.used), "{id} is free and used");
        let orphan = match desktop.state {
            desktop::State::Assigned => {
                office.pools[seat.pool].kind == Kind::Floating && live.is_empty()
            }
            desktop::State::Draining => live.is_empty(),
            desktop::State::Starting
            | desktop::State::Ready { .. }
            | desktop::State::Recycling { .. }
            | desktop::State::Quarantined { .. } => false,
        };
        assert!(!orphan, "I13: {id} is held, and no session will ever free it");
        let open = live.iter().filter(|sid| match office.stays[sid].state {
            session::State::Starting { .. }
            | session::State::Active
            | session::State::Returning { .. } => true,
            session::State::Requested { .. }
            | session::State::Detached { .. }
            | session::State::Ending { .. }
            | session::State::Ended { .. } => false,
        });
        assert!(open.count() <= 1, "{id} has two sessions that may carry bytes");
    }

    /// Counts a step, and remembers where wires are at it.
    fn note(&mut self) {
        self.steps += 1;
        for wire in self.wires.values() {
            if let Some(machine) = self.machines.get_mut(&wire.desktop) {
                machine.wired_at = self.steps;
            }
        }
    }
}
