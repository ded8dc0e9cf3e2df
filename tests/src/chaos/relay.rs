//! The sockets of a path: one before the server's clients, and one for each client
//! before the server.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};

use super::path::{Cause, Delivery, Fate};
use super::queue::Queue;
use super::schedule::Schedule;
use super::tally::{Tallies, Tally};

mod clients;

use clients::Clients;

/// Most clients at once; a new one takes the place of whoever was silent longest.
pub const CLIENTS_MAX: usize = 2_048;

/// Most datagrams that are taken from one socket before the others have their turn.
const BATCH: usize = 64;

/// Sockets that are looked at in one turn.
const EVENTS: usize = 256;

/// Longest datagram, in bytes.
const DATAGRAM_MAX: usize = 65_536;

/// Bytes that wait in the kernel for the relay, or for whoever it sends to.
const BUFFER: usize = 4 * 1024 * 1024;

/// Longest sleep, when nothing is due.
const SLEEP: Duration = Duration::from_hours(1);

/// How long the relay may take to hear what it is told.
const HEARS_WITHIN: Duration = Duration::from_secs(30);

/// What the events of the two sockets that are no client's are called; clients count
/// from 0.
const BELL: u64 = u64::MAX;
const DOOR: u64 = u64::MAX - 1;

/// A running relay; dropping it ends it, with what is under way.
pub struct Relay {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    orders: Mutex<Orders>,
    heard: Condvar,
    bell: OwnedFd,
}

struct Orders {
    /// The schedule, and when it began.
    schedule: Arc<Schedule>,
    began: Instant,
    /// How often the schedule was replaced.
    edition: u64,
    closing: bool,
    /// How often something was said, and how much of that was heard.
    said: u64,
    heard: u64,
    /// As they were when something was last heard.
    tallies: Tallies,
}

/// What the thread has.
struct Loop {
    door: UdpSocket,
    epoll: OwnedFd,
    shared: Arc<Shared>,
    /// The clock of the paths and the queue.
    began: Instant,
    clients: Clients,
    queue: Queue<To>,
    /// The edition of the schedule that was seen last, and its moves that were made.
    edition: u64,
    moves: usize,
    tallies: Tallies,
    room: Vec<u8>,
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy)]
enum To {
    /// To the server, from the socket of this client.
    Server(u64),
    /// To this client.
    Client(u64),
}

impl Relay {
    /// Listens at `listen` for clients of `server`.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub fn start(
        listen: SocketAddr,
        server: SocketAddr,
        seed: u64,
        schedule: Schedule,
    ) -> Result<Self> {
        Self::for_clients(CLIENTS_MAX, listen, server, seed, schedule)
    }

    fn for_clients(
        most: usize,
        listen: SocketAddr,
        server: SocketAddr,
        seed: u64,
        schedule: Schedule,
    ) -> Result<Self> {
        let door = UdpSocket::bind(listen).with_context(|| format!("cannot bind {listen}"))?;
        let address = door.local_addr()?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let began = Instant::now();
        let orders = Orders {
            schedule: Arc::new(schedule),
            began,
            edition: 0,
            closing: false,
            said: 0,
            heard: 0,
            tallies: Tallies::default(),
        };
        let shared = Arc::new(Shared { orders: Mutex::new(orders), heard: Condvar::new(), bell });
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        prepare(&door)?;
        epoll::add(&epoll, &door, EventData::new_u64(DOOR), EventFlags::IN)?;
        epoll::add(
            &epoll,
            &shared.bell,
            EventData::new_u64(BELL),
            EventFlags::IN | EventFlags::ET,
        )?;
        let mut state = Loop {
            door,
            epoll,
            shared: Arc::clone(&shared),
            began,
            clients: Clients::new(most, server, seed),
            queue: Queue::new(),
            edition: 0,
            moves: 0,
            tallies: Tallies::default(),
            room: vec![0; DATAGRAM_MAX],
        };
        let thread = thread::Builder::new().name("chaos".to_owned()).spawn(move || {
            state.run().expect("the kernel has sockets for every client");
        })?;
        Ok(Self { address, shared, thread: Some(thread) })
    }

    /// Replaces the schedule. It begins now, and all that is sent later goes by it.
    ///
    /// # Errors
    ///
    /// When the relay has ended.
    pub fn set(&self, schedule: Schedule) -> Result<()> {
        let heard = self.shared.say(|orders| {
            orders.schedule = Arc::new(schedule);
            orders.began = Instant::now();
            orders.edition += 1;
        });
        heard.map(drop)
    }

    /// Returns what became of everything so far.
    ///
    /// # Errors
    ///
    /// When the relay has ended.
    pub fn tallies(&self) -> Result<Tallies> {
        self.shared.say(|_| {})
    }

    /// Returns where clients send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.orders().closing = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // Its panic was printed; a drop adds nothing.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something and waits until it is heard.
    fn say(&self, what: impl FnOnce(&mut Orders)) -> Result<Tallies> {
        let mut orders = self.orders();
        what(&mut orders);
        orders.said += 1;
        let said = orders.said;
        self.wake();
        let deaf = |orders: &mut Orders| orders.heard < said;
        let waited = self.heard.wait_timeout_while(orders, HEARS_WITHIN, deaf);
        let (orders, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        ensure!(!waited.timed_out(), "the relay has ended");
        Ok(orders.tallies)
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is awake.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}

impl Loop {
    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            self.wait(&mut events)?;
            // Before anything is read: whoever changes the schedule may rely on it for what is
            // sent afterwards.
            let Some(schedule) = self.orders()? else { return Ok(()) };
            for event in &events {
                match event.data.u64() {
                    BELL => {}
                    DOOR => self.hear_clients(&schedule)?,
                    number => self.hear_server(number, &schedule),
                }
            }
            self.send_due();
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>) -> io::Result<()> {
        let now = self.began.elapsed();
        let left = self.queue.next_due().map_or(SLEEP, |due| due.saturating_sub(now).min(SLEEP));
        let timeout = Timespec::try_from(left).expect("an hour fits");
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the weather now, after the moves that it brought; nothing when it is over.
    fn orders(&mut self) -> io::Result<Option<(Arc<Schedule>, Duration)>> {
        let mut orders = self.shared.orders();
        if orders.closing {
            return Ok(None);
        }
        (orders.heard, orders.tallies) = (orders.said, self.tallies);
        self.shared.heard.notify_all();
        let (schedule, since) = (Arc::clone(&orders.schedule), orders.began.elapsed());
        if self.edition != orders.edition {
            (self.edition, self.moves) = (orders.edition, 0);
        }
        drop(orders);
        let moves = schedule.moves(since);
        if moves > self.moves {
            self.moves = moves;
            self.tallies.moves += 1;
            self.clients.move_all(&self.epoll)?;
        }
        Ok(Some((schedule, since)))
    }

    fn hear_clients(&mut self, (schedule, since): &(Arc<Schedule>, Duration)) -> io::Result<()> {
        for _ in 0..BATCH {
            let (length, address) = match self.door.recv_from(&mut self.room) {
                Ok(came) => came,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // What a client that is gone left behind.
                Err(_) => continue,
            };
            let now = self.began.elapsed();
            let number = self.clients.heard(address, &self.epoll, now)?;
            self.tallies.clients = self.clients.count();
            let Some(client) = self.clients.with_number(number) else { continue };
            let fate = client.there.fate(&schedule.at(*since).there, length, now);
            self.carry(To::Server(number), fate, length);
        }
        Ok(())
    }

    fn hear_server(&mut self, number: u64, (schedule, since): &(Arc<Schedule>, Duration)) {
        for _ in 0..BATCH {
            // A client may have been forgotten since the event came.
            let Some(client) = self.clients.with_number(number) else { return };
            let length = match client.socket.recv(&mut self.room) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // The server is gone, which is the client's to find out.
                Err(_) => continue,
            };
            let now = self.began.elapsed();
            let fate = client.back.fate(&schedule.at(*since).back, length, now);
            self.carry(To::Client(number), fate, length);
        }
    }

    /// Puts a datagram that lies in the room under way.
    fn carry(&mut self, to: To, fate: Fate, length: usize) {
        let tally = to.tally(&mut self.tallies);
        tally.came += 1;
        let (first, second) = match fate {
            Fate::Lost(cause) => {
                match cause {
                    Cause::Dark => tally.dark += 1,
                    Cause::TooLong => tally.too_long += 1,
                    Cause::Chance => tally.lost += 1,
                }
                return;
            }
            Fate::Carried { first, second } => (first, second),
        };
        tally.doubled += u64::from(second.is_some());
        tally.corrupted += u64::from(first.flipped.is_some());
        tally.overtaken += u64::from(first.overtaken);
        for Delivery { due, flipped, .. } in [Some(first), second].into_iter().flatten() {
            let mut datagram = self.room[..length].to_vec();
            if let Some(bit) = flipped {
                datagram[bit / 8] ^= 1 << (bit % 8);
            }
            if self.queue.push(due, to, datagram).is_err() {
                tally.crowded_out += 1;
            }
        }
    }

    fn send_due(&mut self) {
        let now = self.began.elapsed();
        while let Some((to, datagram)) = self.queue.pop(now) {
            let tally = to.tally(&mut self.tallies);
            let sent = match (to, self.clients.with_number(to.number())) {
                (_, None) => Err(ErrorKind::NotFound.into()),
                (To::Server(_), Some(client)) => client.socket.send(&datagram),
                (To::Client(_), Some(client)) => self.door.send_to(&datagram, client.address),
            };
            match sent {
                Ok(_) => tally.left += 1,
                Err(error) if error.kind() == ErrorKind::WouldBlock => tally.crowded_out += 1,
                Err(_) => tally.stranded += 1,
            }
        }
    }
}

impl To {
    fn number(self) -> u64 {
        match self {
            Self::Server(number) | Self::Client(number) => number,
        }
    }

    fn tally(self, tallies: &mut Tallies) -> &mut Tally {
        match self {
            Self::Server(_) => &mut tallies.there,
            Self::Client(_) => &mut tallies.back,
        }
    }
}

fn prepare(socket: &UdpSocket) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    set_socket_recv_buffer_size(socket, BUFFER)?;
    set_socket_send_buffer_size(socket, BUFFER)?;
    Ok(())
}

#[cfg(test)]
mod tests;
