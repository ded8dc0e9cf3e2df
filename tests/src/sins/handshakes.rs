//! Sins before a connection is open: offers that are none of ours, and
//! handshakes that never end.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ConnectionError, TransportErrorCode};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tegata_parts::ca::TestCa;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tokio::time::timeout;

use super::conversation::{closed, framed};
use super::forge::Forge;
use super::place::Place;
use super::{Answer, DEADLINE, SLACK};
use crate::stranger::{HERE, credulous, credulous_tls};

/// TLS alerts, as QUIC carries them (RFC 9001 §4.8).
const UNEXPECTED_MESSAGE: u64 = 0x100 + 10;
const DECODE_ERROR: u64 = 0x100 + 50;
const ACCESS_DENIED: u64 = 0x100 + 49;
const PROTOCOL_VERSION: u64 = 0x100 + 70;
const NO_APPLICATION_PROTOCOL: u64 = 0x100 + 120;
const MISSING_EXTENSION: u64 = 0x100 + 109;

/// One sin.
pub struct Sin {
    /// What it is.
    pub name: &'static str,
    /// The ALPNs that are offered.
    pub alpns: Vec<&'static [u8]>,
    /// What becomes of the handshake's bytes.
    pub forge: Forge,
    /// What it gets.
    pub gets: Answer,
}

/// The rows.
pub fn table() -> Vec<Sin> {
    let login = || vec![ALPN_LOGIN];
    let patch = |text: &[u8], instead: &[u8]| Forge {
        patch: Some((text.to_vec(), instead.to_vec())),
        ..Forge::default()
    };
    let cut = |bytes| Forge { cut: Some(bytes), ..Forge::default() };
    let sin = |name, alpns, forge, gets| Sin { name, alpns, forge, gets };
    let no_protocol = Answer::EitherTransport(NO_APPLICATION_PROTOCOL, ACCESS_DENIED);
    vec![
        sin("no ALPN", vec![], Forge::default(), no_protocol),
        sin("an unknown ALPN", vec![b"h3"], Forge::default(), no_protocol),
        sin(
            "both of our ALPNs",
            vec![ALPN_LOGIN, ALPN_SESSION],
            Forge::default(),
            Answer::Transport(ACCESS_DENIED),
        ),
        sin(
            "the ALPN of a link, which is not for here",
            vec![b"tegata-link/1"],
            Forge::default(),
            no_protocol,
        ),
        sin(
            "TLS 1.2",
            login(),
            // supported_versions with one version in it.
            patch(&[0, 0x2b, 0, 3, 2, 3, 4], &[0, 0x2b, 0, 3, 2, 3, 3]),
            Answer::Transport(PROTOCOL_VERSION),
        ),
        sin(
            "no TLS version at all",
            login(),
            patch(&[0, 0x2b, 0, 3, 2, 3, 4], &[0xfa, 0xfa, 0, 3, 2, 3, 4]),
            Answer::EitherTransport(PROTOCOL_VERSION, MISSING_EXTENSION),
        ),
        sin(
            "no transport parameters",
            login(),
            patch(&[0, 0x39], &[0xfa, 0xfa]),
            Answer::EitherTransport(MISSING_EXTENSION, 0x08),
        ),
        sin(
            "a hello that is none",
            login(),
            patch(&[1, 0], &[9, 0]),
            Answer::EitherTransport(UNEXPECTED_MESSAGE, DECODE_ERROR),
        ),
        sin("one byte of a hello", login(), cut(1), Answer::Closed),
        sin("half a hello", login(), cut(120), Answer::Closed),
        sin("no finish", login(), cut(700), Answer::Endured),
    ]
}

/// Commits a sin, and returns what came of it.
///
/// # Errors
///
/// When the broker neither takes the connection nor ends it.
pub async fn commit(place: &Place, sin: &Sin) -> Result<Answer> {
    let config = sin.forge.client(credulous(&sin.alpns)?);
    let endpoint = quinn::Endpoint::client((place.caller(), 0).into())?;
    let connecting = endpoint.connect_with(config, place.site.listen(), "tegata")?;
    let outcome = timeout(DEADLINE + SLACK, async {
        match connecting.await {
            // It believes that all is well; the broker has yet to see the end of it.
            Ok(connection) => connection.closed().await,
            Err(error) => error,
        }
    });
    match outcome.await.context("nothing came of it in time")? {
        // Before it has its keys a peer is told only that it is over.
        // (RFC 9000 §10.2.3).
        ConnectionError::ConnectionClosed(close)
            if close.error_code == TransportErrorCode::APPLICATION_ERROR =>
        {
            Ok(Answer::Closed)
        }
        why => closed(&why),
    }
}

/// Commits each sin.
///
/// # Errors
///
/// Names every sin that got something else.
pub async fn commit_all(place: &Place, sins: Vec<Sin>) -> Result<()> {
    let mut wrong = Vec::new();
    for sin in &sins {
        match commit(place, sin).await {
            Ok(answer) if sin.gets.is(answer) => {}
            Ok(answer) => wrong.push(format!("{}: {answer:x?}, not {:x?}", sin.name, sin.gets)),
            Err(error) => wrong.push(format!("{}: {error:#}", sin.name)),
        }
        if let Err(error) = place.is_well().await {
            wrong.push(format!("after {}: {error:#}", sin.name));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sins.len(), wrong.join("\n"));
    Ok(())
}

/// Sends a login in early data (RFC 9001 §4.6), with a ticket that another server
/// gave, and tells whether the broker took it.
///
/// # Errors
///
/// When the other server gives no ticket, or the broker no connection.
pub async fn sends_early(place: &Place) -> Result<bool> {
    let mut tls = credulous_tls(&[ALPN_LOGIN])?;
    tls.enable_early_data = true;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    let endpoint = quinn::Endpoint::client((HERE, 0).into())?;

    // The client knows a server by its name alone, and so takes the ticket to ours.
    let generous = generous()?;
    let to = generous.local_addr()?;
    let serving = async { anyhow::Ok(generous.accept().await.context("nobody came")?.await?) };
    let coming = async { anyhow::Ok(endpoint.connect_with(config.clone(), to, "tegata")?.await?) };
    let (served, first) = tokio::try_join!(serving, coming)?;
    // Its ticket has come once a stream of the server has.
    let mut told = served.open_uni().await?;
    told.write_all(b"hello").await?;
    told.finish()?;
    let mut hears = timeout(SLACK, first.accept_uni()).await.context("nothing came")??;
    hears.read_to_end(16).await?;

    let connecting = endpoint.connect_with(config, place.site.listen(), "tegata")?;
    let Ok((early, taken)) = connecting.into_0rtt() else {
        anyhow::bail!("the other server gave no ticket");
    };
    let (mut send, _receive) = early.open_bi().await?;
    send.write_all(&framed(br#"{"type":"dance"}"#)).await?;
    let taken = timeout(DEADLINE + SLACK, taken).await.context("no handshake")?;
    Ok(taken)
}

/// A server that lets its clients send early data.
fn generous() -> Result<quinn::Endpoint> {
    let ca = TestCa::new("generous")?;
    let issued = ca.issue(&["tegata"])?;
    let certificate = CertificateDer::from_pem_file(&issued.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&issued.key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    tls.alpn_protocols = vec![ALPN_LOGIN.to_vec()];
    tls.max_early_data_size = u32::MAX;
    let tls = Arc::new(QuicServerConfig::try_from(tls)?);
    let token_key = aws_lc_rs::hkdf::Salt::new(aws_lc_rs::hkdf::HKDF_SHA256, b"test");
    let server = quinn::ServerConfig::new(tls, Arc::new(token_key.extract(&[7; 64])));
    let socket = std::net::UdpSocket::bind((HERE, 0))?;
    let runtime = Arc::new(quinn::TokioRuntime);
    Ok(quinn::Endpoint::new(quinn::EndpointConfig::default(), Some(server), socket, runtime)?)
}
