//! Whether a desktop answers, and as whom.

use async_trait::async_trait;
use tegata_domain::desktop::Probe;

use crate::ports::store::ProbeTarget;

/// Looks at desktops from the outside. Never learns a pin: it says what it saw,
/// and the decision is the domain's.
#[async_trait]
pub trait Prober: Send + Sync + 'static {
    /// Connects and talks far enough to see the certificate; nothing where this machine
    /// lacks the means to look.
    async fn full(&self, target: &ProbeTarget) -> Option<Probe>;

    /// Only connects, and returns what that tells: nothing, too, where the desktop took
    /// the connection.
    async fn connect(&self, target: &ProbeTarget) -> Option<Probe>;
}
