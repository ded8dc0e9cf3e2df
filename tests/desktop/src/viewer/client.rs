//! The RDP connection sequence: negotiate, secure, sign on.

use std::net::{Ipv4Addr, SocketAddr};

use ironrdp_connector::sspi::generator::NetworkRequest;
use ironrdp_connector::{
    BitmapConfig, ClientConnector, Config, ConnectionResult, ConnectorError,
    ConnectorErrorExt as _, ConnectorResult, Credentials, DesktopSize, ServerName,
};
use ironrdp_pdu::gcc::KeyboardType;
use ironrdp_pdu::rdp::capability_sets::{MajorPlatformType, client_codecs_capabilities};
use ironrdp_pdu::rdp::client_info::{OptionalSystemTime, PerformanceFlags, TimezoneInfo};
use ironrdp_tokio::{
    NetworkClient, TokioFramed, connect_begin, connect_finalize, mark_as_upgraded,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName as TlsName;

use super::{Visit, VisitError, pinned};
use crate::identity::public_key;

/// What the viewer calls the desktop where a protocol wants a name; only the pin is looked at.
const DESKTOP_NAME: &str = "desktop";
/// The size to ask for; the desktop decides.
const WANTED_SIZE: DesktopSize = DesktopSize { width: 1024, height: 768 };

/// Connects up to the point where the desktop begins to paint.
pub(super) async fn connect<S>(
    stream: S,
    visit: Visit,
) -> Result<(TokioFramed<TlsStream<S>>, ConnectionResult), VisitError>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin,
{
    let tls = pinned::connector(visit.pin);
    // The address is a field of the protocol that desktops log; the viewer's own tells nothing.
    let mut connector =
        ClientConnector::new(config(visit), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let mut plain = TokioFramed::new(stream);
    let upgrade =
        connect_begin(&mut plain, &mut connector).await.map_err(VisitError::of_negotiation)?;

    let name = TlsName::try_from(DESKTOP_NAME).expect("a valid host name");
    let secured = tls.connect(name, plain.into_inner_no_leftover()).await.map_err(|error| {
        if pinned::is_mismatch(&error) { VisitError::PinMismatch } else { VisitError::Tls(error) }
    })?;
    let key = secured
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|certificates| public_key(certificates.first()?))
        .ok_or(VisitError::UnreadableKey)?;

    let upgraded = mark_as_upgraded(upgrade, &mut connector);
    let mut framed = TokioFramed::new(secured);
    let connected = connect_finalize(
        upgraded,
        connector,
        &mut framed,
        &mut NoKerberos,
        ServerName::new(DESKTOP_NAME),
        key,
        None,
    )
    .await
    .map_err(VisitError::Refused)?;
    Ok((framed, connected))
}

fn config(visit: Visit) -> Config {
    Config {
        desktop_size: WANTED_SIZE,
        desktop_scale_factor: 100,
        enable_tls: true,
        enable_credssp: visit.secret.is_some(),
        autologon: visit.secret.is_some(),
        credentials: Credentials::UsernamePassword {
            username: visit.user,
            password: visit.secret.unwrap_or_default(),
        },
        domain: None,
        client_build: 0,
        client_name: "first-frame".to_owned(),
        keyboard_type: KeyboardType::IbmEnhanced,
        keyboard_subtype: 0,
        keyboard_functional_keys_count: 12,
        keyboard_layout: 0,
        ime_file_name: String::new(),
        bitmap: Some(BitmapConfig {
            lossy_compression: false,
            color_depth: 32,
            codecs: client_codecs_capabilities(&["remotefx:off"]).expect("a codec IronRDP knows"),
        }),
        dig_product_id: String::new(),
        client_dir: String::new(),
        alternate_shell: String::new(),
        work_dir: String::new(),
        platform: MajorPlatformType::UNIX,
        hardware_id: None,
        request_data: None,
        enable_audio_playback: false,
        performance_flags: PerformanceFlags::default(),
        license_cache: None,
        timezone_info: TimezoneInfo {
            bias: 0,
            standard_name: String::new(),
            standard_date: OptionalSystemTime(None),
            standard_bias: 0,
            daylight_name: String::new(),
            daylight_date: OptionalSystemTime(None),
            daylight_bias: 0,
        },
        compression_type: None,
        enable_server_pointer: false,
        pointer_software_rendering: false,
        multitransport_flags: None,
    }
}

/// Network level authentication by NTLM alone: no ticket server is ever asked.
struct NoKerberos;

impl NetworkClient for NoKerberos {
    async fn send(&mut self, _request: &NetworkRequest) -> ConnectorResult<Vec<u8>> {
        Err(ConnectorError::general("Kerberos is not spoken here"))
    }
}
