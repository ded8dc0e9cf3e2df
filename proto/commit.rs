//! The build script of the programs: tells each the commit that it is built from.
//!
//! Sets `TEGATA_COMMIT` to the commit's name, with `+dirty` behind it where the sources of the
//! program differ from that commit, or to `unknown` outside of a checkout.

use std::env;
use std::process::Command;

/// What a program is made of, seen from its own folder.
const SOURCES: [&str; 4] = [".", "../proto", "../Cargo.toml", "../Cargo.lock"];

fn main() {
    for source in SOURCES {
        println!("cargo:rerun-if-changed={source}");
    }
    println!("cargo:rustc-env=TEGATA_COMMIT={}", commit().unwrap_or_else(|| "unknown".to_owned()));
}

fn commit() -> Option<String> {
    // Sources that lie unpacked in somebody else's repository are not of its commit.
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    // It changes with every move of HEAD, by whatever command. While it is missing, this runs
    // at each build.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    let head = git(&["rev-parse", "HEAD"])?;
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(if changed.is_empty() { head } else { format!("{head}+dirty") })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .current_dir(env::var_os("CARGO_MANIFEST_DIR")?)
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
