//! Whether `FreeRDP` is here, and can be told what it has to be told.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tegata_proto::code::Code;
use tokio::process::Command;
use tokio::time::timeout;

use super::{Check, Finding, Remark};
use crate::viewer::freerdp::{Grammar, find};

/// How long it may take to say something of itself.
const ANSWER: Duration = Duration::from_secs(5);

/// Most of what is shown of an answer, in characters.
const SHOWN: usize = 120;

/// What comes before its version.
const VERSION: &str = "This is FreeRDP version ";

pub(super) async fn examined() -> Finding {
    let Some((program, grammar)) = find() else {
        let code = Code::Configuration;
        return Finding::failed(Check::Freerdp, code, Remark::FreerdpAbsent, String::new());
    };
    let version = said(&program, "/version").await;
    let help = said(&program, "/help").await;
    judged(grammar, &version, &help)
}

/// Judges what it says of itself.
fn judged(grammar: Grammar, version: &str, help: &str) -> Finding {
    let failed = |remark, value: &str| {
        Finding::failed(Check::Freerdp, Code::Configuration, remark, value.to_owned())
    };
    let told = version.lines().find_map(|line| line.trim().strip_prefix(VERSION));
    let Some(version) = told.and_then(|rest| rest.split_whitespace().next()) else {
        let shown = version.lines().next().unwrap_or_default();
        let shown: String = shown.chars().take(SHOWN).collect();
        return failed(Remark::FreerdpSilent, &shown);
    };
    let secret = match grammar {
        Grammar::Two => "/from-stdin",
        Grammar::Three => "/args-from",
    };
    if help.contains("fingerprint:") && help.contains(secret) {
        Finding::ok(Check::Freerdp, Remark::FreerdpGood, version.to_owned())
    } else {
        failed(Remark::FreerdpLacks, version)
    }
}

/// Returns what it answers to one argument.
async fn said(program: &Path, argument: &str) -> String {
    let mut command = Command::new(program);
    command.arg(argument).stdin(Stdio::null()).kill_on_drop(true);
    match timeout(ANSWER, command.output()).await {
        Ok(Ok(output)) => {
            let said = if output.stdout.is_empty() { output.stderr } else { output.stdout };
            String::from_utf8_lossy(&said).into_owned()
        }
        Ok(Err(error)) => error.to_string(),
        Err(late) => late.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn what_freerdp_says_of_itself_decides() {
        let two = "This is FreeRDP version 2.11.7 (2.11.7)\n";
        let three = "This is FreeRDP version 3.15.0 (n/a)\n";
        let help_two = "/cert:[deny,fingerprint:<hash>:<hash as hex>\n/from-stdin[:force]\n";
        let help_three = "/cert:[deny,fingerprint:<hash>]\n/args-from:<file>\n";
        for (grammar, version, help, verdict) in [
            (Grammar::Two, two, help_two, Verdict::Ok),
            (Grammar::Three, three, help_three, Verdict::Ok),
            (Grammar::Three, three, help_two, Verdict::Failed),
            (Grammar::Two, two, "/cert-ignore\n/from-stdin", Verdict::Failed),
            (Grammar::Two, "failed to open display: ", help_two, Verdict::Failed),
            (Grammar::Two, "", "", Verdict::Failed),
        ] {
            assert_eq!(judged(grammar, version, help).verdict, verdict, "{version} {help}");
        }
    }
}
