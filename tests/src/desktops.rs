//! Desktops by the thousand: they speak plain TCP and do what the first byte asks for.
//!
//! All of them are one listener: every address of `127.0.0.0/8` leads to it, so a pool may have as
//! many desktops as it likes, each at an address of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::time::interval;

use crate::bench::{Counter, call};

/// Sends back what follows.
pub const ECHO: u8 = b'e';
/// Sends without end.
pub const SOURCE: u8 = b's';
/// Takes without end, and counts.
pub const SINK: u8 = b'k';
/// Sends a little, [`TICKS`] times a second.
pub const TICK: u8 = b't';
/// Sends what a telephone does, as [`crate::bench`] has it.
pub const CALL: u8 = b'c';
/// The same, on a desktop whose picture moves.
pub const CALL_AND_PICTURE: u8 = b'p';

/// How often a desktop ticks in a second.
pub const TICKS: u32 = 10;

/// Bytes of a tick.
const TICK_BYTES: usize = 64;

/// The first address; the others follow it.
const FIRST: u32 = 0x7f40_0001; // 127.64.0.1

/// Bytes that bulk is read and written by.
const PIECE: usize = 64 * 1024;

/// Most bytes that are echoed at once.
const ECHO_MAX: usize = 256;

/// Running desktops. Those that echo have a thread of their own, so that bulk never makes them wait.
pub struct Desktops {
    port: u16,
    /// Where they tick without being asked.
    ticking: u16,
    taken: Counter,
    /// Ends them when they are dropped.
    _runtimes: [Runtime; 2],
}

impl Desktops {
    /// Starts them, with so many threads for bulk.
    ///
    /// # Errors
    ///
    /// When there is no thread or no port.
    pub fn start(bulk_threads: usize) -> Result<Self> {
        let (quiet, busy) = (runtime("echoes", 1)?, runtime("bulk", bulk_threads)?);
        let listener = quiet.block_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        let port = listener.local_addr()?.port();
        let unasked = quiet.block_on(TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
        let ticking = unasked.local_addr()?.port();
        let taken = Counter::default();
        let (serving, bulk) = (quiet.handle().clone(), busy.handle().clone());
        let counter = taken.clone();
        quiet.spawn(async move {
            // A desktop that cannot take another connection shows as a failed dial.
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    serving.spawn(serve(stream, bulk.clone(), counter.clone()));
                }
            }
        });
        let here = quiet.handle().clone();
        quiet.spawn(async move {
            loop {
                if let Ok((stream, _)) = unasked.accept().await {
                    here.spawn(tick(stream));
                }
            }
        });
        Ok(Self { port, ticking, taken, _runtimes: [quiet, busy] })
    }

    /// Returns the address of the desktop with this number.
    pub fn address(&self, number: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(FIRST + number), self.port))
    }

    /// Returns the address of the one with this number that ticks without being asked.
    pub fn ticking_address(&self, number: u32) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::from(FIRST + number), self.ticking))
    }

    /// Returns what all sinks have counted.
    pub(crate) fn taken(&self) -> Counter {
        self.taken.clone()
    }
}

fn runtime(name: &str, threads: usize) -> Result<Runtime> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    Ok(runtime.worker_threads(threads).thread_name(name).enable_all().build()?)
}

/// Serves one connection until it ends, however that comes about.
async fn serve(mut stream: TcpStream, bulk: Handle, taken: Counter) {
    let _ = stream.set_nodelay(true);
    match stream.read_u8().await {
        Ok(ECHO) => echo(stream).await,
        Ok(TICK) => tick(stream).await,
        Ok(CALL) => call::speak(stream, call::Picture::Still).await,
        Ok(CALL_AND_PICTURE) => call::speak(stream, call::Picture::Moving).await,
        Ok(wish @ (SOURCE | SINK)) => {
            let Ok(stream) = stream.into_std() else { return };
            bulk.spawn(async move {
                match TcpStream::from_std(stream) {
                    Ok(stream) if wish == SOURCE => pour(stream).await,
                    Ok(stream) => take(stream, taken).await,
                    Err(_) => {}
                }
            });
        }
        Ok(_) | Err(_) => {}
    }
}

async fn echo(mut stream: TcpStream) {
    // Small, since thousands of desktops may wait here for somebody to come.
    let mut piece = [0; ECHO_MAX];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        if stream.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}

async fn tick(mut stream: TcpStream) {
    let mut beat = interval(Duration::from_secs(1) / TICKS);
    while stream.write_all(&[0; TICK_BYTES]).await.is_ok() {
        beat.tick().await;
    }
}

async fn pour(mut stream: TcpStream) {
    let piece = vec![0; PIECE];
    while stream.write_all(&piece).await.is_ok() {}
}

async fn take(mut stream: TcpStream, taken: Counter) {
    let mut piece = vec![0; PIECE];
    while let Ok(count @ 1..) = stream.read(&mut piece).await {
        taken.add(count);
    }
}
