//! A real RDP desktop that asks for Network Level Authentication (`CredSSP`): `FreeRDP`'s own
//! server before one X session with one account.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, time::Duration};

use anyhow::Result;

use crate::{
    colour::Colour,
    folder::Folder,
    package, port,
    process::{Child, run},
    xrdp::write_session,
};

/// How long the tool that hashes a password may take.
const TOOL: Duration = Duration::from_secs(20);

/// A desktop that shows nothing before the account and the password are right.
///
/// It makes its own certificate and needs no root.
pub struct Shadow {
    port: u16,
    _server: Child,
    _session: Child,
    _xvfb: Child,
    _folder: Folder,
}

impl Shadow {
    /// Starts a desktop with a background of `colour`, for one account.
    ///
    /// # Errors
    ///
    /// When a program is missing or does not become ready.
    pub fn start((account, password): (&str, &str), colour: Colour) -> Result<Self> {
        package::require(&["freerdp-shadow-cli", "winpr-hash", "Xvfb"])?;
        let folder = Folder::new()?;
        let path = folder.path();

        let mut hash = Command::new(package::program("winpr-hash")?);
        hash.args(["-u", account, "-p", password, "-f", "sam"]);
        let sam = path.join("sam");
        fs::write(&sam, run("winpr-hash", &mut hash, b"", TOOL)?)?;
        fs::set_permissions(&sam, fs::Permissions::from_mode(0o600))?;

        let xvfb = Child::spawn(
            "xvfb",
            Command::new(package::program("Xvfb")?)
                .args(["-displayfd", "1", "-screen", "0", "1024x768x24"])
                .args(["-nolisten", "tcp", "-noreset"]),
            path,
        )?;
        let number = xvfb.ready(|| Ok(xvfb.output().strip_suffix('\n').map(str::to_owned)))?;
        let display = format!(":{number}");
        let session = Child::spawn(
            "session",
            Command::new(write_session(path)?)
                .arg(colour.to_string())
                .env("DISPLAY", &display)
                .env("HOME", path),
            path,
        )?;

        let port = port::free_tcp()?;
        // Its certificate goes below the home folder.
        let mut command = Command::new(package::program("freerdp-shadow-cli")?);
        command
            .args(["/bind-address:127.0.0.1", &format!("/port:{port}"), "/sec:nla", "+auth"])
            .arg(format!("/sam-file:{}", sam.display()))
            .env("DISPLAY", &display)
            .env("HOME", path);
        let server = Child::spawn("shadow", &mut command, path)?;
        server.ready(|| Ok(port::is_listening(port)?.then_some(())))?;
        Ok(Self { port, _server: server, _session: session, _xvfb: xvfb, _folder: folder })
    }

    /// Returns the RDP port on `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }
}
