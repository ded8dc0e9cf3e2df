//! `replay`: what it costs to keep the bytes of a session until they are acknowledged, and to
//! acknowledge them.
//!
//! Runs `relay` and `echo` of two builds in turn: the programs as they are, and with
//! `--cfg keeps_nothing`, whose sessions end with their link. Other ways than our own are in both,
//! so that their ratio shows how much is noise.

use std::collections::BTreeMap;
use std::env;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::arguments::Arguments;
use super::programs;
use super::report::{Report, all_rounded, median, rounded};
use super::way::{HAPROXY, TEGATA, TEGATA_TCP};

/// What the other build is told, and the folder beside ours that it lies in.
const KEEPS_NOTHING: &str = "keeps_nothing";

/// The ways that are compared.
const PATHS: [&str; 3] = [TEGATA, TEGATA_TCP, HAPROXY];

/// The figures of a line of `relay` or `echo`, all better when they are less.
const FIGURES: [&str; 3] = ["gateway_cpu_s_per_gb", "p50_us", "p99_us"];

/// What tells the lines of one bench apart.
const KEYS: [&str; 4] = ["path", "direction", "streams", "beside_bulk"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Build {
    Ours,
    KeepsNothing,
}

/// Our figure over the other build's in each run, by the text of the fields that say which.
type Ratios = BTreeMap<String, Vec<f64>>;

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let runs = arguments.runs(5);
    let mut report = None;
    let mut ratios = Ratios::new();
    for run in 0..runs {
        for bench in ["relay", "echo"] {
            // Neither build is always the first.
            let (ours, other) = if run % 2 == 0 {
                let ours = Build::Ours.measure(bench, arguments)?;
                (ours, Build::KeepsNothing.measure(bench, arguments)?)
            } else {
                let other = Build::KeepsNothing.measure(bench, arguments)?;
                (Build::Ours.measure(bench, arguments)?, other)
            };
            if report.is_none() {
                let circumstances = ours.first().context("a bench printed nothing")?;
                report = Some(Report::begin_as("replay", circumstances.clone()));
            }
            let other = figures(&other);
            for (which, value) in figures(&ours) {
                let other = other.get(&which).context("the builds measure different things")?;
                ratios.entry(which).or_default().push(value / other);
            }
        }
    }
    print(&report.context("nothing was measured")?, &ratios)
}

impl Build {
    /// Runs a bench once and returns its lines.
    fn measure(self, bench: &str, arguments: &Arguments) -> Result<Vec<Value>> {
        let mut command = if arguments.quick {
            // The same one twice: there is nothing to see.
            Command::new(env::current_exe()?)
        } else {
            let mut cargo = programs::cargo("run")?;
            cargo.args(["--quiet", "-p", "tegata-tests", "--bin", "tegata-bench", "--"]);
            if self == Self::KeepsNothing {
                let flags = env::var("RUSTFLAGS").unwrap_or_default();
                cargo.env("RUSTFLAGS", format!("{flags} --cfg {KEEPS_NOTHING}"));
                cargo.env("CARGO_TARGET_DIR", programs::target()?.join(KEEPS_NOTHING));
            }
            cargo
        };
        command.args([bench, "--runs", "1", "--seconds"]);
        command.arg(arguments.span(2).as_secs().to_string());
        if arguments.quick {
            command.arg("--quick");
        }
        let output = command.stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "{bench} failed");
        let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        Ok(lines.map(serde_json::from_slice).collect::<Result<_, _>>()?)
    }
}

/// Picks the figures that are compared, by the text of the fields that say which.
fn figures(lines: &[Value]) -> BTreeMap<String, f64> {
    let mut figures = BTreeMap::new();
    for line in lines.iter().filter(|line| PATHS.iter().any(|path| line["path"] == *path)) {
        for figure in FIGURES {
            let Some(value) = line[figure].as_f64() else { continue };
            let mut which = json!({ "figure": figure });
            for key in KEYS.into_iter().filter(|key| !line[*key].is_null()) {
                which[key] = line[key].clone();
            }
            figures.insert(which.to_string(), value);
        }
    }
    figures
}

fn print(report: &Report, ratios: &Ratios) -> Result<()> {
    for (which, each) in ratios {
        let mut line: Value = serde_json::from_str(which)?;
        line["ratio"] = rounded(median(each), 3).into();
        line["each"] = all_rounded(each, 3).into();
        report.line(line);
    }
    let ratio = |which: Value| {
        let each = ratios.get(&which.to_string()).context("nothing to sum up")?;
        anyhow::Ok(rounded(median(each), 3))
    };
    let cpu = |direction| {
        ratio(json!({
            "figure": "gateway_cpu_s_per_gb", "path": TEGATA, "direction": direction, "streams": 1,
        }))
    };
    let echo = |figure| ratio(json!({"figure": figure, "path": TEGATA, "beside_bulk": false}));
    report.summary(json!({
        "cpu_ratio_down": cpu("down")?, "cpu_ratio_up": cpu("up")?,
        "echo_p50_ratio": echo("p50_us")?, "echo_p99_ratio": echo("p99_us")?,
    }));
    Ok(())
}
