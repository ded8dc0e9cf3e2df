//! Tegata's control plane: logins, assignment, tickets, pools, the admin API.
//! Tegata's control plane: logins, assignment, tickets, pools and the admin API.

pub mod ports;
