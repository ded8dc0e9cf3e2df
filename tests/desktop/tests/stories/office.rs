//! Desktops and viewers for the stories: started as programs, ended when dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt as _, FdMapping};
use serde::Deserialize;

/// The account of the desktops that have one.
pub(crate) const USER: &str = "sato";
/// Its password.
pub(crate) const PASSWORD: &str = "hana no iro wa";
/// How long a viewer may take, in seconds.
const VIEWER_TIMEOUT: &str = "30";
/// How long a viewer stays that is to be ended by somebody else, in milliseconds.
const LONG_STAY: &str = "120000";
/// How often to look whether a viewer has ended.
const POLL: Duration = Duration::from_millis(20);
/// How long a test waits for a peer's bytes.
const SILENCE: Duration = Duration::from_secs(30);

/// One line of `demo-desktop`.
#[derive(Deserialize)]
pub(crate) struct Ready {
    pub(crate) name: String,
    #[serde(rename = "listening")]
    pub(crate) address: SocketAddr,
    pub(crate) certificate_sha256: String,
}

/// A folder of its own under the build's, removed when dropped.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("stories-{}-{number}", std::process::id());
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `demo-desktop`.
pub(crate) struct Desktops {
    pub(crate) ready: Vec<Ready>,
    program: Child,
    _folder: Folder,
}

impl Desktops {
    pub(crate) fn open(arguments: &[&str]) -> Self {
        Self::start(arguments, Folder::new())
    }

    pub(crate) fn with_account(arguments: &[&str]) -> Self {
        let folder = Folder::new();
        let password = folder.0.join("password");
        std::fs::write(&password, format!("{PASSWORD}\n")).unwrap();
        let account = ["--user", USER, "--password-file", password.to_str().unwrap()];
        Self::start(&[&account, arguments].concat(), folder)
    }

    fn start(arguments: &[&str], folder: Folder) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_demo-desktop"))
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let wanted = arguments.iter().filter(|argument| **argument == "--desktop").count();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let ready = lines.take(wanted).map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let ready: Vec<Ready> = ready.collect();
        assert_eq!(ready.len(), wanted, "every desktop listens");
        Self { ready, program, _folder: folder }
    }

    /// Asks the process to end and returns how it did.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        let id = self.program.id().to_string();
        assert!(Command::new("sh").args(["-c", "kill -TERM $0", &id]).status().unwrap().success());
        self.program.wait().unwrap()
    }
}

impl Drop for Desktops {
    fn drop(&mut self) {
        let _ended = self.program.kill().and_then(|()| self.program.wait());
    }
}

/// One run of `first-frame`.
pub(crate) struct Viewing {
    pub(crate) out: PathBuf,
    address: SocketAddr,
    pin: String,
    secret: Option<String>,
    linger: &'static str,
    inherits: bool,
    folder: Folder,
}

impl Viewing {
    pub(crate) fn of(desktop: &Ready) -> Self {
        Self::at(desktop.address).with_pin(&desktop.certificate_sha256)
    }

    /// Views whatever answers there, with a pin that matches nothing.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let folder = Folder::new();
        Self {
            out: folder.0.join("desktop.png"),
            address,
            pin: "f".repeat(64),
            secret: None,
            linger: "0",
            inherits: false,
            folder,
        }
    }

    pub(crate) fn with_pin(self, pin: &str) -> Self {
        Self { pin: pin.to_owned(), ..self }
    }

    pub(crate) fn with_secret(self, secret: &str) -> Self {
        Self { secret: Some(secret.to_owned()), ..self }
    }

    /// Gets its socket and the time's file as the agent's viewer does.
    pub(crate) fn inheriting(self) -> Self {
        Self { inherits: true, ..self }
    }

    /// Stays until the desktop ends it.
    pub(crate) fn lingering(self) -> Self {
        Self { linger: LONG_STAY, ..self }
    }

    pub(crate) fn output(&self) -> Output {
        self.start().wait_with_output().unwrap()
    }

    /// Starts a viewer that has begun to see the desktop.
    pub(crate) fn start_and_wait_for_the_first_frame(&self) -> Seeing {
        let mut viewer = self.start();
        let mut line = String::new();
        BufReader::new(viewer.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("first_frame_ms"), "the viewer saw {line:?}");
        Seeing(viewer)
    }

    fn start(&self) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_first-frame"));
        command
            .args(["--timeout", VIEWER_TIMEOUT, "--linger", self.linger, "--out"])
            .arg(&self.out)
            .env("TEGATA_CERT_SHA256", &self.pin)
            .env("TEGATA_USER", USER)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut descriptors = Vec::new();
        if let Some(secret) = &self.secret {
            let (reader, mut writer) = std::io::pipe().unwrap();
            writer.write_all(secret.as_bytes()).unwrap();
            descriptors.push(FdMapping { parent_fd: reader.into(), child_fd: 7 });
            command.env("TEGATA_SECRET_FD", "7");
        }
        if self.inherits {
            descriptors.push(FdMapping { parent_fd: relayed(self.address).into(), child_fd: 9 });
            command.env("TEGATA_FD", "9").arg("--timeline").arg(self.timeline_file());
        } else {
            command.arg("--connect").arg(self.address.to_string());
        }
        command.fd_mappings(descriptors).unwrap();
        command.spawn().unwrap()
    }

    fn timeline_file(&self) -> PathBuf {
        self.folder.0.join("painted.json")
    }

    pub(crate) fn timeline(&self) -> String {
        std::fs::read_to_string(self.timeline_file()).unwrap()
    }

    /// Returns the colour of the picture's last pixel, far from any text.
    pub(crate) fn corner(&self) -> [u8; 3] {
        let file = BufReader::new(File::open(&self.out).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (1024, 768));
        *pixels.last_chunk().unwrap()
    }
}

/// A viewer that sees a desktop; ended when dropped.
pub(crate) struct Seeing(Child);

impl Seeing {
    /// Waits until the viewer ends by itself.
    pub(crate) fn end_within(mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait().unwrap() {
                return Some(status);
            }
            thread::sleep(POLL);
        }
        None
    }
}

impl Drop for Seeing {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Returns one end of a socket pair; what passes through the other reaches the desktop, as through
/// the agent.
fn relayed(address: SocketAddr) -> UnixStream {
    let (ours, viewers) = UnixStream::pair().unwrap();
    let desktop = TcpStream::connect(address).unwrap();
    let (mut up, mut to_desktop) = (ours.try_clone().unwrap(), desktop.try_clone().unwrap());
    thread::spawn(move || {
        let _ended = std::io::copy(&mut up, &mut to_desktop);
        let _ended = to_desktop.shutdown(Shutdown::Both);
    });
    let (mut down, mut to_viewer) = (desktop, ours);
    thread::spawn(move || {
        let _ended = std::io::copy(&mut down, &mut to_viewer);
        let _ended = to_viewer.shutdown(Shutdown::Both);
    });
    viewers
}

/// Somebody in the desktop's place who answers the first message with fixed bytes.
pub(crate) struct Impostor {
    pub(crate) address: SocketAddr,
    thread: JoinHandle<Vec<u8>>,
}

impl Impostor {
    pub(crate) fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let (mut stream, _viewer) = listener.accept().unwrap();
            stream.set_read_timeout(Some(SILENCE)).unwrap();
            // A connection request: version 3, then its whole length in two bytes.
            let mut head = [0; 4];
            stream.read_exact(&mut head).unwrap();
            let length = u16::from_be_bytes([head[2], head[3]]);
            let mut request = vec![0; usize::from(length) - head.len()];
            stream.read_exact(&mut request).unwrap();
            stream.write_all(answer).unwrap();
            let mut afterwards = Vec::new();
            stream.read_to_end(&mut afterwards).unwrap();
            afterwards
        });
        Self { address, thread }
    }

    /// Returns everything the viewer sent after the answer.
    pub(crate) fn heard_afterwards(self) -> Vec<u8> {
        self.thread.join().unwrap()
    }
}
