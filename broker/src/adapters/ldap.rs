//! A realm kept in an LDAP directory: `OpenLDAP`, Active Directory and their kin.
//!
//! A service account searches for the entry; the person's password is then
//! tried by a bind as that entry, on a connection that carries nothing but such
//! binds. Who a person is comes from an attribute that never changes, read once
//! before the bind and once more as the person after it.
//!
//! Talks to verified servers only, follows no referral, and lets nothing a
//! server sends reach further than its own connection: see [`connection`].

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use ldap3::{Scope, ldap_escape};
use tegata_proto::id::RealmName;
use tokio::time::Instant;

use crate::ports::directory::{
    Cause, Directory, DirectoryError, Found, LoginName, NonEmptyPassword, Person, Reason,
    ServerStanding, Verdict,
};

use answer::{BindAnswer, Code};
pub use config::{
    AttributeName, DistinguishedName, GroupSource, IdAttribute, InvalidSetting, LdapConfig,
    LdapLimits, PasswordFileError, PeopleFilter, ServerUrl, password_from_file,
};
use connection::{Answer, Entry, Failure, Search};
use pool::{Login, Pool, Server};
pub use trust::{Trust, TrustError};

mod answer;
mod breaker;
mod config;
mod connection;
mod groups;
mod pool;
#[cfg(test)]
mod tests;
mod trust;

/// A realm whose people are in an LDAP directory.
pub struct LdapDirectory {
    config: LdapConfig,
    servers: Arc<[Server]>,
    searches: Pool,
    binds: Pool,
    /// Whether the servers were seen to know the rule of [`GroupSource::InChain`].
    knows_chain: AtomicBool,
}

/// What in a directory's answers does not fit its configuration.
#[derive(Debug, thiserror::Error)]
enum Misfit {
    #[error("the entry has no usable {0}")]
    NoId(&'static str),
    #[error("people cannot read the {0} of their own entry")]
    OwnIdUnreadable(&'static str),
    #[error("a search was answered with code {}: {}", .0.number, .0.text)]
    Search(Code),
    #[error("a bind was answered with code {}: {}", .0.number, .0.text)]
    Bind(Code),
    #[error("a person is in more than {} groups", crate::ports::directory::GROUPS_MAX)]
    TooManyGroups,
    #[error(
        "the server does not know matching rule {}, so groups_in_chain cannot be used",
        groups::IN_CHAIN
    )]
    NoChainRule,
    #[error("groups are nested more than {} deep", crate::ports::directory::GROUP_DEPTH_MAX)]
    GroupsTooDeep,
}

impl LdapDirectory {
    /// Prepares to serve a realm. Connects to nothing yet.
    ///
    /// # Errors
    ///
    /// Refuses a configuration without servers, or with limits of zero.
    pub fn new(config: LdapConfig) -> Result<Self, InvalidSetting> {
        config.check()?;
        let server = |url: &ServerUrl| Server::new(url.clone(), &config.trust);
        let servers: Arc<[Server]> = config.servers.iter().map(server).collect();
        let service = Login {
            dn: config.service_dn.as_str().to_owned(),
            password: config.service_password.clone(),
        };
        let pool =
            |login| Pool::new(config.realm.clone(), Arc::clone(&servers), login, config.limits);
        let (searches, binds) = (pool(Some(service)), pool(None));
        let knows_chain = AtomicBool::new(false);
        Ok(Self { config, servers, searches, binds, knows_chain })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.config.limits.patience
    }

    fn misfit(&self, misfit: Misfit) -> DirectoryError {
        DirectoryError::Misconfigured { realm: self.config.realm.clone(), source: misfit.into() }
    }

    fn unavailable(&self, source: impl Into<Cause>) -> DirectoryError {
        DirectoryError::Unavailable { realm: self.config.realm.clone(), source: source.into() }
    }

    /// Searches as the service account.
    async fn search(&self, search: &Search, deadline: Instant) -> Result<Answer, DirectoryError> {
        let answer = self.searches.search(search, deadline).await?;
        if answer.is_usable() {
            return Ok(answer);
        }
        Err(self.misfit(Misfit::Search(answer.code)))
    }

    /// Makes what an entry says of its person, in the broker's words. With
    /// groups that are searched for, the groups are still missing.
    fn described(&self, entry: &Entry) -> Result<Person, DirectoryError> {
        let config = &self.config;
        let user = answer::user_id(&config.realm, config.id, entry)
            .ok_or_else(|| self.misfit(Misfit::NoId(config.id.attribute())))?;
        let text = |attribute: &AttributeName| entry.text(attribute.as_str());
        let named = text(&config.display_name).or_else(|| text(&config.login_attribute));
        let groups = match &config.groups {
            GroupSource::MemberOf { attribute } => {
                groups::named(entry, attribute).map_err(|misfit| self.misfit(misfit))?
            }
            GroupSource::Search { .. } | GroupSource::InChain { .. } => BTreeSet::new(),
        };
        Ok(Person {
            display_name: named.unwrap_or_else(|| user.id().to_owned()),
            account: config.account.as_ref().and_then(text),
            unit: config.unit.as_ref().and_then(text),
            user,
            groups,
        })
    }

    /// Completes a person whose password was right.
    async fn completed(&self, found: &Found, deadline: Instant) -> Result<Person, DirectoryError> {
        let mut person = found.claimed().clone();
        let locator = found.locator();
        match &self.config.groups {
            GroupSource::MemberOf { .. } => {}
            GroupSource::Search { base, member } => {
                person.groups = groups::searched(self, base, member, locator, deadline).await?;
            }
            GroupSource::InChain { base, member } => {
                person.groups = groups::in_chain(self, base, member, locator, deadline).await?;
            }
        }
        Ok(person)
    }
}

#[async_trait]
impl Directory for LdapDirectory {
    fn realm(&self) -> &RealmName {
        &self.config.realm
    }

    fn serves_at_once(&self) -> usize {
        usize::from(self.config.limits.connections)
    }

    fn servers(&self) -> Vec<ServerStanding> {
        self.servers.iter().map(Server::standing).collect()
    }

    async fn find(&self, name: &LoginName) -> Result<Option<Found>, DirectoryError> {
        let config = &self.config;
        let name = ldap_escape(name.as_str());
        let mut filter = format!("({}={name})", config.login_attribute);
        if let Some(people) = &config.people_filter {
            filter = format!("(&{filter}{people})");
        }
        let mut attributes = vec![config.id.attribute().to_owned()];
        let shown = [Some(&config.display_name), Some(&config.login_attribute)];
        let optional = [config.account.as_ref(), config.unit.as_ref(), config.groups.of_entry()];
        attributes.extend(shown.into_iter().chain(optional).flatten().map(ToString::to_string));
        let search = Search {
            base: config.people_base.as_str().to_owned(),
            scope: Scope::Subtree,
            filter,
            attributes,
            // The second one is what makes a name ambiguous.
            limit: 2,
        };
        let answer = self.search(&search, self.deadline()).await?;
        match answer.entries.as_slice() {
            [] if !answer.is_cut() => Ok(None),
            [entry] if !answer.is_cut() => {
                Ok(Some(Found::new(entry.dn.clone(), self.described(entry)?)))
            }
            _ => Err(DirectoryError::Ambiguous { realm: config.realm.clone() }),
        }
    }

    async fn verify(
        &self,
        found: &Found,
        password: &NonEmptyPassword,
    ) -> Result<Verdict, DirectoryError> {
        let deadline = self.deadline();
        let line = self.binds.line(deadline).await?;
        let (line, result) = line.bind(found.locator(), password, deadline).await?;
        match answer::of_bind(&result) {
            BindAnswer::Correct => {}
            BindAnswer::Wrong(reason) => {
                if result.rc == answer::INVALID_CREDENTIALS {
                    line.keep();
                }
                return Ok(Verdict::Wrong { reason });
            }
            BindAnswer::Unusable(code) if code.is_transient() => {
                return Err(self.unavailable(Misfit::Bind(code)));
            }
            BindAnswer::Unusable(code) => return Err(self.misfit(Misfit::Bind(code))),
        }

        // An empty or replaced identity could also have been told "success".
        let own = Search {
            base: found.locator().to_owned(),
            scope: Scope::Base,
            filter: "(objectClass=*)".to_owned(),
            attributes: vec![self.config.id.attribute().to_owned()],
            limit: 1,
        };
        let (line, answer) = line.search(&own, deadline).await?;
        let own_id = match answer.code.number {
            answer::SUCCESS => answer.entries.first(),
            answer::INSUFFICIENT_ACCESS => {
                return Ok(Verdict::Wrong { reason: Reason::MustChange });
            }
            answer::NO_SUCH_OBJECT => None,
            _ if answer.code.is_transient() => {
                return Err(self.unavailable(Misfit::Search(answer.code)));
            }
            _ => return Err(self.misfit(Misfit::Search(answer.code))),
        };
        let attribute = self.config.id.attribute();
        let own_id = own_id
            .and_then(|entry| answer::user_id(&self.config.realm, self.config.id, entry))
            .ok_or_else(|| self.misfit(Misfit::OwnIdUnreadable(attribute)))?;
        if own_id != *found.user() {
            return Ok(Verdict::Wrong { reason: Reason::Replaced });
        }
        line.keep();
        Ok(Verdict::Correct(self.completed(found, deadline).await?))
    }

    async fn probe(&self) -> Result<(), DirectoryError> {
        let base = Search {
            base: self.config.people_base.as_str().to_owned(),
            scope: Scope::Base,
            filter: "(objectClass=*)".to_owned(),
            attributes: vec![connection::NO_ATTRIBUTES.to_owned()],
            limit: 1,
        };
        self.search(&base, self.deadline()).await.map(drop)
    }
}

/// Turns what befell a server into what it means for a login.
fn failed(realm: &RealmName, server: &ServerUrl, failure: Failure) -> DirectoryError {
    let realm = realm.clone();
    match failure {
        Failure::Silent { waited } => DirectoryError::TimedOut { realm, waited },
        Failure::Untrusted(source) => {
            DirectoryError::Untrusted { realm, server: server.to_string(), source }
        }
        Failure::ServiceRefused(code) => {
            DirectoryError::Misconfigured { realm, source: Misfit::Bind(code).into() }
        }
        Failure::Broken(source) => DirectoryError::Unavailable { realm, source },
    }
}

/// Shortens a wait to what is left of the caller's patience.
fn within(limit: Duration, deadline: Instant) -> Duration {
    limit.min(deadline.saturating_duration_since(Instant::now()))
}
