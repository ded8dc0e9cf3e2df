//! What the broker needs from outside, each a trait.
//!
//! A port with more than one side has its contract suite beside it, which runs
//! against every adapter.

pub mod clock;
pub mod directory;
pub mod occupancy;
pub mod prober;
pub mod signer;
pub mod store;
