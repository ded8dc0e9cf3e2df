//! What holds for a link while it is carried: where it comes from, what its thin
//! client may do, and how long it may go on.
//!
//! When a link is found to come from another kind of network, the broker decides anew.
//! Until it has, what held before goes on, for [`DECISION_DEADLINE`] at most. What a
//! desktop's connection was made for cannot be changed while it lasts: where the thin
//! client may do other things from now on, its agent is told to begin a new one, and
//! one that does not is made to.

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use tegata_edge::network::NetworkClass;
use tegata_proto::code::Code;
use tegata_proto::id::Epoch;
use tegata_proto::policy::Policy;
use tegata_proto::session::{GatewayMessage, Notice};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::info;

use crate::bounds::{Bounds, Due};
use crate::carry::at;
use crate::redeem::{Broker, Limits, LinkEnd, Moved, Place, Refused};
use crate::sessions::Registration;

/// How long a link is carried without a decision on where it comes from now.
pub const DECISION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a desktop's connection is carried that was made for other things than
/// the thin client may do now.
pub const OUTDATED_DEADLINE: Duration = Duration::from_secs(15);

type Answer = Result<Place, Refused>;
type Decision<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// What holds for a link.
pub(crate) struct Standing<'a> {
    broker: &'a dyn Broker,
    registration: &'a Registration,
    epoch: Epoch,
    class: NetworkClass,
    /// What the desktop's connection was made for.
    policy: Policy,
    bounds: Bounds,
    deciding: Option<(NetworkClass, Decision<'a>, Instant)>,
    outdated_at: Option<Instant>,
    words: VecDeque<GatewayMessage>,
    end: Option<LinkEnd>,
}

/// What the link's agent has to be told, or what ends the link.
pub(crate) enum Turn {
    Say(GatewayMessage),
    End(LinkEnd),
}

enum Next {
    Moved,
    Decided(Answer),
    Undecided,
    Outdated,
    Time,
}

impl<'a> Standing<'a> {
    /// Begins with what the broker said of a link from this kind of network.
    pub(crate) fn new(
        broker: &'a dyn Broker,
        registration: &'a Registration,
        epoch: Epoch,
        class: NetworkClass,
        place: Place,
    ) -> Self {
        Self {
            broker,
            registration,
            epoch,
            class,
            policy: place.policy,
            bounds: Bounds::new(place.limits, Instant::now()),
            deciding: None,
            outdated_at: None,
            words: VecDeque::new(),
            end: None,
        }
    }

    /// Waits for the next thing to say, or for the end. Loses nothing when it is
    /// dropped half-way.
    pub(crate) async fn turn(&mut self) -> Turn {
        loop {
            if let Some(word) = self.words.pop_front() {
                return Turn::Say(word);
            }
            if let Some(end) = self.end {
                return Turn::End(end);
            }
            match self.next().await {
                Next::Moved => self.moved(),
                Next::Decided(answer) => self.decided(answer),
                Next::Undecided => self.end = Some(LinkEnd::Undecided),
                Next::Outdated => self.end = Some(LinkEnd::Outdated),
                Next::Time => {
                    let due = self.bounds.look(Instant::now());
                    self.due(due);
                }
            }
        }
    }

    /// The thin client says that nobody has touched it for so long.
    pub(crate) fn input(&mut self, idle: Duration) {
        let due = self.bounds.input(idle, Instant::now());
        self.registration.note_input(self.bounds.minutes());
        self.due(due);
    }

    async fn next(&mut self) -> Next {
        let Self { registration, class, bounds, deciding, outdated_at, .. } = self;
        let is_deciding = deciding.is_some();
        let decided = async {
            match deciding {
                Some((_, decision, until)) => tokio::select! {
                    biased;
                    answer = decision => Next::Decided(answer),
                    () = sleep_until(*until) => Next::Undecided,
                },
                None => pending().await,
            }
        };
        tokio::select! {
            next = decided => next,
            () = registration.moved_from(class), if !is_deciding => Next::Moved,
            () = at(*outdated_at) => Next::Outdated,
            () = at(bounds.next()) => Next::Time,
        }
    }

    /// Has the broker decide anew.
    fn moved(&mut self) {
        let (sid, link) = self.registration.id();
        let (remote, class) = self.registration.place();
        let report = Moved { sid, epoch: self.epoch, link, remote, class: class.clone() };
        let broker = self.broker;
        let decision = async move {
            loop {
                match broker.moved(report.clone()).await {
                    Err(Refused::Busy { retry_after }) => sleep(retry_after).await,
                    decided => return decided,
                }
            }
        };
        let until = Instant::now() + DECISION_DEADLINE;
        self.deciding = Some((class, Box::pin(decision), until));
    }

    fn decided(&mut self, answer: Answer) {
        let Some((class, ..)) = self.deciding.take() else { return };
        match answer {
            Ok(Place { policy, limits }) => {
                let is_outdated = policy != self.policy;
                info!(from = %self.class, to = %class, is_outdated, "Link goes on from elsewhere");
                self.bounds.change(limits, Instant::now());
                if is_outdated {
                    self.say(Notice::PolicyChanged, [("class", class.to_string())]);
                    self.outdated_at.get_or_insert(Instant::now() + OUTDATED_DEADLINE);
                } else {
                    self.outdated_at = None;
                }
                let input_every_ms = Some(input_every_ms(limits));
                self.words.push_back(GatewayMessage::Policy { policy, input_every_ms });
                self.class = class;
            }
            Err(Refused::Code(code)) => {
                if code == Code::NotAllowedHere {
                    self.say(Notice::NotAllowedHere, [("class", class.to_string())]);
                }
                self.end = Some(LinkEnd::Ended(code));
            }
            Err(Refused::Busy { .. }) => self.end = Some(LinkEnd::Undecided),
        }
    }

    fn due(&mut self, due: Option<Due>) {
        let left = |left: Duration| [("left_s", left.as_secs_f64().round().to_string())];
        match due {
            Some(Due::TimeSoon(time)) => self.say(Notice::TimeLimitSoon, left(time)),
            Some(Due::IdleSoon(time)) => self.say(Notice::IdleSoon, left(time)),
            Some(Due::TimeOver) => self.end = Some(LinkEnd::Ended(Code::TimeLimit)),
            Some(Due::IdleOver) => self.end = Some(LinkEnd::Ended(Code::IdleLimit)),
            None => {}
        }
    }

    fn say<const N: usize>(&mut self, notice: Notice, args: [(&str, String); N]) {
        let args: BTreeMap<_, _> =
            args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.words.push_back(GatewayMessage::Notice { code: notice.as_str().to_owned(), args });
    }
}

/// Returns how often the thin client is to tell of its input, in milliseconds.
pub(crate) fn input_every_ms(limits: Limits) -> u64 {
    u64::try_from(Bounds::input_every(limits).as_millis()).unwrap_or(u64::MAX)
}
