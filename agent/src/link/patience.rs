//! How long handshakes with one peer are waited for that are begun one beside the other.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a handshake may take, of which others may be begun beside it.
#[derive(Debug, Clone)]
pub(super) struct Patience {
    /// Until the peer's first answer.
    until_answer: Duration,
    answers: watch::Sender<usize>,
}

/// A peer that has answered, until its handshake is over.
pub(super) struct Answered(watch::Sender<usize>);

impl Patience {
    pub(super) fn new(until_answer: Duration) -> Self {
        Self { until_answer, answers: watch::Sender::new(0) }
    }

    /// Waits for the peer's first answer. Gives up in favour of another handshake that
    /// is answered.
    pub(super) async fn answer<T>(&self, first: impl Future<Output = T>) -> Option<(T, Answered)> {
        let mut others = self.answers.subscribe();
        tokio::select! {
            biased;
            first = timeout(self.until_answer, first) => {
                let first = first.ok()?;
                self.answers.send_modify(|answers| *answers += 1);
                Some((first, Answered(self.answers.clone())))
            }
            _ = others.wait_for(|answers| *answers > 0) => None,
        }
    }

    /// Tells whether the peer of one has answered.
    pub(super) fn is_answered(&self) -> bool {
        *self.answers.borrow() > 0
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.send_modify(|answers| *answers -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    const WHILE: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_the_handshakes_without_one_and_is_waited_for() {
        let patience = Patience::new(WHILE);
        let unanswered = patience.answer(pending::<()>());
        let answered = patience.answer(ready(7));
        let (none, some) = tokio::join!(unanswered, answered);
        let (seven, waited_for) = some.expect("it is answered");
        assert!(none.is_none() && seven == 7 && patience.is_answered());
        assert!(patience.answer(pending::<()>()).await.is_none(), "and none is begun beside it");
        drop(waited_for);
        assert!(!patience.is_answered());
    }

    #[tokio::test(start_paused = true)]
    async fn without_an_answer_a_handshake_ends_after_a_while_and_leaves_nothing() {
        let patience = Patience::new(WHILE);
        assert!(patience.answer(pending::<()>()).await.is_none());
        assert!(!patience.is_answered());
    }
}
