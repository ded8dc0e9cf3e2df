//! What `tegata-bench` does: one module for each bench, and what they share.
//!
//! Every bench starts the real programs with the configuration of [`office`], repeats, and prints
//! by [`report`] one JSON object for each figure and a summary as the last line; only [`side`] does
//! what [`replay`] asks of it. `tests/bench.md` says what the figures mean.

mod arguments;
pub(crate) mod call;
mod counter;
mod echo;
mod flow;
mod idle;
mod line;
pub(crate) mod machine;
mod office;
mod picture;
mod programs;
mod relay;
mod replay;
mod report;
mod revoke;
mod roam;
mod side;
mod start;
mod storm;
mod visitor;
mod voice;
mod way;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;

pub(crate) use self::counter::Counter;

use self::arguments::{Arguments, Bench};
use self::programs::Programs;

/// Exit of a command line that is not understood (`sysexits.h`).
const EX_USAGE: u8 = 64;

/// Runs the bench that the command line names.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _nobody_reads_it = error.print();
            return if error.use_stderr() { EX_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tegata-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let measure: fn(&Programs, &Arguments) -> Result<()> = match arguments.bench {
        Bench::Storm => storm::run,
        Bench::Relay => relay::run,
        Bench::Echo => echo::run,
        Bench::Idle => idle::run,
        Bench::Start => start::run,
        Bench::Roam => roam::run,
        Bench::Voice => voice::run,
        Bench::Revoke => revoke::run,
        Bench::Side => side::run,
        Bench::Replay => return replay::run(arguments),
        Bench::Picture => return picture::draw(std::io::stdin().lock(), std::io::stdout().lock()),
    };
    machine::raise_descriptor_limit()?;
    measure(&Programs::build(arguments.quick)?, arguments)
}
