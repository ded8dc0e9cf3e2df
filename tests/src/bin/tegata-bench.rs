//! `tegata-bench`: measures the built programs, and the peers they are compared with.

use std::process::ExitCode;

fn main() -> ExitCode {
    tegata_tests::bench::main()
}
