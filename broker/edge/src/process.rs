//! What this process takes of its machine, read when somebody looks at the metrics.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::gauge::ConstGauge;
use rustix::process::{Resource, getrlimit};

/// Reads its values when it is asked for them, and leaves out what cannot be read.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let limit = getrlimit(Resource::Nofile).current;
        for (name, help, value) in [
            ("open_files", "Files that the process has open", open_files()),
            ("open_files_max", "Files that it may have open", limit),
            ("resident_bytes", "Memory that the process has in the machine's", resident()),
        ] {
            let Some(value) = value else { continue };
            #[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
            let gauge = ConstGauge::new(value as f64);
            let name = format!("process_{name}");
            gauge.encode(encoder.encode_descriptor(&name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

fn open_files() -> Option<u64> {
    // Linux tells their number as the folder's size since 6.2.
    let told = fs::metadata("/proc/self/fd").ok()?.len();
    if told > 0 {
        return Some(told);
    }
    u64::try_from(fs::read_dir("/proc/self/fd").ok()?.count()).ok()
}

fn resident() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_more_is_a_file_more_and_memory_is_some() {
        let before = open_files().expect("Linux");
        let more: Vec<_> = (0..100).map(|_| fs::File::open("/dev/null").expect("a file")).collect();
        assert!(open_files().expect("Linux") >= before + 50, "{before}");
        drop(more);
        assert!(resident().expect("Linux") > 64 * 1024);
    }
}
