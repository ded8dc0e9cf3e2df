//! Occupancy by the site's own program.
//!
//! The program gets its arguments from a template and writes one JSON object,
//! `{"logged_on": ["sato"]}`. Any exit but 0, more than 5 s, or anything else on
//! its standard output means that it does not know. One that is given up is ended
//! with everything that it started.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use crate::ports::occupancy::{Occupancy, Unknown};
use crate::ports::store::OccupancyTarget;

/// How long the program may take.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(5);

/// Longest answer, in bytes.
pub const ANSWER_MAX: u64 = 64 * 1024;

/// Runs the site's program. How many run at once is for those who ask to limit.
pub struct OccupancyCommand {
    program: Option<Template>,
}

/// The program and its arguments, in which `{desktop}`, `{address}`, `{account}`
/// and `{action}` (`logged_on` or `log_off`) stand for themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<String>);

/// Why a list of words is no template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// There is nothing to run.
    #[error("names no program")]
    NoProgram,
    /// The program could not tell a question from a log-off.
    #[error("does not say {{action}}")]
    NoAction,
}

impl Template {
    /// Takes a program with its arguments.
    ///
    /// # Errors
    ///
    /// Refuses a list without a program or without `{action}`.
    pub fn new(words: Vec<String>) -> Result<Self, InvalidTemplate> {
        if words.first().is_none_or(String::is_empty) {
            Err(InvalidTemplate::NoProgram)
        } else if !words[1..].iter().any(|word| word.contains("{action}")) {
            Err(InvalidTemplate::NoAction)
        } else {
            Ok(Self(words))
        }
    }

    fn command(&self, target: &OccupancyTarget, action: &str) -> Command {
        let fill = |word: &String| {
            // Each placeholder is a whole argument or a part of one; there is no
            // shell, so nothing in a name can become another argument.
            word.replace("{desktop}", target.name.as_str())
                .replace("{address}", &target.address.to_string())
                .replace("{action}", action)
                .replace("{account}", target.account.as_deref().unwrap_or_default())
        };
        let mut words = self.0.iter().map(fill);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }

    /// Tells whether an account would be read as an option by the program.
    fn misreads(&self, account: &str) -> bool {
        account.starts_with('-') && self.0.iter().any(|word| word.starts_with("{account}"))
    }

    /// Tells whether the program is told an account.
    fn names_account(&self) -> bool {
        self.0.iter().any(|word| word.contains("{account}"))
    }
}

/// A program that runs in a process group of its own, which ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Until it is waited for, its id can belong to no other group.
        let group = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // It may have ended by itself meanwhile.
            let _ended = kill_process_group(group, Signal::KILL);
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    logged_on: BTreeSet<String>,
}

impl OccupancyCommand {
    /// Uses this program, or none: every answer is then that desktops cannot be
    /// asked.
    pub fn new(program: Option<Template>) -> Self {
        Self { program }
    }

    async fn run(&self, target: &OccupancyTarget, action: &str) -> Result<Vec<u8>, Unknown> {
        let program = self.program.as_ref().ok_or(Unknown::CannotBeAsked)?;
        if target.account.as_deref().is_some_and(|account| program.misreads(account)) {
            return Err(Unknown::LooksLikeAnOption);
        }
        let child = program
            .command(target, action)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Unknown::Failed(error.into()))?;
        let mut running = Running(child);
        let stdout = running.0.stdout.take();
        let answered = async {
            let mut answer = Vec::new();
            if let Some(stdout) = stdout {
                let read = stdout.take(ANSWER_MAX).read_to_end(&mut answer).await;
                read.map_err(|error| Unknown::Failed(error.into()))?;
            }
            let status = running.0.wait().await.map_err(|error| Unknown::Failed(error.into()))?;
            if status.success() { Ok(answer) } else { Err(Unknown::Ended(status)) }
        };
        tokio::time::timeout(COMMAND_LIMIT, answered).await.map_err(|_| Unknown::TimedOut)?
    }
}

#[async_trait]
impl Occupancy for OccupancyCommand {
    async fn logged_on(&self, target: &OccupancyTarget) -> Result<BTreeSet<String>, Unknown> {
        let bytes = self.run(target, "logged_on").await?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(Unknown::Unreadable)?;
        Ok(answer.logged_on)
    }

    async fn log_off(&self, target: &OccupancyTarget) -> Result<(), Unknown> {
        let named = target.account.as_ref().is_some_and(|account| !account.trim().is_empty());
        if !named && self.program.as_ref().is_some_and(Template::names_account) {
            // The program could take an empty argument for everybody.
            return Err(Unknown::NobodyNamed);
        }
        self.run(target, "log_off").await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn target() -> OccupancyTarget {
        OccupancyTarget {
            desktop: tegata_proto::id::DesktopId(Uuid::nil()),
            name: "keiri-0001".parse().unwrap(),
            address: "192.0.2.1:3389".parse().unwrap(),
            account: Some("sato; echo x".into()),
        }
    }

    fn shell(script: &str) -> OccupancyCommand {
        let words = ["sh", "-c", script, "sh", "{desktop}", "{account}", "{action}", "{address}"];
        OccupancyCommand::new(Some(Template::new(words.map(str::to_owned).into()).unwrap()))
    }

    #[tokio::test]
    async fn the_program_gets_each_value_as_one_argument() {
        let script = r#"printf '{"logged_on":["%s","%s","%s","%s"]}' "$1" "$2" "$3" "$4""#;
        let logged_on = shell(script).logged_on(&target()).await.unwrap();
        let wanted = ["keiri-0001", "sato; echo x", "logged_on", "192.0.2.1:3389"];
        assert_eq!(logged_on, wanted.map(str::to_owned).into());
    }

    #[tokio::test]
    async fn what_is_not_an_answer_is_unknown() {
        let ask = async |script: &str| shell(script).logged_on(&target()).await.unwrap_err();
        assert!(matches!(ask("exit 3").await, Unknown::Ended(_)));
        assert!(matches!(ask("echo nobody").await, Unknown::Unreadable(_)));
        assert!(matches!(ask("echo '{}'").await, Unknown::Unreadable(_)));
        assert!(matches!(ask("exec sleep 30").await, Unknown::TimedOut));
        let none = OccupancyCommand::new(None).logged_on(&target()).await.unwrap_err();
        assert!(matches!(none, Unknown::CannotBeAsked));
    }

    #[tokio::test]
    async fn what_a_program_started_ends_with_it_when_it_takes_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let id = folder.path().join("id");
        let script = format!("sleep 600 & echo $! > {} && wait", id.display());
        let asked = shell(&script).logged_on(&target()).await;
        assert!(matches!(asked, Err(Unknown::TimedOut)), "{asked:?}");

        let id = std::fs::read_to_string(id).unwrap();
        let status = format!("/proc/{}/stat", id.trim());
        let gone = async {
            // Whoever adopted it may not have waited for it yet.
            while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.expect("the sleeper has ended");
    }

    #[tokio::test]
    async fn nobody_is_logged_off_without_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let command = shell(&format!("touch {}", ran.display()));
        for account in [None, Some(String::new()), Some(" ".to_owned())] {
            let refused = command.log_off(&OccupancyTarget { account, ..target() }).await;
            assert!(matches!(refused, Err(Unknown::NobodyNamed)), "{refused:?}");
        }
        assert!(!ran.exists());
        command.log_off(&target()).await.unwrap();
        assert!(ran.exists());

        let words = ["sh", "-c", "true", "sh", "{desktop}", "{action}"].map(str::to_owned);
        let by_desktop = OccupancyCommand::new(Some(Template::new(words.into()).unwrap()));
        by_desktop.log_off(&OccupancyTarget { account: None, ..target() }).await.unwrap();
    }

    #[tokio::test]
    async fn an_account_is_never_an_option() {
        let folder = tempfile::tempdir().unwrap();
        let ran = folder.path().join("ran");
        let command = shell(&format!("touch {}", ran.display()));
        let account = Some("--all".to_owned());
        let refused = command.log_off(&OccupancyTarget { account, ..target() }).await;
        assert!(matches!(refused, Err(Unknown::LooksLikeAnOption)), "{refused:?}");
        assert!(!ran.exists());
    }

    #[test]
    fn a_template_names_a_program_and_what_is_wanted_of_it() {
        let template =
            |words: &[&str]| Template::new(words.iter().map(ToString::to_string).collect());
        assert_eq!(template(&[]), Err(InvalidTemplate::NoProgram));
        assert_eq!(template(&["", "{action}"]), Err(InvalidTemplate::NoProgram));
        assert_eq!(template(&["{action}"]), Err(InvalidTemplate::NoAction));
        assert_eq!(template(&["ask", "{desktop}"]), Err(InvalidTemplate::NoAction));
        assert!(template(&["ask", "--do={action}"]).is_ok());
    }
}
