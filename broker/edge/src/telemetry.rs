//! Logs: one event, one line, on standard error.
//!
//! A peer chooses some of the text that is logged. Whatever it holds, it can
//! neither end a line nor change what a terminal or a reader shows: every
//! control and direction character is written as `\uXXXX`.

use std::fmt::Write as _;
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

/// Which events are written.
///
/// INVARIANT: [`EnvFilter`] understands the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

/// The text is not a filter.
#[derive(Debug, thiserror::Error)]
#[error("is not a filter such as info,tegata_gateway=debug")]
pub struct InvalidFilter(#[source] tracing_subscriber::filter::ParseError);

impl Filter {
    /// Reads a filter in the words of [`EnvFilter`], such as
    /// `info,tegata_gateway=debug`.
    ///
    /// # Errors
    ///
    /// Refuses a text of which any part is not understood.
    pub fn new(text: &str) -> Result<Self, InvalidFilter> {
        EnvFilter::try_new(text).map_err(InvalidFilter)?;
        Ok(Self(text.to_owned()))
    }

    fn events(&self) -> EnvFilter {
        EnvFilter::try_new(&self.0).expect("the text was understood before")
    }
}

/// Logs were installed before.
#[derive(Debug, thiserror::Error)]
#[error("logs are already installed")]
pub struct AlreadyInstalled(#[source] Box<dyn std::error::Error + Send + Sync>);

/// Sends the process's events, and its panics, to standard error.
///
/// # Errors
///
/// Refuses a second call.
pub fn install(format: Format, filter: &Filter) -> Result<(), AlreadyInstalled> {
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter.events())
        .with_ansi(false)
        // What cannot be written is lost: telling of that panics where nobody reads.
        .log_internal_errors(false)
        .with_writer(OneLine(io::stderr));
    match format {
        Format::Plain => subscriber.try_init(),
        Format::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(AlreadyInstalled)?;
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
                write!(line, "\\u{:04x}", u32::from(character)).map_err(io::Error::other)?;
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

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What a peer might call itself.
    const NASTY: &str = "a\nINFO forged\r\u{1b}[2J\u{202e}\u{2028}\u{9b}${jndi:x}\"\\ 佐藤";

    fn logged(format: Format) -> String {
        let page = Page::default();
        let place = page.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(OneLine(move || place.clone()));
        let event = || {
            let _span = tracing::info_span!("login", user = %NASTY).entered();
            tracing::info!(shown = %NASTY, debug = ?NASTY, "{NASTY}");
        };
        match format {
            Format::Plain => tracing::subscriber::with_default(subscriber.finish(), event),
            Format::Json => tracing::subscriber::with_default(subscriber.json().finish(), event),
        }
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_event_is_one_line_whatever_a_peer_calls_itself() {
        for format in [Format::Plain, Format::Json] {
            let text = logged(format);
            let line = text.strip_suffix('\n').expect("a whole line");
            assert!(line.chars().all(is_harmless), "{format:?}: {line:?}");
            assert!(line.contains("佐藤"), "{format:?}: {line}");
        }
    }

    #[test]
    fn a_filter_is_understood_in_every_part_or_refused() {
        for good in ["info", "warn,tegata_gateway=debug", "off", "info,[login]=trace"] {
            assert!(Filter::new(good).is_ok(), "{good}");
        }
        for bad in ["info,tegata_gateway=loud", "a=b=c", "info,[login=debug"] {
            assert!(Filter::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn json_gives_back_what_the_peer_said() {
        let event: serde_json::Value = serde_json::from_str(&logged(Format::Json)).unwrap();
        assert_eq!(event["fields"]["shown"], NASTY);
        assert_eq!(event["span"]["user"], NASTY);
    }

    /// Names the variable that makes of the test the process that it looks at.
    const UNREAD: &str = "TEGATA_TEST_UNREAD";

    #[test]
    fn nobody_who_reads_the_log_is_no_reason_to_panic() {
        if std::env::var_os(UNREAD).is_some() {
            install(Format::Json, &Filter::new("info").unwrap()).unwrap();
            tracing::error!("Nobody reads this");
            return;
        }
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let name = "telemetry::tests::nobody_who_reads_the_log_is_no_reason_to_panic";
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(UNREAD, "1")
            .stdout(Stdio::null())
            .stderr(writer)
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
    }
}
