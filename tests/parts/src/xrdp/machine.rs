use std::{
    fmt::Write as _,
    fs,
    ops::Range,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::geteuid;

use super::{NEEDED, write_program, write_session, write_xrdp_ini};
use crate::{
    ca::IssuedCertificate,
    colour::Colour,
    folder::Folder,
    package, port,
    process::{Child, run},
};

/// User ids of the accounts: those of this machine's people are lower, those of daemons higher.
const USER_IDS: Range<u16> = 52_000..59_000;

/// X displays of the sessions come in blocks, one block a machine.
const DISPLAY_BLOCKS: Range<u16> = 10..50;
const DISPLAYS_PER_BLOCK: u16 = 10;

/// How long the occupancy script may take, including a log-off.
const OCCUPANCY: Duration = Duration::from_secs(15);

/// How long a change of a background may take.
const PAINTING: Duration = Duration::from_secs(15);

const MACHINE: &str = include_str!("../../desktop/machine");
const OCCUPANCY_SCRIPT: &str = include_str!("../../desktop/occupancy");

/// A desktop machine with accounts of its own, checked by PAM: xrdp with sesman.
///
/// Each account gets a session at its first login, which outlives the viewer's connection and is
/// returned to. The machine has its own accounts and processes (Linux namespaces), so it needs
/// root, leaves no account behind, and several run side by side.
pub struct Xrdp {
    port: u16,
    sha256: String,
    accounts: Vec<Account>,
    folder: Folder,
    machine: Child,
}

/// An account of the machine.
#[derive(Clone, Debug)]
pub struct Account {
    name: String,
    password: String,
    colour: Colour,
    user_id: u16,
}

/// Which X server a session runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Xorg with xrdp's own driver.
    Xorg,
    /// `TigerVNC`'s server.
    Xvnc,
}

/// What a machine starts with.
#[must_use]
#[derive(Debug)]
pub struct Builder {
    server: Server,
    accounts: Vec<(String, String, Colour)>,
}

impl Xrdp {
    /// Begins a machine without accounts, whose sessions run in `server`.
    pub fn builder(server: Server) -> Builder {
        Builder { server, accounts: Vec::new() }
    }

    /// Returns the RDP port on `127.0.0.1`.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns SHA-256 of the certificate it shows, lower hex.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Returns the program that tells who is logged on and logs people off; see
    /// `tests/parts/desktop/occupancy` for its arguments.
    pub fn occupancy(&self) -> PathBuf {
        self.folder.path().join("occupancy")
    }

    /// Returns the accounts that have a session, with or without a viewer, in order of name.
    ///
    /// # Errors
    ///
    /// When the kernel's list of processes cannot be read.
    pub fn logged_on(&self) -> Result<Vec<&str>> {
        let mut names = Vec::new();
        for account in &self.accounts {
            if x_server_of(account.user_id)?.is_some() {
                names.push(account.name.as_str());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Returns the process id of the X server of an account's session, which no other session
    /// ever has while it lives.
    ///
    /// # Errors
    ///
    /// When the kernel's list of processes cannot be read.
    pub fn session(&self, account: &str) -> Result<Option<u32>> {
        let account = self.accounts.iter().find(|known| known.name == account);
        account.map_or(Ok(None), |account| x_server_of(account.user_id))
    }

    /// Gives an account's session another background, whether or not a viewer shows it. X clients
    /// have to reach the machine, so this is done where it was started.
    ///
    /// # Errors
    ///
    /// When the account has no session.
    pub fn paint(&self, account: &str, colour: Colour) -> Result<()> {
        let account = self.accounts.iter().find(|known| known.name == account);
        let user_id = account.context("no such account")?.user_id;
        let manager = processes_of(user_id)?.into_iter().find(|(_, name)| name == "openbox");
        let (manager, _) = manager.context("no session")?;
        // Where the display is, and what opens it.
        let environment = fs::read(format!("/proc/{manager}/environ"))?;
        let environment = String::from_utf8_lossy(&environment);
        let environment = environment.split('\0').filter_map(|line| line.split_once('='));
        let mut command = Command::new(package::program("nsenter")?);
        command
            .args(["--target", &manager.to_string(), "--mount", "--pid", "--root"])
            .arg(package::program("xsetroot")?)
            .args(["-solid", &colour.to_string()])
            .envs(environment);
        run("xsetroot", &mut command, b"", PAINTING).map(drop)
    }

    /// Ends an account's session, as its owner's log-off would.
    ///
    /// # Errors
    ///
    /// When the machine cannot do so.
    pub fn log_off(&self, account: &str) -> Result<()> {
        let mut command = Command::new(self.occupancy());
        run("occupancy", command.args(["this", "log_off", account]), b"", OCCUPANCY).map(drop)
    }

    /// Returns what xrdp and sesman logged.
    pub fn log(&self) -> String {
        ["xrdp.log", "sesman.log"]
            .map(|log| fs::read_to_string(self.folder.path().join(log)).unwrap_or_default())
            .concat()
            + &self.machine.log()
    }
}

impl Builder {
    /// Adds an account, whose sessions have a background of `colour`.
    pub fn account(mut self, name: &str, password: &str, colour: Colour) -> Self {
        self.accounts.push((name.to_owned(), password.to_owned(), colour));
        self
    }

    /// Starts the machine, which proves itself by `certificate`.
    ///
    /// # Errors
    ///
    /// Without root, or when a program is missing or does not become ready.
    pub fn start(self, certificate: &IssuedCertificate) -> Result<Xrdp> {
        ensure!(geteuid().is_root(), "a desktop machine with accounts needs root");
        package::require(&NEEDED)?;
        package::require(&["xrdp-sesman", "openssl", "unshare", "nsenter"])?;
        match self.server {
            Server::Xorg => package::require(&["/usr/lib/xorg/modules/libxorgxrdp.so"])?,
            Server::Xvnc => package::require(&["Xvnc"])?,
        }
        let folder = Folder::new()?;
        folder.open_to_all()?;
        let path = folder.path();
        certificate.install(path)?;

        let accounts = self.accounts(path)?;
        write_accounts(path, &accounts)?;
        let port = port::free_tcp()?;
        let module = match self.server {
            Server::Xorg => "lib=libxup.so\nip=127.0.0.1\nport=-1\ncode=20\n",
            Server::Xvnc => "lib=libvnc.so\nip=127.0.0.1\nport=-1\ncode=0\n",
        };
        write_xrdp_ini(path, port, module, "xrdp.log")?;
        let sesman_port = port::free_tcp()?;
        fs::write(path.join("sesman.ini"), sesman_ini(path, sesman_port)?)?;
        write_program(&path.join("machine"), MACHINE)?;
        write_session(path)?;
        write_program(&path.join("window-manager"), &window_manager(path, &accounts))?;
        write_program(&path.join("occupancy-on-the-machine"), OCCUPANCY_SCRIPT)?;

        let machine = Child::spawn(
            "machine",
            Command::new(package::program("unshare")?)
                .args(["--mount", "--propagation", "unchanged"])
                .args(["--pid", "--fork", "--kill-child=KILL"])
                .arg(path.join("machine"))
                .arg(path)
                .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            path,
        )?;
        machine.ready(|| {
            let listening = port::is_listening(port)? && port::is_listening(sesman_port)?;
            Ok(listening.then_some(()))
        })?;
        let first = first_process(machine.id())?;
        // What ssh is for a machine far away, nsenter is for this one. It enters the root as well:
        // in a chroot that of the namespace is another one.
        write_program(
            &path.join("occupancy"),
            &format!(
                "#!/bin/sh\nexec nsenter --target {first} --mount --pid --root {} \"$@\"\n",
                path.join("occupancy-on-the-machine").display()
            ),
        )?;
        let sha256 = certificate.sha256.clone();
        Ok(Xrdp { port, sha256, accounts, folder, machine })
    }

    fn accounts(&self, folder: &Path) -> Result<Vec<Account>> {
        let mut accounts = Vec::new();
        for (name, password, colour) in &self.accounts {
            let user_id = port::reserve("user", USER_IDS, |user_id| {
                processes_of(user_id).is_ok_and(|processes| processes.is_empty())
            })?;
            let home = home(folder, name);
            fs::create_dir_all(&home)?;
            fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
            chown(&home, Some(user_id.into()), Some(user_id.into()))?;
            accounts.push(Account {
                name: name.clone(),
                password: password.clone(),
                colour: *colour,
                user_id,
            });
        }
        Ok(accounts)
    }
}

fn home(folder: &Path, name: &str) -> PathBuf {
    folder.join("home").join(name)
}

/// Writes the machine's account files: this machine's, and the accounts. Passwords of this
/// machine's own accounts do not come along.
fn write_accounts(folder: &Path, accounts: &[Account]) -> Result<()> {
    let mut passwd = fs::read_to_string("/etc/passwd")?;
    let mut group = fs::read_to_string("/etc/group")?;
    let mut shadow = String::from("root:*:19000:0:99999:7:::\n");
    for Account { name, password, user_id, .. } in accounts {
        let already = format!("{name}:");
        ensure!(
            !passwd.lines().any(|line| line.starts_with(&already)),
            "{name} is an account of this machine already"
        );
        let mut hash = Command::new(package::program("openssl")?);
        hash.args(["passwd", "-6", "-stdin"]);
        let hash = run("openssl", &mut hash, password.as_bytes(), OCCUPANCY)?;
        let home = home(folder, name);
        writeln!(passwd, "{name}:x:{user_id}:{user_id}::{}:/bin/bash", home.display())?;
        writeln!(group, "{name}:x:{user_id}:")?;
        writeln!(shadow, "{name}:{}:19000:0:99999:7:::", hash.trim_end())?;
    }
    fs::write(folder.join("passwd"), passwd)?;
    fs::write(folder.join("group"), group)?;
    let file = folder.join("shadow");
    fs::write(&file, "")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    fs::write(&file, shadow)?;
    Ok(())
}

fn window_manager(folder: &Path, accounts: &[Account]) -> String {
    let mut script = String::from("#!/bin/sh\ncase $USER in\n");
    for Account { name, colour, .. } in accounts {
        let session = folder.join("session");
        let _ = writeln!(script, "{name}) exec {} '{colour}' ;;", session.display());
    }
    script + "esac\n"
}

/// Reserves a block of displays, removes what dead X servers left of it, and
/// returns its first number.
///
/// A machine's servers are killed with it and leave their sockets and locks
/// behind: only a socket that the kernel still lists belongs to anybody.
fn displays() -> Result<u16> {
    let sockets = fs::read_to_string("/proc/net/unix")?;
    let socket = |display: u16| format!("/tmp/.X11-unix/X{display}");
    let is_alive = |display| {
        let path = socket(display);
        sockets.lines().any(|line| line.rsplit([' ', '@']).next() == Some(path.as_str()))
    };
    let of = |block| block * DISPLAYS_PER_BLOCK..(block + 1) * DISPLAYS_PER_BLOCK;
    let block = port::reserve("display", DISPLAY_BLOCKS, |block| !of(block).any(is_alive))?;
    for display in of(block) {
        // Most were never there.
        let _ = fs::remove_file(socket(display));
        let _ = fs::remove_file(format!("/tmp/.X{display}-lock"));
    }
    Ok(of(block).start)
}

fn sesman_ini(folder: &Path, port: u16) -> Result<String> {
    let first = displays()?;
    let folder = folder.display();
    Ok(format!(
        "[Globals]
ListenAddress=127.0.0.1
ListenPort={port}
EnableUserWindowManager=false
UserWindowManager=startwm.sh
DefaultWindowManager={folder}/window-manager
ReconnectScript=/bin/true
[Security]
AllowRootLogin=false
MaxLoginRetry=4
AlwaysGroupCheck=false
[Sessions]
X11DisplayOffset={first}
MaxSessions={DISPLAYS_PER_BLOCK}
KillDisconnected=false
DisconnectedTimeLimit=0
IdleTimeLimit=0
Policy=Default
[Logging]
LogFile={folder}/sesman.log
LogLevel=INFO
EnableSyslog=false
[Xorg]
param=/usr/lib/xorg/Xorg
param=-config
param=xrdp/xorg.conf
param=-noreset
param=-nolisten
param=tcp
param=-logfile
param=.xorgxrdp.%s.log
[Xvnc]
param=Xvnc
param=-bs
param=-nolisten
param=tcp
param=-localhost
[Chansrv]
FuseMountName=thinclient_drives
[ChansrvLogging]
LogLevel=INFO
EnableSyslog=false
[SessionVariables]
"
    ))
}

/// Returns the process that `unshare` made the first of its namespace.
fn first_process(unshare: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
    children.trim().parse().context("unshare has no child")
}

/// Returns the X server that runs under a user id.
fn x_server_of(user_id: u16) -> Result<Option<u32>> {
    Ok(processes_of(user_id)?
        .into_iter()
        .find(|(_, name)| name == "Xorg" || name == "Xvnc")
        .map(|(process, _)| process))
}

/// Returns the processes of a user id, with their names.
fn processes_of(user_id: u16) -> Result<Vec<(u32, String)>> {
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process may end while it is looked at; then it is not there.
        let is_theirs = entry.metadata().is_ok_and(|found| found.uid() == u32::from(user_id));
        if is_theirs && let Ok(name) = fs::read_to_string(entry.path().join("comm")) {
            processes.push((process, name.trim_end().to_owned()));
        }
    }
    Ok(processes)
}
