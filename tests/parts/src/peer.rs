//! Other people's relays, which carry a client's TLS to a plain TCP port: what a gateway of ours
//! is compared with. Both speak TLS 1.3 with `TLS_AES_128_GCM_SHA256` and nothing else.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{ca::IssuedCertificate, folder::Folder, package, port, process::Child};

/// The one cipher suite that peers offer.
const CIPHER: &str = "TLS_AES_128_GCM_SHA256";

/// Which relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `HAProxy` in TCP mode, with this many threads and bytes of buffer; its own buffer where none
    /// is said.
    Haproxy {
        /// Threads.
        threads: u16,
        /// `tune.bufsize`.
        buffer: Option<u32>,
    },
    /// `stunnel` as a server, a thread for each connection.
    Stunnel,
}

/// A running relay.
pub struct Peer {
    process: Child,
    listen: SocketAddr,
    version: String,
    _folder: Folder,
}

impl Peer {
    /// Starts a relay at an address that shows `certificate` and connects to `target`.
    ///
    /// # Errors
    ///
    /// When the program is missing or does not become ready.
    pub fn start(
        kind: Kind,
        certificate: &IssuedCertificate,
        address: IpAddr,
        target: SocketAddr,
    ) -> Result<Self> {
        let folder = Folder::new()?;
        let listen = SocketAddr::new(address, port::free_tcp()?);
        let pair = folder.path().join("pair.pem");
        let both = [&certificate.certificate, &certificate.key].map(fs::read_to_string);
        let [certificate, key] = both;
        fs::write(&pair, certificate? + &key?)?;
        let pair = pair.display();

        let config = folder.path().join("relay.conf");
        let (name, text, arguments) = match kind {
            Kind::Haproxy { threads, buffer } => {
                let buffer = buffer.map_or_else(String::new, |size| format!("tune.bufsize {size}"));
                let text = format!(
                    "global
  nbthread {threads}
  {buffer}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend clients
  bind {listen} ssl crt {pair} ssl-min-ver TLSv1.3 ciphersuites {CIPHER}
  default_backend desktops
backend desktops
  server desktop {target}
"
                );
                ("haproxy", text, vec!["-db", "-f"])
            }
            Kind::Stunnel => {
                let text = format!(
                    "foreground = yes
pid =
sslVersion = TLSv1.3
ciphersuites = {CIPHER}
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[desktops]
accept = {listen}
connect = {target}
cert = {pair}
"
                );
                ("stunnel4", text, vec![])
            }
        };
        fs::write(&config, text)?;
        let program = package::program(name)?;
        let mut command = Command::new(&program);
        command.args(arguments).arg(&config);
        let process = Child::spawn(name, &mut command, folder.path())?;
        process.ready(|| Ok(port::is_listening(listen.port())?.then_some(())))?;
        let asked = if name == "haproxy" { "-v" } else { "-version" };
        let told = Command::new(program).arg(asked).output()?;
        let told = [told.stdout, told.stderr].concat();
        let version = String::from_utf8_lossy(&told)
            .lines()
            .find(|line| line.to_lowercase().starts_with(name.trim_end_matches('4')))
            .with_context(|| format!("{name} does not tell its version"))?
            .to_owned();
        Ok(Self { process, listen, version, _folder: folder })
    }

    /// Returns where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Returns what the program says of its version.
    pub fn version(&self) -> &str {
        &self.version
    }
}
