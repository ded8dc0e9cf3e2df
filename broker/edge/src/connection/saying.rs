//! What is said to a peer beside the bytes that are carried for it, by whoever carries
//! them: how far its own have got, without waking anybody, and one word of the handler's
//! at a time. Frames stay whole, whoever they are of.

use std::task::{Poll, Waker};

use tegata_proto::replay::{ACK_BYTES, Receipt};
use zeroize::Zeroizing;

use super::carrying::{Agent, Given};
use crate::wire::WireError;

/// Returns the frame that says how many bytes were written onward.
pub type Acknowledgement = fn(u64) -> Vec<u8>;

/// The mouth for one control stream.
pub(crate) struct Saying {
    acknowledgement: Acknowledgement,
    /// What is left of a frame that has begun.
    rest: Zeroizing<Vec<u8>>,
    /// Whether that is one of the handler's.
    is_word: bool,
    /// Whether the next acknowledgement is for fewer than [`ACK_BYTES`].
    is_due: bool,
    /// Whether nothing is taken any more.
    is_over: bool,
    waiting: Option<Waker>,
}

impl Saying {
    /// Goes on at the end of a frame.
    pub(crate) fn new(acknowledgement: Acknowledgement, rest: Zeroizing<Vec<u8>>) -> Self {
        let (is_word, is_due, is_over) = (false, false, false);
        Self { acknowledgement, rest, is_word, is_due, is_over, waiting: None }
    }

    /// Says as much as is taken now: what has begun, and what the peer must know.
    pub(crate) fn say(&mut self, agent: &mut impl Agent, receipt: &mut Receipt, lost: bool) {
        self.is_over |= lost;
        loop {
            while !self.rest.is_empty() && !self.is_over {
                match agent.say(&self.rest) {
                    Given::Some(bytes) => drop(self.rest.drain(..bytes)),
                    Given::Full => return,
                    Given::Gone => self.is_over = true,
                }
            }
            self.wake();
            if self.is_over {
                return;
            }
            // One that is silent keeps no room.
            (self.rest, self.is_word) = (Zeroizing::default(), false);
            let fewest = if std::mem::take(&mut self.is_due) { 1 } else { ACK_BYTES };
            if receipt.owed() < fewest {
                return;
            }
            self.rest = Zeroizing::new((self.acknowledgement)(receipt.say()));
        }
    }

    /// Has the peer told what it is owed, be it little.
    pub(crate) fn acknowledge(&mut self) {
        self.is_due = true;
    }

    /// Says no more, without another look at the stream.
    pub(crate) fn lose_agent(&mut self) {
        self.is_over = true;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }

    /// Takes a frame to say it; is done when the stream has taken all of it. Dropped
    /// half-way, the frame is forgotten unless it was taken.
    ///
    /// # Errors
    ///
    /// The peer takes nothing any more.
    pub(crate) fn poll(
        &mut self,
        frame: &mut Option<Zeroizing<Vec<u8>>>,
        waker: &Waker,
    ) -> Poll<Result<(), WireError>> {
        if self.is_over {
            return Poll::Ready(Err(WireError::Closed));
        }
        if frame.is_none() && !self.is_word {
            return Poll::Ready(Ok(()));
        }
        if self.rest.is_empty()
            && let Some(frame) = frame.take()
        {
            (self.rest, self.is_word) = (frame, true);
        }
        self.waiting = Some(waker.clone());
        Poll::Pending
    }

    /// Gives back what is left of a frame that has begun.
    pub(crate) fn into_rest(self) -> Zeroizing<Vec<u8>> {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;

    use super::*;
    use crate::connection::carrying::Taken;
    use crate::connection::hearing::Said;

    /// An agent that takes so many bytes now, and notes them.
    #[derive(Default)]
    struct Ear {
        room: usize,
        heard: Vec<u8>,
        is_gone: bool,
    }

    impl Agent for Ear {
        fn say(&mut self, bytes: &[u8]) -> Given {
            let some = self.room.min(bytes.len());
            if self.is_gone {
                return Given::Gone;
            }
            if some == 0 {
                return Given::Full;
            }
            self.room -= some;
            self.heard.extend_from_slice(&bytes[..some]);
            Given::Some(some)
        }

        fn hear(&mut self, _: usize) -> Said {
            Said::Nothing
        }

        fn take(&mut self, _: &mut VecDeque<Bytes>) -> Taken {
            Taken::Empty
        }

        fn carried(&mut self, _: usize) {}

        fn give(&mut self, _: Bytes) -> Given {
            Given::Full
        }

        fn finish(&mut self) -> bool {
            true
        }
    }

    fn acknowledgement(received: u64) -> Vec<u8> {
        format!("[ack {received}]").into_bytes()
    }

    fn saying() -> Saying {
        Saying::new(acknowledgement, Zeroizing::default())
    }

    fn put(saying: &mut Saying, frame: &mut Option<Zeroizing<Vec<u8>>>) -> Poll<bool> {
        saying.poll(frame, Waker::noop()).map(|said| said.is_ok())
    }

    #[test]
    fn much_is_acknowledged_at_once_and_little_when_it_is_due() {
        let (mut saying, mut receipt) = (saying(), Receipt::default());
        let mut ear = Ear { room: 100, ..Ear::default() };
        receipt.wrote(ACK_BYTES - 1);
        saying.say(&mut ear, &mut receipt, false);
        assert!(ear.heard.is_empty());
        receipt.wrote(1);
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!(ear.heard, acknowledgement(ACK_BYTES));
        ear.heard.clear();

        receipt.wrote(7);
        saying.say(&mut ear, &mut receipt, false);
        assert!(ear.heard.is_empty());
        saying.acknowledge();
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!(ear.heard, acknowledgement(ACK_BYTES + 7));
        saying.acknowledge();
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!(ear.heard, acknowledgement(ACK_BYTES + 7), "nothing is owed");
    }

    #[test]
    fn frames_stay_whole_however_few_bytes_are_taken_at_once() {
        let (mut saying, mut receipt) = (saying(), Receipt::default());
        let mut ear = Ear::default();
        let mut word = Some(Zeroizing::new(b"[a word]".to_vec()));
        receipt.wrote(ACK_BYTES);
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!(put(&mut saying, &mut word), Poll::Pending);
        assert!(word.is_some(), "an acknowledgement has begun");
        for _ in 0..acknowledgement(ACK_BYTES).len() {
            ear.room = 1;
            saying.say(&mut ear, &mut receipt, false);
        }
        assert_eq!(put(&mut saying, &mut word), Poll::Pending);
        assert!(word.is_none(), "it is begun with");
        receipt.wrote(ACK_BYTES);
        while put(&mut saying, &mut word).is_pending() {
            ear.room = 1;
            saying.say(&mut ear, &mut receipt, false);
        }
        for _ in 0..acknowledgement(2 * ACK_BYTES).len() {
            ear.room = 1;
            saying.say(&mut ear, &mut receipt, false);
        }
        let all =
            [acknowledgement(ACK_BYTES), b"[a word]".to_vec(), acknowledgement(2 * ACK_BYTES)];
        assert_eq!(ear.heard, all.concat());
    }

    #[test]
    fn a_word_is_said_though_the_next_acknowledgement_is_stuck() {
        let (mut saying, mut receipt) = (saying(), Receipt::default());
        let mut ear = Ear { room: 10, ..Ear::default() };
        let mut word = Some(Zeroizing::new(b"[a word]".to_vec()));
        assert_eq!(put(&mut saying, &mut word), Poll::Pending);
        receipt.wrote(ACK_BYTES);
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!(ear.heard, b"[a word][a");
        assert_eq!(put(&mut saying, &mut word), Poll::Ready(true));
        let mut next = Some(Zeroizing::new(b"[another]".to_vec()));
        assert_eq!(put(&mut saying, &mut next), Poll::Pending);
        assert!(next.is_some(), "an acknowledgement has begun");
    }

    #[test]
    fn what_has_begun_goes_on_where_it_is_given_to() {
        let (mut saying, mut receipt) = (saying(), Receipt::default());
        let mut ear = Ear { room: 3, ..Ear::default() };
        let mut word = Some(Zeroizing::new(b"[a word]".to_vec()));
        assert_eq!(put(&mut saying, &mut word), Poll::Pending);
        saying.say(&mut ear, &mut receipt, false);
        assert_eq!((&ear.heard[..], &saying.into_rest()[..]), (&b"[a "[..], &b"word]"[..]));
    }

    #[test]
    fn nobody_waits_for_an_agent_that_takes_nothing_any_more() {
        let gone = |ear: &mut Ear, lost| {
            let (mut saying, mut receipt) = (saying(), Receipt::default());
            let mut word = Some(Zeroizing::new(b"[a word]".to_vec()));
            assert_eq!(put(&mut saying, &mut word), Poll::Pending);
            saying.say(ear, &mut receipt, lost);
            put(&mut saying, &mut word)
        };
        assert_eq!(gone(&mut Ear { is_gone: true, ..Ear::default() }, false), Poll::Ready(false));
        assert_eq!(gone(&mut Ear::default(), true), Poll::Ready(false));
        assert_eq!(gone(&mut Ear::default(), false), Poll::Pending);
    }
}
