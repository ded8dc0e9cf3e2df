//! A person's groups, nested ones included, within bounds.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use ldap3::{Scope, ldap_escape};
use tokio::time::Instant;

use super::config::{AttributeName, DistinguishedName};
use super::connection::{Entry, NO_ATTRIBUTES, Search};
use super::{LdapDirectory, Misfit};
use crate::ports::directory::{DirectoryError, GROUP_DEPTH_MAX, GROUPS_MAX, GroupName};

/// The rule by which a server follows members of members by itself (MS-ADTS
/// section 3.1.1.3.4.4.3).
pub(super) const IN_CHAIN: &str = "1.2.840.113556.1.4.1941";

/// Of which servers that know the rule say that they are one, in the attribute
/// `supportedCapabilities` of their root (MS-ADTS section 3.1.1.3.4.3): Active
/// Directory, and its Lightweight Directory Services.
const ACTIVE_DIRECTORIES: [&str; 2] = ["1.2.840.113556.1.4.800", "1.2.840.113556.1.4.1851"];

/// The attribute in which servers say so.
const CAPABILITIES: &str = "supportedCapabilities";

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

/// Searches for the groups that a person is in, nested ones included, by one
/// search.
///
/// A server that does not know the rule would find nothing and call that a
/// success (RFC 4511 section 4.5.1.7), so it is asked first, until one has said
/// that it does.
pub(super) async fn in_chain(
    directory: &LdapDirectory,
    base: &DistinguishedName,
    member: &AttributeName,
    person: &str,
    deadline: Instant,
) -> Result<BTreeSet<GroupName>, DirectoryError> {
    if !directory.knows_chain.load(Ordering::Relaxed) {
        let root = Search {
            base: String::new(),
            scope: Scope::Base,
            filter: "(objectClass=*)".to_owned(),
            attributes: vec![CAPABILITIES.to_owned()],
            limit: 1,
        };
        let root = directory.search(&root, deadline).await?;
        let mut capabilities = root.entries.iter().flat_map(|entry| entry.values(CAPABILITIES));
        if !capabilities.any(|value| ACTIVE_DIRECTORIES.iter().any(|oid| oid.as_bytes() == value)) {
            return Err(directory.misfit(Misfit::NoChainRule));
        }
        directory.knows_chain.store(true, Ordering::Relaxed);
    }
    let search = Search {
        base: base.as_str().to_owned(),
        scope: Scope::Subtree,
        filter: chain_filter(member, person),
        attributes: vec![NO_ATTRIBUTES.to_owned()],
        limit: GROUPS_MAX,
    };
    let answer = directory.search(&search, deadline).await?;
    if answer.is_cut() {
        return Err(directory.misfit(Misfit::TooManyGroups));
    }
    Ok(answer.entries.iter().filter_map(|entry| GroupName::from_dn(&entry.dn).ok()).collect())
}

fn chain_filter(member: &AttributeName, person: &str) -> String {
    format!("({member}:{IN_CHAIN}:={})", ldap_escape(person))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_asked_for_by_an_extensible_match() {
        let member = AttributeName::new("member").unwrap();
        let filter = |person| chain_filter(&member, person);
        assert_eq!(
            filter("CN=Sato Hanako,OU=People,DC=honsho,DC=lan"),
            "(member:1.2.840.113556.1.4.1941:=CN=Sato Hanako,OU=People,DC=honsho,DC=lan)"
        );
        let nasty = filter("CN=a*)(uid=*\\,DC=lan");
        assert_eq!(nasty, "(member:1.2.840.113556.1.4.1941:=CN=a\\2a\\29\\28uid=\\2a\\5c,DC=lan)");
        assert!(ldap3::parse_filter(&nasty).is_ok());
    }
}
