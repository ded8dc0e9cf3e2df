//! A viewer that is a program of its own, behind one end of a socket pair.
//!
//! The program inherits exactly the descriptors it is told of. Secrets reach it
//! by a pipe: never by argument, environment or file.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process_group};
use tegata_proto::code::Code;
use tegata_proto::policy::Security;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::relay::{DesktopStream, End, Side};
use crate::viewer::freerdp::{self, Grammar};
use crate::viewer::{Scene, Shown, ViewerError, redirection};

/// The socket's number in the program.
pub(super) const SOCKET_FD: i32 = 3;

/// The secret pipe's number in the program.
pub(super) const SECRET_FD: i32 = 4;

/// Longest piece of a program's log, in bytes.
const LOG_MAX: usize = 1024;

/// How long the program may live once its socket is closed, and the other way
/// round.
const EXIT_WAIT: Duration = Duration::from_secs(5);

/// A viewer's program, ready to be started.
#[derive(Debug)]
pub(crate) struct Process {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Freerdp { program: PathBuf, grammar: Grammar, options: freerdp::Options },
    Exec { command: Vec<String> },
}

/// A program that was started, and ends with this; where it leads a process group, with
/// all that it has started.
struct Program {
    child: Child,
    leads_group: bool,
}

impl Drop for Program {
    fn drop(&mut self) {
        // One that was waited for has no number any more: what it left goes its own way.
        let pid = self.child.id().filter(|_| self.leads_group);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // Fails where all of it has ended.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Process {
    pub(super) fn freerdp(options: freerdp::Options) -> Result<Self, ViewerError> {
        let (program, grammar) = freerdp::find().ok_or(ViewerError::NotInstalled)?;
        Ok(Self { kind: Kind::Freerdp { program, grammar, options } })
    }

    pub(super) fn exec(command: Vec<String>) -> Self {
        Self { kind: Kind::Exec { command } }
    }

    pub(super) fn suits(&self, scene: &Scene) -> Result<(), ViewerError> {
        match self.kind {
            Kind::Freerdp { .. } if scene.rdp.is_none() => Err(ViewerError::NotRdp),
            Kind::Freerdp { .. } | Kind::Exec { .. } => Ok(()),
        }
    }

    pub(super) async fn show(
        &self,
        desktop: DesktopStream<'_>,
        mut scene: Scene,
    ) -> Result<Shown, ViewerError> {
        scene.policy = match &self.kind {
            Kind::Freerdp { options, .. } => redirection::present(options, scene.policy).await,
            Kind::Exec { .. } => scene.policy,
        };
        let (mut program, socket) = self
            .start(&scene)
            .map_err(|source| ViewerError::Start { program: self.name(), source })?;
        // The program has read the secret's pipe or will; nobody else needs it.
        drop(scene);
        let log = log(program.child.stderr.take());
        tokio::select! {
            shown = self.watch(&mut program.child, desktop, socket) => Ok(shown),
            never = log => match never {},
        }
    }

    async fn watch(
        &self,
        child: &mut Child,
        desktop: DesktopStream<'_>,
        socket: UnixStream,
    ) -> Shown {
        let (read, write) = socket.into_split();
        let account = desktop.account;
        let mut bytes = std::pin::pin!(desktop.splice(read, write));
        let (status, end) = tokio::select! {
            end = &mut bytes => match end {
                // Not a byte more for it; the drop of the program ends it.
                End::NotSecured(_) => return Shown::by(end),
                End::Viewer | End::Desktop | End::Lost => {
                    (timeout(EXIT_WAIT, child.wait()).await.ok(), Some(end))
                }
            },
            status = child.wait() => {
                account.ended(Side::Viewer);
                (Some(status), timeout(EXIT_WAIT, bytes).await.ok())
            }
        };
        // The check may have cut the bytes while the program was ending.
        if let Some(end @ End::NotSecured(_)) = end {
            return Shown::by(end);
        }
        let said = match status {
            Some(Ok(status)) => self.meaning(status),
            // It hangs, or was waited for by somebody else: it said nothing.
            Some(Err(_)) | None => Code::Disconnected,
        };
        // A viewer that lost its desktop may call that a disconnect.
        let code = match (&end, said) {
            (Some(End::Desktop | End::Lost), Code::Disconnected) => Code::DesktopLost,
            (_, said) => said,
        };
        Shown { code, end }
    }

    fn name(&self) -> String {
        match &self.kind {
            Kind::Freerdp { program, .. } => program.display().to_string(),
            Kind::Exec { command } => command.first().cloned().unwrap_or_default(),
        }
    }

    fn meaning(&self, status: ExitStatus) -> Code {
        match (&self.kind, status.code()) {
            (Kind::Freerdp { .. }, Some(number)) => freerdp::meaning(number),
            (Kind::Exec { .. }, Some(0)) => Code::LoggedOff,
            (Kind::Exec { .. }, Some(number)) if freerdp::is_pin_mismatch(number) => {
                Code::PinMismatch
            }
            // Ended by a signal, it said nothing about a log-off.
            (Kind::Exec { .. }, Some(_)) | (_, None) => Code::Disconnected,
        }
    }

    fn start(&self, scene: &Scene) -> io::Result<(Program, UnixStream)> {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut inherited = vec![FdMapping { parent_fd: theirs, child_fd: SOCKET_FD }];
        let mut command = match &self.kind {
            Kind::Freerdp { program, grammar, options } => {
                let mut command = Command::new(program);
                let shown = freerdp::arguments(options, *grammar, scene);
                command.args(&shown.arguments);
                // It prints prompts and a log there, which are nothing for a
                // person who has typed the password already.
                command.stdout(Stdio::null()).stderr(Stdio::piped());
                // It makes folders for certificates at every start; these go to
                // memory where the system has such a place.
                if let Some(memory) = std::env::var_os("XDG_RUNTIME_DIR") {
                    command.env("XDG_CONFIG_HOME", memory);
                }
                match shown.secret_lines {
                    Some(lines) if *grammar == Grammar::Two => {
                        command.stdin(Stdio::from(filled_pipe(&lines)?));
                    }
                    Some(lines) => inherited
                        .push(FdMapping { parent_fd: filled_pipe(&lines)?, child_fd: SECRET_FD }),
                    // A desktop that wants a password before it draws is asked
                    // for it by FreeRDP itself, where there is a terminal.
                    None => {}
                }
                command
            }
            Kind::Exec { command: words } => {
                let (program, arguments) =
                    words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
                let mut command = Command::new(program);
                command.args(arguments).env("TEGATA_FD", SOCKET_FD.to_string());
                // A script may have started the viewer, and both are to end together.
                command.stdin(Stdio::null()).process_group(0);
                // Standard output may be a line of JSON's.
                command.stdout(Stdio::from(io::stderr().as_fd().try_clone_to_owned()?));
                for (name, value) in environment(scene) {
                    match value {
                        Some(value) => command.env(name, value),
                        None => command.env_remove(name),
                    };
                }
                if let Some(secret) = &scene.secret {
                    let pipe = filled_pipe(secret.expose().as_bytes())?;
                    inherited.push(FdMapping { parent_fd: pipe, child_fd: SECRET_FD });
                    command.env("TEGATA_SECRET_FD", SECRET_FD.to_string());
                } else {
                    command.env_remove("TEGATA_SECRET_FD");
                }
                command
            }
        };
        command.fd_mappings(inherited).map_err(io::Error::other)?;
        let child = command.kill_on_drop(true).spawn()?;
        let program = Program { child, leads_group: matches!(self.kind, Kind::Exec { .. }) };
        // The command holds our copies of what the program inherited.
        drop(command);
        let ours = StdUnixStream::from(ours);
        ours.set_nonblocking(true)?;
        Ok((program, UnixStream::from_std(ours)?))
    }
}

fn environment(scene: &Scene) -> [(&'static str, Option<OsString>); 3] {
    let security = scene.rdp.map(|rdp| match rdp.security {
        Security::Tls => "tls".into(),
        Security::Nla => "nla".into(),
    });
    [
        ("TEGATA_CERT_SHA256", scene.rdp.map(|rdp| rdp.certificate_sha256.to_string().into())),
        ("TEGATA_USER", scene.user.as_ref().map(OsString::from)),
        ("TEGATA_SECURITY", security),
    ]
}

/// Passes on what a program writes about itself, a piece at a time.
async fn log(stderr: Option<ChildStderr>) -> Infallible {
    let mut piece = [0; LOG_MAX];
    if let Some(mut stderr) = stderr {
        while let Ok(length @ 1..) = stderr.read(&mut piece).await {
            let text = String::from_utf8_lossy(&piece[..length]);
            tracing::debug!(%text, "The viewer wrote");
        }
    }
    std::future::pending().await
}

/// Returns a pipe that holds these bytes and nothing after them.
///
/// They have to fit into a pipe (at least 4 KiB, `pipe(7)`); a password does.
fn filled_pipe(bytes: &[u8]) -> io::Result<OwnedFd> {
    // Non-blocking on the writer's side only, so that a mistake fails and does
    // not hang; the flag belongs to each end of its own.
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&write, true)?;
    if rustix::io::write(&write, bytes)? < bytes.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(read)
}

/// Lines for a program that reads a secret, cleared when dropped.
pub(super) type SecretLines = Zeroizing<Vec<u8>>;

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_filled_pipe_gives_its_bytes_and_ends() {
        let pipe = filled_pipe(b"hunter2").expect("a pipe");
        let mut text = String::new();
        std::fs::File::from(pipe).read_to_string(&mut text).expect("to the end");
        assert_eq!(text, "hunter2");
        assert!(filled_pipe(&vec![0; 1 << 20]).is_err(), "and never waits for a reader");
    }

    #[test]
    fn a_commands_exit_says_logged_off_disconnected_or_not_secured() {
        use std::os::unix::process::ExitStatusExt as _;
        let process = Process::exec(vec!["viewer".into()]);
        for (number, code) in [
            (0, Code::LoggedOff),
            (1, Code::Disconnected),
            (133, Code::PinMismatch),
            (143, Code::PinMismatch),
            (255, Code::Disconnected),
        ] {
            assert_eq!(process.meaning(ExitStatus::from_raw(number << 8)), code, "{number}");
        }
        assert_eq!(process.meaning(ExitStatus::from_raw(9)), Code::Disconnected, "SIGKILL");
    }
}
