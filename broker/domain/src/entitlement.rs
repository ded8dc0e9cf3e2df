//! Who may use which pool.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use tegata_proto::id::{RealmName, UserId};

use crate::group::GroupName;

/// A right to use a pool. There is no way to forbid: what is not granted is not
/// allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Entitlement {
    /// Everyone in a group of a realm's directory.
    Group {
        /// Whose directory.
        realm: RealmName,
        /// The group, in its one spelling.
        name: GroupName,
    },
    /// One person.
    User(UserId),
}

impl Entitlement {
    /// Tells whether the right covers a person with these groups.
    pub fn covers(&self, user: &UserId, groups: &BTreeSet<GroupName>) -> bool {
        match self {
            Self::Group { realm, name } => realm == user.realm() && groups.contains(name),
            Self::User(entitled) => entitled == user,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_of_another_realm_opens_nothing() {
        let sato: UserId = "honsho/1".parse().unwrap();
        let groups = BTreeSet::from([GroupName::new("keiri").unwrap()]);
        let group = |realm: &str| Entitlement::Group {
            realm: realm.parse().unwrap(),
            name: GroupName::new("KEIRI").unwrap(),
        };
        assert!(group("honsho").covers(&sato, &groups));
        assert!(!group("gaikyoku").covers(&sato, &groups));
        assert!(!group("honsho").covers(&sato, &BTreeSet::new()));
        assert!(Entitlement::User(sato.clone()).covers(&sato, &BTreeSet::new()));
        assert!(!Entitlement::User("honsho/2".parse().unwrap()).covers(&sato, &groups));
    }
}
