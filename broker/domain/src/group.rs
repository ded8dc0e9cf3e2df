//! The one spelling of a group's name, so that a pool's entitlement and a
//! directory's answer can be compared as texts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a group, in bytes.
const GROUP_NAME_MAX: usize = 1_024;

/// A group, by its one spelling.
///
/// A text with an unescaped `=` is a distinguished name (RFC 4514), as LDAP
/// groups have; any other is a plain word, as groups of a file have. Both are
/// brought to lower case, and in a distinguished name spaces that mean nothing
/// are dropped and escapes are written in one way. Two texts name one group
/// exactly if they are then equal. `cn` and `2.5.4.3` stay two attributes.
///
/// INVARIANT: 1 to 1,024 bytes in that one spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

/// Why a text names no group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a group is a plain word or a distinguished name, of 1 to 1024 bytes")]
pub struct InvalidGroupName;

impl GroupName {
    /// Brings a name to its one spelling.
    ///
    /// # Errors
    ///
    /// Refuses a text that is empty, too long, has control characters or white
    /// space at its ends, or has a `=` and is no distinguished name.
    pub fn new(text: &str) -> Result<Self, InvalidGroupName> {
        if text.len() > GROUP_NAME_MAX || text.chars().any(char::is_control) {
            return Err(InvalidGroupName);
        }
        if text.contains('=') {
            return Self::from_dn(text);
        }
        let plain = !text.is_empty() && text.trim().len() == text.len() && !text.contains(',');
        let name = text.to_lowercase();
        // Lower case may need more bytes than upper case does.
        let fits = plain && name.len() <= GROUP_NAME_MAX;
        if fits { Ok(Self(name)) } else { Err(InvalidGroupName) }
    }

    /// Brings a distinguished name to its one spelling.
    ///
    /// # Errors
    ///
    /// Refuses a text that is none, or is too long.
    pub fn from_dn(text: &str) -> Result<Self, InvalidGroupName> {
        if text.len() > GROUP_NAME_MAX {
            return Err(InvalidGroupName);
        }
        let name = canonical_dn(text).ok_or(InvalidGroupName)?;
        if name.len() <= GROUP_NAME_MAX { Ok(Self(name)) } else { Err(InvalidGroupName) }
    }

    /// Returns the name in its one spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for GroupName {
    type Err = InvalidGroupName;

    fn from_str(text: &str) -> Result<Self, InvalidGroupName> {
        Self::new(text)
    }
}

impl TryFrom<String> for GroupName {
    type Error = InvalidGroupName;

    fn try_from(text: String) -> Result<Self, InvalidGroupName> {
        Self::new(&text)
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.0
    }
}

/// Returns the one spelling of a distinguished name, or nothing if it is none.
fn canonical_dn(text: &str) -> Option<String> {
    let mut rest = text;
    let mut name = String::with_capacity(text.len());
    loop {
        let (rdn, after) = relative_name(rest)?;
        name.push_str(&rdn);
        match after {
            Some(next) => {
                name.push(',');
                rest = next;
            }
            None => return Some(name),
        }
    }
}

/// Reads up to the next `,`: one or more `type=value` joined by `+`.
fn relative_name(text: &str) -> Option<(String, Option<&str>)> {
    let mut pairs = Vec::new();
    let mut rest = text;
    loop {
        let (kind, after) = rest.split_once('=')?;
        let kind = kind.trim().to_ascii_lowercase();
        let is_type = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
        if kind.is_empty() || !kind.bytes().all(is_type) {
            return None;
        }
        let (value, end) = value(after)?;
        pairs.push(format!("{kind}={value}"));
        match end {
            Some(('+', next)) => rest = next,
            end => {
                pairs.sort_unstable();
                return Some((pairs.join("+"), end.map(|(_, next)| next)));
            }
        }
    }
}

/// Reads a value up to an unescaped `,` or `+`, which is returned with what
/// follows it.
fn value(text: &str) -> Option<(String, Option<(char, &str)>)> {
    let mut bytes = Vec::new();
    let mut chars = text.char_indices();
    let mut end = None;
    while let Some((at, c)) = chars.next() {
        match c {
            ',' | '+' => {
                end = Some((c, &text[at + 1..]));
                break;
            }
            '\\' => {
                let (at, c) = chars.next()?;
                if c.is_ascii_hexdigit() {
                    chars.next()?;
                    bytes.push(u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?);
                } else {
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
            }
            '"' | ';' | '<' | '>' => return None,
            c => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    let value = String::from_utf8(bytes).ok()?.to_lowercase();
    let words: Vec<&str> = value.split_whitespace().collect();
    if words.is_empty() || value.chars().any(char::is_control) {
        return None;
    }
    Some((escaped(&words.join(" ")), end))
}

fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for (at, c) in value.char_indices() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';' | '=') || (at == 0 && c == '#') {
            text.push('\\');
        }
        text.push(c);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> String {
        GroupName::new(text).expect("a group").to_string()
    }

    #[test]
    fn spellings_of_one_group_are_equal() {
        let one = "cn=keiri,ou=groups,dc=honsho,dc=lan";
        for same in [
            one,
            "CN=Keiri,OU=Groups,DC=honsho,DC=lan",
            "cn = keiri , ou = groups , dc = honsho , dc = lan",
            "cn=\\6beiri,ou=groups,dc=honsho,dc=lan",
        ] {
            assert_eq!(name(same), one);
        }
        assert_eq!(name("cn=a  b,dc=x"), "cn=a b,dc=x");
        assert_eq!(name("cn=Sato\\2C Hanako,dc=x"), name("cn=sato\\, hanako,dc=x"));
        assert_eq!(name("uid=1+cn=a,dc=x"), name("cn=a+uid=1,dc=x"));
        assert_eq!(name("CN=\\E7\\B5\\8C\\E7\\90\\86,dc=x"), name("cn=経理,dc=x"));
        assert_eq!(name("Keiri"), "keiri");
    }

    #[test]
    fn different_groups_stay_different() {
        assert_ne!(name("cn=a\\,dc=x,dc=y"), name("cn=a,dc=x,dc=y"));
        assert_ne!(name("cn=a+cn=b,dc=x"), name("cn=a,cn=b,dc=x"));
        assert_ne!(name("keiri"), name("cn=keiri"));
    }

    #[test]
    fn what_names_no_group_is_refused() {
        for bad in [
            "",
            " ",
            " a",
            "a ",
            "a\n",
            "a,b",
            "=",
            "cn=",
            "cn=a,",
            ",cn=a",
            "=a",
            "cn=a\\",
            "cn=\"a\"",
            "cn=a;dc=x",
            "cn=\\ff",
            "cn=a\\0",
            "cn=\\00a",
            "c n=a",
            &"a".repeat(1025),
        ] {
            assert_eq!(GroupName::new(bad), Err(InvalidGroupName), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn the_one_spelling_is_read_back_as_itself(text in "(cn|OU)=[ -~あ]{1,12}(,dc=[a-z+=\\\\#é]{1,6})?") {
            if let Ok(name) = GroupName::new(&text) {
                prop_assert_eq!(GroupName::new(name.as_str()), Ok(name));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", more in "[\\\\=,+0-9a-fé ]{0,40}") {
            let _ = GroupName::new(&text);
            let _ = GroupName::from_dn(&more);
        }
    }
}
