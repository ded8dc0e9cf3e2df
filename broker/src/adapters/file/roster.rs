//! The people of a file, checked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use serde::Deserialize;
use tegata_proto::id::{RealmName, UserId};
use tegata_proto::login::LOGIN_NAME_MAX;
use uuid::Uuid;

use super::password::PasswordHash;
use crate::ports::directory::{
    GROUP_DEPTH_MAX, GROUPS_MAX, GroupName, LoginName, Person, TEXT_MAX, presentable,
};

/// The people of a file.
///
/// INVARIANT: names and ids are unique; every group that is named is declared.
#[derive(Debug)]
pub(super) struct Roster {
    /// By id, which is a UUID in lower case.
    users: HashMap<String, User>,
    /// From a name in lower case to an id.
    names: HashMap<String, String>,
}

/// One user of a file.
#[derive(Debug)]
pub(super) struct User {
    pub(super) person: Person,
    pub(super) password_hash: PasswordHash,
    pub(super) disabled: bool,
}

/// One thing wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where, as in `users[3].id`; empty for the file as a whole.
    pub key: String,
    /// What is wrong there.
    pub problem: String,
}

/// All that is wrong with a file; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub(super) fn of_file(problem: String) -> Self {
        Self(vec![Fault { key: String::new(), problem }])
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Fault { key, problem }) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "; " };
            let colon = if key.is_empty() { "" } else { ": " };
            write!(f, "{comma}{key}{colon}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRoster {
    #[serde(default)]
    groups: Vec<RawGroup>,
    #[serde(default)]
    users: Vec<RawUser>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGroup {
    name: String,
    /// The groups that this one's members are in as well.
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawUser {
    name: String,
    id: String,
    display_name: Option<String>,
    account: Option<String>,
    unit: Option<String>,
    password_hash: String,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    disabled: bool,
}

impl Roster {
    /// Reads and checks a file's text.
    pub(super) fn parse(realm: &RealmName, text: &str) -> Result<Self, Faults> {
        // The parser's own message quotes the line, which may hold a hash.
        let raw: RawRoster = toml::from_str(text).map_err(|e| {
            let line = e.span().map(|span| {
                let before = text.as_bytes().iter().take(span.start);
                format!("line {}: ", 1 + before.filter(|b| **b == b'\n').count())
            });
            Faults::of_file(format!("{}{}", line.unwrap_or_default(), e.message()))
        })?;
        let mut reading = Reading { realm, faults: Vec::new(), groups: BTreeMap::new() };
        reading.groups(&raw.groups);
        let roster = reading.users(raw.users);
        if reading.faults.is_empty() { Ok(roster) } else { Err(Faults(reading.faults)) }
    }

    /// Returns the user who goes by a name, in whatever case.
    pub(super) fn by_name(&self, name: &str) -> Option<&User> {
        self.users.get(self.names.get(&name.to_ascii_lowercase())?)
    }

    /// Returns the user with an id.
    pub(super) fn by_id(&self, id: &str) -> Option<&User> {
        self.users.get(id)
    }
}

/// A file that is being read, and what is wrong with it so far.
struct Reading<'a> {
    realm: &'a RealmName,
    faults: Vec<Fault>,
    /// From each declared group to the groups its members are in as well.
    groups: BTreeMap<GroupName, Vec<GroupName>>,
}

impl Reading<'_> {
    fn fault(&mut self, key: impl Into<String>, problem: impl Into<String>) {
        self.faults.push(Fault { key: key.into(), problem: problem.into() });
    }

    fn groups(&mut self, raw: &[RawGroup]) {
        for (n, group) in raw.iter().enumerate() {
            let key = format!("groups[{n}].name");
            match GroupName::new(&group.name) {
                Err(e) => self.fault(key, e.to_string()),
                Ok(name) => {
                    if self.groups.insert(name, Vec::new()).is_some() {
                        self.fault(key, "a group of this name was declared before");
                    }
                }
            }
        }
        for (n, group) in raw.iter().enumerate() {
            let parents = self.declared(&format!("groups[{n}].groups"), &group.groups);
            if let Ok(name) = GroupName::new(&group.name) {
                self.groups.insert(name, parents);
            }
        }
    }

    /// Returns the groups of a list, each of which has to be declared.
    fn declared(&mut self, key: &str, texts: &[String]) -> Vec<GroupName> {
        let mut names = Vec::new();
        for (n, text) in texts.iter().enumerate() {
            match GroupName::new(text) {
                Ok(name) if self.groups.contains_key(&name) => names.push(name),
                Ok(_) => self.fault(format!("{key}[{n}]"), "no group of this name is declared"),
                Err(e) => self.fault(format!("{key}[{n}]"), e.to_string()),
            }
        }
        names
    }

    fn users(&mut self, raw: Vec<RawUser>) -> Roster {
        let mut roster = Roster { users: HashMap::new(), names: HashMap::new() };
        for (n, user) in raw.into_iter().enumerate() {
            let at = |field: &str| format!("users[{n}].{field}");
            let name = self.name(at("name"), &user.name);
            let display_name = self.text(at("display_name"), user.display_name);
            let account = self.text(at("account"), user.account);
            let unit = self.text(at("unit"), user.unit);
            let direct = self.declared(&at("groups"), &user.groups);
            let groups = self.closure(at("groups"), direct);
            let hash = PasswordHash::new(&user.password_hash);
            let hash = hash.map_err(|e| self.fault(at("password_hash"), e.to_string())).ok();
            let id = self.id(at("id"), &user.id);
            let (Some(name), Some(password_hash), Some(id)) = (name, hash, id) else { continue };
            let display_name = display_name.unwrap_or(user.name);
            let person = Person { user: id, display_name, account, unit, groups };
            let id = person.user.id().to_owned();
            if roster.names.insert(name, id.clone()).is_some() {
                self.fault(at("name"), "a user of this name was listed before");
            }
            let user = User { person, password_hash, disabled: user.disabled };
            if roster.users.insert(id, user).is_some() {
                self.fault(at("id"), "a user with this id was listed before");
            }
        }
        roster
    }

    fn name(&mut self, key: String, text: &str) -> Option<String> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b'@');
        if LoginName::new(text).is_ok() && text.bytes().all(is_name) {
            return Some(text.to_ascii_lowercase());
        }
        let grammar = "a-z, A-Z, 0-9, '.', '_', '-' or '@'";
        self.fault(key, format!("a name has 1 to {LOGIN_NAME_MAX} of {grammar}"));
        None
    }

    fn id(&mut self, key: String, text: &str) -> Option<UserId> {
        let id = text.parse::<Uuid>().ok().filter(|id| !id.is_nil());
        let user = id.and_then(|id| UserId::new(self.realm.clone(), id.to_string()).ok());
        if user.is_none() {
            self.fault(key, "not a UUID");
        }
        user
    }

    fn text(&mut self, key: String, text: Option<String>) -> Option<String> {
        let text = text?;
        let shown = presentable(&text).map(str::to_owned);
        if shown.is_none() {
            let rule = format!("has 1 to {TEXT_MAX} bytes and no control character");
            self.fault(key, rule);
        }
        shown
    }

    /// Returns the groups and all that they are nested in.
    fn closure(&mut self, key: String, direct: Vec<GroupName>) -> BTreeSet<GroupName> {
        let mut all = BTreeSet::new();
        let mut level = direct;
        for _ in 0..=GROUP_DEPTH_MAX {
            level.retain(|name| all.insert(name.clone()));
            if all.len() > GROUPS_MAX {
                self.fault(key, format!("more than {GROUPS_MAX} groups, nested ones included"));
                return all;
            }
            let above = level.iter().flat_map(|name| self.groups.get(name).into_iter().flatten());
            level = above.cloned().collect();
            if level.is_empty() {
                return all;
            }
        }
        if level.iter().any(|name| !all.contains(name)) {
            self.fault(key, format!("groups are nested more than {GROUP_DEPTH_MAX} deep"));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str =
        "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$3yu1PVBgv2FCVFBPFTX6tYwcRL+8RMl3Z9h3yQcPSsg";

    fn parse(text: &str) -> Result<Roster, Faults> {
        let realm = RealmName::new("honsho").expect("a name");
        Roster::parse(&realm, &text.replace("HASH", HASH))
    }

    #[test]
    fn all_faults_are_told_at_once_with_their_places() {
        let faults = parse(
            r#"
            [[groups]]
            name = "keiri"
            groups = ["staf"]
            [[groups]]
            name = "KEIRI"
            [[users]]
            name = "sato"
            id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c001"
            password_hash = "HASH"
            [[users]]
            name = "Sato"
            id = "0B0C7F2E-1D52-4D6B-9DF4-25A4F7F8C001"
            password_hash = "HASH"
            groups = ["keiri", "soumu"]
            [[users]]
            name = "佐藤"
            id = "1"
            password_hash = "himitsu"
            unit = "\n"
            "#,
        )
        .expect_err("a wrong file");
        let mut keys: Vec<_> = faults.0.iter().map(|fault| fault.key.as_str()).collect();
        keys.sort_unstable();
        assert_eq!(
            keys,
            [
                "groups[0].groups[0]",
                "groups[1].name",
                "users[1].groups[1]",
                "users[1].id",
                "users[1].name",
                "users[2].id",
                "users[2].name",
                "users[2].password_hash",
                "users[2].unit",
            ]
        );
        assert!(!faults.to_string().contains("himitsu"), "a hash may be a password in disguise");
    }

    #[test]
    fn a_fault_of_syntax_names_its_line_and_quotes_nothing() {
        let faults = parse("\n\n[[users]]\npassword_hash = himitsu\n").expect_err("no TOML");
        assert!(faults.to_string().starts_with("line 4: "), "{faults}");
        assert!(!faults.to_string().contains("himitsu"), "{faults}");
        let faults = parse("[[user]]\n").expect_err("an unknown table");
        assert!(faults.to_string().contains("user"), "{faults}");
    }

    #[test]
    fn a_chain_of_groups_has_an_end() {
        let chain = |length: usize| {
            let group = |n| format!("[[groups]]\nname = \"g{n}\"\ngroups = [\"g{}\"]\n", n + 1);
            let groups: String = (0..length).map(group).collect();
            let last = format!("[[groups]]\nname = \"g{length}\"\n");
            let user = r#"
                [[users]]
                name = "sato"
                id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c001"
                groups = ["g0"]
                password_hash = "HASH"
            "#;
            parse(&[&groups, &last, user].concat())
        };
        let roster = chain(GROUP_DEPTH_MAX).expect("as deep as allowed");
        let sato = roster.by_name("SATO").expect("listed");
        assert_eq!(sato.person.groups.len(), GROUP_DEPTH_MAX + 1);
        let faults = chain(GROUP_DEPTH_MAX + 1).expect_err("one deeper");
        assert_eq!(faults.0[0].key, "users[0].groups");
    }
}
