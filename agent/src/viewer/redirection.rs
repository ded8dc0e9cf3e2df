//! What of this thin client a desktop gets to use: what its administrator has set up,
//! as far as the pool's policy allows it.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tegata_proto::policy::Policy;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::freerdp::Options;

/// Longest name of a drive, in bytes: a DOS device's (MS-RDPEFS §2.2.1.3
/// `PreferredDosName`).
const NAME_MAX: usize = 8;

/// How long a folder is looked for: one on a file server that is gone may not answer
/// at all.
const FOUND_WITHIN: Duration = Duration::from_secs(2);

/// Most kinds of USB devices that can be named.
pub const USB_MAX: usize = 16;

/// A folder of this machine that a desktop sees as a drive.
///
/// INVARIANT: the name is 1 to 8 of ASCII letters, digits, `-` and `_`; the folder is an
/// absolute path without comma, quotation mark and control character, which `FreeRDP`
/// would read as something else than a part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    name: String,
    folder: String,
}

/// Why there is no such [`Drive`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDrive {
    /// The name cannot be a drive's.
    #[error("name is 1 to 8 of A-Z, a-z, 0-9, '-' and '_'")]
    Name,
    /// The folder cannot be named to `FreeRDP`.
    #[error("folder is an absolute path without comma, quotation mark and control character")]
    Folder,
}

impl Drive {
    /// # Errors
    ///
    /// Refuses what `FreeRDP` would take for something else.
    pub fn new(name: String, folder: String) -> Result<Self, InvalidDrive> {
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !(1..=NAME_MAX).contains(&name.len()) || !name.bytes().all(is_name) {
            return Err(InvalidDrive::Name);
        }
        let is_other = |c: char| c.is_control() || matches!(c, ',' | '"' | '\'');
        if !folder.starts_with('/') || folder.contains(is_other) {
            return Err(InvalidDrive::Folder);
        }
        Ok(Self { name, folder })
    }

    /// Tells whether the folder is there, and says so soon.
    async fn is_there(&self) -> bool {
        let folder = PathBuf::from(&self.folder);
        is_found(move || folder.is_dir(), FOUND_WITHIN).await
    }

    fn argument(&self) -> String {
        let Self { name, folder } = self;
        format!("/drive:{name},{folder}")
    }
}

/// Looks on a thread of its own; what is late is not there.
async fn is_found(look: impl FnOnce() -> bool + Send + 'static, within: Duration) -> bool {
    matches!(timeout(within, spawn_blocking(look)).await, Ok(Ok(true)))
}

/// A kind of USB device, as in `054c:0268`: its vendor's number and its product's, four
/// hexadecimal digits each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsbDevice {
    vendor: u16,
    product: u16,
}

/// The text is no [`UsbDevice`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is VENDOR:PRODUCT in four hexadecimal digits each, as in \"054c:0268\"")]
pub struct InvalidUsbDevice;

impl FromStr for UsbDevice {
    type Err = InvalidUsbDevice;

    fn from_str(text: &str) -> Result<Self, InvalidUsbDevice> {
        let number = |digits: &str| {
            let fits = digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_hexdigit());
            fits.then(|| u16::from_str_radix(digits, 16).ok()).flatten().ok_or(InvalidUsbDevice)
        };
        let (vendor, product) = text.split_once(':').ok_or(InvalidUsbDevice)?;
        Ok(Self { vendor: number(vendor)?, product: number(product)? })
    }
}

/// Takes from a policy what is not there. `FreeRDP` ends at once where a folder is absent,
/// so it is not told of it then.
pub(super) async fn present(options: &Options, policy: Policy) -> Policy {
    let drive = match &options.drive {
        Some(drive) if policy.drive => drive.is_there().await,
        Some(_) | None => false,
    };
    Policy { drive, ..policy }
}

/// Says what is shared. `FreeRDP` shares neither drives nor USB devices unless told to.
pub(super) fn arguments(options: &Options, policy: &Policy) -> Vec<String> {
    let clipboard = options.clipboard && policy.clipboard;
    let sound = options.sound && policy.sound;
    let printer = options.printer && policy.printer;
    let clipboard = if clipboard { "+clipboard" } else { "-clipboard" };
    let sound = if sound { "/sound" } else { "/audio-mode:2" };
    let printer = printer.then(|| "/printer".to_owned());
    let drive = options.drive.as_ref().filter(|_| policy.drive).map(Drive::argument);
    let usb = (policy.usb && !options.usb.is_empty()).then(|| usb(&options.usb));
    let rest = [printer, drive, usb].into_iter().flatten();
    [clipboard, sound].map(String::from).into_iter().chain(rest).collect()
}

fn usb(devices: &[UsbDevice]) -> String {
    let ids =
        devices.iter().map(|UsbDevice { vendor, product }| format!("{vendor:04x}:{product:04x}"));
    format!("/usb:id:{}", ids.collect::<Vec<_>>().join("#"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Policy = Policy {
        clipboard: true,
        drive: true,
        printer: true,
        usb: true,
        sound: true,
        profile: None,
    };

    fn everything() -> Options {
        let drive = Drive::new("SHARE".into(), "/".into()).expect("a drive");
        let usb = ["054C:0268", "4669:6e6b"].map(|id| id.parse().expect(id));
        Options { drive: Some(drive), usb: usb.into(), ..Options::default() }
    }

    #[test]
    fn a_policy_takes_away_and_never_adds() {
        let all =
            ["+clipboard", "/sound", "/printer", "/drive:SHARE,/", "/usb:id:054c:0268#4669:6e6b"];
        assert_eq!(arguments(&everything(), &ALL), all);
        // 2.11 shares the clipboard unless told not to.
        let nothing = ["-clipboard", "/audio-mode:2"];
        assert_eq!(arguments(&everything(), &Policy::default()), nothing);
        let none = Options { sound: false, clipboard: false, printer: false, ..Options::default() };
        assert_eq!(arguments(&none, &ALL), nothing);
        let without = |policy| arguments(&everything(), &policy);
        assert_eq!(without(Policy { drive: false, ..ALL }), [all[0], all[1], all[2], all[4]]);
        assert_eq!(without(Policy { usb: false, ..ALL }), all[..4]);
        assert_eq!(without(Policy { printer: false, ..ALL }), [all[0], all[1], all[3], all[4]]);
    }

    #[tokio::test]
    async fn a_folder_that_is_absent_is_not_shared_and_costs_no_desktop() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().to_str().expect("UTF-8").to_owned();
        let drive = Drive::new("SHARE".into(), path.clone()).expect("a drive");
        let options = Options { drive: Some(drive), ..Options::default() };
        let wanted = format!("/drive:SHARE,{path}");
        let found = present(&options, ALL).await;
        assert_eq!(found, ALL);
        assert!(arguments(&options, &found).contains(&wanted));
        let none = present(&options, Policy::default()).await;
        assert_eq!(none, Policy::default(), "what is there is not allowed for that");
        folder.close().expect("an empty folder");
        let found = present(&options, ALL).await;
        assert_eq!(found, Policy { drive: false, ..ALL });
        assert!(!arguments(&options, &found).contains(&wanted));
    }

    #[tokio::test]
    async fn a_folder_on_a_server_that_does_not_answer_is_absent_and_holds_up_nothing() {
        let (answer, answered) = std::sync::mpsc::sync_channel::<()>(1);
        let look = move || answered.recv_timeout(Duration::from_secs(10)).is_err();
        assert!(!is_found(look, Duration::from_millis(10)).await);
        drop(answer);
        assert!(is_found(|| true, Duration::from_mins(1)).await);
        assert!(!is_found(|| false, Duration::from_mins(1)).await);
    }

    #[test]
    fn what_freerdp_would_take_for_something_else_is_refused() {
        let drive = |name: &str, folder: &str| Drive::new(name.into(), folder.into());
        assert!(drive("usb_1-A", "/srv/持ち出し 用").is_ok());
        for name in ["", "ninechars", "a,b", "a/b", "共有", "a b", "*"] {
            assert_eq!(drive(name, "/srv"), Err(InvalidDrive::Name), "{name:?}");
        }
        for folder in ["", "*", "%", "srv", "/srv,/etc", "/srv\"", "/srv'", "/srv\n/usb:auto"] {
            assert_eq!(drive("share", folder), Err(InvalidDrive::Folder), "{folder:?}");
        }
        for id in
            ["", "054c", "54c:268", "054c:0268,auto", "054c:0268#1:2", "054g:0268", "+54c:0268"]
        {
            assert_eq!(id.parse::<UsbDevice>(), Err(InvalidUsbDevice), "{id:?}");
        }
    }
}
