//! Which way leads to a peer: the race of its addresses and of both transports.
//!
//! QUIC goes first, TCP follows after a short while, or at once where UDP did not
//! get through the last time. Only handshakes race: whoever gets a connection has
//! one, and all others are dropped.

use std::io;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn::{Endpoint, TransportConfig};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::task::TaskTracker;

use super::patience::Patience;
use super::{
    Candidate, Connection, Fault, HANDSHAKE_DEADLINE, LinkError, Transport, next_of, quic, tcp,
};
use crate::trust::Authority;

/// How long one address is ahead of the next (RFC 8305 §5 recommends 250 ms and
/// allows 100 ms to 2 s).
const HEAD_START: Duration = Duration::from_millis(200);

/// How long QUIC is ahead of TCP.
const QUIC_HEAD_START: Duration = Duration::from_millis(500);

/// How often an agent that insists begins another handshake, and how long each may
/// take: a packet that was lost in an outage is not waited for.
const INSIST_PAUSE: Duration = Duration::from_millis(200);
const INSIST_DEADLINE: Duration = Duration::from_millis(1500);

/// With how many of them one by TCP is begun.
const TCP_BEATS: u32 = 2;

/// How long a connection by TCP waits for one by QUIC after an outage, whose end
/// either may notice first: longer than the pause between two tries.
const QUIC_PREFERENCE: Duration = Duration::from_millis(300);

/// Makes connections. Clones share what they know.
#[derive(Debug, Clone)]
pub(crate) struct Dialler {
    endpoint: Endpoint,
    authority: Authority,
    transport: Arc<TransportConfig>,
    /// What moves the bytes of connections by TCP.
    tasks: TaskTracker,
    /// Whether the last race was won by TCP, though QUIC took part.
    is_udp_out: Arc<AtomicBool>,
}

/// Who takes part in a race, in the order in which they start.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    /// Those to be reached by QUIC.
    pub(crate) quic: Vec<Candidate>,
    /// Those to be reached by TCP.
    pub(crate) tcp: Vec<Candidate>,
}

impl Field {
    /// Every candidate by either transport.
    pub(crate) fn of(candidates: Vec<Candidate>) -> Self {
        Self { quic: candidates.clone(), tcp: candidates }
    }

    /// Every candidate by QUIC alone.
    pub(crate) fn by_quic(candidates: Vec<Candidate>) -> Self {
        Self { quic: candidates, tcp: Vec::new() }
    }

    /// Leaves out those at the address of a connection that turned out to be silent,
    /// by its transport; and by QUIC if it is by TCP, as a network that carries TCP
    /// badly carries no UDP.
    pub(crate) fn without(&self, silent: (&Candidate, Transport)) -> Self {
        let others = |candidates: &[Candidate]| {
            let other = |candidate: &&Candidate| candidate.address != silent.0.address;
            candidates.iter().filter(other).cloned().collect()
        };
        let tcp = match silent.1 {
            Transport::Quic => self.tcp.clone(),
            Transport::Tcp => others(&self.tcp),
        };
        Self { quic: others(&self.quic), tcp }
    }

    /// Tells whether nobody takes part.
    pub(crate) fn is_empty(&self) -> bool {
        self.quic.is_empty() && self.tcp.is_empty()
    }

    fn len(&self) -> usize {
        self.quic.len().max(self.tcp.len())
    }
}

type Made = Result<(Candidate, Connection), LinkError>;

impl Dialler {
    pub(crate) fn new(endpoint: Endpoint, authority: Authority) -> Self {
        Self {
            endpoint,
            authority,
            transport: Arc::new(quic::transport()),
            tasks: TaskTracker::new(),
            is_udp_out: Arc::default(),
        }
    }

    /// Returns one whose connections by QUIC find out whether datagrams of this size pass.
    pub(crate) fn measuring(&self, datagram: u16) -> Self {
        Self { transport: Arc::new(quic::measuring(datagram)), ..self.clone() }
    }

    /// Puts every connection by QUIC on a new socket, from which they go on over
    /// whatever way the system has now.
    ///
    /// # Errors
    ///
    /// Fails when the system gives no socket; the old one is kept then.
    pub(crate) fn rebind(&self) -> io::Result<()> {
        quic::rebind(&self.endpoint)
    }

    /// Waits until the peers have been told that their connections are closed.
    pub(crate) async fn wait_idle(&self) {
        self.tasks.close();
        tokio::join!(self.endpoint.wait_idle(), self.tasks.wait());
    }

    /// Tells whether UDP is known not to get through.
    pub(crate) fn is_udp_out(&self) -> bool {
        self.is_udp_out.load(Ordering::Relaxed)
    }

    /// Connects to each candidate in turn, each [`HEAD_START`] ahead of the next and
    /// QUIC ahead of TCP, and returns the first connection that is made and believed.
    pub(crate) async fn race(&self, field: &Field) -> Made {
        let begun = Instant::now();
        let head_start = if self.is_udp_out() { Duration::ZERO } else { QUIC_HEAD_START };
        let mut lanes = [
            Lane::new(Transport::Quic, &field.quic, begun),
            Lane::new(Transport::Tcp, &field.tcp, begun + head_start),
        ];
        let mut running = JoinSet::new();
        // A peer that answered wrongly says more than one that did not answer.
        let mut worst = LinkError::Unreachable { tried: field.len(), source: None };
        loop {
            let now = Instant::now();
            let [quic, tcp] = &mut lanes;
            if quic.is_over() {
                tcp.due = tcp.due.min(now);
            }
            for lane in &mut lanes {
                if let Some(candidate) = lane.starts(now) {
                    let transport = lane.transport;
                    let dialled = self.dial_twice(transport, candidate.clone());
                    running.spawn(async move { (transport, dialled.await) });
                }
            }
            if lanes.iter().all(Lane::is_over) {
                return Err(worst);
            }
            let next = lanes.iter().filter_map(Lane::next_start).min();
            tokio::select! {
                Some(dialled) = next_of(&mut running) => match dialled {
                    (_, Ok(made)) => return Ok(self.won(made, field)),
                    (transport, Err(error)) => {
                        worst = worst.or_worse(error, field.len());
                        let lane = lanes.iter_mut().find(|lane| lane.transport == transport);
                        lane.into_iter().for_each(Lane::failed);
                    }
                },
                () = sleep_until(next.unwrap_or(now)), if next.is_some() => {}
            }
        }
    }

    /// Connects to all candidates at once, again and again without waiting for the last
    /// time to fail, until one is there and believed, or `until` has come. A peer that has
    /// answered is waited for: after an outage everybody insists, and each further handshake
    /// would hold up the others. It is not waited for elsewhere, as it may be a stranger.
    pub(crate) async fn insist(&self, field: &Field, until: Instant) -> Made {
        let is_udp_out = self.is_udp_out();
        let tcp_from = Instant::now() + if is_udp_out { Duration::ZERO } else { QUIC_HEAD_START };
        let mut running: JoinSet<Made> = JoinSet::new();
        let mut beat = interval(INSIST_PAUSE);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut beats = 0;
        let each = |candidates: &[Candidate]| -> Vec<_> {
            let patience = || Patience::new(INSIST_DEADLINE);
            candidates.iter().map(|candidate| (candidate.clone(), patience())).collect()
        };
        let (quic, tcp) = (each(&field.quic), each(&field.tcp));
        let mut worst = LinkError::Unreachable { tried: field.len(), source: None };
        // What TCP has made, and when it is good enough.
        let mut kept: Option<((Candidate, Connection), Instant)> = None;
        loop {
            let good_enough = kept.as_ref().map_or(until, |(_, then)| *then);
            tokio::select! {
                biased;
                () = sleep_until(good_enough) => return match kept {
                    Some((made, _)) => Ok(self.won(made, field)),
                    None => Err(worst),
                },
                Some(dialled) = next_of(&mut running) => match dialled {
                    Ok(made) if made.1.transport() == Transport::Tcp && !is_udp_out => {
                        kept.get_or_insert((made, Instant::now() + QUIC_PREFERENCE));
                    }
                    Ok(made) => return Ok(self.won(made, field)),
                    Err(error) => worst = worst.or_worse(error, field.len()),
                },
                now = beat.tick() => {
                    let mut begin = |transport, candidate: &Candidate, patience: &Patience| {
                        if !patience.is_answered() {
                            let patience = patience.clone();
                            running.spawn(self.shake(transport, candidate.clone(), patience));
                        }
                    };
                    for (candidate, patience) in &quic {
                        begin(Transport::Quic, candidate, patience);
                    }
                    if now >= tcp_from && kept.is_none() {
                        let is_its_turn = beats % TCP_BEATS == 0;
                        for (candidate, patience) in tcp.iter().filter(|_| is_its_turn) {
                            let is_answered_by_quic = quic.iter().any(|(other, patience)| {
                                other.address == candidate.address && patience.is_answered()
                            });
                            if !is_answered_by_quic {
                                begin(Transport::Tcp, candidate, patience);
                            }
                        }
                        beats += 1;
                    }
                }
            }
        }
    }

    /// Makes a connection to one candidate by one transport.
    pub(crate) fn dial(
        &self,
        transport: Transport,
        candidate: Candidate,
    ) -> impl Future<Output = Made> + Send + use<> {
        self.shake(transport, candidate, Patience::new(HANDSHAKE_DEADLINE))
    }

    /// Makes a connection to one candidate by one transport. Whoever does not answer gets
    /// another handshake: of the first, a bad line may have lost every packet.
    fn dial_twice(
        &self,
        transport: Transport,
        candidate: Candidate,
    ) -> impl Future<Output = Made> + Send + use<> {
        let dialler = self.clone();
        async move {
            match dialler.dial(transport, candidate.clone()).await {
                Err(LinkError::Unreachable { source: Some(Fault::TimedOut), .. }) => {
                    dialler.dial(transport, candidate).await
                }
                made => made,
            }
        }
    }

    fn shake(
        &self,
        transport: Transport,
        candidate: Candidate,
        patience: Patience,
    ) -> impl Future<Output = Made> + Send + use<> {
        let Self { endpoint, authority, transport: limits, tasks, .. } = self.clone();
        async move {
            let whom = candidate.clone();
            let made = match transport {
                Transport::Quic => quic::dial(endpoint, authority, limits, whom, patience).await,
                Transport::Tcp => tcp::dial(authority, tasks, whom, patience).await,
            };
            made.map(|connection| (candidate, connection))
        }
    }

    /// Remembers what a race has shown of UDP.
    fn won(&self, made: (Candidate, Connection), field: &Field) -> (Candidate, Connection) {
        match made.1.transport() {
            Transport::Quic => self.is_udp_out.store(false, Ordering::Relaxed),
            Transport::Tcp if field.quic.is_empty() => {}
            Transport::Tcp => self.is_udp_out.store(true, Ordering::Relaxed),
        }
        made
    }
}

/// The candidates of one transport.
struct Lane<'a> {
    transport: Transport,
    rest: slice::Iter<'a, Candidate>,
    /// When the next one starts.
    due: Instant,
    running: usize,
}

impl<'a> Lane<'a> {
    fn new(transport: Transport, candidates: &'a [Candidate], due: Instant) -> Self {
        Self { transport, rest: candidates.iter(), due, running: 0 }
    }

    /// Returns who starts now.
    fn starts(&mut self, now: Instant) -> Option<&'a Candidate> {
        if now < self.due {
            return None;
        }
        let candidate = self.rest.next()?;
        self.due = now + HEAD_START;
        self.running += 1;
        Some(candidate)
    }

    /// One has failed, so the next one need not wait.
    fn failed(&mut self) {
        self.running -= 1;
        self.due = self.due.min(Instant::now());
    }

    fn next_start(&self) -> Option<Instant> {
        (self.rest.len() > 0).then_some(self.due)
    }

    fn is_over(&self) -> bool {
        self.rest.len() == 0 && self.running == 0
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    #[tokio::test]
    async fn who_insists_is_not_held_up_by_a_stranger_who_answers_first() {
        let mut office = crate::office::Office::new();
        let gateway = office.gateway(|_, _| async { Ok(()) });
        let (good, wire) = office.wire(gateway.addresses[0]);
        wire.set_delay(Duration::from_millis(50));
        // Its first datagram is an answer, and the last of its certificate comes later.
        let names: Vec<_> = (0..100).map(|n| format!("tegata:gateway/somebody-else-{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let leaf = crate::office::Ca::new().issue(&names);
        let stranger = office.serve(&leaf, tegata_proto::ALPN_SESSION, |_, _| async { Ok(()) });
        let (stranger, wire) = office.wire(stranger);
        wire.set_delay(Duration::from_millis(20));
        let field = Field::of(Candidate::of(&gateway, [stranger, good]));
        let until = Instant::now() + Duration::from_secs(5);
        let outcome = office.agent().dialler.insist(&field, until).await;
        assert_eq!(outcome.expect("it is there").0.address, good);
    }

    #[tokio::test]
    async fn who_insists_does_not_wait_for_a_handshake_to_fail() {
        let office = crate::office::Office::new();
        let agent = office.agent();
        let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        nobody.set_nonblocking(true).expect("a socket");
        let leaf = office.ca.issue(&["tegata:gateway/g1"]);
        let address = nobody.local_addr().expect("bound");
        let id = tegata_proto::id::GatewayId::new("g1").expect("a name");
        let spki_sha256 = leaf.spki_sha256();
        let gateway = tegata_proto::login::Gateway { id, addresses: vec![address], spki_sha256 };
        let candidates = Candidate::of(&gateway, gateway.addresses.clone());
        let until = Instant::now() + INSIST_PAUSE * 5 / 2;
        let outcome = agent.dialler.insist(&Field::of(candidates), until).await;
        assert!(matches!(outcome, Err(LinkError::Unreachable { tried: 1, .. })));
        // RFC 9000 §17.2: the connection id that a client has drawn for the server.
        let mut handshakes = std::collections::BTreeSet::new();
        let mut datagram = [0; 2048];
        while let Ok(length) = nobody.recv(&mut datagram) {
            let id_length = usize::from(datagram[5]);
            assert!(length > 6 + id_length, "a long header");
            handshakes.insert(datagram[6..6 + id_length].to_vec());
        }
        assert_eq!(handshakes.len(), 3, "at once, and after one pause and two");
    }
}
