//! The realms' directories, made from their part of the configuration.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use tegata_proto::id::RealmName;

use super::config::Reader;
use super::raw::{RawFile, RawId, RawLdap, Written};
use crate::adapters::file::FileDirectory;
use crate::adapters::ldap::{
    AttributeName, DistinguishedName, GroupSource, IdAttribute, LdapConfig, LdapDirectory,
    LdapLimits, PeopleFilter, ServerUrl, Trust, password_from_file,
};
use crate::ports::directory::Directory;

/// Longest time-out that makes sense for a directory.
const TIMEOUT_MAX: Duration = Duration::from_mins(1);

pub(super) fn file(
    reader: &mut Reader,
    key: &str,
    name: RealmName,
    raw: &RawFile,
) -> Option<Arc<FileDirectory>> {
    let key = format!("{key}.file.path");
    let path = reader.secret(&key, &raw.path);
    reader.keep(key, FileDirectory::open(name, path)).map(Arc::new)
}

pub(super) fn ldap(
    reader: &mut Reader,
    key: &str,
    realm: RealmName,
    raw: RawLdap,
) -> Option<Arc<dyn Directory>> {
    let at = |name: &str| format!("{key}.ldap.{name}");
    let mut servers = Vec::new();
    for (n, server) in raw.servers.iter().enumerate() {
        servers.extend(reader.keep(at(&format!("servers[{n}]")), ServerUrl::new(server)));
    }
    if raw.servers.is_empty() {
        reader.fault(at("servers"), "names no server");
    }
    let trust = match &raw.ca {
        Some(path) => Trust::from_file(&reader.path(path)),
        None => Trust::system(),
    };
    let trust = reader.keep(at("ca"), trust);
    let service_dn = reader.keep(at("bind_dn"), DistinguishedName::new(&raw.bind_dn));
    let password = reader.secret(&at("bind_password_file"), &raw.bind_password_file);
    let password = reader.keep(at("bind_password_file"), password_from_file(&password));
    let people = reader.keep(at("people"), DistinguishedName::new(&raw.people));
    let people_filter = raw
        .people_filter
        .as_ref()
        .and_then(|filter| reader.keep(at("people_filter"), PeopleFilter::new(filter)));
    let mut attribute = |name: &str, text: &str| reader.keep(at(name), AttributeName::new(text));
    let login = attribute("login_attribute", &raw.login_attribute);
    let display_name = attribute("display_name_attribute", &raw.display_name_attribute);
    let account = raw.account_attribute.as_ref().map(|a| attribute("account_attribute", a));
    let unit = raw.unit_attribute.as_ref().map(|a| attribute("unit_attribute", a));
    let member = attribute("member_attribute", &raw.member_attribute);
    let member_of = attribute("member_of_attribute", &raw.member_of_attribute);
    let groups = match &raw.groups {
        None if raw.groups_in_chain => {
            reader.fault(at("groups_in_chain"), "needs groups, where they are searched for");
            None
        }
        None => member_of.map(|attribute| GroupSource::MemberOf { attribute }),
        Some(base) => {
            let places = reader.keep(at("groups"), DistinguishedName::new(base)).zip(member);
            places.map(|(base, member)| {
                if raw.groups_in_chain {
                    GroupSource::InChain { base, member }
                } else {
                    GroupSource::Search { base, member }
                }
            })
        }
    };

    let usual = LdapLimits::default();
    let mut span = |name: &str, raw: Option<Written<SignedDuration>>, usual| {
        let Some(span) = raw.and_then(|raw| reader.written(at(name), raw)) else { return usual };
        match Duration::try_from(span) {
            Ok(span) if !span.is_zero() && span <= TIMEOUT_MAX => span,
            Ok(_) | Err(_) => {
                reader.fault(at(name), "is not between zero and a minute");
                usual
            }
        }
    };
    let limits = LdapLimits {
        connect: span("connect_timeout", raw.connect_timeout, usual.connect),
        operation: span("operation_timeout", raw.operation_timeout, usual.operation),
        patience: span("patience", raw.patience, usual.patience),
        connections: raw.connections.unwrap_or(usual.connections),
        waiting: raw.waiting.unwrap_or(usual.waiting),
    };

    let config = LdapConfig {
        realm,
        servers,
        trust: trust?,
        service_dn: service_dn?,
        service_password: password?,
        people_base: people?,
        people_filter,
        login_attribute: login?,
        id: match raw.id {
            RawId::EntryUuid => IdAttribute::EntryUuid,
            RawId::ObjectGuid => IdAttribute::ObjectGuid,
        },
        display_name: display_name?,
        account: account.flatten(),
        unit: unit.flatten(),
        groups: groups?,
        limits,
    };
    if config.servers.is_empty() {
        return None;
    }
    let directory = reader.keep(at("connections"), LdapDirectory::new(config))?;
    Some(Arc::new(directory))
}
