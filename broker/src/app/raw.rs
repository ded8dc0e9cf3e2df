//! The configuration as it stands in its file. Nothing here is checked yet.
//!
//! A key that is not known here, and a text that cannot be read as what it is
//! meant for, are noted and do not end the reading: all faults are told at once.

use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::SignedDuration;
use serde::{Deserialize, Deserializer};

/// A value that is written as text, or why it cannot be read.
#[derive(Debug)]
pub(super) struct Written<T>(pub(super) Result<T, String>);

impl<'de, T: FromStr<Err: Display>> Deserialize<'de> for Written<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(Self(text.parse().map_err(|error: T::Err| error.to_string())))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RawConfig {
    pub(super) issuer: String,
    pub(super) listen: Vec<Written<SocketAddr>>,
    pub(super) advertise: Vec<Written<SocketAddr>>,
    /// From where connections by TCP come with a PROXY header.
    #[serde(default)]
    pub(super) balancers: Vec<Written<IpNet>>,
    #[serde(default = "first_version")]
    pub(super) minimum_agent: String,
    pub(super) bootstrap: Option<PathBuf>,
    #[serde(default)]
    pub(super) log: RawLog,
    pub(super) keys: RawKeys,
    pub(super) store: RawStore,
    pub(super) operations: RawOperations,
    pub(super) realms: Vec<RawRealm>,
    #[serde(default)]
    pub(super) classes: Vec<RawClass>,
    #[serde(default)]
    pub(super) targets: Vec<RawTarget>,
    pub(super) occupancy: Option<RawOccupancy>,
    #[serde(default)]
    pub(super) limits: RawLimits,
}

fn first_version() -> String {
    "0.1.0".to_owned()
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct RawLog {
    pub(super) format: Option<String>,
    pub(super) filter: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawKeys {
    pub(super) broker_certificate: PathBuf,
    pub(super) broker_key: PathBuf,
    pub(super) gateway_certificate: PathBuf,
    pub(super) gateway_key: PathBuf,
    pub(super) signing_key: PathBuf,
    pub(super) reset_key: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawStore {
    pub(super) sqlite: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawOperations {
    pub(super) listen: Written<SocketAddr>,
    pub(super) api_keys: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawRealm {
    pub(super) name: String,
    pub(super) file: Option<RawFile>,
    pub(super) ldap: Option<RawLdap>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawFile {
    pub(super) path: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawLdap {
    pub(super) servers: Vec<String>,
    pub(super) ca: Option<PathBuf>,
    pub(super) bind_dn: String,
    pub(super) bind_password_file: PathBuf,
    pub(super) people: String,
    pub(super) people_filter: Option<String>,
    #[serde(default = "uid")]
    pub(super) login_attribute: String,
    #[serde(default)]
    pub(super) id: RawId,
    #[serde(default = "cn")]
    pub(super) display_name_attribute: String,
    pub(super) account_attribute: Option<String>,
    pub(super) unit_attribute: Option<String>,
    /// Where groups are searched for; without it, `member_of_attribute` is read.
    pub(super) groups: Option<String>,
    /// Whether the server follows nested groups by itself, as Active Directory does.
    #[serde(default)]
    pub(super) groups_in_chain: bool,
    #[serde(default = "member")]
    pub(super) member_attribute: String,
    #[serde(default = "member_of")]
    pub(super) member_of_attribute: String,
    pub(super) connect_timeout: Option<Written<SignedDuration>>,
    pub(super) operation_timeout: Option<Written<SignedDuration>>,
    pub(super) patience: Option<Written<SignedDuration>>,
    pub(super) connections: Option<u16>,
    pub(super) waiting: Option<u16>,
}

/// The attribute that never changes.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) enum RawId {
    #[default]
    #[serde(rename = "entryUUID")]
    EntryUuid,
    #[serde(rename = "objectGUID")]
    ObjectGuid,
}

fn uid() -> String {
    "uid".to_owned()
}

fn cn() -> String {
    "cn".to_owned()
}

fn member() -> String {
    "member".to_owned()
}

fn member_of() -> String {
    "memberOf".to_owned()
}

#[derive(Debug, Deserialize)]
pub(super) struct RawClass {
    pub(super) name: String,
    pub(super) prefixes: Vec<Written<IpNet>>,
    pub(super) logins_per_minute: Option<u32>,
    pub(super) failures_per_minute: Option<u32>,
    pub(super) share: Option<u32>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RawTarget {
    pub(super) prefixes: Vec<Written<IpNet>>,
    pub(super) ports: Vec<RawPorts>,
}

/// One port, or a range as in `"20000-20100"`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawPorts {
    One(u16),
    Range(String),
}

#[derive(Debug, Deserialize)]
pub(super) struct RawOccupancy {
    pub(super) command: Vec<String>,
}

/// Where a number is not named, the edge's or the throttle's own holds.
#[derive(Debug, Default, Deserialize)]
pub(super) struct RawLimits {
    pub(super) connections: Option<usize>,
    pub(super) connections_per_source: Option<usize>,
    pub(super) handshakes: Option<usize>,
    pub(super) handshakes_per_source: Option<usize>,
    pub(super) retry_above: Option<usize>,
    pub(super) logins_per_minute: Option<u32>,
    pub(super) failures_per_minute: Option<u32>,
}
