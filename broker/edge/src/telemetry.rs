//! Logs: one event, one line, on standard error.
//!
//! A peer chooses some of the text that is logged. Whatever it holds, it can
//! neither end a line nor change what a terminal or a reader shows: every
//! control and direction character is written as `\uXXXX`.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// For a person at a terminal.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Why there are no logs.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not one.
    #[error("log filter is not understood")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// Logs were installed before.
    #[error("logs are already installed")]
    Installed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends the process's events, and its panics, to standard error.
///
/// `filter` is in the words of [`EnvFilter`], such as `info,tegata_gateway=debug`.
///
/// # Errors
///
/// Refuses a filter that is none, and a second call.
pub fn install(format: Format, filter: &str) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(filter).map_err(TelemetryError::Filter)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(OneLine(io::stderr));
    match format {
        Format::Plain => subscriber.try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(TelemetryError::Installed)?;
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let text = panic.payload_as_str().unwrap_or_default();
        tracing::error!(location, text, "Panicked");
    }));
    Ok(())
}

/// A place for events that keeps each of them on one line.
struct OneLine<W>(W);

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLineWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter(self.0.make_writer())
    }
}

/// Takes whole events, as `tracing_subscriber::fmt` writes them: each with one
/// call, each with a line feed at its end.
struct OneLineWriter<W>(W);

impl<W: Write> Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = String::with_capacity(text.len() + 1);
        for character in text.chars() {
            if is_harmless(character) {
                line.push(character);
            } else {
                // All of them are in the basic plane, so this is JSON as well.
                line.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
        }
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn is_harmless(character: char) -> bool {
    // Line and paragraph separators, and the characters that turn text around.
    let turns = matches!(character,
        '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !character.is_control() && !turns
}
