//! Tegata's control plane: logins, assignment, tickets, pools, the admin API.
//!
//! [`flows`] is what happens when somebody asks, [`reconcile`] what heals by
//! itself. Both decide by `tegata-domain` and reach the outside through
//! [`ports`]; [`adapters`] are the ports' real sides. [`app`] puts it together.

pub mod adapters;
pub mod api;
pub mod app;
pub mod flows;
pub mod init;
pub mod metrics;
pub mod ports;
pub mod reconcile;
