//! Judges a history: `tegata-history AUDIT [HEARD [STORE]]`.
//!
//! `AUDIT` is what `tegata-broker audit-export` printed, `HEARD` what clients
//! wrote down, `STORE` the database of a broker that has ended. Prints one JSON
//! object with everything that is wrong, and exits 1 if anything is.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tegata_tests::evidence::{lines, standing};
use tegata_tests::history::{Heard, Record, check};

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let audit = arguments.next().context("usage: tegata-history AUDIT [HEARD [STORE]]")?;
    let trail: Vec<Record> = lines(&std::fs::read_to_string(audit)?)?;
    let heard: Vec<Heard> = match arguments.next() {
        Some(heard) => lines(&std::fs::read_to_string(heard)?)?,
        None => vec![],
    };
    let standing = arguments.next().map(|store| standing(Path::new(&store))).transpose()?;
    let found = check(&trail, &heard, standing.as_ref());
    let told: Vec<_> = found.iter().map(ToString::to_string).collect();
    let summary = serde_json::json!({
        "records": trail.len(), "heard": heard.len(), "violations": told,
    });
    println!("{summary}");
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
