//! The gateway: verifies tickets with public keys only, asks its broker to
//! redeem them, dials the desktop it is told, and carries the session's bytes.
//!
//! It never sees a password, a signing key or the store, because it depends on
//! none of them, and it never reads what it carries. In one process with the
//! broker it is given a [`redeem::Broker`] and handed links by the edge.
//!
//! Start with [`handler`], which takes an agent to an accepted link, then
//! [`carry`]. Bytes cross from QUIC to TCP in the edge's driver, which is given the
//! two ends by [`carry`].

pub mod bounds;
pub mod carry;
pub mod dial;
pub mod handler;
pub mod metrics;
pub mod proof;
pub mod redeem;
pub mod relay;
pub mod sessions;
pub mod standing;
pub mod verify;
