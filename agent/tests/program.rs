//! The program as whoever starts it sees it.

use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tempfile::TempDir;

/// How long a test waits for what has to come.
const SOON: Duration = Duration::from_mins(1);

/// Exit of a run whose server does not answer.
const UNREACHABLE: i32 = 11;

/// A folder with a CA and a password, and a login with a server that is not there.
fn login() -> (TempDir, Command) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut params = CertificateParams::new([]).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    let ca = params.self_signed(&key).expect("a CA");
    let (ca_file, password) = (folder.path().join("ca.pem"), folder.path().join("password"));
    fs::write(&ca_file, ca.pem()).expect("room");
    fs::write(&password, "hunter2\n").expect("room");
    fs::set_permissions(&password, Permissions::from_mode(0o600)).expect("our own");
    let nobody = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let server = nobody.local_addr().expect("bound").to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tegata-agent"));
    command
        .args(["login", "--server", &server, "--username", "sato", "--viewer", "none", "--ca"])
        .arg(ca_file)
        .arg("--password-file")
        .arg(password)
        .args(["--progress", "json", "--lang", "en"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    (folder, command)
}

/// Waits until it has ended, and returns its exit number; nothing for one that goes on.
fn exit(mut agent: Child) -> Option<i32> {
    let began = Instant::now();
    loop {
        if let Some(status) = agent.try_wait().expect("our child") {
            return status.code();
        }
        if began.elapsed() > SOON {
            let _ = agent.kill();
            let _ = agent.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_reader_that_has_stopped_reading_its_progress_does_not_hold_it_up() {
    let (_folder, mut command) = login();
    let (reader, mut full) = io::pipe().expect("a pipe");
    let room = rustix::pipe::fcntl_getpipe_size(&full).expect("a pipe");
    full.write_all(&vec![b'\n'; room]).expect("it fits");
    let agent = command.stdout(full).spawn().expect("it is built");
    assert_eq!(exit(agent), Some(UNREACHABLE));
    drop(reader);
}

#[test]
fn progress_that_is_read_ends_with_the_error() {
    let (_folder, mut command) = login();
    let mut agent = command.stdout(Stdio::piped()).spawn().expect("it is built");
    let mut text = String::new();
    let mut lines = agent.stdout.take().expect("a pipe");
    lines.read_to_string(&mut text).expect("UTF-8");
    assert_eq!(exit(agent), Some(UNREACHABLE));
    assert_eq!(last_word(&text), ("error".into(), "unreachable".into()));
}

/// Returns the last event, and its code.
fn last_word(text: &str) -> (String, String) {
    let last = text.lines().last().expect("a line");
    let last: serde_json::Value = serde_json::from_str(last).expect("JSON");
    let text = |key: &str| last[key].as_str().expect("a text").to_owned();
    (text("event"), text("code"))
}

#[test]
fn a_run_that_cannot_begin_ends_with_the_error_too() {
    for (config, server, number) in [("colour = 1", "a:1", 78), ("", "", 10)] {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("agent.toml");
        fs::write(&file, config).expect("room");
        let mut command = Command::new(env!("CARGO_BIN_EXE_tegata-agent"));
        command.args(["login", "--progress", "json", "--config"]).arg(file);
        if !server.is_empty() {
            command.args(["--server", server]);
        }
        let output = command.stdin(Stdio::null()).output().expect("it is built");
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        assert_eq!(output.status.code(), Some(number));
        assert!(!output.stderr.is_empty(), "a person is told as well");
        assert_eq!(last_word(&text), ("error".into(), "configuration".into()));
    }
}

#[test]
fn nobody_who_reads_its_log_is_no_reason_to_die() {
    let (folder, mut command) = login();
    let (reader, writer) = io::pipe().expect("a pipe");
    drop(reader);
    // It warns of a password that others can read, and logs every step.
    let password = folder.path().join("password");
    fs::set_permissions(&password, Permissions::from_mode(0o644)).expect("our own");
    let agent = command.stderr(writer).env("TEGATA_LOG", "trace").spawn().expect("it is built");
    assert_eq!(exit(agent), Some(UNREACHABLE));
}
