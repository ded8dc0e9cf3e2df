//! The ports' real sides. An adapter knows its port and no other adapter.

pub mod file;
pub mod ldap;
pub mod sqlite;
