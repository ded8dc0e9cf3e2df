//! Embedded RDP desktops: a colour, a name and a clock each, as many in one process as asked for.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;
use tegata_desktop::desktop::{Account, Desktop, Security, Wish};
use tegata_desktop::identity::Identity;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};

/// Serves RDP desktops until it is told to end (SIGTERM or Ctrl-C).
///
/// Prints one line of JSON for each desktop once it listens.
#[derive(Parser)]
struct Arguments {
    /// A desktop, as NAME=#rrggbb@ADDRESS:PORT; port 0 picks a free one. May be repeated.
    #[arg(long = "desktop", required = true)]
    desktops: Vec<Wish>,
    /// How connections are secured.
    #[arg(long, value_enum, default_value = "tls", requires_if("nla", "user"))]
    security: Security,
    /// The only user to let in; without it, everybody with any password.
    #[arg(long, requires = "password_file")]
    user: Option<String>,
    /// A file with that user's password; one line end at its end is not part of it.
    #[arg(long, requires = "user")]
    password_file: Option<PathBuf>,
    /// The certificate of all the desktops (PEM); without it, a new self-signed one for each.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// The certificate's private key (PEM).
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

/// What is printed once a desktop listens.
#[derive(Serialize)]
struct Ready<'a> {
    name: &'a str,
    listening: SocketAddr,
    certificate_sha256: String,
}

impl Arguments {
    fn account(&self) -> anyhow::Result<Option<Account>> {
        let (Some(user), Some(file)) = (&self.user, &self.password_file) else { return Ok(None) };
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let password = text.strip_suffix('\n').unwrap_or(&text).to_owned();
        Ok(Some(Account { user: user.clone(), password }))
    }

    fn identity(&self, name: &str) -> anyhow::Result<Identity> {
        match (&self.certificate, &self.key) {
            (Some(certificate), Some(key)) => Identity::read(certificate, key),
            _ => Identity::self_signed(name),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let account = arguments.account()?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")?;

    let mut desktops = JoinSet::new();
    let local = LocalSet::new();
    for wish in &arguments.desktops {
        let identity = arguments.identity(&wish.name)?;
        let desktop =
            Desktop::open(wish.clone(), &identity, arguments.security, account.clone()).await?;
        let ready = Ready {
            name: &wish.name,
            listening: desktop.address(),
            certificate_sha256: identity.fingerprint().to_string(),
        };
        println!("{}", serde_json::to_string(&ready).context("cannot print what is ready")?);
        desktops.spawn_local_on(desktop.serve(), &local);
    }
    std::io::stdout().flush().context("cannot print what is ready")?;

    local
        .run_until(async {
            tokio::select! {
                _told = terminate.recv() => Ok(()),
                _told = interrupt.recv() => Ok(()),
                ended = desktops.join_next() => Err(anyhow::anyhow!("a desktop ended: {ended:?}")),
            }
        })
        .await
}
