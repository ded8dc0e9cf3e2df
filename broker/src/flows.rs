//! What the broker does when somebody asks: a login, a redeem, an end of a link.
//!
//! Each flow commits first and acts second; what it could not act on is found
//! again by [`crate::reconcile`].

pub mod assignment;
pub mod catalogue;
pub mod followup;
pub mod login;
pub mod redeem;
pub mod refusals;
pub mod returns;
pub mod revocations;
pub mod sign_in;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokens;
pub mod turnstile;
pub mod waiting;
