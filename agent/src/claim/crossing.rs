//! The change from TCP to QUIC, while the link by TCP goes on carrying.
//!
//! A network that let no UDP pass may be left, or may have thought better of it. So
//! QUIC is tried now and then, and the session moves over as it would come back.

use std::time::Duration;

use tegata_proto::session::Right;
use tokio::time::Instant;

use super::{Claim, RESUME_DEADLINE, ask, dice};
use crate::agent::Agent;
use crate::comeback::Wish;
use crate::link::Field;
use crate::relay::Account;
use crate::session::{self, Session};

/// How long a link by TCP carries before QUIC is tried.
const FIRST: Duration = Duration::from_secs(15);

/// Longest pause between two tries.
const LONGEST: Duration = Duration::from_mins(1);

/// Which part of each pause is left to chance.
const CHANCE: u32 = 4;

/// When QUIC is tried next.
#[derive(Debug)]
pub(crate) struct Crossings {
    pause: Duration,
    due: Instant,
}

impl Crossings {
    /// Begins with a link by TCP.
    pub(crate) fn new(now: Instant) -> Self {
        Self { pause: FIRST, due: now + left_to_chance(FIRST, dice()) }
    }

    /// A try came to nothing.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(LONGEST);
        self.due = now + left_to_chance(self.pause, dice());
    }

    pub(crate) fn due(&self) -> Instant {
        self.due
    }
}

fn left_to_chance(pause: Duration, dice: u32) -> Duration {
    let share = pause / CHANCE;
    share * (CHANCE - 1) + share.mul_f64(f64::from(dice) / f64::from(u32::MAX))
}

impl Claim {
    /// Connects by QUIC to the gateway that has the desktop's connection, and goes on
    /// there; nothing where that fails, and the present link is as it was then, as far
    /// as this side knows. Dropped, it gives up what is on its way.
    pub(crate) async fn cross(&self, agent: &Agent, account: &Account) -> Option<Box<Session>> {
        let home = Field::by_quic(self.candidates(true));
        let (candidate, connection) = agent.dialler.race(&home).await.ok()?;
        let (link, grant) = self.another()?;
        self.kept().is_attaching = true;
        let resume = self.resume(Wish::Resume, account);
        let right = Right::Grant(grant);
        let attach = session::attach(&self.identity, right, link, resume.clone(), &connection);
        let came = match attach {
            Ok(attach) => match ask(connection, attach, RESUME_DEADLINE).await {
                Ok((attached, control)) => {
                    let resume = resume.as_ref();
                    self.taken(attached, control, link, &candidate, resume, account).await
                }
                Err(error) => Err(error),
            },
            Err(error) => Err(error.into()),
        };
        self.kept().is_attaching = false;
        came.inspect_err(|error| tracing::debug!(%link, %error, "QUIC did not take over"))
            .ok()
            .map(Box::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quic_is_tried_after_a_while_and_then_ever_more_seldom_by_chance() {
        let start = Instant::now();
        let mut crossings = Crossings::new(start);
        let mut before = start;
        for seconds in [15, 30, 60, 60] {
            let most = Duration::from_secs(seconds);
            let pause = crossings.due() - before;
            assert!((most * 3 / 4..=most).contains(&pause), "{pause:?} of {most:?}");
            before = crossings.due();
            crossings.failed(before);
        }
        assert_eq!(left_to_chance(FIRST, 0), FIRST * 3 / 4);
        assert_eq!(left_to_chance(FIRST, u32::MAX), FIRST);
    }
}
