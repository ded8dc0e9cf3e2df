//! Which desktop a person gets.

use tegata_proto::id::UserId;

use crate::desktop::{Desktop, State};

/// The answer to a person who may use the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement<T> {
    /// Back to the desktop they hold.
    Return(T),
    /// A free one.
    Take(T),
    /// None is free now; one may become so.
    Wait,
}

/// Decides between the desktop that the person holds and the free one that has
/// been idle longest.
///
/// Whoever holds one gets that one, whatever else is free: two would break
/// invariant I2. Both candidates come from the store, which orders by idle time.
pub fn place<T>(held: Option<T>, longest_idle: Option<T>) -> Placement<T> {
    match (held, longest_idle) {
        (Some(own), _) => Placement::Return(own),
        (None, Some(free)) => Placement::Take(free),
        (None, None) => Placement::Wait,
    }
}

/// Picks the candidates for [`place`] out of a whole pool.
///
/// The store does the same by index; this is what it has to agree with.
pub fn candidates<'a, T: Copy>(
    user: &UserId,
    desktops: impl IntoIterator<Item = (T, &'a Desktop)>,
) -> (Option<T>, Option<T>) {
    let (mut held, mut idle) = (None, None);
    for (id, desktop) in desktops {
        if desktop.is_held_by(user) {
            held = Some(id);
        }
        if let State::Ready { since } = desktop.state
            && idle.is_none_or(|(_, best)| since < best)
        {
            idle = Some((id, since));
        }
    }
    (held, idle.map(|(id, _)| id))
}
