//! Tegata's control plane: logins, assignment, tickets, pools, the admin API.

pub mod adapters;
pub mod ports;
