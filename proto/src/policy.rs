//! What a pool allows on the thin client.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a [`Profile`], in bytes: what a desktop sees of its client's name
/// (MS-RDPBCGR §2.2.1.3.2, `clientName`).
pub const PROFILE_MAX: usize = 15;

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
    /// The name under which the desktop's own policy knows all this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Profile>,
}

impl Policy {
    /// Returns what both allow. The other's profile is the one that holds, where it
    /// has one.
    #[must_use]
    pub fn within(self, other: Self) -> Self {
        Self {
            clipboard: self.clipboard && other.clipboard,
            drive: self.drive && other.drive,
            printer: self.printer && other.printer,
            usb: self.usb && other.usb,
            sound: self.sound && other.sound,
            profile: other.profile.or(self.profile),
        }
    }
}

/// The name of a policy, as in `telework`; the desktop sees it as its client's name.
///
/// INVARIANT: 1 to 15 of `a-z`, `0-9` and `-`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Profile {
    /// Zeros after the name.
    bytes: [u8; PROFILE_MAX],
}

/// Why a text is not a [`Profile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a profile is 1 to 15 of a-z, 0-9 and '-'")]
pub struct InvalidProfile;

impl Profile {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        let length = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(PROFILE_MAX);
        std::str::from_utf8(&self.bytes[..length]).unwrap_or_default()
    }
}

impl FromStr for Profile {
    type Err = InvalidProfile;

    fn from_str(text: &str) -> Result<Self, InvalidProfile> {
        let valid = (1..=PROFILE_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if !valid {
            return Err(InvalidProfile);
        }
        let mut bytes = [0; PROFILE_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes })
    }
}

impl TryFrom<String> for Profile {
    type Error = InvalidProfile;

    fn try_from(text: String) -> Result<Self, InvalidProfile> {
        text.parse()
    }
}

impl From<Profile> for String {
    fn from(profile: Profile) -> Self {
        profile.as_str().to_owned()
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_within_another_allows_what_both_do_under_the_others_name() {
        let telework: Profile = "telework".parse().expect("a profile");
        let pool = Policy { clipboard: true, drive: true, sound: true, ..Policy::default() };
        let home = Policy { sound: true, usb: true, profile: Some(telework), ..Policy::default() };
        let wanted = Policy { sound: true, profile: Some(telework), ..Policy::default() };
        assert_eq!(pool.within(home), wanted);
        assert_eq!(home.within(pool), wanted, "a pool without a name keeps the other's");
        assert_eq!(pool.within(pool), pool);
    }

    #[test]
    fn a_profile_is_a_name_that_fits_into_a_clients() {
        for good in ["a", "telework", "abcdefghijklmno"] {
            let profile: Profile = good.parse().expect(good);
            assert_eq!(profile.as_str(), good);
            let text = serde_json::to_string(&profile).expect("JSON");
            assert_eq!(serde_json::from_str::<Profile>(&text).expect("its own text"), profile);
        }
        for bad in ["", "abcdefghijklmnop", "Home", "a b", "a\0", "在宅"] {
            assert_eq!(bad.parse::<Profile>(), Err(InvalidProfile), "{bad:?}");
        }
    }

    #[test]
    fn a_policy_without_a_profile_is_written_as_before_there_were_any() {
        let text = serde_json::to_string(&Policy::default()).expect("JSON");
        let old = r#"{"clipboard":false,"drive":false,"printer":false,"usb":false,"sound":false}"#;
        assert_eq!(text, old);
        assert_eq!(serde_json::from_str::<Policy>(old).expect("JSON"), Policy::default());
    }
}
