//! A misbehaving client: tables of named sins against the login, session and
//! operations ports, each with the answer it gets.
//!
//! A new sin is one row of [`login`], [`session`], [`tickets`], [`grants`],
//! [`packets`], [`handshakes`], [`tcp`] or [`operations`]. Whatever the row, [`place`] checks after it
//! that the broker runs, that an honest client comes in meanwhile, that memory
//! is bounded and that each log line is one line.

use std::time::Duration;

use tegata_proto::code::Code;

pub mod change;
pub mod conversation;
pub mod crowd;
pub mod flood;
pub mod forge;
pub mod grants;
pub mod handshakes;
pub mod login;
pub mod operations;
pub mod packets;
pub mod place;
pub mod session;
pub mod tcp;
pub mod tickets;
pub mod vagrant;

/// What a peer may take beyond a deadline, on a machine that is busy with other
/// tests as well. A wait ends there; it is no measure of speed.
pub const SLACK: Duration = Duration::from_secs(20);

/// By when an honest client must be greeted, whatever goes on beside it: a second
/// and slack. A broker that waited for its sinners, one after the other, would be
/// too late for it with the fifth of them.
pub const HONEST: Duration = Duration::from_secs(1 + 20);

/// The broker's deadline for a handshake, a first frame, and a frame's delivery.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// What a sin gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This code in a frame.
    Code(Code),
    /// The connection closed without a word.
    Closed,
    /// The connection closed by QUIC itself, with this error (RFC 9000 §20.1), or by
    /// HTTP/2 (RFC 9113 §7).
    Transport(u64),
    /// The same, with one of two errors that are as good.
    EitherTransport(u64, u64),
    /// This HTTP status.
    Status(u16),
    /// One of two that are as good.
    EitherStatus(u16, u16),
    /// What an honest client gets.
    Served,
    /// Whatever it is, at a bounded cost.
    Endured,
}

impl Answer {
    /// Tells whether this is what was expected.
    pub fn is(self, given: Self) -> bool {
        match (self, given) {
            (Self::EitherTransport(one, other), Self::Transport(error)) => {
                error == one || error == other
            }
            (Self::EitherStatus(one, other), Self::Status(status)) => {
                status == one || status == other
            }
            (Self::Endured, _) => true,
            (expected, given) => expected == given,
        }
    }
}

/// Tells whether the full counts are asked for.
pub fn is_long() -> bool {
    std::env::var_os("TEGATA_LONG").is_some()
}

/// Returns the seed of everything random, and prints it.
pub fn seed() -> u64 {
    let given = std::env::var("TEGATA_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
    println!("seed {seed}: repeat with ./tests/run --seed {seed}");
    seed
}
