use std::process::Command;

use anyhow::Result;

use super::{NEEDED, write_session, write_xrdp_ini};
use crate::{ca::IssuedCertificate, colour::Colour, folder::Folder, package, port, process::Child};

/// xrdp before one X session that is there from the start and takes any account and password.
///
/// It needs no root. Several run side by side, each with a certificate of its own.
pub struct Bare {
    port: u16,
    sha256: String,
    folder: Folder,
    xrdp: Option<Child>,
    _session: Child,
    _xvnc: Child,
}

impl Bare {
    /// Starts a desktop with a background of `colour`, which proves itself by `certificate`.
    ///
    /// # Errors
    ///
    /// When a program is missing or does not become ready.
    pub fn start(certificate: &IssuedCertificate, colour: Colour) -> Result<Self> {
        package::require(&NEEDED)?;
        package::require(&["Xvnc"])?;
        let folder = Folder::new()?;
        let path = folder.path();
        certificate.install(path)?;

        let vnc_port = port::free_tcp()?;
        let xvnc = Child::spawn(
            "xvnc",
            Command::new(package::program("Xvnc")?)
                .args(["-displayfd", "1", "-geometry", "1024x768", "-depth", "24"])
                .args(["-rfbport", &vnc_port.to_string(), "-interface", "127.0.0.1"])
                .args(["-SecurityTypes", "None", "-AlwaysShared", "-nolisten", "tcp"]),
            path,
        )?;
        let display = xvnc.ready(|| Ok(xvnc.output().strip_suffix('\n').map(str::to_owned)))?;

        let session = Child::spawn(
            "session",
            Command::new(write_session(path)?)
                .arg(colour.to_string())
                .env("DISPLAY", format!(":{display}"))
                .env("HOME", path),
            path,
        )?;

        let port = port::free_tcp()?;
        write_xrdp_ini(
            path,
            port,
            &format!("lib=libvnc.so\nip=127.0.0.1\nport={vnc_port}\n"),
            "xrdp.log",
        )?;
        let sha256 = certificate.sha256.clone();
        let mut bare = Self { port, sha256, folder, xrdp: None, _session: session, _xvnc: xvnc };
        bare.switch_on()?;
        Ok(bare)
    }

    /// Returns the RDP port on `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns SHA-256 of the certificate it shows now, lower hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Shows another certificate to everybody who connects from now on.
    ///
    /// # Errors
    ///
    /// When the files cannot be written.
    pub fn change_certificate(&mut self, certificate: &IssuedCertificate) -> Result<()> {
        certificate.install(self.folder.path())?;
        certificate.sha256.clone_into(&mut self.sha256);
        Ok(())
    }

    /// Ends every RDP connection and refuses new ones; the session behind them goes on.
    ///
    /// # Errors
    ///
    /// When the operating system will not tell how xrdp ended.
    pub fn switch_off(&mut self) -> Result<()> {
        self.xrdp.take().map_or(Ok(()), |mut xrdp| xrdp.stop().map(drop))
    }

    /// Serves RDP again, on the same port.
    ///
    /// # Errors
    ///
    /// When xrdp does not become ready.
    pub fn switch_on(&mut self) -> Result<()> {
        self.switch_off()?;
        let path = self.folder.path();
        let mut command = Command::new(package::program("xrdp")?);
        command.arg("--nodaemon").arg("--config").arg(path.join("xrdp.ini"));
        let xrdp = Child::spawn("xrdp", &mut command, path)?;
        xrdp.ready(|| Ok(port::is_listening(self.port)?.then_some(())))?;
        self.xrdp = Some(xrdp);
        Ok(())
    }
}
