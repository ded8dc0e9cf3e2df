//! A real RDP viewer, straight to a desktop: the yardstick for what comes through Tegata.

use std::process::Command;

use anyhow::Result;

use crate::{package, process::Child, screen::Screen};

/// How `xfreerdp` ends when the desktop's certificate is not the pinned one.
pub const WRONG_CERTIFICATE: i32 = 143;

/// Shows a desktop on `screen`, if its certificate has the SHA-256 `pin` (lower hex).
///
/// # Errors
///
/// When `xfreerdp` is missing or cannot be started.
pub fn show(
    screen: &Screen,
    (port, pin): (u16, &str),
    (account, password): (&str, &str),
) -> Result<Child> {
    // FreeRDP compares text: only pairs of digits with colons between them ever match.
    let pin = pin.as_bytes().chunks(2).map(String::from_utf8_lossy).collect::<Vec<_>>().join(":");
    let mut command = Command::new(package::program("xfreerdp")?);
    command
        .args([&format!("/v:127.0.0.1:{port}"), &format!("/cert:fingerprint:sha256:{pin}")])
        .args([&format!("/u:{account}"), &format!("/p:{password}")])
        .args(["/sec:tls", "/bpp:24", "/f", "-decorations", "-grab-keyboard"])
        .args(["/log-level:WARN"])
        .env("DISPLAY", screen.display())
        // Known hosts and settings go away with the screen.
        .env("HOME", screen.folder());
    Child::spawn("xfreerdp", &mut command, screen.folder())
}
