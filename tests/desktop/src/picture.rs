//! The picture an embedded desktop shows: one colour, its name, who signed on, and a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use font8x8::legacy::BASIC_LEGACY;

use crate::colour::Colour;

/// Width of every embedded desktop in pixels; the encoder wants a multiple of 4.
pub const WIDTH: u16 = 1024;
/// Height of every embedded desktop in pixels.
pub const HEIGHT: u16 = 768;
/// Bytes of one pixel: blue, green, red and one unused.
pub const PIXEL: usize = 4;

/// Pixels of a glyph's side before scaling.
const GLYPH: usize = 8;
/// Left edge of every line of text, in pixels.
const MARGIN: usize = 64;
/// Where the desktop's name begins and how much it is enlarged.
const NAME: Line = Line { top: 240, scale: 8 };
/// Where the account's name begins and how much it is enlarged.
const ACCOUNT: Line = Line { top: 336, scale: 4 };
/// Where the clock begins and how much it is enlarged.
const CLOCK: Line = Line { top: 416, scale: 8 };

#[derive(Clone, Copy)]
struct Line {
    top: usize,
    scale: usize,
}

/// Some whole rows of the screen, from its left edge to its right one.
pub struct Rows {
    /// The first row, counted from the top.
    pub top: u16,
    /// How many rows.
    pub height: u16,
    /// The pixels, row by row from the top.
    pub pixels: Bytes,
}

/// What one desktop looks like.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The colour of everything that is not text.
    pub colour: Colour,
    /// The desktop's name.
    pub name: String,
    /// The account that signed on; may be empty.
    pub account: String,
}

impl Picture {
    /// Paints the whole screen as it looks at `now`.
    pub fn whole(&self, now: SystemTime) -> Rows {
        let mut canvas = Canvas::new(self.colour, 0, usize::from(HEIGHT));
        canvas.write(NAME, &self.name);
        canvas.write(ACCOUNT, &self.account);
        canvas.write(CLOCK, &clock(now));
        canvas.finish()
    }

    /// Paints only the rows of the clock as they look at `now`.
    pub fn clock(&self, now: SystemTime) -> Rows {
        let mut canvas = Canvas::new(self.colour, CLOCK.top, GLYPH * CLOCK.scale);
        canvas.write(CLOCK, &clock(now));
        canvas.finish()
    }
}

/// Returns the time of day in UTC, to the second.
fn clock(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (hours, minutes, seconds) = (since / 3600 % 24, since / 60 % 60, since % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02} UTC")
}

struct Canvas {
    top: usize,
    ink: [u8; PIXEL],
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(colour: Colour, top: usize, height: usize) -> Self {
        let pixels = pixel(colour).repeat(usize::from(WIDTH) * height);
        Self { top, ink: pixel(colour.ink()), pixels }
    }

    /// Writes as much of `text` as fits on the line. Characters outside ASCII become `?`.
    fn write(&mut self, line: Line, text: &str) {
        let fitting = (usize::from(WIDTH) - MARGIN) / (GLYPH * line.scale);
        for (column, character) in text.chars().take(fitting).enumerate() {
            let code = if character.is_ascii() { character as usize } else { usize::from(b'?') };
            let left = MARGIN + column * GLYPH * line.scale;
            for (y, bits) in BASIC_LEGACY[code].iter().enumerate() {
                for x in (0..GLYPH).filter(|x| bits >> x & 1 == 1) {
                    self.dot(left + x * line.scale, line.top + y * line.scale, line.scale);
                }
            }
        }
    }

    fn dot(&mut self, left: usize, top: usize, side: usize) {
        for y in top..top + side {
            let start = ((y - self.top) * usize::from(WIDTH) + left) * PIXEL;
            self.pixels[start..start + side * PIXEL].copy_from_slice(&self.ink.repeat(side));
        }
    }

    fn finish(self) -> Rows {
        let height = self.pixels.len() / (usize::from(WIDTH) * PIXEL);
        let rows = |count: usize| u16::try_from(count).expect("no more rows than the screen has");
        Rows { top: rows(self.top), height: rows(height), pixels: self.pixels.into() }
    }
}

fn pixel(colour: Colour) -> [u8; PIXEL] {
    [colour.blue, colour.green, colour.red, 0]
}
