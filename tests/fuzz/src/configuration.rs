//! The broker's configuration: any text is a configuration or a list of faults,
//! each with its key, each on one line.

use std::path::Path;

use tegata_broker::app::Config;

/// Reads the bytes as the text of a configuration in a folder that is not there.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // An operator who names a device gets what they asked for: it is read to its end.
    if ["/dev", "/proc", "/sys", ".."].iter().any(|outside| text.contains(outside)) {
        return;
    }
    let Err(faults) = Config::parse(text, Path::new("/nonexistent/tegata")) else {
        unreachable!("its keys are not there");
    };
    assert!(!faults.0.is_empty());
    for fault in faults.0 {
        assert!(!fault.key.is_empty() && !fault.problem.is_empty(), "{fault}");
        assert!(!fault.to_string().contains('\n'), "{fault}");
    }
}
