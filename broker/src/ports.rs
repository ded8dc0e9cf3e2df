//! What the broker needs from outside, each a trait with its contract suite.

pub mod store;
