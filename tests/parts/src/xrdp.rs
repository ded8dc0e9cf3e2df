//! Real RDP desktops behind xrdp: [`Xrdp`] with accounts and sessions that outlive a
//! disconnection, and [`Bare`], which is quicker and knows no accounts.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Result;

pub use self::{
    bare::Bare,
    machine::{Account, Builder, Server, Xrdp},
};

mod bare;
mod machine;

/// What a session runs, so that a person at the viewer can tell whose it is.
const SESSION: &str = include_str!("../desktop/session");

/// Programs that every desktop needs.
const NEEDED: [&str; 5] =
    ["xrdp", "openbox", "xterm", "xsetroot", "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"];

/// Writes xrdp's configuration, with one module that is entered without a menu.
fn write_xrdp_ini(folder: &Path, port: u16, module: &str, log: &str) -> Result<PathBuf> {
    let path = folder.join("xrdp.ini");
    let ini = format!(
        "[Globals]
ini_version=1
fork=true
port=tcp://127.0.0.1:{port}
use_vsock=false
tcp_nodelay=true
security_layer=tls
certificate={folder}/server.pem
key_file={folder}/server.key
ssl_protocols=TLSv1.2, TLSv1.3
autorun=desktop
allow_channels=true
max_bpp=32
use_fastpath=both
[Logging]
LogFile={folder}/{log}
LogLevel=INFO
EnableSyslog=false
[Channels]
drdynvc=true
cliprdr=true
[desktop]
name=desktop
username=ask
password=ask
{module}",
        folder = folder.display(),
    );
    fs::write(&path, ini)?;
    Ok(path)
}

/// Writes the program of a session, and returns its path.
pub(crate) fn write_session(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("session");
    write_program(&path, SESSION)?;
    Ok(path)
}

fn write_program(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
