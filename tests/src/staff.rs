//! People at their thin clients: the real agent.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tegata_parts::process::Child;
use tegata_parts::screen::Screen;
use tempfile::TempDir;

use crate::site::{Site, program};
use crate::wait;

static RUNS: AtomicU32 = AtomicU32::new(0);

/// Somebody at a thin client, before they press return.
#[must_use]
pub struct Device<'a> {
    site: &'a Site,
    name: &'a str,
    password: &'a str,
    server: String,
    ca: PathBuf,
    arguments: Vec<String>,
    viewer: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A run of the agent.
pub struct Login {
    agent: Child,
    _password: TempDir,
}

impl<'a> Device<'a> {
    pub(crate) fn new(site: &'a Site, name: &'a str, password: &'a str) -> Self {
        let viewer = ["--viewer", "none", "--forward", "127.0.0.1:0"];
        Self {
            site,
            name,
            password,
            server: site.listen().to_string(),
            ca: site.path("ca.pem"),
            arguments: Vec::new(),
            viewer: viewer.map(str::to_owned).into(),
            environment: Vec::new(),
        }
    }

    /// Adds an argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Trusts another authority.
    pub fn trusting(mut self, ca: PathBuf) -> Self {
        self.ca = ca;
        self
    }

    /// Goes to another broker.
    pub fn server(mut self, server: &str) -> Self {
        server.clone_into(&mut self.server);
        self
    }

    /// Shows the desktop with `FreeRDP` on a screen.
    pub fn on(mut self, screen: &Screen) -> Self {
        self.viewer = vec!["--viewer".to_owned(), "freerdp".to_owned()];
        self.environment.push(("DISPLAY".to_owned(), screen.display().to_owned()));
        self.environment.push(("HOME".to_owned(), screen.folder().display().to_string()));
        self
    }

    /// Sits before a screen, whatever shows the desktop.
    pub fn beside(mut self, screen: &Screen) -> Self {
        self.environment.push(("DISPLAY".to_owned(), screen.display().to_owned()));
        self
    }

    /// Shows the desktop with a program.
    pub fn exec(mut self, command: &str) -> Self {
        self.viewer = vec!["--viewer".to_owned(), format!("exec:{command}")];
        self
    }

    /// Presses return.
    ///
    /// # Errors
    ///
    /// When the agent cannot be started.
    pub fn start(self) -> Result<Login> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("password");
        fs::write(&file, self.password)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(program("tegata-agent")?);
        command
            .args(["login", "--server", &self.server, "--ca"])
            .arg(&self.ca)
            .args(["--username", self.name, "--password-file"])
            .arg(&file)
            .args(["--progress", "json"])
            .args(&self.viewer)
            .args(&self.arguments)
            .envs(self.environment);
        let agent = Child::spawn(&format!("agent-{run}"), &mut command, self.site.scratch())?;
        Ok(Login { agent, _password: folder })
    }
}

impl Login {
    /// Returns the events so far.
    pub fn events(&self) -> Vec<Value> {
        let output = self.agent.output();
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        whole.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Waits for an event.
    ///
    /// # Errors
    ///
    /// When the agent ends without it, or it does not come in time.
    pub fn event(&self, name: &str) -> Result<Value> {
        wait::until(&format!("event {name}"), || {
            let running = self.agent.is_running();
            let found = self.events().into_iter().find(|event| event["event"] == name);
            ensure!(found.is_some() || running, "the agent has ended before {name}");
            Ok(found)
        })
        .with_context(|| self.agent.log())
    }

    /// Waits until the desktop is there, and connects to it where the agent
    /// forwards it.
    ///
    /// # Errors
    ///
    /// When it is not there in time.
    pub fn desktop(&self) -> Result<TcpStream> {
        let attached = self.event("attached")?;
        let address = attached["forward"].as_str().context("no forwarded address")?;
        let stream = TcpStream::connect(address.parse::<SocketAddr>()?)?;
        stream.set_read_timeout(Some(wait::LIMIT))?;
        Ok(stream)
    }

    /// Waits for the agent to end by itself, and returns its exit number.
    ///
    /// # Errors
    ///
    /// When it does not end in time.
    pub fn exit(&mut self) -> Result<i32> {
        let status = self.agent.wait(wait::LIMIT).with_context(|| self.agent.log())?;
        status.code().with_context(|| format!("the agent was ended by a signal: {status}"))
    }

    /// Closes the viewer without logging off, and returns the exit number.
    ///
    /// # Errors
    ///
    /// When the agent does not end.
    pub fn leave(&mut self) -> Result<Option<i32>> {
        Ok(self.agent.stop()?.code())
    }

    /// Cuts the thin client's power.
    ///
    /// # Errors
    ///
    /// When it cannot be found out how the agent ended.
    pub fn lose_power(&mut self) -> Result<()> {
        self.agent.kill().map(drop)
    }

    /// Tells whether the agent still runs.
    pub fn is_running(&self) -> bool {
        self.agent.is_running()
    }

    /// Returns all that the agent wrote.
    pub fn log(&self) -> String {
        self.agent.log()
    }

    /// Returns the agent's process id.
    pub fn process(&self) -> u32 {
        self.agent.id()
    }
}

/// Sends a line to a desktop that echoes, and checks what comes back.
///
/// # Errors
///
/// When something else comes back, or nothing.
pub fn echo(desktop: &mut TcpStream, line: &str) -> Result<()> {
    desktop.write_all(line.as_bytes())?;
    let mut back = vec![0; line.len()];
    desktop.read_exact(&mut back)?;
    ensure!(back == line.as_bytes(), "{:?} came back", String::from_utf8_lossy(&back));
    Ok(())
}
