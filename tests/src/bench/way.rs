//! The ways to a desktop that are compared: through our gateway, through a peer, direct.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tegata_parts::peer::{Kind, Peer};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::line::Line;
use super::office::Office;
use super::visitor::Visitor;
use crate::site::Site;

/// Our own way, in the figures.
pub(super) const TEGATA: &str = "tegata-quic";
/// The same for agents on networks that let no UDP through.
pub(super) const TEGATA_TCP: &str = "tegata-tcp";
/// The peer that the summaries are about.
pub(super) const HAPROXY: &str = "haproxy";

/// A way, whoever carries it.
#[derive(Clone)]
pub(super) enum Way {
    Direct(SocketAddr),
    Tegata(Ours),
    Peer(Theirs),
}

/// Through a site's gateway; each line is a login of the next person.
#[derive(Clone)]
pub(super) struct Ours {
    name: &'static str,
    visitor: Visitor,
    gateway: u32,
    people: u32,
    next: Arc<AtomicU32>,
}

/// Through a peer.
#[derive(Clone)]
pub(super) struct Theirs {
    name: &'static str,
    address: SocketAddr,
    process: u32,
    tls: TlsConnector,
}

/// The peers of one bench, each on its way to the first desktop.
pub(super) struct Peers {
    running: Vec<(&'static str, Peer)>,
    tls: TlsConnector,
}

impl Peers {
    pub(super) fn start(
        office: &Office,
        kinds: &[(&'static str, Kind)],
        address: IpAddr,
        target: SocketAddr,
    ) -> Result<Self> {
        let certificate = office.certificate()?;
        let start = |(name, kind): &(&'static str, Kind)| {
            Ok((*name, Peer::start(*kind, &certificate, address, target)?))
        };
        let running = kinds.iter().map(start).collect::<Result<_>>()?;
        Ok(Self { running, tls: client(&office.authority()?)? })
    }

    /// Returns their ways.
    pub(super) fn ways(&self) -> impl Iterator<Item = Way> {
        self.running.iter().map(|(name, peer)| {
            Way::Peer(Theirs {
                name,
                address: peer.address(),
                process: peer.id(),
                tls: self.tls.clone(),
            })
        })
    }

    /// Returns what they say of their versions.
    pub(super) fn versions(&self) -> Vec<String> {
        self.running.iter().map(|(name, peer)| format!("{name}: {}", peer.version())).collect()
    }
}

impl Way {
    /// Goes through a site's gateway, with a socket on the runtime that is entered. `first` is the
    /// first person to log in, so that two ways of one site share nobody.
    pub(super) fn tegata(site: &Site, office: &Office, first: u32) -> Result<Self> {
        Self::ours(TEGATA, Visitor::new(site)?, site, office, first)
    }

    /// Goes the same way by TLS on TCP.
    pub(super) fn tegata_by_tcp(site: &Site, office: &Office, first: u32) -> Result<Self> {
        Self::ours(TEGATA_TCP, Visitor::by_tcp(site)?, site, office, first)
    }

    fn ours(
        name: &'static str,
        visitor: Visitor,
        site: &Site,
        office: &Office,
        first: u32,
    ) -> Result<Self> {
        let (gateway, people) = (site.process()?, office.people);
        let next = Arc::new(AtomicU32::new(first));
        Ok(Self::Tegata(Ours { name, visitor, gateway, people, next }))
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Direct(_) => "direct",
            Self::Tegata(ours) => ours.name,
            Self::Peer(peer) => peer.name,
        }
    }

    /// Returns the process that carries the bytes, where there is one.
    pub(super) fn process(&self) -> Option<u32> {
        match self {
            Self::Direct(_) => None,
            Self::Tegata(ours) => Some(ours.gateway),
            Self::Peer(peer) => Some(peer.process),
        }
    }

    /// Opens a line and tells the desktop what to do.
    pub(super) async fn open(&self, wish: u8) -> Result<Line> {
        match self {
            Self::Direct(address) => Line::plain(connect(*address).await?, wish).await,
            Self::Tegata(ours) => {
                let person = ours.next.fetch_add(1, Ordering::Relaxed) % ours.people;
                Line::over_session(ours.visitor.log_in(person).await?, wish).await
            }
            Self::Peer(peer) => {
                let stream = connect(peer.address).await?;
                let stream = peer.tls.connect("localhost".try_into()?, stream).await?;
                let cipher = stream.get_ref().1.negotiated_cipher_suite();
                let cipher = cipher.map(|suite| suite.suite());
                anyhow::ensure!(
                    cipher == Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256),
                    "{} chose {cipher:?}",
                    peer.name
                );
                Line::over_tls(stream, wish).await
            }
        }
    }

    /// Opens so many lines, one after the other.
    pub(super) async fn open_many(&self, wish: u8, count: usize) -> Result<Vec<Line>> {
        let mut lines = Vec::with_capacity(count);
        for _ in 0..count {
            let opened = tokio::time::timeout(OPENING, self.open(wish)).await;
            lines.push(opened.with_context(|| format!("no line by {} in time", self.name()))??);
        }
        Ok(lines)
    }
}

/// How long one line may take to open.
const OPENING: Duration = Duration::from_secs(20);

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Returns a client that speaks TLS 1.3 with the one cipher that peers offer.
fn client(authority: &[u8]) -> Result<TlsConnector> {
    let cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority) {
        roots.add(certificate?)?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}
