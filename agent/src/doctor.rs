//! What stands between this thin client and a session: every part looked at once,
//! each with what was found and what to do about it.
//!
//! Says `hello` to a broker and never who anybody is. What is said of each part is in
//! [`remarks`].

mod finding;
mod freerdp;
mod gateway;
mod reach;
mod remarks;

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tegata_proto::code::{Code, TryAgain};
use tegata_proto::login::Welcome;
use tokio::net::lookup_host;
use tokio::time::{Instant, sleep, timeout};

pub use finding::{Check, Finding, Report, Told, Verdict};

use crate::agent::{Agent, LOOKUP_DEADLINE, LoginError};
use crate::arguments::{Server, ViewerChoice};
use crate::config::Config;
use crate::identity::Identity;
use crate::link::{Candidate, Connection, LinkError, Transport};
use crate::login::{self, LoginRefused};
use crate::memory;
use crate::session::FAREWELL;
use crate::trust::{Authority, Distrust, Expected};
use reach::{Reached, reach};
use remarks::Remark;

/// How far this machine's clock may be off before it is worth a word.
const CLOCK_OFF: Duration = Duration::from_mins(1);

/// How long the way is given to show whether it carries packets of [`NARROW`] bytes.
const MEASURED: Duration = Duration::from_secs(3);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(50);

/// The smallest packet that every IPv6 network carries (RFC 8200 §5), in bytes.
const NARROW: u16 = 1280;

/// What IP and UDP add to a datagram, in bytes.
const HEADERS_IPV4: u16 = 28;
const HEADERS_IPV6: u16 = 48;

/// Everything that is to be looked at.
#[derive(Debug)]
pub struct Examination {
    /// Where the broker is.
    pub server: Server,
    /// The viewer that the site has chosen.
    pub viewer: ViewerChoice,
}

impl Examination {
    /// Takes the server from the command line or the configuration.
    pub fn new(server: Option<Server>, config: Config) -> Option<Self> {
        let viewer = config.viewer.unwrap_or(ViewerChoice::Freerdp);
        Some(Self { server: server.or(config.server)?, viewer })
    }

    /// Looks at one part after the other.
    pub async fn carry_out(&self, agent: &Agent, report: &mut impl Report) {
        let addresses = self.look_up(report).await;
        if !addresses.is_empty() {
            let reached = reach(agent, &addresses).await;
            self.ways(&reached, report);
            families(&addresses, &reached, report);
            certificate(&reached, report);
            gateway::examined(agent, &reached, report).await;
            greet(agent, &reached, report).await;
            width(&reached, report).await;
            for connection in reached.connections() {
                connection.close();
            }
        }
        report.add(privacy());
        if self.viewer == ViewerChoice::Freerdp {
            report.add(freerdp::examined().await);
        }
        let _ = timeout(FAREWELL, agent.farewell()).await;
    }

    async fn look_up(&self, report: &mut impl Report) -> Vec<SocketAddr> {
        let name = (self.server.host.as_str(), self.server.port);
        let begun = Instant::now();
        let found: Vec<_> = match timeout(LOOKUP_DEADLINE, lookup_host(name)).await {
            Ok(Ok(found)) => found.collect(),
            Ok(Err(_)) | Err(_) => Vec::new(),
        };
        report.add(if found.is_empty() {
            let server = self.server.host.clone();
            Finding::failed(Check::Name, Code::Unreachable, Remark::NameUnknown, server)
        } else {
            Finding::ok(Check::Name, Remark::NameFound, list(&found)).after(begun.elapsed())
        });
        found
    }

    /// Says which transport leads there.
    fn ways(&self, reached: &Reached, report: &mut impl Report) {
        let port = self.server.port.to_string();
        let ways = [
            (Transport::Quic, Check::Quic, Remark::QuicWorks, Remark::QuicBlocked),
            (Transport::Tcp, Check::Tcp, Remark::TcpWorks, Remark::TcpBlocked),
        ];
        let full = reached.full();
        let is_reached = reached.fastest().is_some();
        for (transport, check, works, blocked) in ways {
            let strangers = reached.strangers().filter(|(by, ..)| *by == transport);
            let strangers: Vec<_> = strangers.map(|(_, address, _)| address).collect();
            report.add(match reached.best(transport) {
                Some((address, _, took)) => {
                    Finding::ok(check, works, address.to_string()).after(took)
                }
                None if !strangers.is_empty() => answers_wrongly(check, &strangers),
                // Said by QUIC; by TCP it only hangs up.
                None if !full.is_empty() && (!is_reached || transport == Transport::Quic) => {
                    let told = if is_reached { Finding::warning } else { Finding::failed };
                    told(check, Code::Unavailable, Remark::BrokerFull, list(&full))
                }
                None if is_reached => {
                    Finding::warning(check, Code::Unreachable, blocked, port.clone())
                }
                None => Finding::failed(check, Code::Unreachable, Remark::Nothing, port.clone()),
            });
        }
    }
}

/// Says what is to be had of each address family.
fn families(addresses: &[SocketAddr], reached: &Reached, report: &mut impl Report) {
    let full = reached.full();
    for (check, is_six) in [(Check::Ipv6, true), (Check::Ipv4, false)] {
        let of_family = |address: &&SocketAddr| address.is_ipv6() == is_six;
        let there: Vec<_> = addresses.iter().filter(of_family).copied().collect();
        let is_there = |here: &&SocketAddr| reached.is_reached(**here) || full.contains(here);
        let answering = there.iter().find(is_there);
        let is_stranger = |here: &SocketAddr| reached.strangers().any(|(_, at, _)| at == *here);
        let strangers: Vec<_> = there.iter().copied().filter(is_stranger).collect();
        report.add(match answering {
            Some(address) => Finding::ok(check, Remark::FamilyWorks, address.to_string()),
            None if there.is_empty() => Finding::ok(check, Remark::FamilyAbsent, String::new()),
            None if !strangers.is_empty() => answers_wrongly(check, &strangers),
            None => Finding::warning(check, Code::Unreachable, Remark::FamilySilent, list(&there)),
        });
    }
}

fn answers_wrongly(check: Check, strangers: &[SocketAddr]) -> Finding {
    Finding::warning(check, Code::TlsFailed, Remark::AnswersWrongly, list(strangers))
}

/// Says whether the peer is ours, and who else answers; nothing where there is no peer.
fn certificate(reached: &Reached, report: &mut impl Report) {
    let check = Check::Certificate;
    if reached.fastest().is_some() {
        report.add(Finding::ok(check, Remark::CertificateGood, String::new()));
        for (transport, address, error) in reached.strangers() {
            let who = format!("{transport} {address} ({})", reason(error));
            report.add(Finding::warning(check, error.code(), Remark::StrangerBeside, who));
        }
        return;
    }
    let Some((.., error)) = reached.strangers().next() else { return };
    let code = error.code();
    report.add(match error {
        LinkError::Distrusted { source, .. } => {
            let remark = match source {
                Distrust::Authority(_) => Remark::CertificateForeign,
                Distrust::Clock { .. } => Remark::CertificateClock,
                Distrust::Role { .. } | Distrust::Key => Remark::CertificateRole,
            };
            Finding::failed(check, code, remark, reason(error))
        }
        other => Finding::failed(check, code, Remark::NotOurProtocol, reason(other)),
    });
    if let LinkError::Distrusted { source: Distrust::Clock { now, validity }, .. } = error {
        let times = format!("{now} / {validity}");
        report.add(Finding::failed(Check::Clock, code, Remark::ClockWrong, times));
    }
}

/// Returns why a peer is not ours.
fn reason(error: &LinkError) -> String {
    match error {
        LinkError::Distrusted { source, .. } => source.to_string(),
        LinkError::Handshake { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// Says hello to a broker, and what its welcome shows of this machine's clock and of this
/// program's age.
async fn greet(agent: &Agent, reached: &Reached, report: &mut impl Report) {
    let Some((address, first, _)) = reached.fastest() else { return };
    let Ok(identity) = Identity::generate() else { return };
    // A broker does not wait for a first word as long as was waited for other ways.
    let candidate = Candidate { address, expected: Expected::Broker };
    let again = agent.dialler.dial(first.transport(), candidate).await;
    let asked = SystemTime::now();
    let greeted = match again {
        Ok((_, connection)) => agent.greet(&connection, &identity).await,
        Err(error) => Err(error.into()),
    };
    let answered = SystemTime::now();
    let welcome = match greeted {
        Ok(welcome) => welcome,
        Err(LoginError::Refused(refused)) => {
            let code = refused.code();
            let remark = match code.try_again() {
                TryAgain::Later => Remark::BrokerSilent,
                TryAgain::No => Remark::BrokerOther,
            };
            return report.add(Finding::failed(
                Check::Broker,
                code,
                remark,
                code.as_str().to_owned(),
            ));
        }
        Err(error @ LoginError::Link(_)) => {
            let value = error.code().as_str().to_owned();
            report.add(Finding::failed(Check::Broker, error.code(), Remark::BrokerSilent, value));
            return;
        }
    };
    report.add(match login::judge(&welcome) {
        Ok(()) => Finding::ok(Check::Broker, Remark::BrokerReady, login::VERSION.to_owned()),
        Err(refused @ LoginRefused::TooOld { .. }) => {
            let minimum = welcome.minimum_agent.clone();
            Finding::failed(Check::Broker, refused.code(), Remark::AgentOld, minimum)
        }
        Err(refused) => {
            let text = refused.to_string();
            Finding::failed(Check::Broker, refused.code(), Remark::BrokerOther, text)
        }
    });
    report.add(clock(&welcome, asked, answered));
}

/// Compares clocks: the broker's was read between these two times.
fn clock(welcome: &Welcome, asked: SystemTime, answered: SystemTime) -> Finding {
    let ms = |time: SystemTime| {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        i128::try_from(since.as_millis()).unwrap_or(i128::MAX)
    };
    let there = i128::from(welcome.server_time_ms);
    let here = there.clamp(ms(asked), ms(answered).max(ms(asked)));
    let off_ms = u64::try_from((there - here).abs()).unwrap_or(u64::MAX);
    let off = format!("{}.{}", off_ms / 1000, off_ms % 1000 / 100);
    if Duration::from_millis(off_ms) < CLOCK_OFF {
        Finding::ok(Check::Clock, Remark::ClockRight, off)
    } else {
        Finding::warning(Check::Clock, Code::TlsFailed, Remark::ClockOff, off)
    }
}

/// Says whether the way by QUIC carries packets of [`NARROW`] bytes; nothing where that is
/// not known in time.
async fn width(reached: &Reached, report: &mut impl Report) {
    let Some((address, connection, _)) = reached.best(Transport::Quic) else { return };
    let carries = async {
        loop {
            if let Some(carries) = connection.carries(narrow(address)) {
                return carries;
            }
            sleep(LOOK).await;
        }
    };
    let Ok(carries) = timeout(MEASURED, carries).await else { return };
    let packet = NARROW.to_string();
    report.add(if carries {
        Finding::ok(Check::Mtu, Remark::PathWide, packet)
    } else {
        Finding::warning(Check::Mtu, Code::Unreachable, Remark::PathNarrow, packet)
    });
}

/// Returns the size of a datagram that fills a packet of [`NARROW`] bytes on its way there.
fn narrow(address: SocketAddr) -> u16 {
    NARROW - if address.is_ipv6() { HEADERS_IPV6 } else { HEADERS_IPV4 }
}

/// Says whether what stands in memory may reach a swap.
fn privacy() -> Finding {
    if memory::may_be_swapped() {
        Finding::warning(Check::Memory, Code::Configuration, Remark::Swappable, String::new())
    } else {
        Finding::ok(Check::Memory, Remark::NotSwappable, String::new())
    }
}

/// Reads the authority of a file, or says what is wrong with it.
///
/// # Errors
///
/// Returns the finding.
pub fn authority(path: &Path) -> Result<Authority, Finding> {
    let refused = |why: String| {
        let value = format!("{} ({why})", path.display());
        Finding::failed(Check::Authority, Code::Configuration, Remark::AuthorityUnusable, value)
    };
    let pem = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
    Authority::from_pem(&pem).map_err(|error| refused(error.to_string()))
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Reached {
    fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.made().map(|(_, connection, _)| connection)
    }
}

#[cfg(test)]
mod tests;
