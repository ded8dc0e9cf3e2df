//! `tegata-agent`: logs a person in and shows their desktop.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser as _;
use tegata_agent::announcer::Announced;
use tegata_agent::arguments::{
    Arguments, BrokerArguments, Command, LoginArguments, Plan, Progress,
};
use tegata_agent::config::Config;
use tegata_agent::doctor::{self, Examination, Report as _, Told};
use tegata_agent::login::VERSION;
use tegata_agent::memory;
use tegata_agent::password;
use tegata_agent::progress::{Event, Json, Lines, Person, Plain};
use tegata_agent::run::Run;
use tegata_agent::words::{Language, Phrase};
use tegata_agent::{Agent, Authority, Wishes};
use tegata_proto::code::Code;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// Exit of a command line that is not understood (`sysexits.h`).
const EX_USAGE: u8 = 64;

/// Exit of a configuration file that is not understood (`sysexits.h`).
const EX_CONFIG: u8 = 78;

/// Names the variable that sets what is logged on standard error.
const LOG: &str = "TEGATA_LOG";

/// Threads of the run: one carries the desktop, one is free for what blocks it.
const WORKERS: usize = 2;

/// How long a thread that waits for the terminal may hold up the exit.
const STRAGGLERS: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let start = Instant::now();
    memory::keep_private();
    let filter = EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("warn"));
    // What cannot be written is lost: telling of that panics where nobody reads.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    log.log_internal_errors(false).init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EX_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    match arguments.command {
        Command::Version => {
            let _ = writeln!(io::stdout(), "tegata-agent {VERSION} {}", env!("TEGATA_COMMIT"));
            ExitCode::SUCCESS
        }
        Command::Login(arguments) => login(*arguments, start),
        Command::Doctor(arguments) => doctor(arguments),
    }
}

/// Says what is wrong, to whoever still reads it.
fn complain(text: impl Display) {
    let _ = writeln!(io::stderr(), "tegata-agent: {text}");
}

/// Reads a configuration file, where one is named.
fn configuration(path: Option<&PathBuf>) -> anyhow::Result<Config> {
    let text = path.map(std::fs::read_to_string).transpose();
    let text = text.context("the configuration cannot be read")?;
    Ok(text.unwrap_or_default().parse()?)
}

/// Returns the locale of the environment.
fn locale() -> String {
    // POSIX: the first of these that is set and not empty counts.
    ["LC_ALL", "LC_MESSAGES", "LANG"]
        .into_iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|value| !value.is_empty())
        .unwrap_or_default()
}

fn login(arguments: LoginArguments, start: Instant) -> ExitCode {
    let progress = arguments.broker.progress;
    let config = match configuration(arguments.broker.config.as_ref()) {
        Ok(config) => config,
        Err(error) => {
            unusable(progress, start, format!("{error:#}"));
            return EX_CONFIG.into();
        }
    };
    let plan = match arguments.plan(config, &locale()) {
        Ok(plan) => plan,
        Err(error) => {
            unusable(progress, start, error.to_string());
            return Code::Configuration.exit().into();
        }
    };
    let language = plan.language;
    // Whoever reads them may stop, and the desktop goes on.
    let mut lines = match Lines::to(io::stdout()) {
        Ok(lines) => lines,
        Err(error) => {
            complain(error);
            return Code::Internal.exit().into();
        }
    };
    let code = match progress {
        Progress::Plain => carry_out(plan, Plain::new(&mut lines, language)),
        Progress::Json => carry_out(plan, Json::new(&mut lines, start)),
    };
    lines.finish();
    code.exit().into()
}

/// Says why a run does not begin; to a program as the one event that it has.
fn unusable(progress: Progress, start: Instant, detail: String) {
    complain(&detail);
    if progress == Progress::Json {
        let (code, detail) = (Code::Configuration, Some(detail));
        let event = Event::Error { code, retry_after_ms: None, clock_suspect: false, detail };
        Json::new(io::stdout(), start).tell(&event);
    }
}

fn carry_out<P: Person>(mut plan: Plan, person: P) -> Code {
    let mut person = Announced::new(person, plan.notice.take(), plan.language);
    let code = run(plan, &mut person);
    person.finish();
    code
}

fn run<P: Person>(plan: Plan, person: &mut P) -> Code {
    match prepare(plan) {
        Ok((runtime, agent, run)) => {
            let code = runtime.block_on(async {
                let stop = CancellationToken::new();
                tokio::select! {
                    code = run.carry_out(&agent, person, &stop) => code,
                    never = signals(&stop) => match never {},
                }
            });
            runtime.shutdown_timeout(STRAGGLERS);
            code
        }
        Err((code, error)) => {
            let detail = Some(format!("{error:#}"));
            person.tell(&Event::Error { code, retry_after_ms: None, clock_suspect: false, detail });
            code
        }
    }
}

/// Everything that needs no network, the prompts included: so that no broker
/// waits for a person who types, and an interrupt at a prompt just ends it.
fn prepare(plan: Plan) -> Result<(Runtime, Agent, Run), (Code, anyhow::Error)> {
    let unusable = |error: anyhow::Error| (Code::Configuration, error);
    let pem = std::fs::read(&plan.ca)
        .with_context(|| format!("the CA file {} cannot be read", plan.ca.display()))
        .map_err(unusable)?;
    let authority = Authority::from_pem(&pem)
        .with_context(|| format!("the CA file {} cannot be used", plan.ca.display()))
        .map_err(unusable)?;
    let name = match plan.username {
        Some(name) => name,
        None => password::name_from_terminal(plan.language).map_err(|e| unusable(e.into()))?,
    };
    let password = match &plan.password_file {
        Some(path) => {
            let read = password::from_file(path).map_err(|error| unusable(error.into()))?;
            if read.is_exposed {
                let path = path.display().to_string();
                complain(Phrase::ExposedFile.with(plan.language, &path));
            }
            read.password
        }
        None => password::from_terminal(plan.language).map_err(|e| unusable(e.into()))?,
    };
    // An empty password never leaves this machine; the answer is the one that
    // any wrong password gets.
    let wishes = Wishes::new(name, password).map_err(|error| (Code::Refused, error.into()))?;
    let wishes = wishes.with_realm(plan.realm).with_pool(plan.pool);

    let broken = |error: io::Error| (Code::Internal, anyhow::Error::from(error));
    let runtime = runtime().map_err(broken)?;
    let agent = {
        let _inside = runtime.enter();
        Agent::new(authority).map_err(broken)?.with_locale(plan.language.tag())
    };
    Ok((runtime, agent, Run { server: plan.server, viewer: plan.viewer, wishes }))
}

fn doctor(arguments: BrokerArguments) -> ExitCode {
    let mut config = match configuration(arguments.config.as_ref()) {
        Ok(config) => config,
        Err(error) => {
            complain(format_args!("{error:#}"));
            return EX_CONFIG.into();
        }
    };
    let language = arguments.lang.or(config.lang);
    let language = language.unwrap_or_else(|| Language::of_locale(&locale()));
    let ca = arguments.ca.or(config.ca.take());
    let (Some(ca), Some(examination)) = (ca, Examination::new(arguments.server, config)) else {
        let missing = "name a server and a CA file, here or in the configuration";
        complain(missing);
        return Code::Configuration.exit().into();
    };
    let is_json = arguments.progress == Progress::Json;
    let mut report = Told::new(io::stdout(), language, is_json);
    let authority = match doctor::authority(&ca) {
        Ok(authority) => authority,
        Err(finding) => {
            report.add(finding);
            return Code::Configuration.exit().into();
        }
    };
    let examined = runtime().and_then(|runtime| {
        let agent = {
            let _inside = runtime.enter();
            Agent::new(authority)?.with_locale(language.tag())
        };
        runtime.block_on(examination.carry_out(&agent, &mut report));
        runtime.shutdown_timeout(STRAGGLERS);
        Ok(())
    });
    if let Err(error) = examined {
        complain(error);
        return Code::Internal.exit().into();
    }
    report.failure().map_or(ExitCode::SUCCESS, |code| code.exit().into())
}

fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()
}

/// Turns the signals that ask for an end into one; a second one is no different.
async fn signals(stop: &CancellationToken) -> std::convert::Infallible {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let mut waiting: Vec<_> = kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
    let any = std::future::poll_fn(|cx| {
        if waiting.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    });
    any.await;
    stop.cancel();
    std::future::pending().await
}
