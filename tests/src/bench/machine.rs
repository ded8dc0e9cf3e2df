//! What the operating system tells of processes and of itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

/// Takes as many descriptors as the system allows.
pub(super) fn raise_descriptor_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
        .context("the limit of open descriptors cannot be raised")
}

/// Returns the processor time that all threads of a process have used, those that ended included:
/// the kernel's own sum, in nanoseconds, of which `utime` and `stime` are the rounded parts.
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(process.cast_signed()))?;
    Ok(clock_gettime(clock)?.into())
}

/// Describes the machine as it is now.
pub(super) fn description() -> Result<Value> {
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: Vec<f64> = load.split_whitespace().take(3).filter_map(|n| n.parse().ok()).collect();
    let info = fs::read_to_string("/proc/cpuinfo")?;
    let model = info.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    Ok(json!({
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cores": std::thread::available_parallelism()?.get(),
        "processor": model,
        "load_average": load,
    }))
}
