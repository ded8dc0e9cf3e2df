//! Kept connections of one kind, over several servers.
//!
//! Servers are tried in their order, as far as their [`Breaker`]s let callers
//! through; no call tries one again that has failed it. People's binds have a
//! pool apart from searches, because a bind changes who a connection speaks for.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ldap3::{LdapError, LdapResult};
use rustls::ClientConfig;
use tegata_gateway::dial::lacks_means;
use tegata_proto::id::RealmName;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

use super::answer::{Code, SUCCESS};
use super::breaker::{Breaker, Trouble};
use super::config::{LdapLimits, ServerUrl};
use super::connection::{Answer, Connection, Failure, Search};
use super::trust::Trust;
use super::{Misfit, failed, within};
use crate::ports::directory::{DirectoryError, NonEmptyPassword, ServerStanding};

/// How long an unused connection is kept; shorter than the memory of a
/// firewall, which would swallow the next request without a word.
const IDLE_MAX: Duration = Duration::from_mins(1);

/// A server and how it does, shared by the pools of a realm.
pub(super) struct Server {
    url: ServerUrl,
    tls: Arc<ClientConfig>,
    breaker: Mutex<Breaker>,
}

impl Server {
    pub(super) fn new(url: ServerUrl, trust: &Trust) -> Self {
        let tls = trust.client_config(url.ipv6().map(|address| *address.ip()));
        Self { url, tls, breaker: Mutex::new(Breaker::new()) }
    }

    pub(super) fn standing(&self) -> ServerStanding {
        ServerStanding { server: self.url.to_string(), breaker: self.breaker().standing() }
    }

    fn answered(&self) {
        self.breaker().answered();
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who a connection speaks for as soon as it is open.
pub(super) struct Login {
    pub(super) dn: String,
    pub(super) password: NonEmptyPassword,
}

/// No server may be tried just now.
#[derive(Debug, thiserror::Error)]
#[error("every server failed a moment ago")]
struct AllResting;

/// Connections of one kind.
pub(super) struct Pool {
    realm: RealmName,
    servers: Arc<[Server]>,
    login: Option<Login>,
    limits: LdapLimits,
    /// Those using a connection.
    users: Semaphore,
    /// Those using a connection or waiting for one.
    callers: Semaphore,
    /// By server, the one used last at the back.
    idle: Mutex<Vec<VecDeque<(Instant, Connection)>>>,
}

/// A connection in use. Dropping it closes it; [`Line::keep`] does not.
pub(super) struct Line<'a> {
    pool: &'a Pool,
    permits: [SemaphorePermit<'a>; 2],
    server: usize,
    connection: Connection,
    /// Whether the connection was used before.
    used: bool,
}

impl Pool {
    pub(super) fn new(
        realm: RealmName,
        servers: Arc<[Server]>,
        login: Option<Login>,
        limits: LdapLimits,
    ) -> Self {
        let connections = usize::from(limits.connections);
        let idle = servers.iter().map(|_| VecDeque::new()).collect();
        Self {
            realm,
            servers,
            login,
            limits,
            users: Semaphore::new(connections),
            callers: Semaphore::new(connections + usize::from(limits.waiting)),
            idle: Mutex::new(idle),
        }
    }

    /// Returns a connection to the first server that can be reached.
    pub(super) async fn line(&self, deadline: Instant) -> Result<Line<'_>, DirectoryError> {
        let permits = self.permits(deadline).await?;
        self.connected(permits, &mut self.none_failed(), deadline).await
    }

    /// Searches on the first server that answers.
    pub(super) async fn search(
        &self,
        search: &Search,
        deadline: Instant,
    ) -> Result<Answer, DirectoryError> {
        let (mut last, mut failed) = (None, self.none_failed());
        // A server is given up after a kept and a fresh connection have failed.
        for _ in 0..2 * self.servers.len() {
            let permits = self.permits(deadline).await?;
            let line = match self.connected(permits, &mut failed, deadline).await {
                Ok(line) => line,
                Err(error) => return Err(last.unwrap_or(error)),
            };
            let (server, used) = (line.server, line.used);
            match line.search(search, deadline).await {
                Ok((_, answer)) if answer.code.is_transient() => {
                    let failure = Failure::Broken(Misfit::Search(answer.code).into());
                    last = Some(self.server_failed(server, Trouble::Grave, failure));
                    failed[server] = true;
                }
                Ok((line, answer)) => {
                    if answer.is_usable() {
                        line.keep();
                    }
                    return Ok(answer);
                }
                Err(error) => {
                    last = Some(error);
                    failed[server] = !used;
                }
            }
        }
        Err(last.unwrap_or_else(|| self.all_resting()))
    }

    fn all_resting(&self) -> DirectoryError {
        DirectoryError::Unavailable { realm: self.realm.clone(), source: AllResting.into() }
    }

    async fn permits(&self, deadline: Instant) -> Result<[SemaphorePermit<'_>; 2], DirectoryError> {
        let busy = || DirectoryError::Busy { realm: self.realm.clone() };
        let caller = self.callers.try_acquire().map_err(|_| busy())?;
        let user = timeout(within(self.limits.patience, deadline), self.users.acquire()).await;
        Ok([user.map_err(|_| busy())?.map_err(|_| busy())?, caller])
    }

    async fn connected<'a>(
        &'a self,
        permits: [SemaphorePermit<'a>; 2],
        failed: &mut [bool],
        deadline: Instant,
    ) -> Result<Line<'a>, DirectoryError> {
        let mut last = None;
        for (n, server) in self.servers.iter().enumerate() {
            if failed[n] || !server.breaker().lets_through(Instant::now()) {
                continue;
            }
            while let Some(mut connection) = self.take_idle(n) {
                if connection.is_open().await {
                    return Ok(Line { pool: self, permits, server: n, connection, used: true });
                }
            }
            match self.open(server, deadline).await {
                Ok(connection) => {
                    server.answered();
                    return Ok(Line { pool: self, permits, server: n, connection, used: false });
                }
                Err(failure) => {
                    // A connection that cannot be had costs the next caller nothing.
                    let trouble = match failure {
                        Failure::Broken(_) => Trouble::Light,
                        Failure::Silent { .. }
                        | Failure::Untrusted(_)
                        | Failure::ServiceRefused(_) => Trouble::Grave,
                    };
                    last = Some(self.server_failed(n, trouble, failure));
                    failed[n] = true;
                }
            }
        }
        Err(last.unwrap_or_else(|| self.all_resting()))
    }

    /// Which servers have failed a call that has only begun.
    fn none_failed(&self) -> Vec<bool> {
        vec![false; self.servers.len()]
    }

    async fn open(&self, server: &Server, deadline: Instant) -> Result<Connection, Failure> {
        let limit = within(self.limits.connect, deadline);
        let opened = Instant::now();
        let connection = Connection::open(&server.url, Arc::clone(&server.tls), limit).await?;
        let Some(login) = &self.login else { return Ok(connection) };
        let limit = limit.saturating_sub(opened.elapsed());
        let (connection, result) = connection.bind(&login.dn, &login.password, limit).await?;
        match Code::from(result) {
            Code { number: SUCCESS, .. } => Ok(connection),
            code if code.is_transient() => Err(Failure::Broken(Misfit::Bind(code).into())),
            code => Err(Failure::ServiceRefused(code)),
        }
    }

    fn server_failed(&self, server: usize, trouble: Trouble, failure: Failure) -> DirectoryError {
        let Server { url, .. } = &self.servers[server];
        let mut what = "Directory server not asked";
        if self.is_to_blame(&failure) {
            self.servers[server].breaker().failed(trouble, Instant::now());
            self.idle()[server].clear();
            what = "Directory server failed";
        }
        let error = failed(&self.realm, url, failure);
        let cause = &error as &dyn std::error::Error;
        tracing::warn!(realm = %self.realm, server = %url, error = cause, "{what}");
        error
    }

    /// Tells whether a failure says anything of its server: not where this machine lacked
    /// the means to ask, or the caller had less than half of the time left that a server is
    /// given.
    fn is_to_blame(&self, failure: &Failure) -> bool {
        let fair = self.limits.connect.min(self.limits.operation) / 2;
        match failure {
            Failure::Silent { waited } => *waited >= fair,
            Failure::Broken(error) => match error.downcast_ref() {
                Some(LdapError::Io { source }) => !lacks_means(source),
                Some(_) | None => true,
            },
            Failure::Untrusted(_) | Failure::ServiceRefused(_) => true,
        }
    }

    fn take_idle(&self, server: usize) -> Option<Connection> {
        let mut idle = self.idle();
        let (since, connection) = idle[server].pop_back()?;
        if since.elapsed() < IDLE_MAX {
            return Some(connection);
        }
        idle[server].clear();
        None
    }

    fn idle(&self) -> MutexGuard<'_, Vec<VecDeque<(Instant, Connection)>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line<'_> {
    /// Tries a password as an entry, once.
    pub(super) async fn bind(
        self,
        dn: &str,
        password: &NonEmptyPassword,
        deadline: Instant,
    ) -> Result<(Self, LdapResult), DirectoryError> {
        let Self { pool, permits, server, connection, used } = self;
        let limit = within(pool.limits.operation, deadline);
        match connection.bind(dn, password, limit).await {
            Ok((connection, result)) => {
                pool.servers[server].answered();
                Ok((Self { pool, permits, server, connection, used }, result))
            }
            Err(failure) => Err(pool.bind_failed(server, used, failure)),
        }
    }

    /// Searches as whoever is bound.
    pub(super) async fn search(
        self,
        search: &Search,
        deadline: Instant,
    ) -> Result<(Self, Answer), DirectoryError> {
        let Self { pool, permits, server, connection, used } = self;
        let limit = within(pool.limits.operation, deadline);
        match connection.search(search.clone(), limit).await {
            Ok((connection, answer)) => {
                pool.servers[server].answered();
                Ok((Self { pool, permits, server, connection, used }, answer))
            }
            Err(failure) => Err(pool.line_failed(server, used, failure)),
        }
    }

    /// Keeps the connection for the next caller. Only for one whose last answer
    /// was complete and what was expected.
    pub(super) fn keep(self) {
        let mut idle = self.pool.idle();
        let idle = &mut idle[self.server];
        let old = idle.iter().take_while(|(since, _)| since.elapsed() >= IDLE_MAX).count();
        idle.drain(..old);
        idle.push_back((Instant::now(), self.connection));
    }
}

impl Pool {
    /// A server that closed a kept connection has not failed: it may have been
    /// restarted, or have closed what was idle.
    fn line_failed(&self, server: usize, used: bool, failure: Failure) -> DirectoryError {
        match failure {
            Failure::Broken(_) if used => {
                self.idle()[server].clear();
                failed(&self.realm, &self.servers[server].url, failure)
            }
            failure => self.server_failed(server, Trouble::Grave, failure),
        }
    }

    /// A bind that has no answer may have been made, however its connection ended.
    fn bind_failed(&self, server: usize, used: bool, failure: Failure) -> DirectoryError {
        match self.line_failed(server, used, failure) {
            DirectoryError::Unavailable { realm, source }
            | DirectoryError::Untrusted { realm, source, .. } => {
                DirectoryError::CutOff { realm, source }
            }
            error @ (DirectoryError::TimedOut { .. }
            | DirectoryError::CutOff { .. }
            | DirectoryError::Busy { .. }
            | DirectoryError::Misconfigured { .. }
            | DirectoryError::Ambiguous { .. }) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn want_of_our_own_is_no_servers_fault() {
        let realm = RealmName::new("honsho").expect("a name");
        let pool = Pool::new(realm, [].into(), None, LdapLimits::default());
        for (errno, is_to_blame) in
            [(rustix::io::Errno::MFILE, false), (rustix::io::Errno::CONNREFUSED, true)]
        {
            let source = std::io::Error::from(errno);
            let failure = Failure::from(LdapError::Io { source });
            assert_eq!(pool.is_to_blame(&failure), is_to_blame, "{errno}");
        }
    }
}
