//! The programs that are measured, and the commit that they were built from.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// The programs, and the folders that each is made of; with the files in [`WORKSPACE`].
const PROGRAMS: [(&str, &str); 2] = [("tegata-broker", "broker"), ("tegata-agent", "agent")];

/// What every program is made of.
const WORKSPACE: [&str; 3] = ["proto", "Cargo.toml", "Cargo.lock"];

/// Programs of the commit that is checked out.
pub(super) struct Programs {
    /// Where they are.
    pub(super) folder: PathBuf,
    /// The commit, with `+dirty` behind it where a program's sources differ from it.
    pub(super) commit: String,
}

impl Programs {
    /// Builds the release programs; for a quick look, takes those that were built with this one.
    ///
    /// # Errors
    ///
    /// When they cannot be built, or are of another commit than the one checked out.
    pub(super) fn build(quick: bool) -> Result<Self> {
        let root = workspace()?;
        let folder = if quick {
            let this = env::current_exe()?;
            this.parent().context("this program is in no folder")?.to_owned()
        } else {
            ensure!(
                !cfg!(debug_assertions),
                "a debug build is half of what it measures: cargo run --release -p tegata-tests"
            );
            release()?
        };
        let head = git(root, &["rev-parse", "HEAD"])?;
        let mut dirty = false;
        for (program, sources) in PROGRAMS {
            let changed =
                git(root, &[&["status", "--porcelain", "--", sources], &WORKSPACE[..]].concat())?;
            let suffix = if changed.is_empty() { "" } else { "+dirty" };
            dirty |= !changed.is_empty();
            let wanted = format!("{head}{suffix}");
            let found = commit_of(&folder.join(program))?;
            if found != wanted {
                bail!("{program} was built from {found}, and {wanted} is checked out");
            }
        }
        let commit = format!("{head}{}", if dirty { "+dirty" } else { "" });
        Ok(Self { folder, commit })
    }
}

fn release() -> Result<PathBuf> {
    let mut build = cargo("build")?;
    build.stdout(Stdio::null());
    for (program, _) in PROGRAMS {
        build.args(["-p", program]);
    }
    ensure!(build.status()?.success(), "the release programs cannot be built");
    Ok(target()?.join("release"))
}

/// Returns a call of cargo for release programs, of exactly the libraries that are locked.
pub(super) fn cargo(command: &str) -> Result<Command> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([command, "--locked", "--release"]).current_dir(workspace()?);
    Ok(cargo)
}

/// Returns the folder that cargo builds in.
pub(super) fn target() -> Result<PathBuf> {
    let target = env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(workspace()?.join(target))
}

fn workspace() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no workspace")
}

fn commit_of(program: &Path) -> Result<String> {
    let output = Command::new(program)
        .arg("version")
        .output()
        .with_context(|| format!("{} cannot be run; is it built?", program.display()))?;
    let told = String::from_utf8(output.stdout)?;
    let commit = told.split_whitespace().nth(2);
    commit.map(str::to_owned).with_context(|| format!("{} names no commit", program.display()))
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .arg("--no-optional-locks")
        .args(arguments)
        .current_dir(root)
        .output()
        .context("git cannot be run")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
