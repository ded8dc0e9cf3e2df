//! What became of datagrams, counted.

use serde::Serialize;

/// What became of the datagrams that went one way so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tally {
    /// Came to the relay.
    pub came: u64,
    /// Left it, doubles included.
    pub left: u64,
    /// Were lost because nothing arrived.
    pub dark: u64,
    /// Were lost because they were too long.
    pub too_long: u64,
    /// Were lost by chance.
    pub lost: u64,
    /// Were sent twice.
    pub doubled: u64,
    /// Had a wrong bit.
    pub corrupted: u64,
    /// Could be overtaken.
    pub overtaken: u64,
    /// Were lost because too many were under way, or the kernel took no more.
    pub crowded_out: u64,
    /// Were due when their client or its server was gone.
    pub stranded: u64,
}

/// What became of everything so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Tallies {
    /// Towards the server.
    pub there: Tally,
    /// Towards the clients.
    pub back: Tally,
    /// How many clients there were, those included that were forgotten.
    pub clients: u64,
    /// How often the clients' source ports changed.
    pub moves: u64,
}

impl Tally {
    /// Counts the faults that datagrams met.
    pub fn harmed(&self) -> u64 {
        let lost = self.dark + self.too_long + self.lost + self.crowded_out;
        lost + self.doubled + self.corrupted + self.overtaken
    }
}
