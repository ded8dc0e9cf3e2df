//! A path between clients and a server that is as bad as it is told to be, for
//! datagrams.
//!
//! The [`weather`] says what a path does to what goes one way; a [`path`] decides
//! what becomes of each datagram, by a seed and nothing else; a [`schedule`] changes
//! the weather as time goes by. None of the three knows a socket or a clock. The
//! [`relay`] does: it holds datagrams in a [`queue`] until they are due, and stands
//! before a server as a NAT would, with a source port for each client.

pub mod path;
pub mod queue;
pub mod relay;
pub mod schedule;
pub mod tally;
pub mod weather;
