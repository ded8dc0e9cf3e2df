//! One connection to one server.
//!
//! The library reads what a server sends with code that panics on malformed
//! answers, keeps no time limit of its own, and needs somebody to drive its
//! socket. So each request runs in a task of its own that owns the whole
//! connection and hands it back with the answer. If the server is silent, sends
//! nonsense or breaks off, or if the caller gives up, the task ends and the
//! connection with it: a connection that might still owe an answer is never
//! seen again. Between requests a connection is just a value; nothing runs.
//!
//! This is the only file that binds, and it takes no password that may be empty.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ldap3::controls::RawControl;
use ldap3::{
    Ldap, LdapConnAsync, LdapConnSettings, LdapError, LdapResult, Scope, SearchEntry,
    SearchOptions, StdStream,
};
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::answer::{self, Code, PASSWORD_POLICY};
use super::config::ServerUrl;
use crate::ports::directory::{Cause, NonEmptyPassword, presentable};

/// Asks for an entry's name alone (RFC 4511 section 4.5.1.8).
pub(super) const NO_ATTRIBUTES: &str = "1.1";

/// A server's socket with what is read and written on it.
type Driver = Pin<Box<dyn Future<Output = Result<(), LdapError>> + Send>>;

/// An open, verified connection that owes no answer.
pub(super) struct Connection {
    ldap: Ldap,
    /// Absent once the server has closed.
    driver: Option<Driver>,
}

/// What befell a connection. It is gone in each case.
#[derive(Debug)]
pub(super) enum Failure {
    /// The server gave no answer.
    Silent { waited: Duration },
    /// The server's certificate is not the one that was expected.
    Untrusted(Cause),
    /// The server does not let the service account in.
    ServiceRefused(Code),
    /// The server could not be reached, broke off, or sent nonsense.
    Broken(Cause),
}

/// A search, as it is sent.
#[derive(Debug, Clone)]
pub(super) struct Search {
    pub(super) base: String,
    pub(super) scope: Scope,
    pub(super) filter: String,
    pub(super) attributes: Vec<String>,
    /// Most entries that are taken; with one more the answer is cut.
    pub(super) limit: usize,
}

/// What a search found.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) entries: Vec<Entry>,
    pub(super) code: Code,
    cut: bool,
}

impl Answer {
    /// Tells whether the entries can be relied on, as far as they go.
    pub(super) fn is_usable(&self) -> bool {
        self.cut || matches!(self.code.number, answer::SUCCESS | answer::SIZE_LIMIT_EXCEEDED)
    }

    /// Tells whether there are more entries than were asked for.
    pub(super) fn is_cut(&self) -> bool {
        self.cut || self.code.number == answer::SIZE_LIMIT_EXCEEDED
    }
}

/// An entry as it was sent.
#[derive(Debug)]
pub(super) struct Entry {
    /// The name to use with this server, not to compare.
    pub(super) dn: String,
    attributes: Vec<(String, Vec<Vec<u8>>)>,
}

impl Entry {
    /// Returns an attribute's values; servers spell its name as they like.
    pub(super) fn values(&self, attribute: &str) -> impl Iterator<Item = &[u8]> {
        let named = move |name: &str| name.eq_ignore_ascii_case(attribute);
        self.attributes
            .iter()
            .filter(move |(name, _)| named(name))
            .flat_map(|(_, values)| values.iter().map(Vec::as_slice))
    }

    /// Returns the first value that can be shown.
    pub(super) fn text(&self, attribute: &str) -> Option<String> {
        let mut texts = self.values(attribute).filter_map(|value| str::from_utf8(value).ok());
        texts.find_map(presentable).map(str::to_owned)
    }

    #[cfg(test)]
    pub(super) fn new(dn: &str, attributes: &[(&str, &[&[u8]])]) -> Self {
        let owned = |values: &[&[u8]]| values.iter().map(|value| value.to_vec()).collect();
        let attributes = attributes.iter().map(|(name, v)| ((*name).to_owned(), owned(v)));
        Self { dn: dn.to_owned(), attributes: attributes.collect() }
    }
}

impl From<SearchEntry> for Entry {
    fn from(entry: SearchEntry) -> Self {
        let bytes = |values: Vec<String>| values.into_iter().map(String::into_bytes).collect();
        let texts = entry.attrs.into_iter().map(|(name, values)| (name, bytes(values)));
        Self { dn: entry.dn, attributes: texts.chain(entry.bin_attrs).collect() }
    }
}

impl Connection {
    /// Connects to a server and verifies it.
    pub(super) async fn open(
        server: &ServerUrl,
        tls: Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<Self, Failure> {
        let mut settings = LdapConnSettings::new().set_config(tls).set_starttls(server.start_tls());
        let (address, url) = (server.ipv6(), server.without_address().to_string());
        contained(limit, async move {
            // The library takes no IPv6 address for a host.
            if let Some(address) = address {
                let stream = TcpStream::connect(address).await?.into_std()?;
                settings = settings.set_std_stream(StdStream::Tcp(stream));
            }
            let (connection, ldap) = LdapConnAsync::with_settings(settings, &url).await?;
            Ok(Self { ldap, driver: Some(Box::pin(connection.drive())) })
        })
        .await
    }

    /// Tells whether the server has not closed the connection, as far as is
    /// known here.
    pub(super) async fn is_open(&mut self) -> bool {
        if let Some(driver) = &mut self.driver {
            tokio::select! {
                biased;
                _ = driver => self.driver = None,
                () = std::future::ready(()) => {}
            }
        }
        self.driver.is_some()
    }

    /// Tries a password as an entry.
    pub(super) async fn bind(
        self,
        dn: &str,
        password: &NonEmptyPassword,
        limit: Duration,
    ) -> Result<(Self, LdapResult), Failure> {
        let (dn, password) = (dn.to_owned(), password.clone());
        let policy = RawControl { ctype: PASSWORD_POLICY.to_owned(), crit: false, val: None };
        self.request(limit, async move |mut ldap: Ldap| {
            let ldap = ldap.with_controls(policy);
            #[expect(clippy::disallowed_methods, reason = "a NonEmptyPassword is never empty")]
            ldap.simple_bind(&dn, password.expose()).await
        })
        .await
    }

    /// Searches as whoever is bound. Referrals are passed over.
    pub(super) async fn search(
        self,
        search: Search,
        limit: Duration,
    ) -> Result<(Self, Answer), Failure> {
        let Search { base, scope, filter, attributes, limit: most } = search;
        let ask_for = i32::try_from(most).unwrap_or(i32::MAX);
        let (mut connection, answer) = self
            .request(limit, async move |mut ldap: Ldap| {
                let ldap = ldap.with_search_options(SearchOptions::new().sizelimit(ask_for));
                let mut stream = ldap.streaming_search(&base, scope, &filter, attributes).await?;
                let (mut entries, mut cut) = (Vec::new(), false);
                while let Some(item) = stream.next().await? {
                    if item.is_ref() || item.is_intermediate() {
                        continue;
                    }
                    if entries.len() == most {
                        cut = true;
                        break;
                    }
                    entries.push(Entry::from(SearchEntry::construct(item)));
                }
                let code = Code::from(stream.finish().await);
                Ok(Answer { entries, code, cut })
            })
            .await?;
        if answer.cut {
            // The server is still sending.
            connection.driver = None;
        }
        Ok((connection, answer))
    }

    /// Makes one request, and gives the connection back only with its answer.
    async fn request<T, R>(
        self,
        limit: Duration,
        request: impl FnOnce(Ldap) -> R + Send + 'static,
    ) -> Result<(Self, T), Failure>
    where
        T: Send + 'static,
        R: Future<Output = Result<T, LdapError>> + Send + 'static,
    {
        contained(limit, async move {
            let Self { ldap, driver } = self;
            let mut driver = driver.ok_or(LdapError::EndOfStream)?;
            let mut answer = std::pin::pin!(request(ldap.clone()));
            tokio::select! {
                biased;
                answer = &mut answer => Ok((Self { ldap, driver: Some(driver) }, answer?)),
                // What was read before the server closed is still waiting.
                _ = &mut driver => {
                    drop(driver);
                    Ok((Self { ldap, driver: None }, answer.await?))
                }
            }
        })
        .await
    }
}

/// Runs a piece of work that may hang or panic, in a task that does not outlive
/// the call by more than one poll.
async fn contained<T: Send + 'static>(
    limit: Duration,
    work: impl Future<Output = Result<T, LdapError>> + Send + 'static,
) -> Result<T, Failure> {
    let mut task = JoinSet::new();
    task.spawn(work);
    match timeout(limit, task.join_next()).await {
        Err(_) => Err(Failure::Silent { waited: limit }),
        Ok(Some(Ok(Ok(done)))) => Ok(done),
        Ok(Some(Ok(Err(error)))) => Err(error.into()),
        Ok(Some(Err(panic))) => Err(Failure::Broken(panic.into())),
        Ok(None) => Err(Failure::Broken("the request was not made".into())),
    }
}

impl From<LdapError> for Failure {
    fn from(error: LdapError) -> Self {
        let tls = match &error {
            LdapError::Rustls { .. } | LdapError::DNSName { .. } => true,
            LdapError::Io { source } => {
                matches!(source.get_ref(), Some(e) if e.is::<rustls::Error>())
            }
            _ => false,
        };
        if tls { Self::Untrusted(error.into()) } else { Self::Broken(error.into()) }
    }
}
