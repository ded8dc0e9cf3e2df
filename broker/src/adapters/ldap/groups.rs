//! A person's groups, nested ones included, within bounds.

use std::collections::BTreeSet;

use ldap3::{Scope, ldap_escape};
use tokio::time::Instant;

use super::config::{AttributeName, DistinguishedName};
use super::connection::{Entry, NO_ATTRIBUTES, Search};
use super::{LdapDirectory, Misfit};
use crate::ports::directory::{DirectoryError, GROUP_DEPTH_MAX, GROUPS_MAX, GroupName};

/// Most members that one search asks about.
const MEMBERS_PER_SEARCH: usize = 64;

/// Reads the groups that an entry names.
pub(super) fn named(
    entry: &Entry,
    attribute: &AttributeName,
) -> Result<BTreeSet<GroupName>, Misfit> {
    let mut groups = BTreeSet::new();
    for value in entry.values(attribute.as_str()) {
        let name = str::from_utf8(value).ok().and_then(|text| GroupName::from_dn(text).ok());
        // A value that no pool can name opens none.
        groups.extend(name);
        if groups.len() > GROUPS_MAX {
            return Err(Misfit::TooManyGroups);
        }
    }
    Ok(groups)
}

/// Searches for the groups that name a member, then for those that name these,
/// until there is none that was not seen before.
pub(super) async fn searched(
    directory: &LdapDirectory,
    base: &DistinguishedName,
    member: &AttributeName,
    person: &str,
    deadline: Instant,
) -> Result<BTreeSet<GroupName>, DirectoryError> {
    let mut groups = BTreeSet::new();
    let mut level = vec![person.to_owned()];
    for _ in 0..=GROUP_DEPTH_MAX {
        let mut above = Vec::new();
        for members in level.chunks(MEMBERS_PER_SEARCH) {
            let any = members.iter().map(|dn| format!("({member}={})", ldap_escape(dn.as_str())));
            let search = Search {
                base: base.as_str().to_owned(),
                scope: Scope::Subtree,
                filter: format!("(|{})", any.collect::<String>()),
                attributes: vec![NO_ATTRIBUTES.to_owned()],
                limit: GROUPS_MAX,
            };
            let answer = directory.search(&search, deadline).await?;
            if answer.is_cut() {
                return Err(directory.misfit(Misfit::TooManyGroups));
            }
            for entry in answer.entries {
                let Ok(name) = GroupName::from_dn(&entry.dn) else { continue };
                if groups.insert(name) {
                    above.push(entry.dn);
                }
            }
            if groups.len() > GROUPS_MAX {
                return Err(directory.misfit(Misfit::TooManyGroups));
            }
        }
        if above.is_empty() {
            return Ok(groups);
        }
        level = above;
    }
    Err(directory.misfit(Misfit::GroupsTooDeep))
}
