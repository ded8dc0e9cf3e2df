//! The command line.

use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures the built programs; prints one JSON object a line, the last one a summary, but for
/// `side`.
#[derive(Debug, Parser)]
#[command(name = "tegata-bench")]
pub(super) struct Arguments {
    /// What to measure.
    #[arg(value_enum)]
    pub(super) bench: Bench,
    /// How often; figures are medians of the runs.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    runs: Option<u16>,
    /// How long each measurement of a run lasts.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    seconds: Option<u16>,
    /// Small counts and the programs as the tests use them: shows that it works, measures nothing.
    #[arg(long)]
    pub(super) quick: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Bench {
    /// Complete logins a second.
    Storm,
    /// Gateway CPU for each GB carried.
    Relay,
    /// Latency that the gateway adds.
    Echo,
    /// Memory and CPU of sessions that do nothing.
    Idle,
    /// Time until a broker with many desktops is ready.
    Start,
    /// How long a session stands still when its network changes or fails.
    Roam,
    /// What a call in a desktop's stream suffers.
    Voice,
    /// How long bytes go on after all sessions were ended.
    Revoke,
    /// What keeping bytes until they are acknowledged costs `relay` and `echo`.
    Replay,
    /// What each line on standard input asks for; one of the two sides that `replay` compares.
    Side,
    /// Measures nothing: draws the lines of `roam` on standard input as an SVG on standard output.
    Picture,
}

impl Arguments {
    /// Returns how many runs there are, `usual` if nothing else is said.
    pub(super) fn runs(&self, usual: u16) -> usize {
        self.runs.unwrap_or(if self.quick { 1 } else { usual }).into()
    }

    /// Returns how long one measurement lasts, `usual` seconds if nothing else is said.
    pub(super) fn span(&self, usual: u16) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(if self.quick { 1 } else { usual }).into())
    }

    /// Chooses between the count of a measurement and that of a quick look.
    pub(super) fn count(&self, usual: u32, quick: u32) -> u32 {
        if self.quick { quick } else { usual }
    }
}
