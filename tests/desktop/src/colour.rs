//! One opaque colour, written `#rrggbb`.

use std::str::FromStr;

/// An opaque colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Colour {
    /// Red, 0 to 255.
    pub red: u8,
    /// Green, 0 to 255.
    pub green: u8,
    /// Blue, 0 to 255.
    pub blue: u8,
}

/// A colour that is not written `#rrggbb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a colour is written #rrggbb")]
pub struct ColourError;

impl Colour {
    /// Black or white, whichever is easier to read on this colour.
    #[must_use]
    pub fn ink(self) -> Self {
        // The weights of ITU-R BT.601 for red, green and blue, in thousandths.
        let brightness =
            299 * u32::from(self.red) + 587 * u32::from(self.green) + 114 * u32::from(self.blue);
        let level = if brightness < 128_000 { 255 } else { 0 };
        Self { red: level, green: level, blue: level }
    }
}

impl FromStr for Colour {
    type Err = ColourError;

    fn from_str(text: &str) -> Result<Self, ColourError> {
        let digits = text.strip_prefix('#').ok_or(ColourError)?;
        if digits.len() != 6 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(ColourError);
        }
        let channel = |at: usize| {
            u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_not_hexadecimal| ColourError)
        };
        Ok(Self { red: channel(0)?, green: channel(2)?, blue: channel(4)? })
    }
}
