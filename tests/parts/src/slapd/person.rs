//! The people and groups of a directory, and how LDIF writes them (RFC 2849).

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{group_dn, person_dn};

/// What `OpenLDAP`'s password policy takes for a lock that no time opens.
pub(super) const LOCKED_FOR_GOOD: &str = "000001010000Z";

const LONG_AGO: &str = "20200101000000Z";

/// A person of the directory.
#[must_use]
#[derive(Clone, Debug)]
pub struct Person {
    uid: String,
    name: String,
    password: String,
    mail: String,
    unit: Option<String>,
    operational: Vec<(&'static str, &'static str)>,
}

/// A group of people and of other groups.
#[must_use]
#[derive(Clone, Debug)]
pub struct Group {
    name: String,
    members: Vec<String>,
}

impl Person {
    /// Begins a person with a login name, a name in any script, and a password.
    pub fn new(uid: &str, name: &str, password: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            name: name.to_owned(),
            password: password.to_owned(),
            mail: format!("{uid}@test.lan"),
            unit: None,
            operational: Vec::new(),
        }
    }

    /// Sets the mail address, which is otherwise the login name at `test.lan`.
    pub fn mail(mut self, mail: &str) -> Self {
        mail.clone_into(&mut self.mail);
        self
    }

    /// Sets the organisational unit: the attributes `ou` and `departmentNumber`.
    pub fn unit(mut self, unit: &str) -> Self {
        self.unit = Some(unit.to_owned());
        self
    }

    /// Locks the account, as an administrator does.
    pub fn locked(mut self) -> Self {
        self.operational.push(("pwdAccountLockedTime", LOCKED_FOR_GOOD));
        self
    }

    /// Makes the account one whose time is over.
    pub fn disabled(mut self) -> Self {
        self.operational.push(("pwdEndTime", LONG_AGO));
        self
    }

    /// Demands a new password: a bind succeeds, and nothing after it.
    pub fn must_change_password(mut self) -> Self {
        self.operational.push(("pwdReset", "TRUE"));
        self
    }

    pub(super) fn ldif(&self) -> String {
        let family_name = self.name.split(' ').next().unwrap_or(&self.name);
        let mut attributes = vec![
            ("dn", person_dn(&self.uid)),
            ("objectClass", "inetOrgPerson".to_owned()),
            ("uid", self.uid.clone()),
            ("cn", self.name.clone()),
            ("displayName", self.name.clone()),
            ("sn", family_name.to_owned()),
            ("mail", self.mail.clone()),
            ("userPassword", ssha(&self.password, &self.uid)),
        ];
        if let Some(unit) = &self.unit {
            attributes.push(("ou", unit.clone()));
            attributes.push(("departmentNumber", unit.clone()));
        }
        attributes
            .extend(self.operational.iter().map(|(name, value)| (*name, (*value).to_owned())));
        entry(&attributes)
    }
}

impl Group {
    /// Begins a group without members; a directory takes it once it has one.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), members: Vec::new() }
    }

    /// Adds a person by login name.
    pub fn member(mut self, uid: &str) -> Self {
        self.members.push(person_dn(uid));
        self
    }

    /// Adds everybody of another group.
    pub fn group(mut self, name: &str) -> Self {
        self.members.push(group_dn(name));
        self
    }

    pub(super) fn ldif(&self) -> String {
        let mut attributes = vec![
            ("dn", group_dn(&self.name)),
            ("objectClass", "groupOfNames".to_owned()),
            ("cn", self.name.clone()),
        ];
        attributes.extend(self.members.iter().map(|member| ("member", member.clone())));
        entry(&attributes)
    }
}

fn entry(attributes: &[(&str, String)]) -> String {
    attributes.iter().map(|(name, value)| line(name, value)).collect::<String>() + "\n"
}

/// Writes one attribute; text beyond ASCII goes as base64.
pub(super) fn line(name: &str, value: &str) -> String {
    let plain = value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
        && !value.starts_with([' ', ':', '<'])
        && !value.ends_with(' ');
    if plain {
        format!("{name}: {value}\n")
    } else {
        format!("{name}:: {}\n", STANDARD.encode(value))
    }
}

/// Hashes a password as slapd does by default: SHA-1 of password and salt.
pub(super) fn ssha(password: &str, salt: &str) -> String {
    let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(password.as_bytes());
    hash.update(salt.as_bytes());
    let salted = [hash.finish().as_ref(), salt.as_bytes()].concat();
    format!("{{SSHA}}{}", STANDARD.encode(salted))
}
