//! The door that both Tegata servers stand behind.
//!
//! It takes connections in, within budgets and deadlines, shows each ALPN the
//! certificate of its role and hands the finished connection to that role's
//! [`endpoint::Handler`]. It also holds what every server needs to be run:
//! supervised tasks, logs, metrics and the operations port.
//!
//! It knows no login and no ticket. Start with [`endpoint`]; a byte passes through
//! [`driver`] or [`tcp`], and [`connection`] is what both look like to a handler.

pub mod connection;
pub mod driver;
pub mod endpoint;
pub mod metrics;
pub mod network;
pub mod operations;
mod process;
pub mod retry;
pub mod source;
pub mod supervisor;
pub mod tcp;
pub mod telemetry;
pub mod tls;
pub mod wire;

pub use connection::Connection;
pub use endpoint::{Endpoint, EndpointConfig, Handler, Limits, Link, Role};
