//! The door from outside: real sockets on loopback, real certificates, and
//! clients that behave well or badly.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on panics")]

mod certificates;
mod conversations;
mod drain;
mod house;
mod limits;
mod memory;
mod offers;
mod operations;
mod tcp;
