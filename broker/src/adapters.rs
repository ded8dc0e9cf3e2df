//! The ports' real counterparts. An adapter knows its port and no other adapter.

pub mod file;
pub mod ldap;
