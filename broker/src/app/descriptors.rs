//! How many files this process may have open, and how many people that makes.
//!
//! A session holds one descriptor, the socket of its desktop, and one more for its
//! agent's where that comes by TCP. Everything else has a bound of its own; what is
//! left over is for sessions. So a newcomer too
//! many is turned away at the door, and nobody inside runs out.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tegata_edge::endpoint::Limits;
use tracing::warn;

/// What the process has open besides sessions and directories: the operations
/// port 128, probes 128, the site's programs 8 with 4 each, the store 24, and what
/// a runtime, its sockets and its logs need, twice over.
const RESERVED: u64 = 384;

/// Fewer sessions than this are not worth starting for.
const SESSIONS_MIN: u64 = 16;

/// The limit of open files is too low.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of open files is {limit}, and at least {needed} are needed")]
pub struct TooFew {
    /// What is allowed.
    limit: u64,
    /// What is needed.
    needed: u64,
}

/// Raises this process's limit of open files as far as it may, and returns it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn raise() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// Fits the limits of each of `doors` endpoints into a process that may have
/// `limit` files open, `directories` of them for directories.
///
/// # Errors
///
/// Refuses a limit that leaves nothing worth having.
pub(super) fn fit(
    limits: Limits,
    doors: usize,
    directories: usize,
    limit: u64,
) -> Result<Limits, TooFew> {
    let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
    let taken = RESERVED.saturating_add(count(directories));
    let needed = taken.saturating_add(SESSIONS_MIN);
    if limit < needed {
        return Err(TooFew { limit, needed });
    }
    let each = (limit - taken) / count(doors.max(1));
    let files = usize::try_from(each).unwrap_or(usize::MAX);
    let connections = limits.connections.min(files);
    if connections < limits.connections {
        let wanted = limits.connections;
        warn!(limit, wanted, connections, "The limit of open files allows fewer connections");
    }
    Ok(Limits { connections, files, ..limits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_cut_to_what_the_limit_leaves() {
        let wanted = Limits::default();
        let files = ((1 << 20) - 384 - 32) / 2;
        assert_eq!(fit(wanted, 2, 32, 1 << 20), Ok(Limits { files, ..wanted }), "there is room");
        let cut = |connections| Ok(Limits { connections, files: connections, ..wanted });
        assert_eq!(fit(wanted, 1, 32, 1024), cut(1024 - 384 - 32));
        assert_eq!(fit(wanted, 2, 32, 1024), cut((1024 - 384 - 32) / 2), "shared by two doors");
        let small = Limits { connections: 10, ..wanted };
        assert_eq!(fit(small, 1, 0, 1024), Ok(Limits { files: 1024 - 384, ..small }));
    }

    #[test]
    fn a_limit_that_leaves_no_room_for_people_is_refused() {
        let wanted = Limits::default();
        assert!(fit(wanted, 1, 0, 400).is_ok());
        assert_eq!(fit(wanted, 1, 0, 399), Err(TooFew { limit: 399, needed: 400 }));
        assert_eq!(fit(wanted, 1, 32, 431), Err(TooFew { limit: 431, needed: 432 }));
    }
}
