//! How other threads reach the one that drives: a list of connections that want
//! to be served, an order, and an event that ends its sleep.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

/// Most events that one look at the sockets takes.
const EVENTS: usize = 256;

/// Token of the UDP socket's events.
const UDP: u64 = u64::MAX;

/// Token of the bell's own event.
const BELL: u64 = u64::MAX - 1;

/// How far the end of an endpoint has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Everybody is served.
    Open = 0,
    /// Nobody else is taken in.
    Draining = 1,
    /// Everybody is told that this is the end.
    Closing = 2,
    /// Nobody waits for the thread any more.
    Abandoned = 3,
}

/// What a look at the sockets saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) udp_in: bool,
    pub(super) udp_out: bool,
    pub(super) rung: bool,
    /// Keys of the desktops' sockets, each with what has changed there.
    pub(super) desktops: Vec<(usize, epoll::EventFlags)>,
}

/// The sockets of a driver, and the way to wake it.
pub(crate) struct Doorbell {
    epoll: OwnedFd,
    bell: OwnedFd,
    rung: Mutex<Vec<usize>>,
    stage: AtomicU8,
}

impl Doorbell {
    pub(super) fn new(udp: impl AsFd) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64;
        epoll::add(&epoll, udp, data(UDP), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &bell, data(BELL), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        Ok(Self { epoll, bell, rung: Mutex::default(), stage: AtomicU8::new(Stage::Open as u8) })
    }

    /// Has a connection served soon. The caller sees to it that each is in the list
    /// once at most.
    pub(super) fn ring(&self, key: usize) {
        let first = {
            let mut rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
            rung.push(key);
            rung.len() == 1
        };
        if first {
            self.wake();
        }
    }

    /// Goes on to a later stage; never back.
    pub(crate) fn order(&self, stage: Stage) {
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Acquire) {
            0 => Stage::Open,
            1 => Stage::Draining,
            2 => Stage::Closing,
            _ => Stage::Abandoned,
        }
    }

    /// Takes the connections that want to be served.
    pub(super) fn take(&self, into: &mut Vec<usize>) {
        into.clear();
        std::mem::swap(into, &mut self.rung.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Adds a desktop's socket; closing it takes it out. Each change is told once.
    pub(super) fn watch(&self, socket: impl AsFd, key: usize) -> io::Result<()> {
        use epoll::EventFlags as On;
        let data = epoll::EventData::new_u64(key as u64);
        Ok(epoll::add(&self.epoll, socket, data, On::IN | On::OUT | On::RDHUP | On::ET)?)
    }

    /// Takes a desktop's socket out that stays open.
    pub(super) fn forget(&self, socket: impl AsFd) {
        // Fails only where it is not in.
        let _ = epoll::delete(&self.epoll, socket);
    }

    /// Says whether the driver waits for room in the UDP socket.
    pub(super) fn await_room(&self, udp: impl AsFd, wanted: bool) -> io::Result<()> {
        let out = if wanted { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
        let data = epoll::EventData::new_u64(UDP);
        Ok(epoll::modify(&self.epoll, udp, data, epoll::EventFlags::IN | out)?)
    }

    /// Sleeps until something happens or `until`, which may be past.
    pub(super) fn sleep(
        &self,
        until: Option<Instant>,
        events: &mut Vec<epoll::Event>,
        seen: &mut Seen,
    ) -> io::Result<()> {
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now()).min(Duration::from_hours(1));
            Timespec::try_from(left).expect("an hour fits")
        });
        events.clear();
        events.reserve(EVENTS);
        match epoll::wait(&self.epoll, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        seen.desktops.clear();
        (seen.udp_in, seen.udp_out, seen.rung) = (false, false, false);
        for event in events {
            let flags = event.flags;
            match event.data.u64() {
                UDP => {
                    seen.udp_in |= flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::ERR);
                    seen.udp_out |= flags.contains(epoll::EventFlags::OUT);
                }
                BELL => seen.rung = true,
                key => seen.desktops.push((usize::try_from(key).unwrap_or(usize::MAX), flags)),
            }
        }
        Ok(())
    }

    fn wake(&self) {
        // Fails only when the counter is full: then it is awake.
        let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
    }
}
