//! What the stories are told with: a [`site`] with its broker, [`staff`] who log
//! in with the real agent, an [`api`] for the administrator, and a [`stranger`]
//! who speaks the protocol by hand. [`bench`] measures with the same site.

pub mod api;
pub mod bench;
pub mod site;
pub mod staff;
pub mod stranger;
pub mod wait;
