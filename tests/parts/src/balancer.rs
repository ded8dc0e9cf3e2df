//! A balancer in front of a server: `HAProxy`, which carries TCP as it comes and says where it
//! comes from by the PROXY protocol, version 2.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
};

use anyhow::Result;

use crate::{folder::Folder, package, port, process::Child};

/// A running balancer.
pub struct Balancer {
    listen: SocketAddr,
    _process: Child,
    _folder: Folder,
}

impl Balancer {
    /// Starts a balancer at an address, which brings whoever comes there to `target` from its own
    /// address `from`.
    ///
    /// # Errors
    ///
    /// When the program is missing or does not become ready.
    pub fn start(listen: SocketAddr, from: IpAddr, target: SocketAddr) -> Result<Self> {
        let folder = Folder::new()?;
        let config = folder.path().join("balancer.conf");
        fs::write(
            &config,
            format!(
                "defaults
  mode tcp
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend clients
  bind {listen}
  default_backend servers
backend servers
  source {from}
  server server {target} send-proxy-v2
"
            ),
        )?;
        let mut command = Command::new(package::program("haproxy")?);
        let process =
            Child::spawn("balancer", command.args(["-db", "-f"]).arg(&config), folder.path())?;
        process.ready(|| Ok(port::is_listening(listen.port())?.then_some(())))?;
        Ok(Self { listen, _process: process, _folder: folder })
    }

    /// Returns where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }
}
