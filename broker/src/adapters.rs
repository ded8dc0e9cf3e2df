//! The ports' real sides. An adapter knows its port and no other adapter.

pub mod command;
pub mod desktop_probe;
pub mod file;
pub mod key_file;
pub mod ldap;
pub mod sqlite;
pub mod system_clock;
