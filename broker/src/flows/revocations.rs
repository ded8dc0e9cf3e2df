//! Who loses their right to be here, told to the logins that are under way.
//!
//! Ending a person's sessions reaches what the store has. A login whose password was
//! good a moment ago is not in there yet: it may wait for a desktop for minutes.

use tegata_proto::code::Code;
use tegata_proto::id::UserId;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};

/// How many are kept for a login that does not listen for the moment. One that has
/// missed some is refused, and may be tried again.
const KEPT: usize = 256;

/// One person, or everybody.
type Whom = Option<UserId>;

/// Tells logins whose sessions are being ended.
#[derive(Debug)]
pub struct Revocations(broadcast::Sender<Whom>);

/// What one login hears from when it began on.
#[derive(Debug)]
pub struct Revoked(broadcast::Receiver<Whom>);

impl Default for Revocations {
    fn default() -> Self {
        Self(broadcast::Sender::new(KEPT))
    }
}

impl Revocations {
    /// Tells that this person's sessions, or everybody's, are to end. Whoever does so
    /// looks for sessions afterwards: a login that was stored before hears of it before it
    /// has a ticket, and one that has a ticket is found.
    pub fn tell(&self, whom: Option<UserId>) {
        // Nobody listens where nobody logs in.
        let _ = self.0.send(whom);
    }

    /// Listens from now on: before a password is checked.
    pub fn listen(&self) -> Revoked {
        Revoked(self.0.subscribe())
    }
}

impl Revoked {
    /// Waits until this person is revoked, or may have been, and returns what they are
    /// told. Loses nothing when it is dropped half-way.
    pub async fn of(&mut self, user: &UserId) -> Code {
        loop {
            match self.0.recv().await {
                Ok(whom) if !is(&whom, user) => {}
                Ok(_) => return Code::EndedByAdministrator,
                Err(RecvError::Lagged(_)) => return Code::Unavailable,
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    /// Returns what this person is told, if they have been revoked or may have been.
    pub fn has_come(&mut self, user: &UserId) -> Option<Code> {
        loop {
            match self.0.try_recv() {
                Ok(whom) if !is(&whom, user) => {}
                Ok(_) => return Some(Code::EndedByAdministrator),
                Err(TryRecvError::Lagged(_)) => return Some(Code::Unavailable),
                Err(TryRecvError::Empty | TryRecvError::Closed) => return None,
            }
        }
    }
}

fn is(whom: &Whom, user: &UserId) -> bool {
    whom.as_ref().is_none_or(|whom| whom == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_hears_of_its_person_and_of_everybody_from_its_beginning_on() {
        let [sato, tanaka] = ["honsho/1", "honsho/2"].map(|id| id.parse::<UserId>().unwrap());
        let revocations = Revocations::default();
        revocations.tell(Some(sato.clone()));
        let mut login = revocations.listen();
        assert_eq!(login.has_come(&sato), None, "that was before");
        revocations.tell(Some(tanaka.clone()));
        assert_eq!(login.has_come(&sato), None);
        revocations.tell(Some(sato.clone()));
        revocations.tell(Some(tanaka));
        assert_eq!(login.has_come(&sato), Some(Code::EndedByAdministrator));
        revocations.tell(None);
        assert_eq!(login.has_come(&sato), Some(Code::EndedByAdministrator));
        for _ in 0..=KEPT {
            revocations.tell(Some("honsho/3".parse().unwrap()));
        }
        assert_eq!(login.has_come(&sato), Some(Code::Unavailable), "it has not heard everything");
    }
}
