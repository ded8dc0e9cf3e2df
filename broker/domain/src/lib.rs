//! Tegata's pure decisions.
//!
//! Everything here is a function of state, event and `now`: it returns the next
//! state and what has to be done about it, and does nothing itself. The store
//! calls these functions inside its transactions, the flows and reconcilers
//! carry out the effects afterwards.
//!
//! [`session`] and [`desktop`] are the two state machines, [`assignment`] joins
//! them: it is what a store loads, steps and writes back. [`pool`] says how they
//! are configured, [`entitlement`] who may use what, [`placement`] which
//! desktop a person gets, [`ticket`] when a right is good, [`queue`] who waits.

pub mod assignment;
pub mod desktop;
pub mod entitlement;
pub mod group;
pub mod placement;
pub mod pool;
pub mod queue;
pub mod session;
pub mod ticket;
pub mod time;
