//! Servers that play a desktop with one habit. Each listens on a loopback port of its own and
//! ends with its handle.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::Result;
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

/// A listening TCP server.
pub struct FakeDesktop {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// Closing it ends the listener. A connection made to wake it would have to come from the
    /// host that it listens on, which is not always the one where it is dropped.
    bell: Option<UnixStream>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicUsize,
    ended: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
}

impl FakeDesktop {
    /// Sends `greeting` to whoever connects, then everything back that it receives.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn echo(greeting: &'static [u8]) -> Result<Self> {
        Self::start(move |stream| {
            stream.write_all(greeting)?;
            let mut reader = stream.try_clone()?;
            io::copy(&mut reader, stream).map(drop)
        })
    }

    /// Accepts connections and says nothing, ever.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn silent() -> Result<Self> {
        Self::start(|stream| io::copy(stream, &mut io::sink()).map(drop))
    }

    /// Accepts connections and closes each at once.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn brief() -> Result<Self> {
        Self::start(|_| Ok(()))
    }

    /// Accepts connections and reads nothing, ever.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn deaf() -> Result<Self> {
        Self::start(|stream| {
            let mut ends = [PollFd::new(stream, PollFlags::RDHUP)];
            poll(&mut ends, None)?;
            Ok(())
        })
    }

    /// Sends without end, as fast as its client takes it.
    ///
    /// # Errors
    ///
    /// When no port can be bound.
    pub fn flood() -> Result<Self> {
        Self::start(|stream| {
            let block = vec![0x55; 64 * 1024];
            loop {
                stream.write_all(&block)?;
            }
        })
    }

    /// Answers an RDP client's first packet by choosing standard RDP security, under which
    /// nobody looks at a certificate, then says nothing (MS-RDPBCGR 2.2.1.2.1). It takes the place
    /// of whoever listened on `port`.
    ///
    /// # Errors
    ///
    /// When the port cannot be bound.
    pub fn standard_rdp_security(port: u16) -> Result<Self> {
        const CONFIRM: [u8; 19] = [
            3, 0, 0, 19, // TPKT: version 3, 19 bytes
            14, 0xd0, 0, 0, 0x12, 0x34, 0, // X.224 connection confirm
            2, 0, 8, 0, 0, 0, 0, 0, // negotiation response, selectedProtocol 0
        ];
        Self::start_at(port, |stream| {
            let mut tpkt = [0; 4];
            stream.read_exact(&mut tpkt)?;
            let length = u64::from(u16::from_be_bytes([tpkt[2], tpkt[3]]));
            io::copy(&mut stream.take(length.saturating_sub(4)), &mut io::sink())?;
            stream.write_all(&CONFIRM)?;
            io::copy(stream, &mut io::sink()).map(drop)
        })
    }

    fn start<F>(habit: F) -> Result<Self>
    where
        F: Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    {
        Self::start_at(crate::port::free_tcp()?, habit)
    }

    fn start_at<F>(port: u16, habit: F) -> Result<Self>
    where
        F: Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        let (bell, rung) = UnixStream::pair()?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let habit = Arc::new(habit);
        let listener = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                loop {
                    let mut ends = [&listener as &dyn AsFd, &rung]
                        .map(|end| PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN));
                    // A signal that comes between is nobody's call.
                    let failed = poll(&mut ends, None).is_err_and(|error| error != Errno::INTR);
                    let is_over = failed || !ends[1].revents().is_empty();
                    while let Ok((stream, _)) = listener.accept() {
                        shared.serve(stream, &habit);
                    }
                    if is_over {
                        break;
                    }
                }
            }
        });
        Ok(Self { address, shared, bell: Some(bell), listener: Some(listener) })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Returns how many of them are still there.
    pub fn connected(&self) -> usize {
        // In this order, so that one that comes meanwhile is counted rather than missed.
        let ended = self.shared.ended.load(Ordering::SeqCst);
        self.accepted() - ended
    }

    /// Closes every connection, as a desktop that crashes does, and goes on listening.
    pub fn hang_up(&self) {
        for stream in self.shared.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn serve<F>(self: &Arc<Self>, mut stream: TcpStream, habit: &Arc<F>)
    where
        F: Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    {
        let Ok(copy) = stream.try_clone() else { return };
        self.open.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        self.accepted.fetch_add(1, Ordering::SeqCst);
        let (shared, habit) = (Arc::clone(self), Arc::clone(habit));
        thread::spawn(move || {
            // A client that goes away ends its own connection only.
            let _ = habit(&mut stream);
            let _ = stream.shutdown(Shutdown::Both);
            shared.ended.fetch_add(1, Ordering::SeqCst);
        });
    }
}

impl Drop for FakeDesktop {
    fn drop(&mut self) {
        self.bell = None;
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn connect(desktop: &FakeDesktop) -> TcpStream {
        let stream = TcpStream::connect(desktop.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
        let mut bytes = [0; N];
        stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_echo_greets_and_repeats_until_it_hangs_up() {
        let desktop = FakeDesktop::echo(b"moin").unwrap();
        let mut stream = connect(&desktop);
        assert_eq!(&read::<4>(&mut stream), b"moin");
        stream.write_all(b"abc").unwrap();
        assert_eq!(&read::<3>(&mut stream), b"abc");
        desktop.hang_up();
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(desktop.accepted(), 1);
    }

    #[test]
    fn a_silent_desktop_accepts_and_says_nothing() {
        let desktop = FakeDesktop::silent().unwrap();
        let mut stream = connect(&desktop);
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.write_all(b"anybody there?").unwrap();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn a_brief_desktop_closes_a_deaf_one_never_reads_and_a_flood_never_ends() {
        let brief = FakeDesktop::brief().unwrap();
        assert_eq!(connect(&brief).read(&mut [0; 1]).unwrap(), 0);

        let deaf = FakeDesktop::deaf().unwrap();
        let mut stream = connect(&deaf);
        stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let block = vec![0; 64 * 1024];
        let stuck = (0..10_000).find_map(|_| stream.write_all(&block).err()).unwrap();
        assert_eq!(stuck.kind(), io::ErrorKind::WouldBlock);

        let flood = FakeDesktop::flood().unwrap();
        let mut stream = connect(&flood);
        for _ in 0..1024 {
            assert_eq!(read::<4096>(&mut stream), [0x55; 4096]);
        }
        flood.hang_up();
        io::copy(&mut stream, &mut io::sink()).unwrap();
    }

    #[test]
    fn a_dropped_desktop_refuses_connections() {
        let desktop = FakeDesktop::silent().unwrap();
        let address = desktop.address();
        let mut stream = connect(&desktop);
        drop(desktop);
        assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "an open connection is closed");
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn a_desktop_of_old_security_chooses_protocol_zero() {
        let desktop = FakeDesktop::standard_rdp_security(crate::port::free_tcp().unwrap()).unwrap();
        let mut stream = connect(&desktop);
        // A connection request that offers TLS and NLA.
        stream.write_all(&[3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0]).unwrap();
        let answer: [u8; 19] = read(&mut stream);
        assert_eq!(answer[5], 0xd0, "a connection confirm");
        assert_eq!(answer[15..], [0, 0, 0, 0], "selectedProtocol");
    }
}
