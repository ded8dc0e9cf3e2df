//! A screen without a monitor, whose pixels a test reads.
//!
//! Xvfb maps its frame buffer to a file in the XWD format (X11's `XWDFile.h`), so looking at a
//! pixel costs one read and disturbs no X client.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    colour::Colour,
    folder::Folder,
    package,
    process::{Child, run},
    wait,
};

/// How long a tool that types or clicks may take.
const TOOL: Duration = Duration::from_secs(20);

/// How long a real person's finger rests between two keys, so that no key is lost.
const KEY_DELAY_MS: &str = "30";

/// A running Xvfb.
pub struct Screen {
    display: String,
    frame: Frame,
    folder: Folder,
    _xvfb: Child,
}

/// Where the pixels are in the frame buffer file.
struct Frame {
    file: File,
    first_pixel: u64,
    bytes_per_line: u32,
    width: u32,
    height: u32,
}

impl Screen {
    /// Starts a screen of `width` by `height` pixels, all black.
    ///
    /// # Errors
    ///
    /// When Xvfb is missing or does not start.
    pub fn start(width: u32, height: u32) -> Result<Self> {
        package::require(&["Xvfb", "xdotool"])?;
        let folder = Folder::new()?;
        let xvfb = Child::spawn(
            "xvfb",
            Command::new(package::program("Xvfb")?)
                .args([&free_number(), "-displayfd", "1"])
                .args(["-screen", "0", &format!("{width}x{height}x24")])
                .args(["-nolisten", "tcp", "-noreset", "-fbdir"])
                .arg(folder.path()),
            folder.path(),
        )?;
        // The number is written once clients are served.
        let number = xvfb.ready(|| Ok(xvfb.output().strip_suffix('\n').map(str::to_owned)))?;
        let frame = Frame::open(&folder.path().join("Xvfb_screen0"))?;
        ensure!((frame.width, frame.height) == (width, height), "Xvfb made another size");
        Ok(Self { display: format!(":{number}"), frame, folder, _xvfb: xvfb })
    }

    /// Returns what `DISPLAY` has to be for programs that shall appear here.
    pub fn display(&self) -> &str {
        &self.display
    }

    /// Returns a folder for the files of programs that appear here.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the colour of one pixel, counted from the upper left corner.
    ///
    /// # Errors
    ///
    /// When there is no such pixel.
    pub fn pixel(&self, x: u32, y: u32) -> Result<Colour> {
        let frame = &self.frame;
        ensure!(x < frame.width && y < frame.height, "no pixel at {x},{y}");
        let mut pixel = [0; 4];
        frame.file.read_exact_at(&mut pixel, frame.line(y) + u64::from(x) * 4)?;
        Ok(colour(pixel))
    }

    /// Waits until a pixel looks like `colour`.
    ///
    /// # Errors
    ///
    /// When it does not within `limit`; the error tells the colour seen last.
    pub fn wait_for_colour(&self, x: u32, y: u32, colour: Colour, limit: Duration) -> Result<()> {
        let mut seen = self.pixel(x, y)?;
        wait::until(&format!("{colour} at {x},{y}"), limit, || {
            seen = self.pixel(x, y)?;
            Ok(seen.looks_like(colour).then_some(()))
        })
        .with_context(|| format!("the pixel is {}", self.describe(x, y)))
    }

    /// Tells whether any pixel looks like `colour`.
    ///
    /// # Errors
    ///
    /// When the frame buffer cannot be read.
    pub fn has_colour(&self, wanted: Colour) -> Result<bool> {
        let frame = &self.frame;
        let mut line = vec![0; frame.width as usize * 4];
        for y in 0..frame.height {
            frame.file.read_exact_at(&mut line, frame.line(y))?;
            let (pixels, _) = line.as_chunks::<4>();
            if pixels.iter().any(|pixel| colour(*pixel).looks_like(wanted)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Clicks with the left button, which also gives the window there the keyboard.
    ///
    /// # Errors
    ///
    /// When the click cannot be sent.
    pub fn click(&self, x: u32, y: u32) -> Result<()> {
        self.xdotool(&["mousemove", &x.to_string(), &y.to_string(), "click", "1"])
    }

    /// Gives the keyboard to the first visible window of a class, such as `xfreerdp`.
    ///
    /// There is no window manager, so nobody else does.
    ///
    /// # Errors
    ///
    /// When there is no such window.
    pub fn focus(&self, class: &str) -> Result<()> {
        self.xdotool(&["search", "--onlyvisible", "--class", class, "windowfocus", "--sync"])
    }

    /// Types `text` into the window that has the keyboard.
    ///
    /// # Errors
    ///
    /// When the keys cannot be sent.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.xdotool(&["type", "--delay", KEY_DELAY_MS, "--", text])
    }

    /// Presses and releases one key, by its X name such as `Return`.
    ///
    /// # Errors
    ///
    /// When the key cannot be sent.
    pub fn press(&self, key: &str) -> Result<()> {
        self.xdotool(&["key", "--", key])
    }

    fn describe(&self, x: u32, y: u32) -> String {
        self.pixel(x, y).map_or_else(|error| error.to_string(), |colour| colour.to_string())
    }

    fn xdotool(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(package::program("xdotool")?);
        command.args(arguments).env("DISPLAY", &self.display);
        run("xdotool", &mut command, b"", TOOL).map(drop)
    }
}

/// Returns a display that nobody else has had lately. Where Xvfb looks for one itself, it may take
/// that of another that is ending, which then removes the socket of both.
fn free_number() -> String {
    static STARTED: AtomicU32 = AtomicU32::new(0);
    let started = STARTED.fetch_add(1, Ordering::Relaxed);
    let number = process::id().wrapping_mul(8).wrapping_add(started) % 50_000;
    format!(":{}", 1_000 + number)
}

impl Frame {
    fn open(path: &Path) -> Result<Self> {
        /// The header's fields up to `ncolors`, each four bytes, big-endian.
        const HEADER: usize = 20 * 4;
        const COLOUR_BYTES: u32 = 12;
        let file = File::open(path).with_context(|| format!("no {}", path.display()))?;
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let (fields, _) = header.as_chunks::<4>();
        let field = |index: usize| u32::from_be_bytes(fields[index]);
        ensure!(field(1) == 7 && field(11) == 32, "not an XWD file of 32 bits a pixel");
        Ok(Self {
            first_pixel: u64::from(field(0) + field(19) * COLOUR_BYTES),
            bytes_per_line: field(12),
            width: field(4),
            height: field(5),
            file,
        })
    }

    fn line(&self, y: u32) -> u64 {
        self.first_pixel + u64::from(y) * u64::from(self.bytes_per_line)
    }
}

/// Xvfb keeps pixels in the machine's own byte order.
fn colour(pixel: [u8; 4]) -> Colour {
    let [_, red, green, blue] = u32::from_ne_bytes(pixel).to_be_bytes();
    Colour::new(red, green, blue)
}
