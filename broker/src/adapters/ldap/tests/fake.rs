//! A server that speaks just enough LDAP to misbehave: it counts what reaches
//! it, and answers by a script.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tegata_parts::ca::{IssuedCertificate, TestCa};
use tegata_parts::slapd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// The id of the one person of a fake directory.
pub(super) const ID: &str = "11111111-2222-4333-8444-555555555555";

/// How a fake server behaves.
#[derive(Clone)]
pub(super) struct Script {
    /// Whether it waits for TLS, or greets in clear as a `StartTLS` server does.
    pub(super) tls: bool,
    /// What it does with a bind that is not the service account's.
    pub(super) bind: Bind,
    /// What it does with a search.
    pub(super) search: Answer,
    /// Whether it says that it is an Active Directory, and finds two groups where it
    /// is asked for a chain.
    pub(super) chains: bool,
}

/// What a fake server does with a person's bind.
#[derive(Clone)]
pub(super) enum Bind {
    /// Answers with a result code.
    Code(u8),
    /// Answers `secret` with success once told to, and any other at once with 49.
    SuccessOnceTold(watch::Receiver<bool>),
    /// Closes the connection without an answer.
    HangUp,
}

/// What a fake server answers to a search.
#[derive(Clone, Copy)]
pub(super) enum Answer {
    /// The one person, with this id.
    Person(&'static str),
    /// The one person, over and over, without an end.
    Endless,
    /// Only where else to look, as an entry's stead and as the result.
    Referral,
    /// A message with these bytes for an operation.
    Nonsense(&'static [u8]),
    /// A result code.
    Code(u8),
    /// Nothing.
    Silence,
}

impl Default for Script {
    fn default() -> Self {
        Self { tls: true, bind: Bind::Code(0), search: Answer::Person(ID), chains: false }
    }
}

/// What reached a fake server.
#[derive(Default)]
pub(super) struct Seen {
    connections: AtomicUsize,
    binds: AtomicUsize,
    searches: AtomicUsize,
}

/// A running fake server, which ends when it is dropped.
pub(super) struct Fake {
    port: u16,
    tls: bool,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

impl Fake {
    /// Starts with a certificate for loopback names.
    pub(super) async fn start(ca: &TestCa, script: Script) -> Self {
        Self::with(ca.issue_loopback().expect("a certificate"), script).await
    }

    /// Starts with a certificate of the test's choice.
    pub(super) async fn with(certificate: IssuedCertificate, script: Script) -> Self {
        Self::at(Ipv4Addr::LOCALHOST.into(), certificate, script).await
    }

    /// Starts at this address.
    pub(super) async fn at(ip: IpAddr, certificate: IssuedCertificate, script: Script) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let seen = Arc::new(Seen::default());
        let (tls, counts) = (script.tls, Arc::clone(&seen));
        let acceptor = acceptor(&certificate.certificate, &certificate.key);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut peers = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                counts.connections.fetch_add(1, Ordering::SeqCst);
                peers.spawn(serve(socket, acceptor.clone(), script.clone(), Arc::clone(&counts)));
            }
        });
        Self { port, tls, seen, _tasks: tasks }
    }

    pub(super) fn url(&self) -> String {
        format!("{}://localhost:{}", if self.tls { "ldaps" } else { "ldap" }, self.port)
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Binds of people; the service account's are not counted.
    pub(super) fn binds(&self) -> usize {
        self.seen.binds.load(Ordering::SeqCst)
    }

    pub(super) fn searches(&self) -> usize {
        self.seen.searches.load(Ordering::SeqCst)
    }
}

fn acceptor(certificate: &Path, key: &Path) -> TlsAcceptor {
    let certificates = CertificateDer::pem_file_iter(certificate).expect("a file");
    let chain = certificates.collect::<Result<_, _>>().expect("certificates");
    let key = PrivateKeyDer::from_pem_file(key).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, script: Script, seen: Arc<Seen>) {
    if !script.tls {
        converse(socket, script, &seen).await;
    } else if let Ok(socket) = acceptor.accept(socket).await {
        converse(socket, script, &seen).await;
    }
}

async fn converse(mut socket: impl AsyncRead + AsyncWrite + Unpin, script: Script, seen: &Seen) {
    while let Some(message) = read(&mut socket).await {
        // INTEGER message id, then the operation.
        let id = &message[..2 + usize::from(message[1])];
        let operation = &message[id.len()..];
        let done = |tag: u8, code: u8| envelope(id, &[&[tag, 7, 10, 1, code, 4, 0, 4, 0]]);
        let answer = match operation[0] {
            0x60 if contains(operation, slapd::SERVICE_DN.as_bytes()) => done(0x61, 0),
            0x60 => {
                seen.binds.fetch_add(1, Ordering::SeqCst);
                match script.bind.clone() {
                    Bind::Code(code) => done(0x61, code),
                    Bind::HangUp => return,
                    Bind::SuccessOnceTold(mut told) if contains(operation, b"secret") => {
                        if told.wait_for(|told| *told).await.is_err() {
                            return;
                        }
                        done(0x61, 0)
                    }
                    Bind::SuccessOnceTold(_) => done(0x61, 49),
                }
            }
            0x63 => {
                seen.searches.fetch_add(1, Ordering::SeqCst);
                match script.search {
                    _ if script.chains && contains(operation, b"supportedCapabilities") => {
                        let known = [("supportedCapabilities", "1.2.840.113556.1.4.800")];
                        [described(id, "", &known), done(0x65, 0)].concat()
                    }
                    _ if script.chains && contains(operation, b"1.2.840.113556.1.4.1941") => {
                        let group = |name| described(id, &slapd::group_dn(name), &[]);
                        [group("keiri"), group("staff"), done(0x65, 0)].concat()
                    }
                    Answer::Person(uuid) => [entry(id, uuid), done(0x65, 0)].concat(),
                    Answer::Endless => {
                        let many = entry(id, ID).repeat(100);
                        while socket.write_all(&many).await.is_ok() {}
                        return;
                    }
                    Answer::Referral => {
                        let elsewhere = string(4, b"ldap://127.0.0.1:1/dc=x");
                        let reference = envelope(id, &[&string(0x73, &elsewhere)]);
                        let refs = string(0xa3, &elsewhere);
                        let body = [&[10, 1, 10, 4, 0, 4, 0], &*refs].concat();
                        [reference, envelope(id, &[&string(0x65, &body)])].concat()
                    }
                    Answer::Nonsense(bytes) => envelope(id, &[bytes]),
                    Answer::Code(code) => done(0x65, code),
                    Answer::Silence => continue,
                }
            }
            0x77 => done(0x78, 2),
            _ => return,
        };
        if socket.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// Reads one message and returns what is inside its SEQUENCE.
async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await.ok()?;
    let length = if head[1] < 0x80 {
        usize::from(head[1])
    } else {
        let mut bytes = [0; 8];
        let count = usize::from(head[1] & 0x7f);
        socket.read_exact(&mut bytes[8 - count..]).await.ok()?;
        usize::try_from(u64::from_be_bytes(bytes)).ok()?
    };
    let mut body = vec![0; length];
    socket.read_exact(&mut body).await.ok()?;
    Some(body)
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// One tag with its length and content, of less than 64 KiB.
fn string(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short content").to_be_bytes();
    [&[tag, 0x82], &length[..], content].concat()
}

fn envelope(id: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    string(0x30, &[id, &parts.concat()].concat())
}

fn entry(id: &[u8], uuid: &str) -> Vec<u8> {
    let dn = format!("uid=sato,ou=people,{}", slapd::BASE);
    described(id, &dn, &[("entryuuid", uuid), ("displayname", "Fake")])
}

fn described(id: &[u8], dn: &str, attributes: &[(&str, &str)]) -> Vec<u8> {
    let attribute = |(name, value): &(&str, &str)| {
        let values = string(0x31, &string(4, value.as_bytes()));
        string(0x30, &[string(4, name.as_bytes()), values].concat())
    };
    let attributes = attributes.iter().map(attribute).collect::<Vec<_>>().concat();
    let dn = string(4, dn.as_bytes());
    envelope(id, &[&string(0x64, &[dn, string(0x30, &attributes)].concat())])
}
