//! How many connections there may be, in all and from one source.
//!
//! The question is answered before anything is kept for the peer. A peer whose
//! address is not shown to be its own can use up neither the server's budget
//! nor that of the source it claims to be: beyond a few, such peers are asked to
//! show their address, which costs the server one packet and no memory. By TCP every
//! address is shown. Among those who have shown theirs, somebody of the source that is half
//! way in most often makes room, so that few sources cannot shut out the others. So does
//! who is in and has shown no right to anything: they may have a quarter of all connections.

mod lobby;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use self::lobby::Lobby;
use crate::connection::Transport;
use crate::metrics::Refusal;
use crate::source::Prefix;

/// How many connections an endpoint takes in.
///
/// All counts are of connections, but `files`. `retry_above` should be below
/// `handshakes_per_source`, so that forged addresses cannot shut out the source
/// they name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Open in all, handshakes included.
    pub connections: usize,
    /// Files that connections may have open in all: a desktop's socket each, and by
    /// TCP the peer's too.
    pub files: usize,
    /// Open from one source, handshakes included.
    pub connections_per_source: usize,
    /// Handshakes in progress in all, by each transport.
    pub handshakes: usize,
    /// Handshakes in progress from one source, by both together.
    pub handshakes_per_source: usize,
    /// Handshakes in progress with unproven addresses, above which a newcomer is
    /// asked to prove its own (Retry, RFC 9000 §8.1.2). 0 asks everybody.
    pub retry_above: usize,
}

impl Default for Limits {
    /// Fits a ministry's several thousand thin clients, an office of them behind
    /// one address.
    fn default() -> Self {
        Self {
            connections: 20_000,
            files: usize::MAX,
            connections_per_source: 8_192,
            handshakes: 1_024,
            handshakes_per_source: 256,
            retry_above: 128,
        }
    }
}

/// One connection of so many may be one whose peer has shown no right to anything.
const STRANGERS_SHARE: usize = 4;

/// What to do with a newcomer.
#[derive(Debug)]
pub(crate) enum Answer {
    Accept(Slot),
    /// Ask it to prove its address.
    Retry,
    Refuse(Refusal),
}

/// Counts an endpoint's connections.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: Count,
    files: usize,
    unproven: usize,
    sources: HashMap<Prefix, Count>,
    /// Whose handshake is in progress from an address that is proven, by each transport.
    by_quic: Lobby,
    by_tcp: Lobby,
    /// Who is in and has shown no right to anything.
    strangers: Lobby,
}

#[derive(Debug, Default, Clone, Copy)]
struct Count {
    connections: usize,
    handshakes: usize,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, counts: Mutex::default() })
    }

    /// Judges a newcomer whose address is `proven` or not, and counts it if it
    /// may come in.
    pub(super) fn judge(
        self: &Arc<Self>,
        source: Prefix,
        transport: Transport,
        proven: bool,
    ) -> Answer {
        let files = files(transport);
        let mut counts = self.counts();
        let refusal = self.refusal(&mut counts, source, transport, proven);
        if !proven && (refusal.is_some() || counts.unproven >= self.limits.retry_above) {
            return Answer::Retry;
        }
        if let Some(reason) = refusal {
            return Answer::Refuse(reason);
        }
        counts.unproven += usize::from(!proven);
        counts.files += files;
        for count in counts.of(source) {
            count.connections += 1;
            count.handshakes += 1;
        }
        let handshake = Some(if proven {
            let displaced = CancellationToken::new();
            counts.arriving(transport).enter(source, displaced.clone());
            Handshake::Proven { transport, displaced }
        } else {
            Handshake::Unproven
        });
        drop(counts);
        let budget = Arc::clone(self);
        Answer::Accept(Slot { budget, source, files, handshake })
    }

    /// Returns why a newcomer cannot come in. One whose address is `proven` may have
    /// somebody else make room.
    fn refusal(
        &self,
        counts: &mut Counts,
        source: Prefix,
        transport: Transport,
        proven: bool,
    ) -> Option<Refusal> {
        let limits = &self.limits;
        let one = counts.sources.get(&source).copied().unwrap_or_default();
        let too_many_files = counts.files.saturating_add(files(transport)) > limits.files;
        if counts.all.connections >= limits.connections || too_many_files {
            Some(Refusal::Full)
        } else if one.connections >= limits.connections_per_source {
            Some(Refusal::SourceFull)
        } else if one.handshakes >= limits.handshakes_per_source {
            Some(Refusal::SourceHandshakes)
        } else {
            let fits = counts.handshakes(transport) < limits.handshakes
                || (proven && counts.make_room(source, transport));
            (!fits).then_some(Refusal::Handshakes)
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Nothing in here panics between two steps of one change.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how many files a connection may come to have open.
fn files(transport: Transport) -> usize {
    match transport {
        Transport::Quic => 1,
        Transport::Tcp => 2,
    }
}

impl Counts {
    fn of(&mut self, source: Prefix) -> [&mut Count; 2] {
        [&mut self.all, self.sources.entry(source).or_default()]
    }

    fn end_handshake(&mut self, source: Prefix) {
        for count in self.of(source) {
            count.handshakes -= 1;
        }
    }

    /// Returns whose handshake by a transport may have to make room.
    fn arriving(&mut self, transport: Transport) -> &mut Lobby {
        match transport {
            Transport::Quic => &mut self.by_quic,
            Transport::Tcp => &mut self.by_tcp,
        }
    }

    /// Returns how many handshakes by a transport are in progress.
    fn handshakes(&self, transport: Transport) -> usize {
        match transport {
            Transport::Quic => self.by_quic.len() + self.unproven,
            Transport::Tcp => self.by_tcp.len(),
        }
    }

    /// Sends the oldest away of the source that is half way in most often, if that is
    /// oftener than the newcomer's would be.
    fn make_room(&mut self, newcomer: Prefix, transport: Transport) -> bool {
        let arriving = self.arriving(transport);
        let Some((source, most)) = arriving.busiest() else { return false };
        if most <= arriving.of(newcomer) + 1 {
            return false;
        }
        if let Some(oldest) = arriving.oldest(source) {
            self.end_handshake(source);
            oldest.cancel();
        }
        true
    }
}

/// One connection's place in the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    budget: Arc<Budget>,
    source: Prefix,
    files: usize,
    handshake: Option<Handshake>,
}

#[derive(Debug)]
enum Handshake {
    /// By QUIC.
    Unproven,
    Proven {
        transport: Transport,
        /// Cancelled when somebody else was let in instead.
        displaced: CancellationToken,
    },
}

/// A peer that is in and has shown no right to anything yet. The places of such peers are
/// few: when there are too many, the oldest of the source that has most of them is closed.
#[derive(Debug)]
pub struct Stranger {
    budget: Arc<Budget>,
    source: Prefix,
    displaced: CancellationToken,
}

impl Stranger {
    /// The peer has shown a right: it keeps its place whoever else comes.
    pub fn admit(&self) {
        self.leave();
    }

    fn leave(&self) {
        self.budget.counts().strangers.leave(self.source, &self.displaced);
    }

    /// Waits until its place was given to somebody else; once it is admitted, for ever.
    pub(super) fn displaced(&self) -> impl Future<Output = ()> + use<> {
        self.displaced.clone().cancelled_owned()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.leave();
    }
}

impl Slot {
    /// Gives back the handshake's place and keeps the connection's.
    pub(super) fn established(&mut self) -> Stranger {
        let budget = Arc::clone(&self.budget);
        let most = budget.limits.connections / STRANGERS_SHARE;
        let mut counts = budget.counts();
        self.end_handshake(&mut counts);
        let displaced = CancellationToken::new();
        counts.strangers.enter(self.source, displaced.clone());
        if counts.strangers.len() > most.max(1)
            && let Some((source, _)) = counts.strangers.busiest()
            && let Some(oldest) = counts.strangers.oldest(source)
        {
            oldest.cancel();
        }
        drop(counts);
        Stranger { budget, source: self.source, displaced }
    }

    /// Tells whether the handshake's place was given to somebody else, who needed it more.
    pub(crate) fn is_displaced(&self) -> bool {
        self.place().is_some_and(CancellationToken::is_cancelled)
    }

    /// Waits until the handshake's place was given to somebody else.
    pub(crate) fn displaced(&self) -> impl Future<Output = ()> + use<> {
        let displaced = self.place().cloned();
        async move {
            match displaced {
                Some(displaced) => displaced.cancelled().await,
                None => std::future::pending().await,
            }
        }
    }

    fn place(&self) -> Option<&CancellationToken> {
        match &self.handshake {
            Some(Handshake::Proven { displaced, .. }) => Some(displaced),
            Some(Handshake::Unproven) | None => None,
        }
    }

    fn end_handshake(&mut self, counts: &mut Counts) {
        let was_in_progress = match self.handshake.take() {
            Some(Handshake::Proven { transport, displaced }) => {
                counts.arriving(transport).leave(self.source, &displaced)
            }
            Some(Handshake::Unproven) => {
                counts.unproven -= 1;
                true
            }
            None => false,
        };
        if was_in_progress {
            counts.end_handshake(self.source);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let budget = Arc::clone(&self.budget);
        let mut counts = budget.counts();
        self.end_handshake(&mut counts);
        counts.files -= self.files;
        let [_, one] = counts.of(self.source).map(|count| {
            count.connections -= 1;
            count.connections
        });
        if one == 0 {
            counts.sources.remove(&self.source);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Transport::{Quic, Tcp};

    const ROOMY: Limits = Limits {
        connections: 100,
        files: 100,
        connections_per_source: 100,
        handshakes: 100,
        handshakes_per_source: 100,
        retry_above: 100,
    };

    fn source(last: u8) -> Prefix {
        Prefix::of([192, 0, 2, last].into())
    }

    fn accepted(answer: Answer) -> Slot {
        match answer {
            Answer::Accept(slot) => slot,
            other => panic!("not accepted: {other:?}"),
        }
    }

    #[test]
    fn each_limit_refuses_with_its_own_reason() {
        for (limits, other_source_too, reason) in [
            (Limits { connections: 1, ..ROOMY }, true, Refusal::Full),
            (Limits { connections_per_source: 1, ..ROOMY }, false, Refusal::SourceFull),
            (Limits { handshakes: 1, ..ROOMY }, true, Refusal::Handshakes),
            (Limits { handshakes_per_source: 1, ..ROOMY }, false, Refusal::SourceHandshakes),
        ] {
            let budget = Budget::new(limits);
            let _held = accepted(budget.judge(source(1), Quic, true));
            let same = budget.judge(source(1), Quic, true);
            assert!(matches!(same, Answer::Refuse(why) if why == reason), "{limits:?}");
            let other = budget.judge(source(2), Quic, true);
            assert_eq!(matches!(other, Answer::Refuse(_)), other_source_too, "{limits:?}");
        }
    }

    #[test]
    fn the_busiest_source_makes_room_and_nobody_elses_handshake_is_touched() {
        for (by, other) in [(Tcp, Quic), (Quic, Tcp)] {
            let budget = Budget::new(Limits { handshakes: 4, ..ROOMY });
            let enter = |last| accepted(budget.judge(source(last), by, true));
            let full = |last| {
                let answer = budget.judge(source(last), by, true);
                assert!(matches!(answer, Answer::Refuse(Refusal::Handshakes)), "{answer:?}");
            };
            let busy = [1; 3].map(enter);
            let lone = enter(2);
            full(1);
            accepted(budget.judge(source(1), other, true));
            let newcomer = enter(3);
            let displaced = busy.each_ref().map(Slot::is_displaced);
            assert_eq!(displaced, [true, false, false], "the oldest");
            assert!(!lone.is_displaced() && !newcomer.is_displaced());
            let fifth = enter(4);
            assert!(busy[1].is_displaced() && !busy[2].is_displaced());
            // Nobody has more than the others.
            full(5);
            drop((busy, lone, newcomer, fifth));
            let mut counts = budget.counts();
            assert_eq!((counts.all.connections, counts.all.handshakes), (0, 0));
            assert_eq!((counts.handshakes(by), counts.arriving(by).busiest()), (0, None));
        }
    }

    #[test]
    fn nobody_makes_room_for_an_address_that_is_not_proven() {
        let budget = Budget::new(Limits { handshakes: 2, ..ROOMY });
        let busy = [(); 2].map(|()| accepted(budget.judge(source(1), Quic, true)));
        assert!(matches!(budget.judge(source(2), Quic, false), Answer::Retry));
        assert!(!busy.iter().any(Slot::is_displaced));
    }

    #[test]
    fn strangers_make_room_for_one_another_and_whoever_has_shown_a_right_stays() {
        let budget = Budget::new(Limits { connections: 16, ..ROOMY });
        let enter = |last, transport| {
            let mut slot = accepted(budget.judge(source(last), transport, true));
            let stranger = slot.established();
            (slot, stranger)
        };
        let known = enter(1, Quic);
        known.1.admit();
        let crowd = [Quic, Tcp, Quic].map(|transport| enter(1, transport));
        let lone = enter(2, Quic);
        let another = enter(3, Quic);
        let closed = |crowd: &[(Slot, Stranger)]| {
            crowd.iter().map(|(_, stranger)| stranger.displaced.is_cancelled()).collect::<Vec<_>>()
        };
        assert_eq!(closed(&crowd), [true, false, false], "the oldest of the busiest");
        let more = enter(1, Quic);
        assert_eq!(closed(&crowd), [true, true, false], "of its own");
        assert_eq!(closed(&[known, lone, another, more]), [false; 4]);
        drop(crowd);
        let counts = budget.counts();
        assert_eq!((counts.strangers.len(), counts.all.connections), (0, 0));
    }

    #[test]
    fn a_connection_by_tcp_takes_a_file_more() {
        let budget = Budget::new(Limits { files: 4, ..ROOMY });
        let by_tcp = accepted(budget.judge(source(1), Tcp, true));
        let _by_quic = accepted(budget.judge(source(1), Quic, true));
        let full = budget.judge(source(2), Tcp, true);
        assert!(matches!(full, Answer::Refuse(Refusal::Full)), "{full:?}");
        let _last = accepted(budget.judge(source(2), Quic, true));
        drop(by_tcp);
        accepted(budget.judge(source(2), Tcp, true));
    }

    #[test]
    fn a_finished_handshake_makes_room_for_the_next_one() {
        let budget = Budget::new(Limits { handshakes: 1, retry_above: 1, ..ROOMY });
        let mut first = accepted(budget.judge(source(1), Quic, false));
        assert!(matches!(budget.judge(source(1), Quic, false), Answer::Retry));
        let _stranger = first.established();
        accepted(budget.judge(source(1), Quic, false));
    }

    #[test]
    fn forged_addresses_leave_room_for_the_source_they_name() {
        let budget = Budget::new(Limits { handshakes_per_source: 3, retry_above: 2, ..ROOMY });
        let _forged = [(); 2].map(|()| accepted(budget.judge(source(1), Quic, false)));
        assert!(matches!(budget.judge(source(1), Quic, false), Answer::Retry));
        accepted(budget.judge(source(1), Quic, true));
    }

    #[test]
    fn an_unproven_peer_is_never_told_that_the_server_is_full() {
        let budget = Budget::new(Limits { connections: 0, ..ROOMY });
        assert!(matches!(budget.judge(source(1), Quic, false), Answer::Retry));
        assert!(matches!(budget.judge(source(1), Quic, true), Answer::Refuse(Refusal::Full)));
    }

    #[test]
    fn nothing_is_remembered_of_a_source_that_has_left() {
        let budget = Budget::new(ROOMY);
        let mut slots: Vec<_> = (0..9)
            .map(|last| accepted(budget.judge(source(last % 3), Quic, last % 2 == 0)))
            .collect();
        drop(slots[0].established());
        drop(slots);
        let counts = budget.counts();
        assert_eq!((counts.all.connections, counts.all.handshakes, counts.unproven), (0, 0, 0));
        assert_eq!((counts.files, counts.strangers.len()), (0, 0));
        assert!(counts.sources.is_empty());
    }
}
