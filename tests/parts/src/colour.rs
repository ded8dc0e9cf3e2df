//! Colours, by which a test knows one desktop from another.

use std::fmt;

/// A colour of a screen, 8 bits a channel. Displays as `#rrggbb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Colour {
    /// Red.
    pub red: u8,
    /// Green.
    pub green: u8,
    /// Blue.
    pub blue: u8,
}

/// How far each channel may be off: lossy codecs and 16-bit colour move them.
const TOLERANCE: u8 = 8;

impl Colour {
    /// Makes a colour of its three channels.
    pub const fn new(red: u8, green: u8, blue: u8) -> Self {
        Self { red, green, blue }
    }

    /// Tells whether a person would take the two for the same.
    pub fn looks_like(self, other: Self) -> bool {
        [
            self.red.abs_diff(other.red),
            self.green.abs_diff(other.green),
            self.blue.abs_diff(other.blue),
        ]
        .iter()
        .all(|difference| *difference <= TOLERANCE)
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{:02x}{:02x}{:02x}", self.red, self.green, self.blue)
    }
}
