//! `replay`: what it costs to keep the bytes of a session until they are acknowledged, and to
//! acknowledge them.
//!
//! Two builds take turns: the programs as they are, and with `--cfg keeps_nothing`, whose sessions
//! end with their link. Each is a [`side`](super::side) that stays, and measures the same as
//! `relay` and `echo` for a second when it is asked, so that two figures that are compared are
//! seconds apart. `HAProxy` is the same in both: its ratio shows how much is noise.

use std::collections::BTreeMap;
use std::env;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::programs;
use super::relay::{Direction, STREAMS};
use super::report::{Report, all_rounded, median, rounded};
use super::side::{Figures, Wish};
use super::way::TEGATA;

/// What the other build is told, and the folder beside ours that it lies in.
const KEEPS_NOTHING: &str = "keeps_nothing";

/// How often each pair of sides measures everything; even, so that each is the first as often.
const ROUNDS: u32 = 4;
/// For a quick look.
const ROUNDS_QUICK: u32 = 1;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Build {
    Ours,
    KeepsNothing,
}

/// A side that runs.
struct Side {
    process: Child,
    wishes: Option<ChildStdin>,
    lines: BufReader<ChildStdout>,
}

/// Our figure over the other build's in each turn, by what was asked for and the figure's name.
type Ratios = BTreeMap<(Wish, String), Vec<f64>>;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let wishes = Wish::all();
    let mut report = None;
    let mut ratios = Ratios::new();
    // What one pair of processes owes to where its memory lies, the next one may not.
    for _ in 0..arguments.runs(5) {
        let (mut ours, circumstances) = Side::start(Build::Ours, arguments)?;
        let (mut other, others) = Side::start(Build::KeepsNothing, arguments)?;
        ensure!(circumstances["commit"] == others["commit"], "the builds are of two commits");
        if report.is_none() {
            report = Some(Report::begin_as("replay", circumstances));
        }
        for round in 0..arguments.count(ROUNDS, ROUNDS_QUICK) {
            for wish in &wishes {
                // Of no figure is one build always the first.
                let (ours, other) = if round.is_multiple_of(2) {
                    let ours = ours.measure(wish)?;
                    (ours, other.measure(wish)?)
                } else {
                    let other = other.measure(wish)?;
                    (ours.measure(wish)?, other)
                };
                for (figure, value) in ours {
                    let of = other.get(&figure).context("the builds measure different things")?;
                    ratios.entry((wish.clone(), figure)).or_default().push(value / of);
                }
            }
        }
        ours.end()?;
        other.end()?;
    }
    print(&report.context("nothing was measured")?, &ratios)
}

impl Side {
    /// Starts one, and returns the circumstances that it tells when it is ready.
    fn start(build: Build, arguments: &Arguments) -> Result<(Self, Value)> {
        let mut command = if arguments.quick {
            // The same one twice: there is nothing to see.
            Command::new(env::current_exe()?)
        } else {
            let mut cargo = programs::cargo("run")?;
            cargo.args(["--quiet", "-p", "tegata-tests", "--bin", "tegata-bench", "--"]);
            if build == Build::KeepsNothing {
                let flags = env::var("RUSTFLAGS").unwrap_or_default();
                cargo.env("RUSTFLAGS", format!("{flags} --cfg {KEEPS_NOTHING}"));
                cargo.env("CARGO_TARGET_DIR", programs::target()?.join(KEEPS_NOTHING));
            }
            cargo
        };
        command.args(["side", "--seconds", &arguments.span(1).as_secs().to_string()]);
        if arguments.quick {
            command.arg("--quick");
        }
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let wishes = process.stdin.take();
        let lines = BufReader::new(process.stdout.take().context("a side without output")?);
        let mut side = Self { process, wishes, lines };
        let circumstances = serde_json::from_str(&side.line()?)?;
        Ok((side, circumstances))
    }

    /// Has it measure something once.
    fn measure(&mut self, wish: &Wish) -> Result<Figures> {
        let wishes = self.wishes.as_mut().context("a side that was told to end")?;
        writeln!(wishes, "{}", serde_json::to_string(wish)?)?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.lines.read_line(&mut line)? > 0, "a side has ended");
        Ok(line)
    }

    /// Lets it end, since nothing is asked any more.
    fn end(mut self) -> Result<()> {
        self.wishes = None;
        ensure!(self.process.wait()?.success(), "a side failed");
        Ok(())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Left in the middle: it ends by itself when nobody asks any more.
        self.wishes = None;
        let _gone_already = self.process.wait();
    }
}

fn print(report: &Report, ratios: &Ratios) -> Result<()> {
    for ((wish, figure), each) in ratios {
        let mut line = serde_json::to_value(wish)?;
        line["figure"] = figure.clone().into();
        line["ratio"] = rounded(median(each), 3).into();
        line["each"] = all_rounded(each, 3).into();
        report.line(line);
    }
    let ratio = |wish: Wish, figure: &str| {
        let each = ratios.get(&(wish, figure.to_owned())).context("nothing to sum up")?;
        anyhow::Ok(rounded(median(each), 3))
    };
    let path = || TEGATA.to_owned();
    let cpu = |direction| {
        let wish = Wish::Carry { path: path(), direction, streams: STREAMS[0] };
        ratio(wish, "gateway_cpu_s_per_gb")
    };
    let echo = |figure| ratio(Wish::Echo { path: path(), beside_bulk: false }, figure);
    report.summary(json!({
        "cpu_ratio_down": cpu(Direction::Down)?, "cpu_ratio_up": cpu(Direction::Up)?,
        "echo_p50_ratio": echo("p50_us")?, "echo_p99_ratio": echo("p99_us")?,
    }));
    Ok(())
}
