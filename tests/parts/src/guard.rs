//! Cleans up behind a test that was killed and so never dropped its parts.
//!
//! One shell per test process holds the list of what is owed: a process group to end, a folder to
//! remove. It reads the list from a pipe whose other end only this process holds, so it notices
//! the end of this process however that came about, and then pays what is still owed, last first.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, ensure};

static GUARD: Mutex<Option<Guard>> = Mutex::new(None);

const SCRIPT: &str = r#"
    declare -A owed
    last=0
    while read -r verb id command; do
        case $verb in
            owe) owed[$id]=$command last=$id ;;
            paid) unset "owed[$id]" ;;
        esac
    done
    for ((id = last; id > 0; id--)); do
        eval "${owed[$id]:-:}"
    done
"#;

struct Guard {
    orders: ChildStdin,
    last: u64,
}

/// Something to put right should this process die first; dropping it strikes it off the list.
#[derive(Debug)]
pub(crate) struct Debt {
    id: u64,
}

impl Debt {
    /// Promises to end a process group.
    pub(crate) fn process_group(leader: u32) -> Result<Self> {
        Self::new(&format!("kill -KILL -- -{leader}"))
    }

    /// Promises to remove a folder.
    pub(crate) fn folder(path: &Path) -> Result<Self> {
        Self::new(&format!("rm -rf -- {}", plain(path)?))
    }

    /// Promises to unmount what is mounted on a folder.
    pub(crate) fn mount(path: &Path) -> Result<Self> {
        Self::new(&format!("umount -l -- {} 2>/dev/null", plain(path)?))
    }

    /// Promises to delete a network namespace by the program `ip`.
    pub(crate) fn namespace(ip: &Path, name: &str) -> Result<Self> {
        Self::new(&format!("{} netns delete {}", plain(ip)?, plain(Path::new(name))?))
    }

    fn new(command: &str) -> Result<Self> {
        let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some(Guard { orders: start()?, last: 0 });
        }
        let guard = guard.as_mut().context("no guard")?;
        guard.last += 1;
        writeln!(guard.orders, "owe {} {command}", guard.last).context("the guard has ended")?;
        Ok(Self { id: guard.last })
    }
}

impl Drop for Debt {
    fn drop(&mut self) {
        let mut guard = GUARD.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guard) = guard.as_mut() {
            // A guard that is gone owes nothing any more.
            let _ = writeln!(guard.orders, "paid {}", self.id);
        }
    }
}

/// Returns a path that a shell takes as it is.
fn plain(path: &Path) -> Result<&str> {
    let path = path.to_str().context("the temporary folder's name is not text")?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    ensure!(path.chars().all(plain), "{path} cannot be handed to a shell");
    Ok(path)
}

fn start() -> Result<ChildStdin> {
    Command::new("bash")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own, so that what kills the test's group leaves it alive.
        .process_group(0)
        .spawn()
        .context("bash could not be started")?
        .stdin
        .take()
        .context("the guard has no pipe")
}
