//! The thin-client program of Tegata, as a library.
//!
//! [`Agent`] makes connections and holds nothing of a person; one process may
//! run hundreds of logins through one of them. [`Agent::login`] turns a name and
//! a password into a ticket, [`Agent::attach`] turns the ticket into a
//! [`Session`], whose stream carries the desktop's bytes. [`run`] puts a viewer
//! behind that stream, as the program does.
//!
//! What is decided is decided without input or output: [`login`] for the
//! conversation with the broker, [`attach`] for the tries at the gateways,
//! [`comeback`] for those after a link is lost, [`viewer::x224`] for the first bytes
//! of the desktop.

pub mod agent;
pub mod announcer;
pub mod arguments;
pub mod attach;
mod claim;
pub mod comeback;
pub mod config;
pub mod doctor;
mod errand;
pub mod identity;
mod input;
pub mod link;
pub mod login;
pub mod memory;
mod network;
pub mod password;
pub mod progress;
mod pulse;
mod relay;
pub mod run;
pub mod session;
pub mod trust;
pub mod viewer;
pub mod words;

#[cfg(test)]
mod office;

pub use agent::Agent;
pub use identity::Identity;
pub use login::Wishes;
pub use session::Session;
pub use trust::Authority;
