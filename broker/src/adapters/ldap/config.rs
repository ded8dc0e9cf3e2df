//! What an LDAP realm is told: servers, trust, names and limits, each checked
//! when it is made.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tegata_proto::encoding::Secret;
use tegata_proto::id::RealmName;
use tegata_proto::login::PASSWORD_MAX;

use super::trust::Trust;
use crate::ports::directory::{GroupName, InvalidPassword, NonEmptyPassword};

/// How an LDAP realm is reached and read.
#[derive(Debug, Clone)]
pub struct LdapConfig {
    /// The realm.
    pub realm: RealmName,
    /// Its servers, best first.
    pub servers: Vec<ServerUrl>,
    /// Whose certificates the servers have.
    pub trust: Trust,
    /// The account that searches.
    pub service_dn: DistinguishedName,
    /// Its password.
    pub service_password: NonEmptyPassword,
    /// Where people are, at any depth.
    pub people_base: DistinguishedName,
    /// What else an entry has to match, as in `(objectClass=inetOrgPerson)`.
    pub people_filter: Option<PeopleFilter>,
    /// The attribute that holds the name a person types, as `uid`,
    /// `sAMAccountName`, `userPrincipalName`.
    pub login_attribute: AttributeName,
    /// The attribute that holds who a person is, for good.
    pub id: IdAttribute,
    /// The attribute that holds the name for showing.
    pub display_name: AttributeName,
    /// The attribute that holds what desktops call the person.
    pub account: Option<AttributeName>,
    /// The attribute that holds where the person works.
    pub unit: Option<AttributeName>,
    /// Where a person's groups are read.
    pub groups: GroupSource,
    /// How long and how much at once.
    pub limits: LdapLimits,
}

impl LdapConfig {
    pub(super) fn check(&self) -> Result<(), InvalidSetting> {
        let limits = &self.limits;
        let times = [limits.connect, limits.operation, limits.patience];
        if self.servers.is_empty() {
            return Err(InvalidSetting("a realm has at least one server"));
        }
        if times.contains(&Duration::ZERO) || limits.connections == 0 {
            return Err(InvalidSetting("a limit of zero lets nobody in"));
        }
        Ok(())
    }
}

/// Why a text or value cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidSetting(&'static str);

/// Limits of one realm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LdapLimits {
    /// How long a server may take until it is connected, verified and, for
    /// searches, the service account is bound.
    pub connect: Duration,
    /// How long a server may take to answer one request.
    pub operation: Duration,
    /// How long a call of the port may take in all, waiting and other servers
    /// included.
    pub patience: Duration,
    /// Most connections for searches, and as many again for people's binds.
    pub connections: u16,
    /// Most calls that wait for a connection, of each kind.
    pub waiting: u16,
}

impl Default for LdapLimits {
    fn default() -> Self {
        Self {
            // A login that meets a silent server is with the next one within 2 s.
            connect: Duration::from_millis(1_500),
            operation: Duration::from_millis(1_500),
            patience: Duration::from_secs(3),
            connections: 16,
            waiting: 512,
        }
    }
}

/// A server: `ldaps://HOST[:636]`, or `ldap://HOST[:389]`, which is raised to
/// TLS by `StartTLS` before anything else is said. Nothing is ever sent in clear.
///
/// The certificate has to be for that host: a DNS name, or an address, an IPv6
/// address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    start_tls: bool,
    host: Host,
    port: u16,
}

/// A server's host.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    /// A DNS name or an IPv4 address, in lower case.
    Named(String),
    /// An IPv6 address.
    V6(Ipv6Addr),
}

impl ServerUrl {
    /// Reads a server's URL.
    ///
    /// # Errors
    ///
    /// Refuses other schemes, credentials and paths.
    pub fn new(text: &str) -> Result<Self, InvalidSetting> {
        const FORM: InvalidSetting =
            InvalidSetting("a server is ldaps://HOST[:PORT] or ldap://HOST[:PORT]");
        let (start_tls, default_port, rest) = match text.split_once("://") {
            Some(("ldaps", rest)) => (false, 636, rest),
            Some(("ldap", rest)) => (true, 389, rest),
            _ => return Err(FORM),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let bracketed = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let (host, port) = if let Some((address, port)) = bracketed {
            (Host::V6(address.parse().map_err(|_| FORM)?), port)
        } else {
            let (host, port) = rest.split_at(rest.find(':').unwrap_or(rest.len()));
            (Host::named(host).ok_or(FORM)?, port)
        };
        let port = match port.strip_prefix(':') {
            Some(port) => port.parse().map_err(|_| FORM)?,
            None if port.is_empty() => default_port,
            None => return Err(FORM),
        };
        if port == 0 {
            return Err(FORM);
        }
        Ok(Self { start_tls, host, port })
    }

    /// Returns the address, where the host is an IPv6 one.
    pub(super) fn ipv6(&self) -> Option<SocketAddrV6> {
        match &self.host {
            Host::V6(address) => Some(SocketAddrV6::new(*address, self.port, 0, 0)),
            Host::Named(_) => None,
        }
    }

    /// Returns the same place under a host name that is none, for a library that
    /// has no words for an IPv6 address and is handed the connection.
    pub(super) fn without_address(&self) -> Self {
        match &self.host {
            Host::V6(_) => Self { host: Host::Named(NO_HOST.to_owned()), ..self.clone() },
            Host::Named(_) => self.clone(),
        }
    }

    pub(super) fn start_tls(&self) -> bool {
        self.start_tls
    }
}

/// Never resolved (RFC 6761 section 6.4).
const NO_HOST: &str = "address.invalid";

impl Host {
    fn named(text: &str) -> Option<Self> {
        let is_host = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-');
        let name = rustls_pki_types::ServerName::try_from(text).ok()?;
        let plain = text.bytes().all(is_host);
        plain.then(|| Self::Named(name.to_str().to_ascii_lowercase()))
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.start_tls { "ldap" } else { "ldaps" };
        match &self.host {
            Host::Named(name) => write!(f, "{scheme}://{name}:{}", self.port),
            Host::V6(address) => write!(f, "{scheme}://[{address}]:{}", self.port),
        }
    }
}

/// A distinguished name (RFC 4514), kept as it was written for the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DistinguishedName(String);

impl DistinguishedName {
    /// Checks a distinguished name.
    ///
    /// # Errors
    ///
    /// Refuses a text that is none, the empty one included.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSetting> {
        let text = text.into();
        match GroupName::from_dn(&text) {
            Ok(_) => Ok(Self(text)),
            Err(_) => Err(InvalidSetting("not a distinguished name")),
        }
    }

    /// Returns the name as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of an attribute, as in `uid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttributeName(String);

impl AttributeName {
    /// Checks an attribute's name.
    ///
    /// # Errors
    ///
    /// Refuses what is no descriptor of RFC 4512: a letter, then letters,
    /// digits and `-`.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSetting> {
        let text = text.into();
        let valid = text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if valid { Ok(Self(text)) } else { Err(InvalidSetting("not the name of an attribute")) }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AttributeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A search filter (RFC 4515) in parentheses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeopleFilter(String);

impl PeopleFilter {
    /// Checks a filter.
    ///
    /// # Errors
    ///
    /// Refuses a text that is none, or is not in parentheses.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidSetting> {
        let text = text.into();
        if text.starts_with('(') && ldap3::parse_filter(&text).is_ok() {
            return Ok(Self(text));
        }
        Err(InvalidSetting("not a filter in parentheses"))
    }
}

impl fmt::Display for PeopleFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The attribute that holds who a person is, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdAttribute {
    /// `entryUUID` (RFC 4530), a UUID as text.
    EntryUuid,
    /// `objectGUID` of Active Directory, 16 bytes, the first three fields
    /// little-endian (MS-DTYP section 2.3.4.2).
    ObjectGuid,
}

impl IdAttribute {
    /// Returns the attribute's name.
    pub fn attribute(self) -> &'static str {
        match self {
            Self::EntryUuid => "entryUUID",
            Self::ObjectGuid => "objectGUID",
        }
    }
}

/// Where a person's groups are read. Groups go by their distinguished names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupSource {
    /// In an attribute of the person's entry, such as `memberOf`. Nested groups
    /// are there only if the server puts them there.
    MemberOf {
        /// The attribute.
        attribute: AttributeName,
    },
    /// In the groups, searched for level by level, nested ones included.
    Search {
        /// Where groups are, at any depth.
        base: DistinguishedName,
        /// The attribute of a group that names its members, as `member`.
        member: AttributeName,
    },
    /// In the groups, nested ones included, by one search with a matching rule that
    /// only Active Directory and its kin know.
    InChain {
        /// Where groups are, at any depth.
        base: DistinguishedName,
        /// The attribute of a group that names its members, as `member`.
        member: AttributeName,
    },
}

impl GroupSource {
    /// Returns the attribute of a person's entry that names groups.
    pub(super) fn of_entry(&self) -> Option<&AttributeName> {
        match self {
            Self::MemberOf { attribute } => Some(attribute),
            Self::Search { .. } | Self::InChain { .. } => None,
        }
    }
}

/// Why a service account's password could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum PasswordFileError {
    /// The file cannot be read.
    #[error("password file {path} cannot be read")]
    Unreadable {
        /// The file, as configured.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: std::io::Error,
    },
    /// The file holds no password.
    #[error("password file {path} holds no password")]
    Invalid {
        /// The file, as configured.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: InvalidPassword,
    },
}

/// Reads a password from a file: all of it but one line end at its end.
///
/// # Errors
///
/// Refuses a file that cannot be read, or holds what no password can be.
pub fn password_from_file(path: &Path) -> Result<NonEmptyPassword, PasswordFileError> {
    use std::io::Read as _;

    let unreadable = |source| PasswordFileError::Unreadable { path: path.to_owned(), source };
    // Room for a line end and for one byte too many, so that the buffer never
    // moves and leaves no copy behind.
    let limit = PASSWORD_MAX + 3;
    let mut text = zeroize::Zeroizing::new(String::with_capacity(limit));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(limit as u64).read_to_string(&mut text).map_err(unreadable)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    NonEmptyPassword::new(Secret::new(line))
        .map_err(|source| PasswordFileError::Invalid { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_reached_by_ldaps_or_start_tls_only() {
        let url = |text| ServerUrl::new(text).map(|url| url.to_string());
        assert_eq!(url("ldaps://ldap.honsho.lan"), Ok("ldaps://ldap.honsho.lan:636".to_owned()));
        assert_eq!(url("ldap://DC1:1389/"), Ok("ldap://dc1:1389".to_owned()));
        assert_eq!(url("ldaps://192.0.2.7:636"), Ok("ldaps://192.0.2.7:636".to_owned()));
        assert_eq!(url("ldaps://[2001:DB8::7]"), Ok("ldaps://[2001:db8::7]:636".to_owned()));
        assert_eq!(url("ldap://[::1]:1389/"), Ok("ldap://[::1]:1389".to_owned()));
        for bad in [
            "ldap.honsho.lan",
            "http://x",
            "ldapi:///run/slapd",
            "ldaps://",
            "ldaps://x:0",
            "ldaps://x:70000",
            "ldaps://u@x",
            "ldaps://x/dc=x",
            "ldaps://::1",
            "ldaps://[::1",
            "ldaps://[::1]636",
            "ldaps://[::1]:0",
            "ldaps://[::1]:",
            "ldaps://[192.0.2.7]",
            "ldaps://[fe80::1%eth0]",
            "ldaps://x y",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_filters_are_checked_before_they_reach_a_server() {
        assert!(AttributeName::new("sAMAccountName").is_ok());
        for bad in ["", "uid)(x=*", "1uid", "uid;binary", "u id"] {
            assert!(AttributeName::new(bad).is_err(), "{bad}");
        }
        assert!(PeopleFilter::new("(&(objectClass=person)(!(uid=root)))").is_ok());
        for bad in ["", "objectClass=person", "(objectClass=person", "(a=b)(c=d)", "(a=b))"] {
            assert!(PeopleFilter::new(bad).is_err(), "{bad}");
        }
        assert!(DistinguishedName::new("ou=people,dc=honsho,dc=lan").is_ok());
        assert!(DistinguishedName::new("people").is_err());
    }

    #[test]
    fn a_password_file_may_end_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("password");
        for (text, password) in [("a b", "a b"), ("x\n", "x"), ("x\r\n", "x"), ("x\n\n", "x\n")] {
            std::fs::write(&path, text).expect("written");
            assert_eq!(password_from_file(&path).expect("a password").expose(), password);
        }
        for text in ["", "\n", "a\0", &"x".repeat(PASSWORD_MAX + 1)] {
            std::fs::write(&path, text).expect("written");
            assert!(password_from_file(&path).is_err(), "{text:?}");
        }
    }
}
