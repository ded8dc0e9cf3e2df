//! The audit trail, played again from its first record.

use std::collections::BTreeMap;

use super::{Record, Violation};

/// What the records amount to.
#[derive(Default)]
pub(super) struct World {
    pub(super) desktops: BTreeMap<String, Desktop>,
    pub(super) sessions: BTreeMap<String, Session>,
    /// Which session each ticket opened.
    pub(super) redeemed: BTreeMap<String, String>,
}

/// A desktop, as far as the records tell.
pub(super) struct Desktop {
    state: String,
    /// Why, where it is quarantined.
    reason: String,
    pool: String,
    pub(super) holder: Option<String>,
    pub(super) epoch: u64,
    /// The sessions on it that are not over, and whose they are.
    live: BTreeMap<String, String>,
}

/// A session, as far as the records tell.
pub(super) struct Session {
    pub(super) user: String,
    pub(super) seat: String,
    pub(super) epoch: u64,
    pub(super) state: String,
    desktop: String,
    /// The highest number of a link that was let in.
    link: u64,
}

/// A state of a desktop after the records have stopped telling of it.
const UNCERTAIN: &str = "uncertain";

/// A state of a desktop before the records start telling of it.
const STARTING: &str = "starting";

#[derive(Default)]
pub(super) struct Replay {
    world: World,
    found: Vec<Violation>,
    last: Option<i64>,
}

impl Default for Desktop {
    fn default() -> Self {
        Self {
            state: STARTING.to_owned(),
            reason: String::new(),
            pool: String::new(),
            holder: None,
            epoch: 0,
            live: BTreeMap::new(),
        }
    }
}

impl Desktop {
    pub(super) fn state_name(&self) -> &str {
        &self.state
    }

    pub(super) fn is_uncertain(&self) -> bool {
        self.state == UNCERTAIN
    }
}

impl Replay {
    pub(super) fn finish(self) -> (World, Vec<Violation>) {
        (self.world, self.found)
    }

    pub(super) fn apply(&mut self, record: &Record) {
        let seq = record.seq;
        let after = self.last.replace(seq).unwrap_or(0);
        if seq != after + 1 {
            self.found.push(Violation::Gap { seq, after });
        }
        let done = match record.action.as_str() {
            "session.requested" => self.requested(record),
            "session.starting" => self
                .redeemed(record)
                .and_then(|()| self.opened(record))
                .and_then(|()| self.moved(record)),
            "session.returned" => self.opened(record).and_then(|()| self.moved(record)),
            "session.active" | "session.detached" | "session.ending" | "session.ended" => {
                self.moved(record)
            }
            "session.class_changed" => self.went_elsewhere(record),
            "desktop.ready" => self.befell(record, "ready"),
            "desktop.silent" | "desktop.recycled" => self.befell(record, STARTING),
            "desktop.quarantined" => self.befell(record, "quarantined"),
            "desktop.pin_accepted" => self.pin_accepted(record),
            "pool.updated" => {
                self.pool_updated(record);
                Ok(())
            }
            // What changes neither desktop nor session: a pool made, a pin
            // learnt, a refusal.
            _ => Ok(()),
        };
        if let Err(what) = done {
            self.found.push(Violation::Incomplete { seq, what });
        }
    }

    /// A person got a desktop, or came back to their own.
    fn requested(&mut self, record: &Record) -> Result<(), &'static str> {
        let seq = record.seq;
        let (sid, id) =
            (named(record.sid.as_ref(), "session")?, named(record.desktop.as_ref(), "desktop")?);
        let user = record.actor["user"].as_str().ok_or("user")?.to_owned();
        let (pool, seat) = (detail(record, "pool")?, detail(record, "seat")?);
        let epoch: u64 = detail(record, "epoch")?.parse().map_err(|_| "epoch")?;
        let returning = detail(record, "returning")? == "true";

        let elsewhere = self.world.desktops.iter().any(|(other, desktop)| {
            *other != id && desktop.pool == pool && desktop.holder.as_ref() == Some(&user)
        });
        if elsewhere {
            let (user, pool) = (user.clone(), pool.clone());
            self.found.push(Violation::SecondDesktop { seq, user, pool });
        }
        let is_new = !self.world.desktops.contains_key(&id);
        let desktop = self.world.desktops.entry(id.clone()).or_default();
        if let Some(holder) = desktop.holder.clone().filter(|holder| *holder != user) {
            let (desktop, user) = (id.clone(), user.clone());
            self.found.push(Violation::HeldTwice { seq, desktop, holder, user });
        }
        if let Some((sid, _)) = desktop.live.iter().find(|(_, whose)| **whose != user) {
            let (desktop, sid) = (id.clone(), sid.clone());
            self.found.push(Violation::HandedOnEarly { seq, desktop, sid });
        }
        // An owner's desktop is theirs from the start, by the administrator's word.
        let owners = returning && is_new;
        let fits = match desktop.state.as_str() {
            UNCERTAIN => true,
            _ if owners => true,
            "assigned" | "recycling" => returning && desktop.holder.as_ref() == Some(&user),
            "ready" => !returning,
            _ => false,
        };
        if !fits {
            let (from, to) = (desktop.state.clone(), "assigned".to_owned());
            self.found.push(Violation::DesktopStep { seq, desktop: id.clone(), from, to });
        }
        let rises = if returning { epoch == desktop.epoch } else { epoch > desktop.epoch };
        if !rises && !owners && !desktop.is_uncertain() {
            let was = desktop.epoch;
            self.found.push(Violation::Epoch { seq, desktop: id.clone(), was, is: epoch });
        }
        "assigned".clone_into(&mut desktop.state);
        desktop.pool = pool;
        desktop.holder = Some(user.clone());
        desktop.epoch = epoch;
        desktop.live.insert(sid.clone(), user.clone());

        let (state, desktop) = ("requested".to_owned(), id);
        let session = Session { user, seat, epoch, state, desktop, link: 0 };
        if let Some(before) = self.world.sessions.insert(sid.clone(), session) {
            let (from, to) = (before.state, "requested".to_owned());
            self.found.push(Violation::SessionStep { seq, sid, from, to });
        }
        Ok(())
    }

    /// A ticket was used up.
    fn redeemed(&mut self, record: &Record) -> Result<(), &'static str> {
        let (sid, jti) = (named(record.sid.as_ref(), "session")?, detail(record, "jti")?);
        if self.world.redeemed.insert(jti.clone(), sid).is_some() {
            self.found.push(Violation::TicketTwice { jti });
        }
        Ok(())
    }

    /// A link was let in, by a ticket or a grant.
    fn opened(&mut self, record: &Record) -> Result<(), &'static str> {
        let seq = record.seq;
        let sid = named(record.sid.as_ref(), "session")?;
        let link: u64 = detail(record, "link")?.parse().map_err(|_| "link")?;
        let Some(session) = self.world.sessions.get_mut(&sid) else { return Ok(()) };
        if link <= session.link {
            let was = session.link;
            self.found.push(Violation::OldLink { seq, sid: sid.clone(), was, is: link });
        }
        session.link = link;
        let Some(desktop) = self.world.desktops.get(&session.desktop) else { return Ok(()) };
        let theirs = desktop.holder.as_ref() == Some(&session.user);
        if session.epoch != desktop.epoch || !theirs {
            let (desktop, was, is) = (session.desktop.clone(), desktop.epoch, session.epoch);
            self.found.push(Violation::Epoch { seq, desktop, was, is });
        }
        Ok(())
    }

    /// A link was found to come from another network: it is the session's last one, and
    /// the session has a link.
    fn went_elsewhere(&mut self, record: &Record) -> Result<(), &'static str> {
        let seq = record.seq;
        let sid = named(record.sid.as_ref(), "session")?;
        let link: u64 = detail(record, "link")?.parse().map_err(|_| "link")?;
        let (came_from, to) = (detail(record, "from")?, detail(record, "to")?);
        let session = self.world.sessions.get(&sid);
        let (state, last) = session.map_or(("unknown", 0), |known| (&known.state, known.link));
        let is_linked = ["starting", "active", "returned"].contains(&state);
        if !is_linked || came_from == to {
            let (from, to) = (state.to_owned(), "elsewhere".to_owned());
            self.found.push(Violation::SessionStep { seq, sid, from, to });
        } else if link != last {
            self.found.push(Violation::OldLink { seq, sid, was: last, is: link });
        }
        Ok(())
    }

    /// A session reached a state, and its desktop perhaps too.
    fn moved(&mut self, record: &Record) -> Result<(), &'static str> {
        let seq = record.seq;
        let sid = named(record.sid.as_ref(), "session")?;
        let to = record.action.trim_start_matches("session.").to_owned();
        let Some(session) = self.world.sessions.get_mut(&sid) else {
            let from = "unknown".to_owned();
            self.found.push(Violation::SessionStep { seq, sid, from, to });
            return Ok(());
        };
        let from = std::mem::replace(&mut session.state, to.clone());
        let id = session.desktop.clone();
        let cause = record.detail.get("cause").map_or("", String::as_str);
        if !follows(&from, &to, cause) {
            let (sid, to) = (sid.clone(), to.clone());
            self.found.push(Violation::SessionStep { seq, sid, from, to });
        }
        let desktop = self.world.desktops.entry(id.clone()).or_default();
        if to == "ended" {
            desktop.live.remove(&sid);
        }
        let Some(state) = record.detail.get("desktop_state") else { return Ok(()) };
        // Only the end of a session lets go of its desktop. Several that end by
        // one act say the same.
        let known = [state.as_str(), "assigned", "recycling", UNCERTAIN];
        if to != "ended" || !known.contains(&desktop.state.as_str()) {
            let (from, to) = (desktop.state.clone(), state.clone());
            self.found.push(Violation::DesktopStep { seq, desktop: id.clone(), from, to });
        }
        if state == "removed" {
            self.world.desktops.remove(&id);
            return Ok(());
        }
        if state != "recycling" {
            desktop.holder = None;
        }
        let lost = cause == "desktop_unreachable";
        if lost { "unreachable" } else { "used" }.clone_into(&mut desktop.reason);
        desktop.state.clone_from(state);
        Ok(())
    }

    /// Something befell a desktop by itself.
    fn befell(&mut self, record: &Record, to: &str) -> Result<(), &'static str> {
        let id = named(record.desktop.as_ref(), "desktop")?;
        let reason = record.detail.get("reason").cloned().unwrap_or_default();
        let desktop = self.world.desktops.entry(id.clone()).or_default();
        let fits = match (desktop.state.as_str(), to) {
            (UNCERTAIN, _) => true,
            // By itself in trails of before `desktop.recycled`.
            (STARTING | "recycling", "ready") => true,
            ("quarantined", "ready") => desktop.reason == "unreachable",
            ("ready", STARTING) => record.action == "desktop.silent",
            ("recycling", STARTING) => record.action == "desktop.recycled",
            (STARTING | "ready" | "quarantined" | "recycling", "quarantined") => true,
            _ => false,
        };
        if !fits {
            let (from, to) = (desktop.state.clone(), to.to_owned());
            self.found.push(Violation::DesktopStep {
                seq: record.seq,
                desktop: id.clone(),
                from,
                to,
            });
        }
        to.clone_into(&mut desktop.state);
        desktop.reason = reason;
        desktop.holder = None;
        if let Some(sid) = desktop.live.keys().next() {
            let (seq, desktop, sid) = (record.seq, id, sid.clone());
            self.found.push(Violation::HandedOnEarly { seq, desktop, sid });
        }
        Ok(())
    }

    fn pin_accepted(&mut self, record: &Record) -> Result<(), &'static str> {
        let id = named(record.desktop.as_ref(), "desktop")?;
        let desktop = self.world.desktops.entry(id).or_default();
        if desktop.state == "quarantined" && desktop.reason == "certificate_changed" {
            STARTING.clone_into(&mut desktop.state);
        }
        Ok(())
    }

    /// The record counts the desktops that were withdrawn and names none, so
    /// from here on nothing is known of those that nobody is on.
    fn pool_updated(&mut self, record: &Record) {
        if record.detail.get("removed").is_none_or(|removed| removed == "0") {
            return;
        }
        let pool = record.detail.get("pool");
        for desktop in self.world.desktops.values_mut() {
            // One that nobody ever got is of a pool that no record names.
            let may_be_its = desktop.pool.is_empty() || Some(&desktop.pool) == pool;
            if may_be_its && desktop.live.is_empty() {
                UNCERTAIN.clone_into(&mut desktop.state);
                desktop.holder = None;
            }
        }
    }
}

/// Tells whether a session in one state may be recorded in another next. A
/// deadline that passed may be settled in the same step as what came after it.
fn follows(from: &str, to: &str, cause: &str) -> bool {
    match (from, to) {
        ("requested", "starting" | "ended") => true,
        ("starting" | "returned", "active") => true,
        ("starting" | "active" | "returned", "detached" | "ending") => true,
        ("starting", "ended") => {
            ["logged_off", "desktop_unreachable", "never_attached"].contains(&cause)
        }
        // By a grant, from whatever a session with a link or without one is in.
        ("starting" | "active" | "returned" | "detached", "returned") => true,
        ("detached", "ending") | ("ending", "ended") => true,
        // Every other end waits for the gateway's word that nothing is left there.
        ("active" | "returned", "ended") => cause == "logged_off",
        ("detached", "ended") => cause == "grace_expired",
        _ => false,
    }
}

fn named(id: Option<&String>, what: &'static str) -> Result<String, &'static str> {
    id.cloned().ok_or(what)
}

fn detail(record: &Record, name: &'static str) -> Result<String, &'static str> {
    record.detail.get(name).cloned().ok_or(name)
}
