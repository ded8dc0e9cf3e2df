//! A site: a folder as `tegata-broker init` makes it, and the broker that runs
//! on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use argon2::{Algorithm, Argon2, Params, PasswordHasher as _, Version};
use tegata_parts::port;
use tegata_parts::process::Child;
use tegata_parts::slapd::{self, Slapd};
use tempfile::TempDir;

use crate::api::Api;
use crate::bench::machine;
use crate::staff::{Device, Login};
use crate::wait;

/// A site that is being described.
#[must_use]
pub struct Builder {
    realm: String,
    users: String,
    pools: Vec<serde_json::Value>,
    occupancy: Option<PathBuf>,
    targets: String,
    ldap_ca: Option<PathBuf>,
    address: IpAddr,
    other_address: Option<IpAddr>,
    limits: String,
    log: String,
    programs: Option<PathBuf>,
    launch: Launch,
    office: String,
    classes: String,
    path: Option<(SocketAddr, SocketAddr)>,
    log_format: &'static str,
    balancers: String,
}

/// A running site.
pub struct Site {
    folder: TempDir,
    listen: SocketAddr,
    operations: SocketAddr,
    program: PathBuf,
    launch: Launch,
    broker: Option<Child>,
    starts: u32,
}

/// How the broker is started, each time.
#[derive(Default)]
struct Launch {
    store: Option<PathBuf>,
    open_files: Option<u64>,
    environment: Vec<(String, String)>,
}

/// What a network may do that no story is about, in TOML.
const GENEROUS: &str = "logins_per_minute = 60000\nfailures_per_minute = 60000\nshare = 16\n";

/// Memory in KiB and passes of a crowd's hash: what a check costs is not what a
/// crowd is for.
const CHEAP: (u32, u32) = (64, 1);

/// Returns the path of a built program.
///
/// # Errors
///
/// When it was not built: `./tests/run` does so before the stories.
pub fn program(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the test is in no target folder")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built; ./tests/run builds it", path.display());
    Ok(path)
}

impl Builder {
    /// Lets people of a file in: name, password, groups.
    ///
    /// # Errors
    ///
    /// When a password cannot be hashed.
    pub fn people(mut self, people: &[(&str, &str, &[&str])]) -> Result<Self> {
        let declared: BTreeSet<_> = people.iter().flat_map(|(_, _, groups)| *groups).collect();
        for group in declared {
            writeln!(self.users, "[[groups]]\nname = \"{group}\"")?;
        }
        let mut hashes = BTreeMap::new();
        for (n, (name, password, groups)) in people.iter().enumerate() {
            let hash = match hashes.get(password) {
                Some(hash) => String::clone(hash),
                None => hashes.entry(password).or_insert(hash_password(password)?).clone(),
            };
            let groups = serde_json::to_string(groups)?;
            write!(
                self.users,
                "[[users]]\nid = \"{n:08}-0000-7000-8000-000000000000\"\nname = \"{name}\"\n\
                 display_name = \"{name}\"\naccount = \"{name}\"\n\
                 password_hash = \"{hash}\"\ngroups = {groups}\n"
            )?;
        }
        Ok(self)
    }

    /// Lets people of a group in by their numbers, `user0001` and so on, with one
    /// password that is cheap to check.
    ///
    /// # Errors
    ///
    /// When the password cannot be hashed.
    pub fn crowd(
        mut self,
        numbers: RangeInclusive<usize>,
        password: &str,
        group: &str,
    ) -> Result<Self> {
        let (memory, passes) = CHEAP;
        let params = Params::new(memory, passes, 1, None).map_err(|e| anyhow!("{e}"))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let hash = argon2.hash_password(password.as_bytes()).map_err(|e| anyhow!("{e}"))?;
        writeln!(self.users, "[[groups]]\nname = \"{group}\"")?;
        for n in numbers {
            let name = crowd_name(n);
            write!(
                self.users,
                "[[users]]\nid = \"{n:08}-0000-7000-8000-00000000000c\"\nname = \"{name}\"\n\
                 display_name = \"{name}\"\naccount = \"{name}\"\n\
                 password_hash = \"{hash}\"\ngroups = [\"{group}\"]\n"
            )?;
        }
        Ok(self)
    }

    /// Keeps the store in this file.
    pub fn store(mut self, file: PathBuf) -> Self {
        self.launch.store = Some(file);
        self
    }

    /// Allows the broker so many open files.
    pub fn open_files(mut self, most: u64) -> Self {
        self.launch.open_files = Some(most);
        self
    }

    /// Starts the broker with a variable in its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.launch.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Lets the people of a real directory in, over this URL.
    pub fn directory(mut self, url: &str, ca: &Path) -> Self {
        let base = slapd::BASE;
        self.realm = format!(
            "[[realms]]\nname = \"honsho\"\n[realms.ldap]\nservers = [\"{url}\"]\n\
             ca = \"directory-ca.pem\"\nbind_dn = \"{}\"\nbind_password_file = \"ldap.password\"\n\
             people = \"ou=people,{base}\"\naccount_attribute = \"uid\"\n\
             unit_attribute = \"departmentNumber\"\n",
            slapd::SERVICE_DN
        );
        self.ldap_ca = Some(ca.to_owned());
        self
    }

    /// Lets the people of a real directory in over LDAPS.
    pub fn slapd(self, slapd: &Slapd, ca: &Path) -> Self {
        let url = slapd.ldaps_url();
        self.directory(&url, ca)
    }

    /// Adds a pool; what is missing of it is as in [`pool`].
    pub fn pool(mut self, pool: serde_json::Value) -> Self {
        self.pools.push(pool);
        self
    }

    /// Asks desktops by this program: desktop, action, account.
    pub fn occupancy(mut self, program: PathBuf) -> Self {
        self.occupancy = Some(program);
        self
    }

    /// Listens at this address instead of 127.0.0.1.
    pub fn at(mut self, address: IpAddr) -> Self {
        self.address = address;
        self
    }

    /// Listens at this address too, with the same port.
    pub fn and_at(mut self, address: IpAddr) -> Self {
        self.other_address = Some(address);
        self
    }

    /// Listens at the first address and tells agents that it is at the second, where
    /// a path to it begins.
    pub fn behind(mut self, listen: SocketAddr, path: SocketAddr) -> Self {
        self.path = Some((listen, path));
        self
    }

    /// Believes balancers of this prefix, which say where those they bring come from.
    pub fn balancers(mut self, prefix: &str) -> Self {
        self.balancers = format!("balancers = [\"{prefix}\"]\n");
        self
    }

    /// Sets the limits, as the lines of a table of the configuration.
    pub fn limits(mut self, lines: &str) -> Self {
        self.limits = format!("[limits]\n{lines}\n");
        self
    }

    /// Sets what the broker logs.
    pub fn log(mut self, filter: &str) -> Self {
        filter.clone_into(&mut self.log);
        self
    }

    /// Takes the programs of this folder, not those that were built with the tests.
    pub fn programs(mut self, folder: &Path) -> Self {
        self.programs = Some(folder.to_owned());
        self
    }

    /// Says in TOML what the sources of the office may do; without it, they may do
    /// more than any story does.
    pub fn office(mut self, limits: &str) -> Self {
        limits.clone_into(&mut self.office);
        self
    }

    /// Names a network by its prefix; its sources may do more than any story does.
    pub fn network(mut self, class: &str, prefix: &str) -> Self {
        let _ = write!(
            self.classes,
            "[[classes]]\nname = \"{class}\"\nprefixes = [\"{prefix}\"]\n{GENEROUS}"
        );
        self
    }

    /// Has the log written as JSON.
    pub fn log_as_json(mut self) -> Self {
        self.log_format = "json";
        self
    }

    /// Lets the gateway dial these targets and no others, as they stand in the
    /// configuration.
    pub fn targets(mut self, targets: &str) -> Self {
        targets.clone_into(&mut self.targets);
        self
    }

    /// Sets up the folder and starts the broker.
    ///
    /// # Errors
    ///
    /// When the broker does not become ready.
    pub fn start(self) -> Result<Site> {
        let folder = tempfile::Builder::new().prefix("tegata-site-").tempdir()?;
        let free = SocketAddr::new(self.address, port::free_udp()?);
        let (listen, advertise) = self.path.unwrap_or((free, free));
        let other = self.other_address.map_or_else(String::new, |address| {
            format!(", \"{}\"", SocketAddr::new(address, listen.port()))
        });
        let operations = SocketAddr::from(([127, 0, 0, 1], port::free_tcp()?));
        let site = folder.path().join("site");
        let program = match &self.programs {
            Some(folder) => folder.join("tegata-broker"),
            None => program("tegata-broker")?,
        };
        let init = Command::new(&program).args(["init", "--dir"]).arg(&site).output()?;
        ensure!(init.status.success(), "init: {}", String::from_utf8_lossy(&init.stderr));

        let secret = |name: &str, text: &str| -> Result<()> {
            fs::write(site.join(name), text)?;
            Ok(fs::set_permissions(site.join(name), fs::Permissions::from_mode(0o600))?)
        };
        if self.users.is_empty() {
            secret("users.toml", "users = []\n")?;
        } else {
            secret("users.toml", &self.users)?;
        }
        if let Some(ca) = &self.ldap_ca {
            fs::copy(ca, site.join("directory-ca.pem"))?;
            secret("ldap.password", slapd::SERVICE_PASSWORD)?;
        }
        let pools = toml_of(&self.pools)?;
        fs::write(site.join("pools.toml"), pools)?;
        let occupancy = match &self.occupancy {
            Some(program) => format!(
                "[occupancy]\ncommand = [\"{}\", \"{{desktop}}\", \"{{action}}\", \"{{account}}\"]\n",
                program.display()
            ),
            None => String::new(),
        };
        let store = match &self.launch.store {
            Some(file) => file.clone(),
            None => PathBuf::from("tegata.db"),
        };
        let config = format!(
            "issuer = \"tegata\"\nlisten = [\"{listen}\"{other}]\n\
             advertise = [\"{advertise}\"{other}]\n{}\
             bootstrap = \"pools.toml\"\n\
             [log]\nformat = \"{}\"\nfilter = \"{}\"\n\
             [keys]\nbroker_certificate = \"broker.pem\"\nbroker_key = \"broker.key\"\n\
             gateway_certificate = \"gateway.pem\"\ngateway_key = \"gateway.key\"\n\
             signing_key = \"signing.key\"\nreset_key = \"reset.key\"\n\
             [store]\nsqlite = \"{}\"\n\
             [operations]\nlisten = \"{operations}\"\napi_keys = \"api-keys.toml\"\n\
             {}\n[[classes]]\nname = \"office\"\nprefixes = [\"127.0.0.0/8\"]\n\
             {}\n{}{}\n{occupancy}{}",
            self.balancers,
            self.log_format,
            self.log,
            store.display(),
            self.realm,
            self.office,
            self.classes,
            self.targets,
            self.limits,
        );
        fs::write(site.join("broker.toml"), config)?;
        let launch = self.launch;
        let mut site =
            Site { folder, listen, operations, program, launch, broker: None, starts: 0 };
        site.start()?;
        Ok(site)
    }
}

impl Site {
    /// Begins a site with a file of people, no pool, and desktops on loopback.
    pub fn builder() -> Builder {
        Builder {
            realm: "[[realms]]\nname = \"honsho\"\n[realms.file]\npath = \"users.toml\"\n"
                .to_owned(),
            users: String::new(),
            pools: Vec::new(),
            occupancy: None,
            targets: "[[targets]]\nprefixes = [\"127.0.0.0/8\"]\nports = [\"1024-65535\"]\n"
                .to_owned(),
            ldap_ca: None,
            address: Ipv4Addr::LOCALHOST.into(),
            other_address: None,
            limits: String::new(),
            log: "info,tegata_broker=debug,tegata_gateway=debug".to_owned(),
            programs: None,
            launch: Launch::default(),
            office: GENEROUS.to_owned(),
            classes: String::new(),
            path: None,
            log_format: "plain",
            balancers: String::new(),
        }
    }

    /// Starts the broker and waits until it is ready.
    ///
    /// # Errors
    ///
    /// When it ends or does not become ready.
    pub fn start(&mut self) -> Result<()> {
        let broker = self.launch()?;
        let api = self.api()?;
        wait::until("the broker to be ready", || {
            ensure!(broker.is_running(), "the broker has ended: {}", broker.log());
            Ok(api.is_ready().then_some(()))
        })
        .with_context(|| broker.log())?;
        self.broker = Some(broker);
        Ok(())
    }

    /// Starts the broker and waits for nothing; the caller has it.
    ///
    /// # Errors
    ///
    /// When it cannot be run.
    pub fn launch(&mut self) -> Result<Child> {
        self.starts += 1;
        let name = format!("broker-{}", self.starts);
        let mut command = match self.launch.open_files {
            None => Command::new(&self.program),
            Some(most) => {
                let mut command = Command::new("prlimit");
                command.arg(format!("--nofile={most}:{most}")).arg(&self.program);
                command
            }
        };
        command
            .args(["run", "--config"])
            .arg(self.path("broker.toml"))
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)));
        Child::spawn(&name, &mut command, self.folder.path())
    }

    /// Asks the broker to drain and end, and returns its exit number and what it
    /// wrote.
    ///
    /// # Errors
    ///
    /// When it cannot be found out how it ended.
    pub fn stop(&mut self) -> Result<(Option<i32>, String)> {
        match self.broker.take() {
            Some(mut broker) => Ok((broker.stop()?.code(), broker.log())),
            None => Ok((None, String::new())),
        }
    }

    /// Kills the broker, as a power cut would.
    ///
    /// # Errors
    ///
    /// When it cannot be found out how it ended.
    pub fn kill(&mut self) -> Result<()> {
        self.broker.take().map_or(Ok(()), |mut broker| broker.kill().map(drop))
    }

    /// Tells whether the broker has not ended.
    pub fn is_running(&self) -> bool {
        self.broker.as_ref().is_some_and(Child::is_running)
    }

    /// Returns where the operations port listens.
    pub fn operations(&self) -> SocketAddr {
        self.operations
    }

    /// Returns what the broker wrote since its last start.
    pub fn log(&self) -> String {
        self.broker.as_ref().map(Child::log).unwrap_or_default()
    }

    /// Returns the broker's process id.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn process(&self) -> Result<u32> {
        self.broker.as_ref().map(Child::id).context("the broker does not run")
    }

    /// Returns the memory that the broker has in use, in KiB.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn resident_kib(&self) -> Result<u32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?;
        Ok(kib.parse()?)
    }

    /// Returns the processor time that the broker has used since its start.
    ///
    /// # Errors
    ///
    /// When it does not run.
    pub fn cpu(&self) -> Result<Duration> {
        machine::cpu(self.process()?)
    }

    /// Returns the file of the store.
    pub fn store(&self) -> PathBuf {
        self.launch.store.clone().unwrap_or_else(|| self.path("tegata.db"))
    }

    /// Returns a file of the site's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("site").join(name)
    }

    /// Returns the folder for what staff leave behind.
    pub fn scratch(&self) -> &Path {
        self.folder.path()
    }

    /// Returns where the broker and its gateway listen.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Returns the administrator's way in.
    ///
    /// # Errors
    ///
    /// When the key that `init` made is not there.
    pub fn api(&self) -> Result<Api> {
        let key = fs::read_to_string(self.path("api.key"))?;
        Api::new(self.operations, key.trim())
    }

    /// Sits somebody down at a thin client.
    pub fn device<'a>(&'a self, name: &'a str, password: &'a str) -> Device<'a> {
        Device::new(self, name, password)
    }

    /// Logs somebody in whose viewer is a port on loopback.
    ///
    /// # Errors
    ///
    /// When the agent cannot be started.
    pub fn login(&self, name: &str, password: &str) -> Result<Login> {
        self.device(name, password).start()
    }
}

/// Returns the name of the n-th of a crowd, from 1.
pub fn crowd_name(n: usize) -> String {
    format!("user{n:04}")
}

/// A floating pool of these byte-stream desktops, open to a group of the realm.
pub fn pool(name: &str, group: &str, desktops: &[SocketAddr]) -> serde_json::Value {
    let desktops: Vec<_> = desktops
        .iter()
        .enumerate()
        .map(|(n, address)| serde_json::json!({"name": format!("{name}-{:04}", n + 1), "address": address}))
        .collect();
    serde_json::json!({
        "name": name, "label": name, "kind": "floating", "reuse": "never", "protocol": "tcp",
        "entitlements": [{"group": {"realm": "honsho", "name": group}}],
        "desktops": desktops,
    })
}

/// The same, of RDP desktops secured by TLS, with the password that was typed.
pub fn rdp_pool(name: &str, group: &str, desktops: &[SocketAddr]) -> serde_json::Value {
    let mut pool = pool(name, group, desktops);
    pool["protocol"] = "rdp".into();
    pool["security"] = "tls".into();
    pool["sign_on"] = "person".into();
    pool
}

fn hash_password(password: &str) -> Result<String> {
    use std::io::Write as _;
    use std::process::Stdio;

    let mut child = Command::new(program("tegata-broker")?)
        .arg("hash-password")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no standard input")?.write_all(password.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the password is not hashed");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Writes pools as TOML; JSON's own inline tables are TOML's but for the colon.
fn toml_of(pools: &[serde_json::Value]) -> Result<String> {
    let pools = serde_json::json!({ "pools": pools });
    Ok(toml::to_string(&pools)?)
}
