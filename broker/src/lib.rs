//! Tegata's control plane: logins, assignment, tickets, pools, the admin API.
//!
//! [`flows`] is what happens when somebody asks, [`reconcile`] what heals by
//! itself. Both decide by `tegata-domain` and reach the outside through
//! [`ports`]; [`adapters`] are the ports' real sides.

pub mod adapters;
pub mod flows;
pub mod metrics;
pub mod ports;
pub mod reconcile;
