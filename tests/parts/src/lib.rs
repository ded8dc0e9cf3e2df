//! Real parts for tests: directories, desktops, viewers and the screens they paint on.
//!
//! Every part is an owned handle. Starting one picks free ports, waits (bounded) until the part
//! answers, and fails with the Debian package to install when a program is missing. Dropping it
//! ends exactly the processes it started and removes its folder; a guard process does the same for a
//! test that is killed. Nothing here knows Tegata: this crate depends on none of its crates.

pub mod balancer;
pub mod ca;
pub mod colour;
pub mod disk;
pub mod fake;
mod folder;
pub mod freerdp;
mod guard;
pub mod netns;
mod package;
pub mod peer;
pub mod port;
pub mod process;
pub mod screen;
pub mod shadow;
pub mod slapd;
pub mod streams;
mod wait;
pub mod wire;
pub mod xrdp;
