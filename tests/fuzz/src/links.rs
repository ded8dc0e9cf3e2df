//! The gateway's side of a session's links, with the broker's own decisions behind
//! it: whatever agents show in whatever order, one link at most carries a session,
//! numbers only rise, and nothing is left of a session that is over.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tegata_domain::assignment::{Assignment, Effect};
use tegata_domain::desktop::{Desktop, Holder, Probe};
use tegata_domain::pool::{Kind, Reuse, Rules};
use tegata_domain::session::{Cause, Event, State};
use tegata_domain::ticket::{self, Standing};
use tegata_domain::time::Timestamp;
use tegata_edge::connection::DesktopSide;
use tegata_edge::network::NetworkClass;
use tegata_gateway::metrics::Metrics;
use tegata_gateway::sessions::{LINKS_MAX, NotBegun, Registration, Sessions, Stop};
use tegata_proto::code::Code;
use tegata_proto::id::{Epoch, Incarnation, LinkNumber, SessionId, UserId};

use super::assignment::{claims, sid};
use super::script::Script;

/// Most sessions of one run: logins of one person, each of which takes over.
const SESSIONS: usize = 3;

/// Most events of one run.
const EVENTS: usize = 200;

/// Reads the bytes as how long a desktop's side is kept, and then as what happens.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let hold = script.pick(&[Duration::from_mins(1), Duration::ZERO]);
    let mut house = House::new(hold);
    for _ in 0..EVENTS {
        let Some(what) = script.byte() else { break };
        house.happens(what, &mut script);
        house.check();
    }
    house.closes();
}

/// A gateway with its agents, the broker behind it and the desktop.
struct House {
    broker: Broker,
    sessions: Arc<Sessions>,
    hold: Duration,
    links: Vec<Link>,
    /// Ends of sessions that the gateway was told of and has not confirmed.
    ends: Vec<(SessionId, LinkNumber, Ending)>,
    /// The highest number of each session that was carried.
    carried: BTreeMap<SessionId, LinkNumber>,
    /// The desktop's end of each connection that was dialled.
    dialled: Vec<(SessionId, UnixStream)>,
}

type Ending = Pin<Box<dyn Future<Output = ()>>>;

/// What the broker knows. Its store adds nothing but these records.
struct Broker {
    assignment: Assignment,
    records: BTreeMap<SessionId, Record>,
    rules: Rules,
    now: Timestamp,
}

#[derive(Clone, Copy)]
struct Record {
    link: LinkNumber,
    incarnation: Incarnation,
}

struct Link {
    sid: SessionId,
    number: LinkNumber,
    resume: Option<(Incarnation, u64)>,
    registration: Arc<Registration>,
    stage: Stage,
}

enum Stage {
    /// Its broker has not been asked.
    Begun,
    /// Its broker has said yes, and it waits for the lower ones.
    Accepting(Incarnation, Pin<Box<dyn Future<Output = Result<(), Stop>>>>),
    Carried(Incarnation, DesktopSide),
}

impl House {
    fn new(hold: Duration) -> Self {
        static METRICS: OnceLock<Metrics> = OnceLock::new();
        let metrics = METRICS.get_or_init(|| Metrics::register(&mut Registry::default()));
        Self {
            broker: Broker::new(),
            sessions: Sessions::new(metrics.clone()),
            hold,
            links: vec![],
            ends: vec![],
            carried: BTreeMap::new(),
            dialled: vec![],
        }
    }

    fn happens(&mut self, what: u8, script: &mut Script<'_>) {
        let which = usize::from(what >> 4);
        match what % 12 {
            0 => self.broker.logs_in(),
            1 | 2 => self.attaches(script),
            3 => self.redeems(which, script),
            4 => self.goes_on(which, script.pick(&[true, true, false])),
            5 => self.stops(which),
            6 => self.leaves(which, Event::LinkLost),
            7 => self.leaves(which, script.pick(&[Event::LoggedOff, Event::DesktopClosed])),
            8 => {
                let sid = sid(script.pick(&[0, 1, 2]));
                let event = script.pick(&[
                    Event::EndWanted(Cause::Administrator),
                    Event::Disconnected,
                    Event::EndWanted(Cause::TimeLimit),
                ]);
                self.tell(sid, None, event);
            }
            9 => {
                let step = script.pick(&[1_000, 21_000, 61_000, 1 << 40]);
                self.broker.now = self.broker.now.after(Duration::from_millis(step));
                let (rules, now) = (self.broker.rules, self.broker.now);
                let due = self.broker.assignment.due(rules, now).expect("deadlines are settled");
                self.follow(due);
            }
            10 => {
                let probe = Probe::Answered(None);
                let (rules, now) = (self.broker.rules, self.broker.now);
                let freed = self.broker.assignment.probed(probe, rules, now).expect("it is heard");
                self.follow(freed);
            }
            _ => self.confirms(),
        }
    }

    /// An agent shows a right to a session, with any number, and goes on from anywhere.
    fn attaches(&mut self, script: &mut Script<'_>) {
        let sid = sid(script.pick(&[0, 1, 2]));
        let highest = self.broker.records.get(&sid).map_or(0, |record| record.link.0);
        let next = highest.saturating_add(1);
        let others = [next, next.saturating_add(1), next.saturating_add(2), highest, 1, u64::MAX];
        let number = LinkNumber(script.pick(&others));
        let kept = self.broker.records.get(&sid).map_or(0, |record| record.incarnation.0);
        let incarnation = script.pick(&[None, Some(kept), Some(0), Some(kept.wrapping_add(1))]);
        let received = script.pick(&[0, 0, 1, u64::MAX]);
        let resume = incarnation.map(|kept| (Incarnation(kept), received));

        let remote = SocketAddr::from(([192, 0, 2, 1], 4433));
        let here = self.links.iter().filter(|link| link.sid == sid).count();
        let begun = self.sessions.begin(sid, number, remote, NetworkClass::other());
        match begun {
            Ok(registration) => {
                assert!(here < LINKS_MAX, "{} links", here + 1);
                if let Some((on, received)) = resume
                    && !registration.may_resume(on, received)
                {
                    return;
                }
                let (registration, stage) = (Arc::new(registration), Stage::Begun);
                self.links.push(Link { sid, number, resume, registration, stage });
            }
            Err(NotBegun::Stale) => {
                assert!(self.carried.contains_key(&sid) || here > 0, "stale for no reason");
            }
            Err(NotBegun::TooMany) => assert_eq!(here, LINKS_MAX),
            Err(NotBegun::Draining) => unreachable!("it is in service"),
        }
    }

    /// The broker is asked about a link, and may say yes.
    fn redeems(&mut self, which: usize, script: &mut Script<'_>) {
        let Some(at) = self.at(which, |stage| matches!(stage, Stage::Begun)) else { return };
        let (sid, number, resume) = {
            let link = &self.links[at];
            (link.sid, link.number, link.resume.map(|(incarnation, _)| incarnation))
        };
        let redeemed = self.broker.redeems(sid, number, resume, script);
        let Ok((epoch, incarnation, effects)) = redeemed else {
            drop(self.links.swap_remove(at));
            return;
        };
        let registration = Arc::clone(&self.links[at].registration);
        let target = SocketAddr::from(([10, 0, 0, 1], 3389));
        let accepted = Box::pin(async move { registration.accept(epoch, target).await });
        self.links[at].stage = Stage::Accepting(incarnation, accepted);
        self.follow(effects);
    }

    /// A link that the broker has redeemed takes over from the lower ones.
    fn goes_on(&mut self, which: usize, answers: bool) {
        let waits = |stage: &Stage| matches!(stage, Stage::Accepting(..));
        let Some(at) = self.at(which, waits) else { return };
        let Link { sid, number, resume, .. } = self.links[at];
        let Stage::Accepting(incarnation, accepted) = &mut self.links[at].stage else { return };
        let incarnation = *incarnation;
        let stopped = match poll(accepted.as_mut()) {
            None => return self.lower_ones_stop(sid, number),
            Some(Err(_)) => true,
            Some(Ok(())) => false,
        };
        if stopped {
            return self.leave(at, Event::LinkLost, false);
        }
        self.lower_ones_stop(sid, number);
        assert!(!self.links[at].is_stopped(), "carried after its end");
        let earlier = self.carried.insert(sid, number);
        assert!(earlier.is_none_or(|earlier| earlier < number), "{number} after {earlier:?}");

        let registration = &self.links[at].registration;
        let held = registration.unshelve(resume.map(|_| incarnation));
        let side = match (held, resume) {
            (Some(mut side), Some((on, received))) => {
                assert_eq!(on, incarnation, "another connection");
                // Nothing has passed, so nothing can have been received.
                let may_resume = side.may_resume(received);
                assert_eq!(side.resume(received).is_ok(), may_resume);
                assert_eq!(may_resume, received == 0, "{received} of 0 bytes");
                if !may_resume {
                    self.links[at].stage = Stage::Carried(incarnation, side);
                    return self.leave(at, Event::LinkLost, true);
                }
                side
            }
            (None, Some(_)) => return self.leave(at, Event::LinkLost, false),
            (_, None) if answers => self.dials(sid),
            (_, None) => return self.leave(at, Event::DialFailed, false),
        };
        self.links[at].stage = Stage::Carried(incarnation, side);
        self.tell(sid, Some(number), Event::Attached);
    }

    fn dials(&mut self, sid: SessionId) -> DesktopSide {
        let (ours, desktops) = UnixStream::pair().expect("two sockets");
        for socket in [&ours, &desktops] {
            socket.set_nonblocking(true).expect("a socket of ours");
        }
        self.dialled.push((sid, desktops));
        DesktopSide::new(TcpStream::from(OwnedFd::from(ours)))
    }

    fn lower_ones_stop(&self, sid: SessionId, number: LinkNumber) {
        for link in self.links.iter().filter(|link| link.sid == sid && link.number < number) {
            assert!(link.is_stopped(), "{} goes on below {number}", link.number);
        }
    }

    /// A link that has to stop does so.
    fn stops(&mut self, which: usize) {
        let stopped: Vec<_> =
            (0..self.links.len()).filter(|at| self.links[*at].is_stopped()).collect();
        let Some(at) = stopped.get(which % stopped.len().max(1)) else { return };
        let stop = poll(Box::pin(self.links[*at].registration.stopping()).as_mut());
        let may_resume = stop == Some(Stop::Superseded);
        self.leave(*at, Event::LinkLost, may_resume);
    }

    /// A link that is carried ends by itself.
    fn leaves(&mut self, which: usize, event: Event) {
        let carried = |stage: &Stage| matches!(stage, Stage::Carried(..));
        let Some(at) = self.at(which, carried) else { return };
        self.leave(at, event, event != Event::LoggedOff);
    }

    /// Takes a link out as the gateway does: what is kept is kept first, and the broker
    /// hears of it last.
    fn leave(&mut self, at: usize, event: Event, may_resume: bool) {
        let Link { sid, number, registration, stage, .. } = self.links.swap_remove(at);
        let redeemed = !matches!(stage, Stage::Begun);
        if let Stage::Carried(incarnation, side) = stage
            && may_resume
        {
            drop(registration.shelve(incarnation, side, self.hold));
        }
        registration.leave();
        drop(registration);
        if redeemed {
            self.tell(sid, Some(number), event);
        }
    }

    /// The broker hears of an event, and does what follows.
    fn tell(&mut self, sid: SessionId, link: Option<LinkNumber>, event: Event) {
        let effects = self.broker.hears(sid, link, event);
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            let Effect::CloseLinks { sid, code } = effect else { continue };
            let link = self.broker.records[&sid].link;
            let sessions = Arc::clone(&self.sessions);
            let ending = async move {
                let _ended = sessions.end(sid, code).await;
            };
            self.goes_on_ending(sid, link, Box::pin(ending));
        }
    }

    /// The gateway confirms the ends that have come to pass.
    fn confirms(&mut self) {
        for (sid, link, ending) in std::mem::take(&mut self.ends) {
            self.goes_on_ending(sid, link, ending);
        }
    }

    fn goes_on_ending(&mut self, sid: SessionId, link: LinkNumber, mut ending: Ending) {
        if poll(ending.as_mut()).is_some() {
            self.tell(sid, Some(link), Event::Closed);
        } else {
            self.ends.push((sid, link, ending));
        }
    }

    /// Returns one of the links that are at such a stage.
    fn at(&self, which: usize, stage: impl Fn(&Stage) -> bool) -> Option<usize> {
        let found: Vec<_> =
            (0..self.links.len()).filter(|at| stage(&self.links[*at].stage)).collect();
        found.get(which % found.len().max(1)).copied()
    }

    fn check(&mut self) {
        let mut carried: Vec<_> = self.links.iter().filter(|link| link.is_carried()).collect();
        carried.sort_by_key(|link| link.sid);
        let twice = carried.windows(2).find(|two| two[0].sid == two[1].sid);
        assert!(twice.is_none(), "two links carry one session");
        let live = self.sessions.live();
        for link in carried {
            assert!(live.iter().any(|live| live.sid == link.sid && live.link == link.number));
        }
        self.dialled.retain_mut(|(sid, desktops)| {
            let mut more = [0];
            let open =
                matches!(desktops.read(&mut more), Err(e) if e.kind() == ErrorKind::WouldBlock);
            let state = self.broker.assignment.sessions[sid];
            let over = matches!(state, State::Ended { .. });
            assert!(!(open && over), "a session that is over has a desktop");
            open
        });
    }

    /// The gateway goes out of service.
    fn closes(mut self) {
        let sessions = Arc::clone(&self.sessions);
        let mut ending = Box::pin(async move { sessions.end_all().await });
        let none = self.links.is_empty();
        assert_eq!(poll(ending.as_mut()).is_some(), none);
        assert!(self.links.iter().all(Link::is_stopped), "a link outlives its gateway");
        while !self.links.is_empty() {
            self.leave(0, Event::LinkLost, false);
        }
        assert!(none || poll(ending.as_mut()).is_some(), "it waits for nobody");
        self.check();
        assert!(self.sessions.live().is_empty() && self.dialled.is_empty(), "something is left");
    }
}

impl Link {
    fn is_stopped(&self) -> bool {
        poll(Box::pin(self.registration.stopping()).as_mut()).is_some()
    }

    fn is_carried(&self) -> bool {
        matches!(self.stage, Stage::Carried(..))
    }
}

impl Broker {
    fn new() -> Self {
        let rules = Rules {
            kind: Kind::Floating,
            reuse: Reuse::AfterLogoff,
            grace: Duration::from_mins(1),
        };
        let assignment = Assignment::new(Desktop::listed(None, None), []);
        let now = Timestamp::from_millis(1_000_000);
        let mut broker = Self { assignment, records: BTreeMap::new(), rules, now };
        let probe = Probe::Answered(None);
        broker.assignment.probed(probe, rules, now).expect("a probe is always heard");
        broker.logs_in();
        broker
    }

    fn logs_in(&mut self) {
        if self.records.len() == SESSIONS {
            return;
        }
        let sid = sid(self.records.len());
        let holder = Holder { user: person(), account: None };
        if self.assignment.assign(sid, holder, self.rules, self.now).is_ok() {
            let record = Record { link: LinkNumber(0), incarnation: Incarnation(0) };
            self.records.insert(sid, record);
        }
    }

    /// Judges a ticket or a grant as the store does.
    fn redeems(
        &mut self,
        sid: SessionId,
        link: LinkNumber,
        resume: Option<Incarnation>,
        script: &mut Script<'_>,
    ) -> Result<(Epoch, Incarnation, Vec<Effect>), Code> {
        let (rules, now) = (self.rules, self.now);
        let Some(record) = self.records.get_mut(&sid) else { return Err(Code::SessionEnded) };
        let (state, epoch) = (self.assignment.sessions[&sid], self.assignment.desktop.epoch);
        let user = person();
        let epoch_said = Epoch(script.pick(&[epoch.0, epoch.0, epoch.0.wrapping_sub(1)]));
        let claims = claims(user.clone(), sid, epoch_said, now.as_secs(), now.as_secs() + 30);
        let standing = Standing { user: &user, state, highest_link: record.link };
        let is_ticket = script.pick(&[matches!(state, State::Requested { .. }), true, false]);
        let judge = if is_ticket { ticket::judge } else { ticket::judge_grant };
        judge(&claims, link, &standing, &self.assignment.desktop, now)?;
        assert!(link > record.link, "{link} after {}", record.link);
        let incarnation = match resume {
            None => Incarnation(record.incarnation.0 + 1),
            Some(kept) if !is_ticket && kept == record.incarnation => kept,
            Some(_) => return Err(Code::ResumeLost),
        };
        let assignment = &mut self.assignment;
        let effects = if is_ticket {
            assignment.redeemed(sid, rules, now)
        } else {
            assignment.returned(sid, rules, now)
        };
        *record = Record { link, incarnation };
        Ok((epoch, incarnation, effects.expect("it was judged good")))
    }

    /// Hears of an event as the store does: one of an older link counts for nothing.
    fn hears(&mut self, sid: SessionId, link: Option<LinkNumber>, event: Event) -> Vec<Effect> {
        let Some(record) = self.records.get(&sid) else { return vec![] };
        if link.is_some_and(|link| link != record.link) {
            return vec![];
        }
        let before = self.assignment.clone();
        let heard = self.assignment.session_event(sid, event, self.rules, self.now);
        heard.unwrap_or_else(|_| {
            // What is refused is not written back.
            self.assignment = before;
            vec![]
        })
    }
}

/// Returns what a future is done with by now.
fn poll<T>(future: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Option<T> {
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

fn person() -> UserId {
    "honsho/sato".parse().expect("a person")
}
