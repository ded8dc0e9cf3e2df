//! A real `OpenLDAP` directory, over LDAPS and `StartTLS`, with nested groups and account lockout.
//!
//! `memberOf` is computed by the `dynlist` overlay, which follows groups in groups. People live in
//! `ou=people`, groups in `ou=groups`; a service account may read everything but passwords.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, Result};

pub use self::person::{Group, Person};
use crate::{
    ca::TestCa,
    folder::Folder,
    package, port,
    process::{Child, run},
};

mod person;

/// The suffix of the directory.
pub const BASE: &str = "dc=test,dc=lan";
/// The account with which a broker searches.
pub const SERVICE_DN: &str = "cn=broker,dc=test,dc=lan";
/// The password of [`SERVICE_DN`].
pub const SERVICE_PASSWORD: &str = "broker-secret";

const ADMIN_DN: &str = "cn=admin,dc=test,dc=lan";
const ADMIN_PASSWORD: &str = "admin-secret";

/// How many groups the people made by [`Builder::crowd`] are spread over.
const CROWD_GROUPS: usize = 20;

/// How long one command of a test may take at the directory.
const COMMAND: Duration = Duration::from_secs(20);

/// How long filling a new directory may take.
const FILL: Duration = Duration::from_mins(1);

/// A running directory.
pub struct Slapd {
    ldap_port: u16,
    ldaps_port: u16,
    ca: PathBuf,
    folder: Folder,
    process: Option<Child>,
}

/// How a client speaks to the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS from the first byte.
    Ldaps,
    /// TLS asked for on the plain port.
    StartTls,
}

/// What a directory starts with.
#[must_use]
#[derive(Debug)]
pub struct Builder {
    people: Vec<Person>,
    groups: Vec<Group>,
    failures: u32,
    lockout: Duration,
}

impl Slapd {
    /// Begins a directory without people, which locks an account for 5 s after 3 wrong passwords.
    pub fn builder() -> Builder {
        Builder {
            people: Vec::new(),
            groups: Vec::new(),
            failures: 3,
            lockout: Duration::from_secs(5),
        }
    }

    /// Returns the URL for TLS from the first byte.
    pub fn ldaps_url(&self) -> String {
        format!("ldaps://localhost:{}", self.ldaps_port)
    }

    /// Returns the URL of the plain port, which offers `StartTLS`.
    pub fn ldap_url(&self) -> String {
        format!("ldap://localhost:{}", self.ldap_port)
    }

    /// Returns the port of [`Slapd::ldaps_url`], which also answers on `127.0.0.1` and `[::1]`.
    pub fn ldaps_port(&self) -> u16 {
        self.ldaps_port
    }

    /// Returns the process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Stops the directory: connections are refused until [`Slapd::restart`].
    ///
    /// # Errors
    ///
    /// When the operating system will not tell how it ended.
    pub fn stop(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.stop().map(drop))
    }

    /// Starts the directory again, on the same ports and with the same entries.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        let process = Child::spawn(
            "slapd",
            // With `-d` it stays in the foreground.
            Command::new(package::program("slapd")?).args(["-d", "0", "-f"]).arg(self.config()).args([
                "-h",
                &format!(
                    "ldap://127.0.0.1:{0} ldap://[::1]:{0} ldaps://127.0.0.1:{1} ldaps://[::1]:{1}",
                    self.ldap_port, self.ldaps_port
                ),
            ]),
            self.folder.path(),
        )?;
        process.ready(|| {
            let listening =
                port::is_listening(self.ldaps_port)? && port::is_listening(self.ldap_port)?;
            Ok(listening.then_some(()))
        })?;
        self.process = Some(process);
        Ok(())
    }

    /// Starts the directory again with a certificate of another authority.
    ///
    /// # Errors
    ///
    /// When it does not become ready.
    pub fn restart_as(&mut self, ca: &TestCa) -> Result<()> {
        self.stop()?;
        ca.issue_loopback()?.install(self.folder.path())?;
        self.restart()
    }

    /// Returns how many binds as the person have failed since the last good one,
    /// as far as the directory remembers them: as many as it locks after.
    ///
    /// # Errors
    ///
    /// When the directory does not answer.
    pub fn failed_binds(&self, uid: &str) -> Result<usize> {
        let entry = self.search(Transport::Ldaps, &format!("(uid={uid})"), &["pwdFailureTime"])?;
        Ok(entry.lines().filter(|line| line.starts_with("pwdFailureTime: ")).count())
    }

    /// Freezes the directory: it accepts connections and never answers.
    ///
    /// # Errors
    ///
    /// When it goes on all the same.
    pub fn pause(&mut self) -> Result<()> {
        self.process.as_mut().map_or(Ok(()), Child::pause)
    }

    /// Lets a frozen directory go on.
    pub fn resume(&mut self) {
        if let Some(process) = &mut self.process {
            process.resume();
        }
    }

    /// Applies changes in LDIF as the directory's administrator.
    ///
    /// # Errors
    ///
    /// When the directory refuses them.
    pub fn modify(&self, ldif: &str) -> Result<()> {
        let mut command = self.client("ldapmodify", Transport::Ldaps)?;
        command.args(["-D", ADMIN_DN, "-w", ADMIN_PASSWORD]);
        run("ldapmodify", &mut command, ldif.as_bytes(), COMMAND).map(drop)
    }

    /// Replaces one attribute of a person, or removes it when `value` is `None`.
    ///
    /// # Errors
    ///
    /// When the directory refuses it.
    pub fn set(&self, uid: &str, attribute: &str, value: Option<&str>) -> Result<()> {
        let value = value.map_or_else(String::new, |value| person::line(attribute, value));
        self.modify(&format!(
            "dn: {}\nchangetype: modify\nreplace: {attribute}\n{value}-\n",
            person_dn(uid)
        ))
    }

    /// Locks a person's account until an administrator opens it.
    ///
    /// # Errors
    ///
    /// When the directory refuses it.
    pub fn lock(&self, uid: &str) -> Result<()> {
        self.set(uid, "pwdAccountLockedTime", Some(person::LOCKED_FOR_GOOD))
    }

    /// Puts a person into a group.
    ///
    /// # Errors
    ///
    /// When the directory refuses it.
    pub fn join(&self, uid: &str, group: &str) -> Result<()> {
        self.change_membership("add", uid, group)
    }

    /// Takes a person out of a group, which must keep another member.
    ///
    /// # Errors
    ///
    /// When the directory refuses it.
    pub fn leave(&self, uid: &str, group: &str) -> Result<()> {
        self.change_membership("delete", uid, group)
    }

    /// Removes a person, who stays named in groups as in a real directory.
    ///
    /// # Errors
    ///
    /// When the directory refuses it.
    pub fn remove(&self, uid: &str) -> Result<()> {
        self.modify(&format!("dn: {}\nchangetype: delete\n", person_dn(uid)))
    }

    /// Searches as the service account and returns the entries as LDIF without line breaks.
    ///
    /// # Errors
    ///
    /// When the directory's certificate is not its authority's, or it refuses.
    pub fn search(
        &self,
        transport: Transport,
        filter: &str,
        attributes: &[&str],
    ) -> Result<String> {
        let mut command = self.client("ldapsearch", transport)?;
        command
            .args(["-LLL", "-o", "ldif_wrap=no", "-D", SERVICE_DN, "-w", SERVICE_PASSWORD])
            .args(["-b", BASE, filter])
            .args(attributes);
        run("ldapsearch", &mut command, b"", COMMAND)
    }

    /// Returns a person's `entryUUID`, the id that survives renaming.
    ///
    /// # Errors
    ///
    /// When there is no such person.
    pub fn entry_uuid(&self, uid: &str) -> Result<String> {
        let entry = self.search(Transport::Ldaps, &format!("(uid={uid})"), &["entryUUID"])?;
        let id = entry.lines().find_map(|line| line.strip_prefix("entryUUID: "));
        id.map(str::to_owned).with_context(|| format!("{uid} is not in the directory"))
    }

    fn change_membership(&self, verb: &str, uid: &str, group: &str) -> Result<()> {
        let (group, member) = (group_dn(group), person_dn(uid));
        self.modify(&format!(
            "dn: {group}\nchangetype: modify\n{verb}: member\nmember: {member}\n-\n"
        ))
    }

    fn config(&self) -> PathBuf {
        self.folder.path().join("slapd.conf")
    }

    fn client(&self, tool: &str, transport: Transport) -> Result<Command> {
        let mut command = Command::new(package::program(tool)?);
        command.env("LDAPTLS_CACERT", &self.ca).env("LDAPTLS_REQCERT", "demand").arg("-x");
        // By address: libldap takes `localhost` for the machine's own name when it verifies.
        match transport {
            Transport::Ldaps => {
                command.args(["-H", &format!("ldaps://127.0.0.1:{}", self.ldaps_port)])
            }
            Transport::StartTls => {
                command.args(["-ZZ", "-H", &format!("ldap://127.0.0.1:{}", self.ldap_port)])
            }
        };
        Ok(command)
    }
}

impl Builder {
    /// Adds a person.
    pub fn person(mut self, person: Person) -> Self {
        self.people.push(person);
        self
    }

    /// Adds a group; its members may be groups that are added before or after it.
    pub fn group(mut self, group: Group) -> Self {
        self.groups.push(group);
        self
    }

    /// Adds `count` people, `user00001` with the password `pw-user00001` and so on, each in one of
    /// the groups `group001` to `group020`.
    pub fn crowd(mut self, count: usize) -> Self {
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for number in 1..=count {
            let uid = format!("user{number:05}");
            let person = Person::new(&uid, &format!("User {number}"), &format!("pw-{uid}"));
            self.people.push(person.unit(&format!("unit{:02}", number % CROWD_GROUPS)));
            let name = format!("group{:03}", number % CROWD_GROUPS + 1);
            let group = groups.remove(&name).unwrap_or_else(|| Group::new(&name));
            groups.insert(name, group.member(&uid));
        }
        self.groups.extend(groups.into_values());
        self
    }

    /// Locks an account for `lockout` after so many wrong passwords.
    pub fn locks_after(mut self, failures: u32, lockout: Duration) -> Self {
        self.failures = failures;
        self.lockout = lockout;
        self
    }

    /// Starts the directory with a certificate of `ca` for the loopback names.
    ///
    /// # Errors
    ///
    /// When a program is missing, or slapd refuses the entries or does not become ready.
    pub fn start(self, ca: &TestCa) -> Result<Slapd> {
        package::require(&["slapd", "slapadd", "ldapsearch", "ldapmodify"])?;
        let folder = Folder::new()?;
        ca.issue_loopback()?.install(folder.path())?;
        fs::create_dir(folder.path().join("entries"))?;
        let mut slapd = Slapd {
            ldap_port: port::free_tcp()?,
            ldaps_port: port::free_tcp()?,
            ca: ca.certificate(),
            folder,
            process: None,
        };
        fs::write(slapd.config(), Self::configuration(&slapd))?;
        let mut fill = Command::new(package::program("slapadd")?);
        fill.arg("-q").arg("-f").arg(slapd.config());
        run("slapadd", &mut fill, self.ldif().as_bytes(), FILL)?;
        slapd.restart()?;
        Ok(slapd)
    }

    fn configuration(slapd: &Slapd) -> String {
        let folder = slapd.folder.path().display();
        format!(
            "include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include /etc/ldap/schema/dyngroup.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload dynlist
moduleload ppolicy
threads 8
sizelimit unlimited
TLSCACertificateFile {ca}
TLSCertificateFile {folder}/server.pem
TLSCertificateKeyFile {folder}/server.key
TLSVerifyClient never

database mdb
suffix \"{BASE}\"
rootdn \"{ADMIN_DN}\"
rootpw {ADMIN_PASSWORD}
directory {folder}/entries
maxsize 1073741824
# Nothing here outlives the test, so no write waits for the disk.
dbnosync
index objectClass,uid,cn,mail,member,entryUUID eq
access to attrs=userPassword by self write by anonymous auth by * none
access to * by users read by * none
overlay dynlist
dynlist-attrset groupOfURLs memberURL member+memberOf@groupOfNames*
overlay ppolicy
ppolicy_default \"cn=default,ou=policies,{BASE}\"
ppolicy_use_lockout
",
            ca = slapd.ca.display(),
        )
    }

    fn ldif(&self) -> String {
        let mut ldif = format!(
            "dn: {BASE}
objectClass: dcObject
objectClass: organization
dc: test
o: Test

dn: ou=people,{BASE}
objectClass: organizationalUnit
ou: people

dn: ou=groups,{BASE}
objectClass: organizationalUnit
ou: groups

dn: ou=policies,{BASE}
objectClass: organizationalUnit
ou: policies

dn: cn=default,ou=policies,{BASE}
objectClass: device
objectClass: pwdPolicy
cn: default
pwdAttribute: userPassword
pwdLockout: TRUE
pwdMaxFailure: {failures}
pwdLockoutDuration: {lockout}
pwdFailureCountInterval: 60
pwdMustChange: TRUE
pwdAllowUserChange: TRUE

dn: {SERVICE_DN}
objectClass: organizationalRole
objectClass: simpleSecurityObject
cn: broker
userPassword: {service}

",
            failures = self.failures,
            lockout = self.lockout.as_secs(),
            service = person::ssha(SERVICE_PASSWORD, "broker"),
        );
        ldif.extend(self.people.iter().map(Person::ldif));
        ldif.extend(self.groups.iter().map(Group::ldif));
        ldif
    }
}

/// Returns the distinguished name of a person.
pub fn person_dn(uid: &str) -> String {
    format!("uid={uid},ou=people,{BASE}")
}

/// Returns the distinguished name of a group.
pub fn group_dn(name: &str) -> String {
    format!("cn={name},ou=groups,{BASE}")
}
