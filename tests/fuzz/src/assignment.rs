//! A desktop and the sessions on it: whatever happens in whatever order, the
//! invariants that their types name hold, and a refusal changes nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use tegata_domain::assignment::{Assignment, Effect};
use tegata_domain::desktop::{self, Desktop, Holder, Observation, Probe};
use tegata_domain::pool::{Kind, Reuse, Rules};
use tegata_domain::session::{self, Cause};
use tegata_domain::ticket::{self, Standing};
use tegata_domain::time::Timestamp;
use tegata_proto::claims::{Claims, Confirmation};
use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{Epoch, LinkNumber, SessionId, TicketId, UserId};
use uuid::Uuid;

use super::script::Script;

/// Most sessions of one run.
const SESSIONS: usize = 6;

/// Most events of one run.
const EVENTS: usize = 200;

const PEOPLE: [&str; 3] = ["honsho/sato", "honsho/tanaka", "honsho/suzuki"];

/// Reads the bytes as a pool's rules, and then as what happens, in order.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let rules = Rules {
        kind: script.pick(&[Kind::Floating, Kind::Dedicated]),
        reuse: script.pick(&[Reuse::Never, Reuse::AfterLogoff]),
        grace: script.pick(&[Duration::ZERO, Duration::from_mins(1), Duration::MAX]),
    };
    let owner = script.pick(&[None, Some(0)]).map(person);
    let mut office = Office {
        assignment: Assignment::new(Desktop::listed(None, owner), []),
        rules,
        now: Timestamp::from_millis(1_000_000),
    };
    for _ in 0..EVENTS {
        let Some(what) = script.byte() else { break };
        let before = office.assignment.clone();
        match office.happens(what, &mut script) {
            // It has left the store, and nothing more is heard of it.
            Some(effects) if effects.contains(&Effect::Remove) => break,
            Some(_) => {}
            // What is refused is not written back.
            None => office.assignment = before.clone(),
        }
        check(&before.desktop, &office.assignment);
    }
}

struct Office {
    assignment: Assignment,
    rules: Rules,
    now: Timestamp,
}

impl Office {
    /// Lets one thing happen and returns what follows; nothing if it was refused.
    fn happens(&mut self, what: u8, script: &mut Script<'_>) -> Option<Vec<Effect>> {
        let (rules, now) = (self.rules, self.now);
        Some(match what % 10 {
            0 => {
                let step = script.pick(&[1, 1_000, 20_000, 61_000, 1 << 40]);
                self.now = now.after(Duration::from_millis(step));
                vec![]
            }
            1 if self.assignment.sessions.len() < SESSIONS => {
                let sid = sid(self.assignment.sessions.len());
                let account = script.pick(&[None, Some("sato")]).map(str::to_owned);
                let holder = Holder { user: person(script.pick(&[0, 1, 2])), account };
                self.assignment.assign(sid, holder, rules, now).ok()?;
                vec![]
            }
            2 => self.redeems(script)?,
            3 | 4 => {
                let sid = sid(script.pick(&[0, 1, 2, 3, 4, 5]));
                let event = script.pick(&[
                    session::Event::Attached,
                    session::Event::DialFailed,
                    session::Event::LinkLost,
                    session::Event::DesktopClosed,
                    session::Event::LoggedOff,
                    session::Event::Disconnected,
                    session::Event::EndWanted(Cause::Administrator),
                    session::Event::Closed,
                    session::Event::Tick,
                ]);
                self.assignment.session_event(sid, event, rules, now).ok()?
            }
            5 => {
                let certificate =
                    script.pick(&[None, Some(Sha256([1; 32])), Some(Sha256([2; 32]))]);
                let probe = script.pick(&[Probe::Failed, Probe::Answered(certificate)]);
                self.assignment.probed(probe, rules, now).expect("a probe is always heard")
            }
            6 => {
                let who = script.pick(&[&[][..], &["sato"], &["SATO", "tanaka"]]);
                let ago = script.pick(&[0, 1, 10_000]);
                let asked = Timestamp::from_millis(now.as_millis().saturating_sub(ago));
                let logged_on: BTreeSet<_> = who.iter().map(|name| (*name).to_owned()).collect();
                let seen = Observation { logged_on, asked };
                self.assignment.observed(seen, rules, now).expect("an answer is always heard")
            }
            7 => self.assignment.due(rules, now).expect("deadlines are always settled"),
            8 => self.assignment.withdrawn(rules, now).expect("a pool may always shrink"),
            _ => {
                let event = script.pick(&[true, false]);
                let event = if event {
                    desktop::Event::Listed
                } else {
                    desktop::Event::PinAccepted(Sha256([script.pick(&[1, 2]); 32]))
                };
                self.assignment.desktop.step(event, rules, now).ok()?;
                vec![]
            }
        })
    }

    /// A ticket of any kind is judged as a store does, and redeemed if it is good.
    fn redeems(&mut self, script: &mut Script<'_>) -> Option<Vec<Effect>> {
        let (rules, now) = (self.rules, self.now);
        let sid = sid(script.pick(&[0, 1, 2, 3, 4, 5]));
        let state = *self.assignment.sessions.get(&sid)?;
        let epoch = self.assignment.desktop.epoch.0;
        let times = [now.as_secs(), 0, now.as_secs() + 4, now.as_secs() + 30, u64::MAX];
        let user = person(script.pick(&[0, 1, 2]));
        let claims = claims(
            person(script.pick(&[0, 1, 2])),
            sid,
            Epoch(script.pick(&[epoch, epoch.wrapping_sub(1), epoch + 1, u64::MAX])),
            script.pick(&times),
            script.pick(&times),
        );
        let link = LinkNumber(script.pick(&[1, 0, 2, u64::MAX]));
        let highest_link = LinkNumber(script.pick(&[0, 1, u64::MAX]));
        let standing = Standing { user: &user, state, highest_link };
        ticket::judge(&claims, link, &standing, &self.assignment.desktop, now).ok()?;
        assert_eq!(claims.epoch, self.assignment.desktop.epoch, "fenced (I5)");
        assert!(self.assignment.desktop.is_held_by(&claims.sub), "somebody else's desktop (I1)");
        assert!(link > highest_link, "an old link");
        let effects = self.assignment.redeemed(sid, rules, now).expect("it was judged good");
        assert_eq!(self.assignment.desktop.session, Some(sid));
        Some(effects)
    }
}

fn check(before: &Desktop, assignment: &Assignment) {
    let desktop = &assignment.desktop;
    let held = matches!(
        desktop.state,
        desktop::State::Assigned | desktop::State::Recycling { .. } | desktop::State::Draining
    );
    assert_eq!(desktop.holder.is_some(), held, "{desktop:?}");
    let free = matches!(desktop.state, desktop::State::Starting | desktop::State::Ready { .. });
    assert!(!(free && desktop.used), "{desktop:?} is offered though it was used");
    assert!(desktop.epoch >= before.epoch, "the epoch fell");
    let user = |desktop: &Desktop| desktop.holder.as_ref().map(|holder| holder.user.clone());
    let next = user(desktop).is_some() && user(desktop) != user(before);
    assert!(!next || desktop.epoch > before.epoch, "a new holder and the old epoch");
    assert!(!next || user(before).is_none(), "from one person to the next in one step (I1)");
    let at_rest = !held || matches!(desktop.state, desktop::State::Recycling { .. });
    assert!(!(at_rest && assignment.is_in_use()), "{assignment:?} outlives its desktop");
}

/// Returns what a ticket says, from and to a second.
pub(super) fn claims(sub: UserId, sid: SessionId, epoch: Epoch, iat: u64, exp: u64) -> Claims {
    Claims {
        iss: "tegata".to_owned(),
        aud: "default".parse().expect("a name"),
        sub,
        sid,
        epoch,
        jti: TicketId(Uuid::nil()),
        iat,
        exp,
        cnf: Confirmation { jkt: Bytes([0; 32]) },
    }
}

/// Returns the id of a run's session.
pub(super) fn sid(number: usize) -> SessionId {
    SessionId(Uuid::from_u128(number as u128 + 1))
}

fn person(number: usize) -> UserId {
    PEOPLE[number].parse().expect("a person")
}
