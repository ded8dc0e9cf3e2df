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
//! desktop a person gets, [`ticket`] when a right is good.
//!
//! [`throttle`] says whose password may be tried, [`queue`] who waits and who is
//! next, [`gate`] who may go on; [`pace`], [`latency`] and [`rush`] are what they
//! know of the recent past.

pub mod assignment;
pub mod desktop;
pub mod entitlement;
pub mod gate;
pub mod group;
pub mod latency;
pub mod pace;
pub mod placement;
pub mod pool;
pub mod queue;
pub mod rush;
pub mod session;
pub mod throttle;
pub mod ticket;
pub mod time;
