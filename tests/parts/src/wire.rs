//! A wire to a part that goes bad on demand: what is sent to one loopback port
//! arrives at another, as long as the wire is good.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Result;

/// How a wire does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Habit {
    /// Everything arrives.
    Good,
    /// Connections are accepted, and nothing arrives either way until it is good again.
    Silent,
    /// Each piece of an answer arrives so much later.
    Late(Duration),
    /// Connections are closed as soon as they are made.
    Cut,
}

/// A wire.
pub struct Wire {
    address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    to: SocketAddr,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    habit: Habit,
    closing: bool,
    open: Vec<TcpStream>,
}

/// Which way a byte goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    There,
    Back,
}

impl Wire {
    /// Lays a good wire to a port on loopback.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn to(port: u16) -> Result<Self> {
        Self::between(crate::port::free_tcp()?, port)
    }

    /// The same, from a port that is free to one.
    ///
    /// # Errors
    ///
    /// When it cannot be bound.
    pub fn between(here: u16, port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, here))?;
        let address = listener.local_addr()?;
        let state = State { habit: Habit::Good, closing: false, open: Vec::new() };
        let to = (Ipv4Addr::LOCALHOST, port).into();
        let shared = Arc::new(Shared { to, state: Mutex::new(state), changed: Condvar::new() });
        let listener = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                while let Ok((stream, _)) = listener.accept() {
                    if shared.state().closing {
                        break;
                    }
                    // One that breaks off ends itself only.
                    let _ = shared.join(stream);
                }
            }
        });
        Ok(Self { address, shared, listener: Some(listener) })
    }

    /// Returns where it begins.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes the wire good or bad, for connections that are open too.
    pub fn set(&self, habit: Habit) {
        let mut state = self.shared.state();
        state.habit = habit;
        if habit == Habit::Cut {
            hang_up(&mut state);
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closing = true;
        hang_up(&mut state);
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the listener, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Shared {
    fn join(self: &Arc<Self>, near: TcpStream) -> io::Result<()> {
        if self.state().habit == Habit::Cut {
            return near.shutdown(Shutdown::Both);
        }
        let far = TcpStream::connect(self.to)?;
        let ends = [near.try_clone()?, far.try_clone()?];
        self.state().open.extend(ends);
        let (near_back, far_back) = (near.try_clone()?, far.try_clone()?);
        for (way, from, to) in [(Way::There, near, far), (Way::Back, far_back, near_back)] {
            let shared = Arc::clone(self);
            thread::spawn(move || {
                let _ = shared.carry(way, &from, &to);
                let _ = to.shutdown(Shutdown::Write);
                let _ = from.shutdown(Shutdown::Read);
            });
        }
        Ok(())
    }

    fn carry(&self, way: Way, mut from: &TcpStream, mut to: &TcpStream) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        loop {
            let length = from.read(&mut piece)?;
            if length == 0 {
                return Ok(());
            }
            match self.when_not_silent() {
                Habit::Late(by) if way == Way::Back => thread::sleep(by),
                Habit::Good | Habit::Late(_) | Habit::Silent => {}
                Habit::Cut => return Ok(()),
            }
            to.write_all(&piece[..length])?;
        }
    }

    fn when_not_silent(&self) -> Habit {
        let silent = |state: &mut State| state.habit == Habit::Silent && !state.closing;
        let state = self.changed.wait_while(self.state(), silent);
        state.unwrap_or_else(PoisonError::into_inner).habit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn hang_up(state: &mut State) {
    for stream in state.open.drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::fake::FakeDesktop;

    fn connect(wire: &Wire) -> TcpStream {
        let stream = TcpStream::connect(wire.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn says(stream: &mut TcpStream, text: &[u8]) -> io::Result<()> {
        stream.write_all(text)?;
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, text);
        Ok(())
    }

    #[test]
    fn a_wire_is_good_until_it_is_told_otherwise() {
        let far = FakeDesktop::echo(b"").unwrap();
        let wire = Wire::to(far.address().port()).unwrap();
        let mut stream = connect(&wire);
        says(&mut stream, b"good").unwrap();

        wire.set(Habit::Late(Duration::from_millis(100)));
        let began = Instant::now();
        says(&mut stream, b"late").unwrap();
        assert!(began.elapsed() >= Duration::from_millis(100), "not before it may");

        wire.set(Habit::Silent);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let error = says(&mut stream, b"held").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        wire.set(Habit::Good);
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut back = [0; 4];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"held", "what was held back arrives");

        wire.set(Habit::Cut);
        assert_eq!(stream.read(&mut back).unwrap_or(0), 0);
        assert_eq!(connect(&wire).read(&mut back).unwrap_or(0), 0);
    }
}
