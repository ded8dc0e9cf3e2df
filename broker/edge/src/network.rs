//! Where a peer stands: the named classes of networks.
//!
//! A class never changes the path; it feeds policy, statistics and the telework
//! report. It is a place on a network, not proof of one.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

/// Longest name of a class, in bytes.
pub const CLASS_MAX: usize = 32;

/// Name of the class of every address that is in no other.
pub const CLASS_OTHER: &str = "other";

/// The name of a kind of network, as in `office` or `telework`.
///
/// INVARIANT: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkClass(String);

/// Why a text is not a [`NetworkClass`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a network class is 1 to 32 of a-z, 0-9 and '-'")]
pub struct InvalidClass;

impl NetworkClass {
    /// Checks a text and makes it the name of a class.
    ///
    /// # Errors
    ///
    /// Refuses an empty text, a long one, and any other character.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidClass> {
        let text = text.into();
        let valid = (1..=CLASS_MAX).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if valid { Ok(Self(text)) } else { Err(InvalidClass) }
    }

    /// Returns the class of what is in no other.
    pub fn other() -> Self {
        Self(CLASS_OTHER.into())
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NetworkClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NetworkClass {
    type Err = InvalidClass;

    fn from_str(text: &str) -> Result<Self, InvalidClass> {
        Self::new(text)
    }
}

/// Which prefix belongs to which class.
///
/// INVARIANT: the prefixes are distinct, host bits cleared, longest first.
#[derive(Debug, Clone)]
pub struct NetworkClasses {
    prefixes: Vec<(IpNet, NetworkClass)>,
    other: NetworkClass,
}

/// Why prefixes cannot be told apart: one is in two classes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{prefix} belongs to both {first} and {second}")]
pub struct PrefixInTwoClasses {
    /// The prefix, host bits cleared.
    pub prefix: IpNet,
    /// The class that named it first.
    pub first: NetworkClass,
    /// The class that named it again.
    pub second: NetworkClass,
}

impl NetworkClasses {
    /// Takes the prefixes of each class; the same one twice in a class is once.
    ///
    /// # Errors
    ///
    /// Refuses a prefix that two classes name.
    pub fn new(
        classes: impl IntoIterator<Item = (NetworkClass, Vec<IpNet>)>,
    ) -> Result<Self, PrefixInTwoClasses> {
        let mut prefixes: Vec<(IpNet, NetworkClass)> = Vec::new();
        for (class, listed) in classes {
            for prefix in listed.iter().map(IpNet::trunc) {
                match prefixes.iter().find(|(known, _)| *known == prefix) {
                    None => prefixes.push((prefix, class.clone())),
                    Some((_, first)) if *first == class => {}
                    Some((_, first)) => {
                        let (first, second) = (first.clone(), class);
                        return Err(PrefixInTwoClasses { prefix, first, second });
                    }
                }
            }
        }
        prefixes.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        Ok(Self { prefixes, other: NetworkClass::other() })
    }

    /// Tells whether an address may be of this class.
    pub fn knows(&self, class: &str) -> bool {
        let mut named = self.prefixes.iter().map(|(_, class)| class).chain([&self.other]);
        named.any(|named| named.as_str() == class)
    }

    /// Returns the class of the longest prefix that holds `address`.
    pub fn class_of(&self, address: IpAddr) -> &NetworkClass {
        let address = address.to_canonical();
        let found = self.prefixes.iter().find(|(prefix, _)| prefix.contains(&address));
        found.map_or(&self.other, |(_, class)| class)
    }
}

impl Default for NetworkClasses {
    fn default() -> Self {
        Self { prefixes: Vec::new(), other: NetworkClass::other() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str) -> NetworkClass {
        NetworkClass::new(name).expect("a good name")
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    #[test]
    fn a_class_has_a_short_plain_name() {
        for good in ["office", "a", "telework-2", &"a".repeat(CLASS_MAX)] {
            assert!(NetworkClass::new(good).is_ok(), "{good}");
        }
        for bad in ["", "Office", "of fice", "a_b", "在宅", &"a".repeat(CLASS_MAX + 1)] {
            assert_eq!(NetworkClass::new(bad), Err(InvalidClass), "{bad}");
        }
    }

    #[test]
    fn the_longest_prefix_decides_whatever_the_order() {
        let office = (class("office"), nets(&["10.0.0.0/8", "2001:db8::/32"]));
        let telework = (class("telework"), nets(&["10.9.0.0/16", "2001:db8:9::/48"]));
        for order in [[office.clone(), telework.clone()], [telework, office]] {
            let classes = NetworkClasses::new(order).expect("distinct prefixes");
            for (address, expected) in [
                ("10.1.2.3", "office"),
                ("10.9.2.3", "telework"),
                ("::ffff:10.9.2.3", "telework"),
                ("2001:db8::1", "office"),
                ("2001:db8:9::1", "telework"),
                ("192.0.2.1", CLASS_OTHER),
                ("::1", CLASS_OTHER),
            ] {
                let address = address.parse().expect("an address");
                assert_eq!(classes.class_of(address).as_str(), expected, "{address}");
            }
        }
    }

    #[test]
    fn a_prefix_is_in_one_class_only() {
        let twice = (class("office"), nets(&["10.0.0.0/8", "10.1.2.3/8"]));
        assert!(NetworkClasses::new([twice.clone()]).is_ok(), "the same class may repeat itself");
        let refused = NetworkClasses::new([twice, (class("home"), nets(&["10.7.0.0/8"]))]);
        let refused = refused.expect_err("10/8 is the office's");
        assert_eq!((refused.first, refused.second), (class("office"), class("home")));
    }
}
