//! What the stories are told with: a [`site`] with its broker, [`staff`] who log
//! in with the real agent, an [`api`] for the administrator, and a [`stranger`]
//! who speaks the protocol by hand.

pub mod api;
pub mod site;
pub mod staff;
pub mod stranger;
pub mod wait;
