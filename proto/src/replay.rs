//! What a side keeps of a channel's bytes, so that a session goes on over another
//! link with no byte lost or doubled.
//!
//! Offsets count the bytes of one channel in one direction since the desktop was
//! dialled. [`Replay`] is the sender's window: what the other side has not yet
//! acknowledged. [`Receipt`] is the receiver's account of what it has written
//! onward, and of when to say so. Both decide only, and neither copies a byte.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

/// After how many bytes a receiver acknowledges.
pub const ACK_BYTES: u64 = 256 * 1024;

/// After how long a receiver acknowledges fewer than [`ACK_BYTES`].
pub const ACK_DELAY: Duration = Duration::from_millis(100);

/// How many chunks a window keeps, however short they are: each costs some hundred bytes
/// beside its own.
const CHUNKS_MAX: usize = 16 * 1024;

/// Whether anything is kept and acknowledged. Only `tegata-bench replay` builds programs that do
/// not, to compare with: their sessions end with their link.
const KEEPS: bool = !cfg!(keeps_nothing);

/// The bytes of one direction that may have to be sent again.
///
/// INVARIANT: `acknowledged <= sent <= highest <= end`; `chunks` follow one another
/// without a gap up to `end`, the first one reaches beyond `acknowledged`, and
/// `next` is the one that `sent` lies in.
#[derive(Debug)]
pub struct Replay {
    limit: u64,
    /// Each with the offset of its first byte.
    chunks: VecDeque<(u64, Bytes)>,
    acknowledged: u64,
    sent: u64,
    /// What was sent on any link.
    highest: u64,
    end: u64,
    next: usize,
}

/// An offset that the other side cannot have reached, or that is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("offset {offset} is not among {from} to {to}")]
pub struct BadOffset {
    /// What was said.
    pub offset: u64,
    /// The lowest offset that could be gone back to.
    pub from: u64,
    /// The highest one that was sent.
    pub to: u64,
}

impl Replay {
    /// Starts with nothing, to keep about `limit` bytes in a limited number of chunks.
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            chunks: VecDeque::new(),
            acknowledged: 0,
            sent: 0,
            highest: 0,
            end: 0,
            next: 0,
        }
    }

    /// Tells whether more may be [`push`](Self::push)ed. What is pushed then may
    /// exceed the limit by its own length.
    pub fn has_room(&self) -> bool {
        self.end - self.acknowledged < self.limit && self.chunks.len() < CHUNKS_MAX
    }

    /// Appends bytes to be sent.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        let start = self.end;
        self.end += bytes.len() as u64;
        self.chunks.push_back((start, bytes));
    }

    /// Returns bytes to send next; nothing when all there are were sent.
    pub fn unsent(&self) -> Option<Bytes> {
        let (start, bytes) = self.chunks.get(self.next)?;
        // Within the chunk, so it fits.
        let skipped = usize::try_from(self.sent - start).ok()?;
        Some(bytes.slice(skipped..))
    }

    /// Notes that so many of the unsent bytes were sent.
    pub fn advance(&mut self, bytes: usize) {
        self.sent = self.sent.saturating_add(bytes as u64).min(self.end);
        self.highest = self.highest.max(self.sent);
        while let Some((start, bytes)) = self.chunks.get(self.next)
            && start + bytes.len() as u64 <= self.sent
        {
            self.next += 1;
        }
        if !KEEPS {
            self.chunks.drain(..self.next);
            self.next = 0;
            self.acknowledged = self.sent;
        }
    }

    /// Forgets what the other side has written onward, by its word on the present
    /// link. An offset that was acknowledged before changes nothing.
    ///
    /// # Errors
    ///
    /// Refuses what was not sent on the present link: what the other side had from
    /// the one before, it has said when this one began.
    pub fn acknowledge(&mut self, offset: u64) -> Result<(), BadOffset> {
        if offset > self.sent {
            return Err(self.bad(offset));
        }
        self.acknowledged = self.acknowledged.max(offset);
        while let Some((start, bytes)) = self.chunks.front()
            && start + bytes.len() as u64 <= self.acknowledged
        {
            self.chunks.pop_front();
            self.next = self.next.saturating_sub(1);
        }
        if self.chunks.is_empty() {
            // An idle session keeps nothing.
            self.chunks = VecDeque::new();
        }
        Ok(())
    }

    /// Begins a new link to a side that has written so much onward: what it has not
    /// is sent again.
    ///
    /// # Errors
    ///
    /// Refuses an offset whose following bytes are forgotten, and what was never
    /// sent. Nothing is changed then.
    pub fn resume(&mut self, offset: u64) -> Result<(), BadOffset> {
        if !self.may_resume(offset) {
            return Err(self.bad(offset));
        }
        self.go_to(offset);
        self.acknowledge(offset)
    }

    /// Tells whether [`resume`](Self::resume) would succeed.
    pub fn may_resume(&self, offset: u64) -> bool {
        (self.acknowledged..=self.highest).contains(&offset)
    }

    /// Returns how many bytes the other side has written onward, by its word.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Returns how many bytes were pushed.
    pub fn end(&self) -> u64 {
        self.end
    }

    fn go_to(&mut self, offset: u64) {
        self.sent = offset;
        self.next =
            self.chunks.partition_point(|(start, bytes)| start + bytes.len() as u64 <= offset);
    }

    fn bad(&self, offset: u64) -> BadOffset {
        BadOffset { offset, from: self.acknowledged, to: self.highest }
    }
}

/// What a receiver has written onward, and has said of it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    written: u64,
    said: u64,
}

impl Receipt {
    /// Counts bytes that were written onward.
    pub fn wrote(&mut self, bytes: u64) {
        self.written += bytes;
    }

    /// Returns how many there were in all.
    pub fn written(self) -> u64 {
        self.written
    }

    /// Returns how many of them the other side has not been told of: one is said
    /// within [`ACK_DELAY`], [`ACK_BYTES`] at once.
    pub fn owed(self) -> u64 {
        if KEEPS { self.written - self.said } else { 0 }
    }

    /// Returns what to acknowledge, and notes that it is said.
    pub fn say(&mut self) -> u64 {
        self.said = self.written;
        self.written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A byte that tells its offset.
    fn byte(offset: u64) -> u8 {
        offset
            .to_le_bytes()
            .iter()
            .fold(7, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(*byte))
    }

    fn bytes(from: u64, length: u64) -> Bytes {
        (from..from + length).map(byte).collect()
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again() {
        let mut replay = Replay::new(10);
        assert!(replay.unsent().is_none());
        replay.push(bytes(0, 4));
        replay.push(bytes(4, 4));
        assert_eq!(replay.unsent(), Some(bytes(0, 4)));
        replay.advance(6);
        assert_eq!(replay.unsent(), Some(bytes(6, 2)));
        replay.resume(3).expect("kept");
        assert_eq!(replay.unsent(), Some(bytes(3, 1)));
        replay.advance(1);
        assert_eq!(replay.unsent(), Some(bytes(4, 4)));
        replay.resume(6).expect("kept, and sent on the link before");
        assert_eq!(replay.unsent(), Some(bytes(6, 2)));
    }

    #[test]
    fn offsets_that_cannot_be_are_refused_and_change_nothing() {
        let mut replay = Replay::new(10);
        replay.push(bytes(0, 8));
        replay.advance(6);
        replay.acknowledge(2).expect("sent");
        let bad = |offset| BadOffset { offset, from: 2, to: 6 };
        for offset in [7, 8, 9, u64::MAX] {
            assert_eq!(replay.acknowledge(offset), Err(bad(offset)));
            assert_eq!(replay.resume(offset), Err(bad(offset)));
        }
        assert_eq!(replay.resume(1), Err(bad(1)), "forgotten");
        assert_eq!(replay.acknowledge(1), Ok(()), "said before");
        assert_eq!(replay.unsent(), Some(bytes(6, 2)));
        replay.resume(3).expect("kept");
        assert!(replay.acknowledge(5).is_err(), "sent on the link before, not on this one");
        assert_eq!(replay.unsent(), Some(bytes(3, 5)));
    }

    #[test]
    fn a_full_window_has_no_room_until_something_is_acknowledged() {
        let mut replay = Replay::new(10);
        replay.push(bytes(0, 9));
        assert!(replay.has_room());
        replay.push(bytes(9, 9));
        assert!(!replay.has_room());
        replay.advance(18);
        replay.acknowledge(8).expect("sent");
        assert!(!replay.has_room(), "ten bytes are kept");
        replay.acknowledge(9).expect("sent");
        assert!(replay.has_room());
    }

    #[test]
    fn a_window_of_many_small_chunks_is_full_before_its_bytes_are() {
        let mut replay = Replay::new(u64::MAX);
        let mut pushed = 0;
        while replay.has_room() && pushed <= CHUNKS_MAX {
            replay.push(Bytes::from_static(b"x"));
            pushed += 1;
        }
        assert_eq!(pushed, CHUNKS_MAX);
        replay.advance(pushed);
        replay.acknowledge(1).expect("sent");
        assert!(replay.has_room());
    }

    #[test]
    fn a_receipt_owes_what_was_written_and_not_said() {
        let mut receipt = Receipt::default();
        receipt.wrote(1);
        receipt.wrote(9);
        assert_eq!((receipt.written(), receipt.owed()), (10, 10));
        assert_eq!(receipt.say(), 10);
        receipt.wrote(2);
        assert_eq!((receipt.written(), receipt.owed()), (12, 2));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push(u64),
        Send(usize),
        /// Of what the receiver has but has not said.
        Acknowledge,
        /// A link is lost with what is on its way, and another begins.
        Resume {
            lost: u64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..50_u64).prop_map(Step::Push),
            (0..80_usize).prop_map(Step::Send),
            Just(Step::Acknowledge),
            (0..60_u64).prop_map(|lost| Step::Resume { lost }),
        ]
    }

    proptest! {
        /// A receiver that writes what arrives in order has every byte once,
        /// however links come and go.
        #[test]
        fn no_byte_is_lost_or_doubled(steps in prop::collection::vec(step(), 0..200)) {
            let mut replay = Replay::new(100);
            let mut pushed = 0;
            let mut received = Vec::new();
            for step in steps {
                match step {
                    Step::Push(length) if replay.has_room() => {
                        replay.push(bytes(pushed, length));
                        pushed += length;
                    }
                    Step::Push(_) => {}
                    Step::Send(most) => {
                        if let Some(chunk) = replay.unsent() {
                            let some = most.min(chunk.len());
                            received.extend_from_slice(&chunk[..some]);
                            replay.advance(some);
                        }
                    }
                    Step::Acknowledge => {
                        prop_assert_eq!(replay.acknowledge(received.len() as u64), Ok(()));
                    }
                    Step::Resume { lost } => {
                        let kept = (received.len() as u64).saturating_sub(lost);
                        let kept = kept.max(replay.acknowledged);
                        received.truncate(usize::try_from(kept).expect("a test's length"));
                        prop_assert_eq!(replay.resume(kept), Ok(()));
                    }
                }
                prop_assert!(replay.end() - replay.acknowledged <= 150);
            }
            while let Some(chunk) = replay.unsent() {
                received.extend_from_slice(&chunk);
                replay.advance(chunk.len());
            }
            prop_assert_eq!(received, bytes(0, pushed).to_vec());
        }
    }
}
