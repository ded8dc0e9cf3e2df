//! Whether a name and a password are somebody's.
//!
//! Every refusal reads alike and is answered at a point of a fixed grid, so that
//! the text tells a stranger nothing about a name, nor does the time while the
//! directory answers within one step of the grid. A directory that cannot answer
//! is no refusal.

use std::sync::Arc;
use std::time::Duration;

use tegata_proto::code::Code;
use tegata_proto::id::RealmName;
use tegata_proto::login::Password;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::metrics::{Metrics, Phase};
use crate::ports::directory::{
    Directory, DirectoryError, LoginName, NonEmptyPassword, Person, Verdict,
};

/// Distance between the points at which refusals are answered.
pub const REFUSAL_GRID: Duration = Duration::from_millis(500);

/// Asks the realms' directories.
pub struct SignIn {
    /// In the order of the configuration; never empty.
    pub realms: Vec<Arc<dyn Directory>>,
    /// Where latencies are counted.
    pub metrics: Metrics,
}

impl SignIn {
    /// Returns the realms that a person may name.
    pub fn realms(&self) -> Vec<RealmName> {
        self.realms.iter().map(|directory| directory.realm().clone()).collect()
    }

    /// Returns the person whom name and password belong to.
    ///
    /// # Errors
    ///
    /// `refused` for everything that is wrong with name or password,
    /// `unavailable` where the directory could not be asked.
    pub async fn authenticate(&self, password: Password) -> Result<Person, Code> {
        let asked = Instant::now();
        let outcome = self.decide(password).await;
        if outcome == Err(Code::Refused) {
            tokio::time::sleep_until(next_point(asked, Instant::now())).await;
        }
        outcome
    }

    async fn decide(&self, password: Password) -> Result<Person, Code> {
        let Password { realm, name, password, .. } = password;
        let directory = match (&realm, &self.realms[..]) {
            (None, [only]) => only,
            (None, _) => return Err(Code::Refused),
            (Some(realm), all) => {
                all.iter().find(|directory| directory.realm() == realm).ok_or(Code::Refused)?
            }
        };
        let realm = directory.realm();
        let name = LoginName::new(&name).map_err(|_| Code::Refused)?;
        let password = NonEmptyPassword::new(password).map_err(|_| Code::Refused)?;

        let began = Instant::now();
        let found = directory.find(&name).await;
        self.metrics.directory(realm, "find", began.elapsed(), found.is_ok());
        let Some(found) = found.map_err(|error| unasked(&error))? else {
            info!(%realm, reason = "unknown", "Login refused");
            return Err(Code::Refused);
        };

        let began = Instant::now();
        let verdict = directory.verify(&found, &password).await;
        self.metrics.directory(realm, "verify", began.elapsed(), verdict.is_ok());
        self.metrics.phase(Phase::Directory, began.elapsed());
        match verdict.map_err(|error| unasked(&error))? {
            Verdict::Correct(person) if person.user == *found.user() => Ok(person),
            Verdict::Correct(_) => {
                warn!(%realm, user.id = %found.user(), "Directory answered with somebody else");
                Err(Code::Refused)
            }
            Verdict::Wrong { reason } => {
                info!(%realm, user.id = %found.user(), %reason, "Login refused");
                Err(Code::Refused)
            }
        }
    }
}

/// What a directory's failure is to a stranger.
fn unasked(error: &DirectoryError) -> Code {
    let code = match error {
        DirectoryError::Ambiguous { .. } => Code::Refused,
        DirectoryError::Unavailable { .. }
        | DirectoryError::TimedOut { .. }
        | DirectoryError::Busy { .. }
        | DirectoryError::Untrusted { .. }
        | DirectoryError::Misconfigured { .. } => Code::Unavailable,
    };
    warn!(error = error as &dyn std::error::Error, %code, "Directory gave no answer");
    code
}

/// Returns the first point of the grid after all work was done.
fn next_point(asked: Instant, done: Instant) -> Instant {
    let worked = done.saturating_duration_since(asked).as_millis();
    let points = worked / REFUSAL_GRID.as_millis() + 1;
    asked + REFUSAL_GRID.saturating_mul(u32::try_from(points).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_waits_for_the_next_point_of_the_grid() {
        let asked = Instant::now();
        for (worked_ms, answered_ms) in [(0, 500), (3, 500), (499, 500), (500, 1_000), (620, 1_000)]
        {
            let done = asked + Duration::from_millis(worked_ms);
            let wanted = asked + Duration::from_millis(answered_ms);
            assert_eq!(next_point(asked, done), wanted, "{worked_ms} ms");
        }
    }
}
