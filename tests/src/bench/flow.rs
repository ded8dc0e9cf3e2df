//! Numbers that go to a desktop and come back without a pause, so that whatever happens on the
//! way shows: when it stood still, and whether each arrived once and in order.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::desktops::ECHO;

/// How far one number is behind the other.
pub(super) const TICK: Duration = Duration::from_millis(2);

/// Bytes of a number.
const NUMBER: usize = 8;

/// A desktop's stream with numbers under way.
pub(super) struct Flow {
    stopping: Arc<AtomicBool>,
    arrivals: Arc<Mutex<Vec<Instant>>>,
    sender: JoinHandle<Result<u64>>,
    receiver: JoinHandle<Result<u64>>,
}

impl Flow {
    /// Begins with the first number.
    pub(super) fn start(desktop: TcpStream) -> Result<Self> {
        let mut up = desktop.try_clone()?;
        up.write_all(&[ECHO])?;
        let stopping = Arc::new(AtomicBool::new(false));
        let arrivals = Arc::new(Mutex::new(Vec::new()));
        let (stop, noted) = (Arc::clone(&stopping), Arc::clone(&arrivals));
        let sender = thread::spawn(move || send(up, &stop));
        let receiver = thread::spawn(move || receive(desktop, &noted));
        Ok(Self { stopping, arrivals, sender, receiver })
    }

    /// Returns the longest time between two arrivals of which at least a part is after `since`.
    pub(super) fn longest_gap(&self, since: Instant) -> Duration {
        let arrivals = self.arrivals();
        let pairs = arrivals.windows(2).filter(|pair| pair[1] > since);
        let longest = pairs.map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        // One that is not over yet is as long as it is.
        longest.max(arrivals.last().map(Instant::elapsed).unwrap_or_default())
    }

    /// Waits for the first arrival after a time, at most so long, and returns when it was.
    pub(super) fn next_arrival(&self, after: Instant, patience: Duration) -> Result<Instant> {
        let until = Instant::now() + patience;
        loop {
            let found = self.arrivals().iter().rev().take_while(|at| **at > after).last().copied();
            if let Some(found) = found {
                return Ok(found);
            }
            ensure!(!self.receiver.is_finished(), "the desktop's stream has ended");
            ensure!(Instant::now() < until, "nothing has arrived for {patience:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Sends no more, waits for what is under way, and returns how many numbers were sent and
    /// came back, each in its place.
    pub(super) fn end(self) -> Result<(u64, u64)> {
        self.stopping.store(true, Ordering::Relaxed);
        let ended = |thread: JoinHandle<Result<u64>>| {
            thread.join().map_err(|_| anyhow!("a thread of the flow panicked"))?
        };
        Ok((ended(self.sender)?, ended(self.receiver)?))
    }

    fn arrivals(&self) -> MutexGuard<'_, Vec<Instant>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn send(mut up: TcpStream, stop: &AtomicBool) -> Result<u64> {
    let (mut next, mut sent) = (Instant::now(), 0_u64);
    while !stop.load(Ordering::Relaxed) {
        up.write_all(&sent.to_le_bytes()).context("the desktop takes no more")?;
        sent += 1;
        // What could not be sent in time is not made up for.
        next = (next + TICK).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    up.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Receives until the stream ends, and returns how many numbers came.
fn receive(mut down: TcpStream, arrivals: &Mutex<Vec<Instant>>) -> Result<u64> {
    let mut number = [0; NUMBER];
    for expected in 0_u64.. {
        match down.read_exact(&mut number) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(expected),
            Err(error) => return Err(error).context("the desktop says no more"),
        }
        let came = u64::from_le_bytes(number);
        ensure!(came == expected, "{came} came in place of {expected}");
        arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
    }
    Ok(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_number_that_is_missing_or_doubled_is_seen() {
        for numbers in [&[0_u64, 1, 3][..], &[0, 1, 1], &[1]] {
            let (near, mut far) = pair();
            for number in numbers {
                far.write_all(&number.to_le_bytes()).unwrap();
            }
            drop(far);
            assert!(receive(near, &Mutex::default()).is_err(), "{numbers:?}");
        }
        let (near, mut far) = pair();
        far.write_all(&[0; 12]).unwrap();
        drop(far);
        assert_eq!(receive(near, &Mutex::default()).unwrap(), 1, "half a number is none");
    }

    #[test]
    fn what_stands_still_shows_as_a_gap() {
        let (near, mut far) = pair();
        let desktop = thread::spawn(move || {
            let (mut wish, mut number) = ([0], [0; NUMBER]);
            far.read_exact(&mut wish).unwrap();
            for n in 0.. {
                if n == 20 {
                    thread::sleep(Duration::from_millis(200));
                }
                if far.read_exact(&mut number).is_err() {
                    return;
                }
                far.write_all(&number).unwrap();
            }
        });
        let flow = Flow::start(near).unwrap();
        let begun = Instant::now();
        let first = flow.next_arrival(begun, Duration::from_secs(5)).unwrap();
        while flow.arrivals().len() < 30 {
            flow.next_arrival(Instant::now(), Duration::from_secs(5)).unwrap();
        }
        assert!(flow.longest_gap(first) >= Duration::from_millis(150));
        let (sent, came) = flow.end().unwrap();
        assert_eq!(sent, came);
        desktop.join().unwrap();
    }
}
