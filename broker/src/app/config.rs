//! The configuration, checked.
//!
//! Everything is read and parsed before a socket is opened, the files that the
//! configuration names included, and all faults are gathered, each with its key.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use tegata_domain::pool::{Pool, RawPool};
use tegata_domain::throttle::SourceLimits;
use tegata_edge::endpoint::Limits;
use tegata_edge::network::{NetworkClass, NetworkClasses};
use tegata_edge::telemetry::{Filter, Format};
use tegata_edge::tls::{Party, RoleCertificate};
use tegata_gateway::dial::{TargetPolicy, TargetRule};
use tegata_proto::id::{GatewayId, RealmName};

use super::descriptors::{TooFew, fit};
use super::raw::{RawClass, RawConfig, RawLimits, RawPorts, RawRealm, RawTarget, Written};
use super::realms;
use crate::adapters::command::Template;
use crate::adapters::file::FileDirectory;
use crate::adapters::key_file::KeyFile;
use crate::adapters::ldap::LdapLimits;
use crate::api::Site;
use crate::api::key::ApiKeys;
use crate::flows::login::Version;
use crate::flows::sign_in::SourceRules;
use crate::ports::directory::Directory;

/// Longest `issuer`, in bytes.
const ISSUER_MAX: usize = 64;

/// Everything that `run` needs.
pub struct Config {
    pub(super) issuer: String,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) advertise: Vec<SocketAddr>,
    pub(super) balancers: Vec<IpNet>,
    pub(super) minimum_agent: Version,
    pub(super) bootstrap: Vec<Pool>,
    /// How logs are written.
    pub log_format: Format,
    /// Which logs are written.
    pub log_filter: Filter,
    pub(super) broker_certificate: Arc<RoleCertificate>,
    pub(super) gateway_certificate: Arc<RoleCertificate>,
    pub(super) gateway: GatewayId,
    pub(super) signing_key: KeyFile,
    pub(super) reset_key: [u8; 64],
    pub(super) sqlite: PathBuf,
    pub(super) operations: SocketAddr,
    pub(super) api_keys: ApiKeys,
    pub(super) realms: Vec<Arc<dyn Directory>>,
    /// Those of the realms that are files, to be read again.
    pub(super) files: Vec<Arc<FileDirectory>>,
    pub(super) classes: Arc<NetworkClasses>,
    pub(super) site: Site,
    pub(super) occupancy: Option<Template>,
    pub(super) limits: Limits,
    /// Most connections to directories, of all realms.
    pub(super) directory_connections: usize,
    pub(super) sources: SourceRules,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem}")]
pub struct Fault {
    /// Path of the key, as in `realms[0].ldap.people`.
    pub key: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Everything that is wrong; never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
pub struct Faults(pub Vec<Fault>);

/// Gathers faults and resolves paths while a configuration is read.
pub(super) struct Reader {
    folder: PathBuf,
    faults: Vec<Fault>,
}

impl Reader {
    pub(super) fn fault(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), problem: problem.into() });
    }

    /// Keeps what could be read; notes why not.
    pub(super) fn written<T>(&mut self, key: impl Into<String>, raw: Written<T>) -> Option<T> {
        raw.0.map_err(|problem| self.fault(key, problem)).ok()
    }

    /// Keeps what is right; notes an error with everything behind it.
    pub(super) fn keep<T, E: std::error::Error>(
        &mut self,
        key: impl Into<String>,
        outcome: Result<T, E>,
    ) -> Option<T> {
        match outcome {
            Ok(kept) => Some(kept),
            Err(error) => {
                self.fault(key, chain(&error));
                None
            }
        }
    }

    /// Resolves a path against the configuration's folder.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Resolves the path of a secret, and notes if others may read it.
    pub(super) fn secret(&mut self, key: &str, path: &Path) -> PathBuf {
        let path = self.path(path);
        match fs::metadata(&path) {
            Ok(found) if found.permissions().mode() & 0o077 != 0 => {
                self.fault(key, format!("{} can be read by others", path.display()));
            }
            Ok(_) => {}
            Err(error) => self.fault(key, format!("{}: {error}", path.display())),
        }
        path
    }
}

/// Writes an error and all that it comes from on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text.replace('\n', " ")
}

impl Config {
    /// Reads and checks a configuration and every file that it names.
    ///
    /// # Errors
    ///
    /// Names all faults at once. Only a file that is no TOML, or a value of the
    /// wrong kind, ends the search: what stands behind it may be missed.
    pub fn read(path: &Path) -> Result<Self, Faults> {
        let text = fs::read_to_string(path).map_err(|error| {
            Faults(vec![Fault { key: path.display().to_string(), problem: error.to_string() }])
        })?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")))
    }

    /// Checks the text of a configuration whose paths count from `folder`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn parse(text: &str, folder: &Path) -> Result<Self, Faults> {
        let mut reader = Reader { folder: folder.to_owned(), faults: Vec::new() };
        match reader.raw(text).and_then(|raw| reader.config(raw)) {
            Some(config) if reader.faults.is_empty() => Ok(config),
            Some(_) | None => Err(Faults(reader.faults)),
        }
    }
}

impl Config {
    /// Fits the limits of each endpoint into a process that may have so many
    /// files open.
    pub(super) fn limits_within(&self, open_files: u64) -> Result<Limits, TooFew> {
        fit(self.limits, self.listen.len(), self.directory_connections, open_files)
    }
}

impl Reader {
    /// Takes the text apart, and notes every key that means nothing.
    fn raw(&mut self, text: &str) -> Option<RawConfig> {
        let line = |error: &toml::de::Error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("{} (line {line})", error.message())
        };
        let parsed = match toml::Deserializer::parse(text) {
            Ok(parsed) => parsed,
            Err(error) => {
                self.fault("the file", line(&error));
                return None;
            }
        };
        let mut note = |key: serde_ignored::Path<'_>| {
            self.faults
                .push(Fault { key: unknown(&key), problem: "means nothing here".to_owned() });
        };
        let known = serde_ignored::Deserializer::new(parsed, &mut note);
        match serde_path_to_error::deserialize(known) {
            Ok(raw) => Some(raw),
            Err(error) => {
                let key = wrong(error.path());
                let key = if key.is_empty() { "the file".to_owned() } else { key };
                self.fault(key, line(error.inner()));
                None
            }
        }
    }

    fn config(&mut self, raw: RawConfig) -> Option<Config> {
        let text = |c: char| c.is_ascii_graphic();
        if raw.issuer.is_empty() || raw.issuer.len() > ISSUER_MAX || !raw.issuer.chars().all(text) {
            self.fault("issuer", "must have 1 to 64 printable ASCII characters and no space");
        }
        let listen = self.addresses("listen", raw.listen);
        let advertise = self.addresses("advertise", raw.advertise);
        for (n, address) in advertise.iter().enumerate() {
            if address.ip().is_unspecified() || address.port() == 0 {
                self.fault(format!("advertise[{n}]"), "names no place to connect to");
            }
        }
        let balancers = self.networks("balancers", raw.balancers);
        let minimum_agent = Version::parse(&raw.minimum_agent);
        if minimum_agent.is_none() {
            self.fault("minimum_agent", "is not a version such as 0.1.0");
        }
        let log_format = match raw.log.format.as_deref() {
            None | Some("plain") => Some(Format::Plain),
            Some("json") => Some(Format::Json),
            Some(_) => {
                self.fault("log.format", "is neither plain nor json");
                None
            }
        };
        let log_filter = raw.log.filter.as_deref().unwrap_or("info");
        let log_filter = self.keep("log.filter", Filter::new(log_filter));
        let operations = self.written("operations.listen", raw.operations.listen);
        if operations.is_some_and(|listen| !listen.ip().is_loopback()) {
            self.fault("operations.listen", "is not a loopback address");
        }

        let keys = raw.keys;
        let broker_certificate = self.certificate(
            Party::Broker,
            ("keys.broker_certificate", &keys.broker_certificate),
            &keys.broker_key,
        );
        let gateway_certificate = self.certificate(
            Party::Gateway,
            ("keys.gateway_certificate", &keys.gateway_certificate),
            &keys.gateway_key,
        );
        let gateway = gateway_certificate.as_ref().and_then(|certificate| {
            self.keep("keys.gateway_certificate", GatewayId::new(certificate.id()))
        });
        let signing_key = self.secret("keys.signing_key", &keys.signing_key);
        let signing_key = self.keep("keys.signing_key", KeyFile::read(&signing_key));
        let reset_key = self.reset_key(&keys.reset_key);
        let api_keys = self.secret("operations.api_keys", &raw.operations.api_keys);
        let api_keys = self.keep("operations.api_keys", ApiKeys::read(&api_keys));

        let sources = self.sources(&raw.limits, &raw.classes);
        let classes = self.classes(raw.classes).map(Arc::new);
        let targets = self.targets(raw.targets);
        let occupancy = raw
            .occupancy
            .and_then(|occupancy| self.keep("occupancy.command", Template::new(occupancy.command)));
        let known = classes.clone().unwrap_or_else(no_classes);
        let site = Site { targets, asks_desktops: occupancy.is_some(), classes: known };
        let bootstrap = raw.bootstrap.map(|path| self.bootstrap(&path, &site)).unwrap_or_default();
        let directory_connections = directory_connections(&raw.realms);
        let (realms, files) = self.realms(raw.realms);

        Some(Config {
            issuer: raw.issuer,
            listen,
            advertise,
            balancers,
            minimum_agent: minimum_agent?,
            bootstrap,
            log_format: log_format?,
            log_filter: log_filter?,
            broker_certificate: broker_certificate?,
            gateway_certificate: gateway_certificate?,
            gateway: gateway?,
            signing_key: signing_key?,
            reset_key: reset_key?,
            sqlite: self.path(&raw.store.sqlite),
            operations: operations?,
            api_keys: api_keys?,
            realms,
            files,
            classes: classes?,
            site,
            occupancy,
            limits: limits(&raw.limits),
            directory_connections,
            sources,
        })
    }

    fn addresses(&mut self, key: &str, raw: Vec<Written<SocketAddr>>) -> Vec<SocketAddr> {
        if raw.is_empty() {
            self.fault(key, "names no address");
        }
        let each = raw.into_iter().enumerate();
        each.filter_map(|(n, address)| self.written(format!("{key}[{n}]"), address)).collect()
    }

    fn prefixes(&mut self, key: &str, raw: Vec<Written<IpNet>>) -> Vec<IpNet> {
        self.networks(&format!("{key}.prefixes"), raw)
    }

    fn networks(&mut self, key: &str, raw: Vec<Written<IpNet>>) -> Vec<IpNet> {
        let each = raw.into_iter().enumerate();
        each.filter_map(|(n, network)| self.written(format!("{key}[{n}]"), network)).collect()
    }

    fn certificate(
        &mut self,
        party: Party,
        (name, certificate): (&str, &Path),
        key: &Path,
    ) -> Option<Arc<RoleCertificate>> {
        let loaded = RoleCertificate::load(party, self.path(certificate), self.path(key));
        self.keep(name, loaded).map(Arc::new)
    }

    fn reset_key(&mut self, path: &Path) -> Option<[u8; 64]> {
        let path = self.secret("keys.reset_key", path);
        let bytes = self.keep("keys.reset_key", fs::read(path))?;
        let key = bytes.try_into().ok();
        if key.is_none() {
            self.fault("keys.reset_key", "does not hold 64 bytes");
        }
        key
    }

    fn classes(&mut self, raw: Vec<RawClass>) -> Option<NetworkClasses> {
        let mut classes = Vec::new();
        for (n, class) in raw.into_iter().enumerate() {
            let key = format!("classes[{n}]");
            let prefixes = self.prefixes(&key, class.prefixes);
            let name = self.keep(format!("{key}.name"), NetworkClass::new(class.name));
            classes.extend(name.map(|name| (name, prefixes)));
        }
        self.keep("classes", NetworkClasses::new(classes))
    }

    /// What sources may do: where a class does not say, what `limits` says.
    fn sources(&mut self, raw: &RawLimits, classes: &[RawClass]) -> SourceRules {
        let mut number = |key: String, raw: Option<u32>, usual| match raw.map(NonZeroU32::new) {
            None => usual,
            Some(Some(number)) => number,
            Some(None) => {
                self.fault(key, "is zero, which lets nobody in");
                usual
            }
        };
        let own = SourceLimits::default();
        let key = |name: &str| format!("limits.{name}");
        let usual = SourceLimits {
            logins_per_minute: number(
                key("logins_per_minute"),
                raw.logins_per_minute,
                own.logins_per_minute,
            ),
            failures_per_minute: number(
                key("failures_per_minute"),
                raw.failures_per_minute,
                own.failures_per_minute,
            ),
            share: own.share,
        };
        let mut rules = SourceRules { usual, classes: BTreeMap::new() };
        for (n, class) in classes.iter().enumerate() {
            let key = |name: &str| format!("classes[{n}].{name}");
            let limits = SourceLimits {
                logins_per_minute: number(
                    key("logins_per_minute"),
                    class.logins_per_minute,
                    usual.logins_per_minute,
                ),
                failures_per_minute: number(
                    key("failures_per_minute"),
                    class.failures_per_minute,
                    usual.failures_per_minute,
                ),
                share: number(key("share"), class.share, usual.share),
            };
            // A name that is none is a fault of its own.
            if let Ok(name) = NetworkClass::new(class.name.as_str()) {
                rules.classes.insert(name, limits);
            }
        }
        rules
    }

    fn targets(&mut self, raw: Vec<RawTarget>) -> TargetPolicy {
        let mut rules = Vec::new();
        for (n, target) in raw.into_iter().enumerate() {
            let key = format!("targets[{n}]");
            let prefixes = self.prefixes(&key, target.prefixes);
            for (m, ports) in target.ports.into_iter().enumerate() {
                let range = match ports {
                    RawPorts::One(port) => Some(port..=port),
                    RawPorts::Range(text) => text.split_once('-').and_then(|(from, to)| {
                        let (from, to) = (from.parse::<u16>().ok()?, to.parse().ok()?);
                        (from <= to).then_some(from..=to)
                    }),
                };
                match range {
                    Some(ports) => rules.extend(
                        prefixes
                            .iter()
                            .map(|prefix| TargetRule { prefix: *prefix, ports: ports.clone() }),
                    ),
                    None => self.fault(
                        format!("{key}.ports[{m}]"),
                        "is neither a port nor a range such as \"20000-20100\"",
                    ),
                }
            }
        }
        TargetPolicy::new(rules)
    }

    fn bootstrap(&mut self, path: &Path, site: &Site) -> Vec<Pool> {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            pools: Vec<RawPool>,
        }

        let path = self.path(path);
        let text = self.keep("bootstrap", fs::read_to_string(&path)).unwrap_or_default();
        let Some(file) = self.keep("bootstrap", toml::from_str::<File>(&text)) else {
            return vec![];
        };
        let mut pools = Vec::new();
        for (n, raw) in file.pools.into_iter().enumerate() {
            match Pool::try_from(raw) {
                Ok(pool) => {
                    for fault in site.faults(&pool) {
                        let key = format!("bootstrap: pools[{n}].{}", fault.key);
                        self.fault(key, fault.problem);
                    }
                    pools.push(pool);
                }
                Err(faults) => {
                    for fault in faults.0 {
                        let key = format!("bootstrap: pools[{n}].{}", fault.key);
                        self.fault(key, fault.problem);
                    }
                }
            }
        }
        pools
    }

    fn realms(&mut self, raw: Vec<RawRealm>) -> (Vec<Arc<dyn Directory>>, Vec<Arc<FileDirectory>>) {
        if raw.is_empty() {
            self.fault("realms", "names no realm");
        }
        let mut names = std::collections::BTreeSet::new();
        let (mut realms, mut files): (Vec<Arc<dyn Directory>>, Vec<_>) = (vec![], vec![]);
        for (n, realm) in raw.into_iter().enumerate() {
            let key = format!("realms[{n}]");
            let Some(name) = self.keep(format!("{key}.name"), RealmName::new(realm.name)) else {
                continue;
            };
            if !names.insert(name.clone()) {
                self.fault(format!("{key}.name"), "stands twice");
            }
            match (realm.file, realm.ldap) {
                (Some(file), None) => {
                    if let Some(file) = realms::file(self, &key, name, &file) {
                        realms.push(Arc::<FileDirectory>::clone(&file));
                        files.push(file);
                    }
                }
                (None, Some(ldap)) => realms.extend(realms::ldap(self, &key, name, ldap)),
                (Some(_), Some(_)) | (None, None) => {
                    self.fault(key, "has not exactly one of file and ldap");
                }
            }
        }
        (realms, files)
    }
}

/// What is known of networks where their configuration has faults of its own.
fn no_classes() -> Arc<NetworkClasses> {
    Arc::new(NetworkClasses::new([]).expect("no two classes share a prefix"))
}

/// Each realm has connections for searches, and as many again for people's binds.
fn directory_connections(realms: &[RawRealm]) -> usize {
    let of = |ldap: &super::raw::RawLdap| {
        usize::from(ldap.connections.unwrap_or(LdapLimits::default().connections)) * 2
    };
    realms.iter().filter_map(|realm| realm.ldap.as_ref()).map(of).sum()
}

/// Writes the path of a key that means nothing as [`Fault::key`] does.
fn unknown(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", unknown(parent)),
        Path::Map { parent, key } => below(unknown(parent), key),
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => unknown(parent),
    }
}

/// Writes the path of a value that is wrong as [`Fault::key`] does.
fn wrong(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    path.iter().fold(String::new(), |path, segment| match segment {
        Segment::Seq { index } => format!("{path}[{index}]"),
        Segment::Map { key } | Segment::Enum { variant: key } => below(path, key),
        Segment::Unknown => path,
    })
}

/// Writes a key below a path, in quotation marks where TOML wants them.
fn below(path: String, key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let is_bare = !key.is_empty() && key.chars().all(is_bare);
    let key = if is_bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { path + "." + &key }
}

fn limits(raw: &RawLimits) -> Limits {
    let edge = Limits::default();
    Limits {
        connections: raw.connections.unwrap_or(edge.connections),
        connections_per_source: raw.connections_per_source.unwrap_or(edge.connections_per_source),
        handshakes: raw.handshakes.unwrap_or(edge.handshakes),
        handshakes_per_source: raw.handshakes_per_source.unwrap_or(edge.handshakes_per_source),
        retry_above: raw.retry_above.unwrap_or(edge.retry_above),
        ..edge
    }
}
