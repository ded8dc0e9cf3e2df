//! Shows notices above a full-screen viewer, by a command of the site.
//!
//! The command runs without a shell, with the text in `TEGATA_NOTICE` and its code in
//! `TEGATA_NOTICE_CODE`. There is never more than one: a newer notice ends the command
//! of the one before, and [`SHOWN_FOR`] ends it at the latest. What the last notice of a
//! run has started is left to itself when the run ends, so that it can be read.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tegata_proto::code::Code;
use tegata_proto::id::PoolName;
use tegata_proto::login::PoolOffer;

use crate::errand::Errands;
use crate::progress::{Event, Person};
use crate::words::{self, Language, Phrase};

/// How long a command may show one notice.
pub const SHOWN_FOR: Duration = Duration::from_secs(15);

/// How long a command that was killed may take to be gone, and how often it is looked for.
const ENDED_WITHIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// Notices that may wait until the command has started; the oldest are shown.
const WAITING_MAX: usize = 4;

/// How long the last notices may take until they are shown.
const SHOWN_WITHIN: Duration = Duration::from_secs(5);

/// A person who is also shown notices.
pub struct Announced<P> {
    person: P,
    announcer: Option<Errands<Announcement>>,
    language: Language,
}

struct Announcement {
    code: String,
    text: String,
}

impl<P: Person> Announced<P> {
    /// Shows notices to a person by this command; none where there is none.
    pub fn new(person: P, command: Option<Vec<String>>, language: Language) -> Self {
        let started = command.and_then(|command| {
            let shown =
                Errands::start("notices", WAITING_MAX, move |told| show_all(&command, told));
            shown.inspect_err(|error| tracing::warn!(%error, "No notice is shown")).ok()
        });
        Self { person, announcer: started, language }
    }

    /// Waits until the last notice is being shown.
    pub fn finish(self) {
        if let Some(announcer) = self.announcer
            && !announcer.finish(None, SHOWN_WITHIN)
        {
            tracing::warn!("Notices were not shown to the end");
        }
    }
}

impl<P: Person> Person for Announced<P> {
    fn tell(&mut self, event: &Event) {
        self.person.tell(event);
        if let (Some(announcer), Some(notice)) =
            (&self.announcer, announcement(event, self.language))
            // One that does not fit has been told by the line above.
            && announcer.leave(notice).is_err()
        {
            tracing::warn!("A notice was not shown");
        }
    }

    async fn choose(&mut self, pools: &[PoolOffer]) -> Option<PoolName> {
        self.person.choose(pools).await
    }
}

/// Returns what is worth to be shown above a desktop.
fn announcement(event: &Event, language: Language) -> Option<Announcement> {
    let (code, text) = match event {
        Event::LinkLost => ("link_lost", Phrase::LinkLost.with(language, "")),
        Event::Resumed { .. } => ("resumed", Phrase::Resumed.with(language, "")),
        Event::Migrated { .. } => ("migrated", Phrase::Migrated.with(language, "")),
        Event::Notice { code, args } => (code.as_str(), words::notice(code, args, language)),
        Event::Ended { code: Code::LoggedOff | Code::Disconnected } => return None,
        Event::Ended { code } | Event::Error { code, .. } => {
            (code.as_str(), words::reason(*code, language).to_owned())
        }
        Event::Connecting { .. }
        | Event::Connected { .. }
        | Event::Authenticated { .. }
        | Event::Queued { .. }
        | Event::Starting { .. }
        | Event::Assigned
        | Event::Ticket { .. }
        | Event::Attached { .. }
        | Event::FirstByte => return None,
    };
    let harmless = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    Some(Announcement { code: harmless(code), text: harmless(&text) })
}

/// Shows one notice after the other.
fn show_all(command: &[String], told: &Receiver<Announcement>) {
    let Ok(mut next) = told.recv() else { return };
    loop {
        let mut shown = start(command, &next);
        next = match told.recv_timeout(SHOWN_FOR) {
            Ok(newer) => newer,
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => {
                end(shown.take());
                match told.recv() {
                    Ok(newer) => newer,
                    Err(_) => return,
                }
            }
        };
        end(shown);
    }
}

fn start(command: &[String], Announcement { code, text }: &Announcement) -> Option<Child> {
    let (program, arguments) = command.split_first()?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("TEGATA_NOTICE", text)
        .env("TEGATA_NOTICE_CODE", code)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command.spawn().inspect_err(|error| tracing::warn!(%error, %program, "Notice not shown")).ok()
}

/// Ends a command with everything that it has started.
fn end(shown: Option<Child>) {
    let Some(mut shown) = shown else { return };
    let pid = i32::try_from(shown.id()).ok().and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // Fails where all of it has ended.
        let _ = kill_process_group(pid, Signal::KILL);
    }
    // One that runs with the rights of somebody else is not ours to end.
    let until = Instant::now() + ENDED_WITHIN;
    while matches!(shown.try_wait(), Ok(None)) {
        if Instant::now() >= until {
            tracing::warn!("A notice's command goes on and cannot be ended");
            return;
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    struct Nobody;

    impl Person for Nobody {
        fn tell(&mut self, _: &Event) {}

        async fn choose(&mut self, _: &[PoolOffer]) -> Option<PoolName> {
            None
        }
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let began = Instant::now();
        while !is_so() {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_notice_is_shown_by_the_command_until_a_newer_one_comes() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let script = format!(
            "echo \"$$ $TEGATA_NOTICE_CODE $TEGATA_NOTICE\" >> {}; sleep 600",
            log.display()
        );
        let command = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let mut person = Announced::new(Nobody, Some(command), Language::En);
        let lines = || -> Vec<String> {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        };
        let is_running = |line: &str| {
            let pid = line.split(' ').next().expect("a number");
            std::path::Path::new("/proc").join(pid).exists()
        };
        person.tell(&Event::FirstByte);
        person.tell(&Event::LinkLost);
        until("the first is shown", || lines().len() == 1);
        assert!(lines()[0].ends_with("link_lost The connection was lost. Reconnecting …"));
        person.tell(&Event::Notice { code: "beer\n\u{1b}[2J".into(), args: [].into() });
        until("the second is shown", || lines().len() == 2);
        assert!(lines()[1].contains("beer[2J Notice: beer[2J"), "{:?}", lines());
        until("the first is over", || !is_running(&lines()[0]));
        assert!(is_running(&lines()[1]));
        person.tell(&Event::Ended { code: Code::TimeLimit });
        person.finish();
        until("the last is shown", || lines().len() == 3);
        assert!(is_running(&lines()[2]), "it is left for the person to read");
        let pid = lines()[2].split(' ').next().and_then(|pid| pid.parse().ok());
        let pid = pid.and_then(Pid::from_raw).expect("a number");
        kill_process_group(pid, Signal::KILL).expect("it is still there");
    }

    #[test]
    fn what_no_command_shows_is_told_all_the_same() {
        let mut person = Announced::new(Nobody, Some(vec!["/nowhere".into()]), Language::Ja);
        person.tell(&Event::LinkLost);
        person.finish();
        let mut person = Announced::new(Nobody, None, Language::Ja);
        person.tell(&Event::LinkLost);
        person.finish();
    }
}
