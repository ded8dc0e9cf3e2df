//! The desktops of the demo and the viewer that looks at them without a screen.
//!
//! [`desktop`] serves a coloured RDP desktop with a clock on it, [`viewer`] connects to one and keeps
//! its first picture, [`timeline`] adds up what the agent and the viewer said about the time between.
//! None of this is part of the product, which never depends on this crate.

pub mod colour;
pub mod desktop;
pub mod fingerprint;
pub mod identity;
pub mod picture;
pub mod timeline;
pub mod viewer;
