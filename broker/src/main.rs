//! The broker's program.

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tegata_broker::adapters::file::hash_password;
use tegata_broker::app::{App, Config, export_audit, raise_descriptor_limit};
use tegata_broker::init::init;
use tegata_broker::ports::directory::NonEmptyPassword;
use tegata_edge::telemetry;
use tegata_proto::encoding::Secret;
use tokio::signal::unix::{SignalKind, signal};

/// Exit number of wrong arguments (sysexits.h, `EX_USAGE`).
const USAGE: u8 = 64;

/// Exit number of a wrong configuration (sysexits.h, `EX_CONFIG`).
const BAD_CONFIG: u8 = 78;

/// Exit number of anything that should not have happened.
const FAILED: u8 = 70;

#[derive(Parser)]
#[command(
    name = "tegata-broker",
    about = "Tegata's broker and gateway",
    disable_version_flag = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run until SIGTERM or Ctrl-C.
    Run {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Name everything that is wrong with a configuration, and open nothing.
    CheckConfig {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make keys, a certificate authority, an API key and a sample configuration.
    Init {
        /// The folder to make.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Print the audit trail, one JSON object a line; beside a running broker too.
    AuditExport {
        /// The configuration.
        #[arg(long)]
        config: PathBuf,
    },
    /// Read a password and print its hash for a file of users.
    HashPassword,
    /// Print the version and the commit that it was built from.
    Version,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _nobody_reads_it = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Run { config } => with_config(&config, run),
        Command::CheckConfig { config } => with_config(&config, |_| Ok(())),
        Command::AuditExport { config } => with_config(&config, |config| print_audit(&config)),
        Command::Init { dir } => reported(init(&dir).map(|()| {
            println!(
                "Made {0}. Edit {0}/broker.toml, then: tegata-broker run --config {0}/broker.toml",
                dir.display()
            );
            println!(
                "The first API key is in {}/api.key; it is stored nowhere else.",
                dir.display()
            );
        })),
        Command::HashPassword => reported(print_hash()),
        Command::Version => {
            println!("tegata-broker {} {}", env!("CARGO_PKG_VERSION"), env!("TEGATA_COMMIT"));
            ExitCode::SUCCESS
        }
    }
}

fn with_config(path: &Path, then: impl FnOnce(Config) -> anyhow::Result<()>) -> ExitCode {
    match Config::read(path) {
        Ok(config) => reported(then(config)),
        Err(faults) => {
            for fault in faults.0 {
                eprintln!("{}: {fault}", path.display());
            }
            ExitCode::from(BAD_CONFIG)
        }
    }
}

fn reported(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tegata-broker: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

fn run(config: Config) -> anyhow::Result<()> {
    forbid_core_dumps()?;
    telemetry::install(config.log_format, &config.log_filter)?;
    let open_files =
        raise_descriptor_limit().context("the limit of open files cannot be raised")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let app = App::build(config, open_files).await?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(app.run(stop).await?)
    })
}

fn print_audit(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    Ok(runtime.block_on(export_audit(config, &mut out))?)
}

/// Keeps passwords and keys out of core files (invariant I18).
fn forbid_core_dumps() -> anyhow::Result<()> {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

    let none = Rlimit { current: Some(0), maximum: Some(0) };
    setrlimit(Resource::Core, none).context("core dumps cannot be forbidden")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("core dumps cannot be forbidden")
}

fn print_hash() -> anyhow::Result<()> {
    let text = if std::io::stdin().is_terminal() {
        let first = rpassword::prompt_password("Password: ")?;
        let second = rpassword::prompt_password("Again: ")?;
        anyhow::ensure!(first == second, "the two are not the same");
        first
    } else {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line)?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    let password = NonEmptyPassword::new(Secret::new(text))?;
    println!("{}", hash_password(&password)?);
    Ok(())
}
