//! Processes that are ended by whoever started them.

use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::{guard::Debt, wait};

/// How long a process may take to end by itself once asked to.
const LEAVE: Duration = Duration::from_secs(5);

/// A process, with the group it leads and a file for each of its two outputs.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: std::process::Child,
    /// Known once the process was waited for; its number may then belong to somebody else.
    ended: Option<ExitStatus>,
    output: PathBuf,
    complaints: PathBuf,
    _debt: Debt,
}

impl Child {
    /// Starts `command` in a process group of its own, with nothing to read, and its outputs in
    /// `folder` under `name`.
    ///
    /// # Errors
    ///
    /// When the program cannot be run or `folder` cannot be written.
    pub fn spawn(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        Self::spawn_reading(name, command, Stdio::null(), folder)
    }

    fn spawn_reading(
        name: &str,
        command: &mut Command,
        input: Stdio,
        folder: &Path,
    ) -> Result<Self> {
        let output = folder.join(format!("{name}.out"));
        let complaints = folder.join(format!("{name}.err"));
        let process = command
            .stdin(input)
            .stdout(create(&output)?)
            .stderr(create(&complaints)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name} could not be started"))?;
        let debt = Debt::process_group(process.id())?;
        Ok(Self { name: name.to_owned(), process, ended: None, output, complaints, _debt: debt })
    }

    /// Waits until the process ends by itself, then ends what is left of its group.
    ///
    /// # Errors
    ///
    /// When it is still running after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        wait::until(&what, limit, || Ok((!self.is_running()).then_some(())))?;
        self.finish()
    }

    /// Asks the group to leave, and makes it leave if it does not.
    ///
    /// # Errors
    ///
    /// When the operating system will not tell how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if self.ended.is_none() {
            self.signal(Signal::TERM);
            self.signal(Signal::CONT);
            // One that does not listen is killed by `finish`.
            let _ = self.wait(LEAVE);
        }
        self.finish()
    }

    /// Kills the group without asking, as a power cut would.
    ///
    /// # Errors
    ///
    /// When the operating system will not tell how it ended.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.finish()
    }

    /// Freezes the group: its sockets stay open and nobody answers. Returns when the process
    /// stands still with all its threads, which the signal alone does not promise.
    ///
    /// # Errors
    ///
    /// When it goes on all the same.
    pub fn pause(&mut self) -> Result<()> {
        self.signal(Signal::STOP);
        let look = WaitIdOptions::STOPPED | WaitIdOptions::EXITED;
        let look = look | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        wait::until(&format!("{} to stand still", self.name), wait::READY, || {
            // One that cannot be waited for is gone, and answers nobody either.
            let runs =
                self.ended.is_none() && matches!(waitid(WaitId::Pid(self.pid()), look), Ok(None));
            Ok((!runs).then_some(()))
        })
    }

    /// Lets a frozen group go on.
    pub fn resume(&mut self) {
        self.signal(Signal::CONT);
    }

    /// Tells the group to read its files again.
    pub(crate) fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    fn finish(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        self.signal(Signal::KILL);
        let status = self.process.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Tells whether the process has not ended yet.
    pub fn is_running(&self) -> bool {
        // Looks without taking the status, so that the number stays ours for signals.
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.ended.is_none() && matches!(waitid(WaitId::Pid(self.pid()), look), Ok(None))
    }

    /// Returns what the process has written to its standard output so far.
    pub fn output(&self) -> String {
        text(&self.output)
    }

    /// Returns both outputs, for a person who asks why something failed.
    pub fn log(&self) -> String {
        let mut log = self.output();
        let _ = write!(log, "{}", text(&self.complaints));
        log
    }

    /// Waits until the process is ready, and fails at once when it has ended instead.
    pub(crate) fn ready<T>(&self, mut answer: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait::until(&format!("{} to be ready", self.name), wait::READY, || {
            ensure!(self.is_running(), "{} has ended: {}", self.name, self.log());
            answer()
        })
        .with_context(|| format!("{} wrote: {}", self.name, self.log()))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.process)
    }

    fn signal(&self, signal: Signal) {
        if self.ended.is_none() {
            // A group whose last process has just gone needs no signal.
            let _ = kill_process_group(self.pid(), signal);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}

/// Runs a tool to its end and returns its standard output.
///
/// # Errors
///
/// When it fails, or takes longer than `limit`.
pub(crate) fn run(
    name: &str,
    command: &mut Command,
    input: &[u8],
    limit: Duration,
) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let read = folder.path().join("input");
    fs::write(&read, input)?;
    let mut child = Child::spawn_reading(name, command, File::open(&read)?.into(), folder.path())?;
    let status = child.wait(limit)?;
    if !status.success() {
        bail!("{name} failed ({status}): {}", child.log());
    }
    Ok(child.output())
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("cannot write {}", path.display()))
}

fn text(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_alive(pid: &str) -> bool {
        fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
    }

    fn shell(script: &str, folder: &Path) -> Child {
        Child::spawn("shell", Command::new("bash").args(["-c", script]), folder).unwrap()
    }

    #[test]
    fn a_dropped_process_takes_its_children_with_it_even_when_they_refuse() {
        let folder = tempfile::tempdir().unwrap();
        let child =
            shell("trap '' TERM; sleep 600 & echo $!; trap 'exit 0' TERM; wait", folder.path());
        let grandchild =
            child.ready(|| Ok(child.output().strip_suffix('\n').map(str::to_owned))).unwrap();
        assert!(is_alive(&grandchild));
        drop(child);
        wait::until("the grandchild to go", LEAVE, || Ok((!is_alive(&grandchild)).then_some(())))
            .unwrap();
    }

    #[test]
    fn a_paused_process_is_stopped_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = shell("sleep 600", folder.path());
        child.pause().unwrap();
        assert!(child.is_running(), "a paused process has not ended");
        assert!(!child.stop().unwrap().success());
        assert!(!child.is_running());
    }

    #[test]
    fn a_tool_that_takes_too_long_is_an_error() {
        let limit = Duration::from_millis(50);
        let error = run("tool", Command::new("sleep").arg("600"), b"", limit).unwrap_err();
        assert!(error.to_string().contains("tool to end"), "{error}");
    }

    #[test]
    fn a_tool_reads_its_input_and_its_output_is_returned() {
        let output = run("cat", &mut Command::new("cat"), b"hello", LEAVE).unwrap();
        assert_eq!(output, "hello");
    }

    #[test]
    fn what_a_killed_test_leaves_behind_is_cleaned_up() {
        // The part of the killed test is played by this test binary, run again on the one test
        // below, which never ends by itself.
        let folder = tempfile::tempdir().unwrap();
        let mut killed = Child::spawn(
            "test",
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "process::tests::a_test_that_is_killed", "--ignored"])
                .arg("--nocapture")
                .env("TEGATA_KILLED_TEST", folder.path()),
            folder.path(),
        )
        .unwrap();
        let note = folder.path().join("note");
        let text = killed
            .ready(|| Ok(fs::read_to_string(&note).ok().filter(|text| text.ends_with('\n'))))
            .unwrap();
        let (pid, left) = text.trim_end().split_once(' ').unwrap();
        assert!(is_alive(pid) && Path::new(left).exists());
        killed.kill().unwrap();
        wait::until("the guard", LEAVE, || {
            Ok((!is_alive(pid) && !Path::new(left).exists()).then_some(()))
        })
        .unwrap();
    }

    #[test]
    #[ignore = "plays the killed test in the test above"]
    fn a_test_that_is_killed() {
        let Some(note) = std::env::var_os("TEGATA_KILLED_TEST") else { return };
        let folder = crate::folder::Folder::new().unwrap();
        let child = shell("sleep 600", folder.path());
        let text = format!("{} {}\n", child.id(), folder.path().display());
        fs::write(Path::new(&note).join("note"), text).unwrap();
        std::thread::park();
    }
}
