//! Writes the timeline of one login from what the agent and `first-frame` reported, and prints it.

use std::fs;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use tegata_desktop::timeline::{Painted, Timeline};

/// Writes and prints how long each step from the agent's start to the first picture took.
#[derive(Parser)]
struct Arguments {
    /// What `tegata-agent login --progress json` printed.
    #[arg(long)]
    events: PathBuf,
    /// What `first-frame --timeline` wrote.
    #[arg(long)]
    painted: PathBuf,
    /// When the agent was started, in milliseconds of Unix time.
    #[arg(long)]
    started: u64,
    /// Where to write the timeline.
    #[arg(long)]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let read = |file: &PathBuf| {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    };
    let events = read(&arguments.events)?;
    let painted: Painted = serde_json::from_str(&read(&arguments.painted)?)
        .with_context(|| format!("cannot use {}", arguments.painted.display()))?;
    let timeline = Timeline::new(&events, painted, arguments.started)?;
    let text = serde_json::to_string_pretty(&timeline).context("cannot write the timeline")?;
    fs::write(&arguments.out, format!("{text}\n"))
        .with_context(|| format!("cannot write {}", arguments.out.display()))?;
    println!("{text}");
    Ok(())
}
