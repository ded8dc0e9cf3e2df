//! What a pool allows on the thin client.

use serde::{Deserialize, Serialize};

/// What may pass between the thin client and the desktop besides the picture,
/// the keyboard and the mouse.
///
/// The agent takes away what is not allowed here and adds nothing: its own
/// configuration decides what is used. The tunnel is opaque, so the desktop has
/// to enforce the same for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// The clipboard, both ways.
    pub clipboard: bool,
    /// Files of the thin client as a drive.
    pub drive: bool,
    /// Printers of the thin client.
    pub printer: bool,
    /// USB devices of the thin client.
    pub usb: bool,
    /// Sound out of the desktop, and the microphone into it.
    pub sound: bool,
}

/// Where the desktop's password comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignOn {
    /// The password that the person typed goes to the viewer, once.
    Person,
    /// The desktop asks.
    Prompt,
}

/// What a desktop speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// MS-RDPBCGR, with a pinned certificate.
    Rdp,
    /// Any byte stream: no pin, no sign-on. For other services and benchmarks.
    Tcp,
}

/// How an RDP connection is secured; never negotiated (MS-RDPBCGR §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// TLS; the desktop draws its own login screen.
    Tls,
    /// `CredSSP`: the password is checked before the desktop draws.
    Nla,
}
