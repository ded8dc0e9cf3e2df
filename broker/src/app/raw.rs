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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use serde::de::value::Error;
    use serde::de::{Error as _, Visitor};
    use serde::forward_to_deserialize_any;
    use tegata_domain::throttle::SourceLimits;
    use tegata_edge::endpoint::Limits;

    use super::*;
    use crate::adapters::ldap::LdapLimits;
    use crate::init::SAMPLE_CONFIG;

    /// Notes which keys a table may have, and reads nothing.
    struct Keys<'a>(&'a mut &'static [&'static str]);

    impl<'de> Deserializer<'de> for Keys<'_> {
        type Error = Error;

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            _visitor: V,
        ) -> Result<V::Value, Error> {
            *self.0 = fields;
            Err(Error::custom("the keys are noted"))
        }

        fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
            Err(Error::custom("not a table"))
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
            option unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier
            ignored_any
        }
    }

    fn keys<'de, T: Deserialize<'de>>() -> &'static [&'static str] {
        let mut fields: &'static [&'static str] = &[];
        let _: Result<T, Error> = T::deserialize(Keys(&mut fields));
        assert!(!fields.is_empty(), "no table");
        fields
    }

    /// Returns the sample with everything that it offers in comments.
    fn offered() -> String {
        let is_key = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        let is_offer = |line: &str| {
            line.starts_with('[') || line.split_once(" = ").is_some_and(|(name, _)| is_key(name))
        };
        let lines = SAMPLE_CONFIG.lines().map(|line| line.strip_prefix("# ").unwrap_or(line));
        lines.filter(|line| is_offer(line)).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_sample_names_every_key_and_no_other() {
        let text = offered();
        let mut table = String::new();
        let mut told: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for line in text.lines() {
            match line.split_once(" = ") {
                Some((key, _)) => told.entry(table.clone()).or_default().push(key),
                None => line.trim_matches(['[', ']']).clone_into(&mut table),
            }
        }
        for (table, keys) in [
            ("", keys::<RawConfig>()),
            ("log", keys::<RawLog>()),
            ("keys", keys::<RawKeys>()),
            ("store", keys::<RawStore>()),
            ("operations", keys::<RawOperations>()),
            ("realms", keys::<RawRealm>()),
            ("realms.file", keys::<RawFile>()),
            ("realms.ldap", keys::<RawLdap>()),
            ("classes", keys::<RawClass>()),
            ("targets", keys::<RawTarget>()),
            ("occupancy", keys::<RawOccupancy>()),
            ("limits", keys::<RawLimits>()),
        ] {
            for key in keys {
                let inner =
                    if table.is_empty() { (*key).to_owned() } else { format!("{table}.{key}") };
                let is_told = told.get(table).is_some_and(|told| told.contains(key));
                assert!(
                    is_told || told.contains_key(&inner),
                    "[{table}] {key} is not in the sample"
                );
            }
            for key in told.get(table).into_iter().flatten() {
                assert!(keys.contains(key), "[{table}] {key} is in the sample and means nothing");
            }
        }
    }

    #[test]
    fn what_the_sample_calls_a_default_is_one() {
        let raw: RawConfig =
            toml::from_str(&offered()).expect("the sample with all that it offers");
        let RawLimits { connections, connections_per_source, handshakes, .. } = raw.limits;
        let RawLimits { handshakes_per_source, retry_above, .. } = raw.limits;
        let limits = Limits::default();
        assert_eq!(connections, Some(limits.connections));
        assert_eq!(connections_per_source, Some(limits.connections_per_source));
        assert_eq!(handshakes, Some(limits.handshakes));
        assert_eq!(handshakes_per_source, Some(limits.handshakes_per_source));
        assert_eq!(retry_above, Some(limits.retry_above));
        let usual = SourceLimits::default();
        assert_eq!(raw.limits.logins_per_minute, Some(usual.logins_per_minute.get()));
        assert_eq!(raw.limits.failures_per_minute, Some(usual.failures_per_minute.get()));

        let ldap = raw.realms.into_iter().find_map(|realm| realm.ldap).expect("a realm in LDAP");
        assert_eq!((ldap.login_attribute, ldap.display_name_attribute), (uid(), cn()));
        assert_eq!((ldap.member_attribute, ldap.member_of_attribute), (member(), member_of()));
        assert!(matches!(ldap.id, RawId::EntryUuid));
        let span = |raw: Option<Written<SignedDuration>>| Duration::try_from(raw?.0.ok()?).ok();
        let limits = LdapLimits::default();
        assert_eq!(span(ldap.connect_timeout), Some(limits.connect));
        assert_eq!(span(ldap.operation_timeout), Some(limits.operation));
        assert_eq!(span(ldap.patience), Some(limits.patience));
        assert_eq!(
            (ldap.connections, ldap.waiting),
            (Some(limits.connections), Some(limits.waiting))
        );
    }
}
