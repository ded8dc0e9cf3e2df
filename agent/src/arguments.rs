//! The command line, and what it makes of itself and the
//! configuration file.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};
use tegata_proto::id::{PoolName, RealmName};

use crate::config::Config;
use crate::viewer::Viewer;
use crate::words::Language;

/// The port of a broker where none is named.
pub const PORT: u16 = 443;

/// The thin-client program of Tegata.
#[derive(Debug, Parser)]
#[command(name = "tegata-agent", version, about, disable_help_subcommand = true)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Log in and show the desktop.
    Login(Box<LoginArguments>),
    /// Look at everything that a session needs, and say what to do about it.
    Doctor(BrokerArguments),
    /// Print the version.
    Version,
}

/// What `login` takes.
#[derive(Debug, Default, clap::Args)]
pub struct LoginArguments {
    /// What every command with a broker takes.
    #[command(flatten)]
    pub broker: BrokerArguments,
    /// The person's realm, where the broker serves several.
    #[arg(long)]
    pub realm: Option<RealmName>,
    /// The person's name.
    #[arg(long)]
    pub username: Option<String>,
    /// A file whose first line is the password.
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// The pool to go to, where several are open.
    #[arg(long)]
    pub pool: Option<PoolName>,
    /// What shows the desktop: freerdp, none, or exec:COMMAND.
    #[arg(long, value_name = "freerdp|none|exec:COMMAND")]
    pub viewer: Option<ViewerChoice>,
    /// With --viewer none: gives the desktop's stream to one connection here.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = loopback)]
    pub forward: Option<SocketAddr>,
    /// A command that shows notices above a full screen: exec:COMMAND.
    #[arg(long, value_name = "exec:COMMAND")]
    pub notice: Option<NoticeCommand>,
}

/// What every command with a broker takes; `doctor` takes nothing else.
#[derive(Debug, Default, clap::Args)]
pub struct BrokerArguments {
    /// Where the broker is; the port is 443 unless named.
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Option<Server>,
    /// The file with our authority's certificates, in PEM.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// How progress or findings are told.
    #[arg(long, value_enum, default_value_t)]
    pub progress: Progress,
    /// The language to speak.
    #[arg(long, value_name = "ja|en")]
    pub lang: Option<Language>,
    /// A configuration file with defaults for all this.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How progress is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Progress {
    /// Sentences for a person.
    #[default]
    Plain,
    /// One JSON object a line.
    Json,
}

/// Where a broker is: a name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Name or address, without brackets.
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// The text does not say where a broker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is HOST, HOST:PORT, ADDRESS or [ADDRESS]:PORT")]
pub struct InvalidServer;

impl FromStr for Server {
    type Err = InvalidServer;

    fn from_str(text: &str) -> Result<Self, InvalidServer> {
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or(InvalidServer)?;
            address.parse::<Ipv6Addr>().map_err(|_| InvalidServer)?;
            let port = match port {
                "" => None,
                port => Some(port.strip_prefix(':').ok_or(InvalidServer)?),
            };
            (address, port)
        } else if text.parse::<Ipv6Addr>().is_ok() {
            (text, None)
        } else {
            text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)))
        };
        let port = port.map_or(Ok(PORT), str::parse).map_err(|_| InvalidServer)?;
        let named = |c: char| c.is_ascii_graphic() && !"/@[]".contains(c);
        if host.is_empty() || port == 0 || !host.chars().all(named) {
            return Err(InvalidServer);
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A viewer, as it is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ViewerChoice {
    /// `freerdp`
    Freerdp,
    /// `none`
    None,
    /// `exec:` and a command with its arguments.
    Exec(Vec<String>),
}

/// The text names no viewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidViewer {
    /// It begins like none.
    #[error("is freerdp, none or exec:COMMAND")]
    Unknown,
    /// A quote is open, or there is no command.
    #[error("the command after exec: is empty or its quotes do not match")]
    Command,
}

impl FromStr for ViewerChoice {
    type Err = InvalidViewer;

    fn from_str(text: &str) -> Result<Self, InvalidViewer> {
        match (text, text.strip_prefix("exec:")) {
            ("freerdp", _) => Ok(Self::Freerdp),
            ("none", _) => Ok(Self::None),
            (_, Some(command)) => shlex::split(command)
                .filter(|words| words.first().is_some_and(|word| !word.is_empty()))
                .map(Self::Exec)
                .ok_or(InvalidViewer::Command),
            (_, None) => Err(InvalidViewer::Unknown),
        }
    }
}

/// A command that shows notices, and its arguments; never a shell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeCommand(pub Vec<String>);

/// The text is no command for notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is exec: and a command whose quotes match")]
pub struct InvalidNoticeCommand;

impl FromStr for NoticeCommand {
    type Err = InvalidNoticeCommand;

    fn from_str(text: &str) -> Result<Self, InvalidNoticeCommand> {
        match text.parse() {
            Ok(ViewerChoice::Exec(command)) => Ok(Self(command)),
            Ok(ViewerChoice::Freerdp | ViewerChoice::None) | Err(_) => Err(InvalidNoticeCommand),
        }
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "is ADDRESS:PORT".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("is a loopback address".to_owned()) }
}

/// What `login` is to do, from the command line and the configuration.
#[derive(Debug)]
pub struct Plan {
    /// Where the broker is.
    pub server: Server,
    /// The file with our authority's certificates.
    pub ca: PathBuf,
    /// The person's realm.
    pub realm: Option<RealmName>,
    /// The person's name.
    pub username: Option<String>,
    /// The file with the password.
    pub password_file: Option<PathBuf>,
    /// The pool to go to.
    pub pool: Option<PoolName>,
    /// What shows the desktop.
    pub viewer: Viewer,
    /// What shows notices.
    pub notice: Option<Vec<String>>,
    /// The language to speak.
    pub language: Language,
}

/// What is missing or does not go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Nobody said where the broker is.
    #[error("no server is named: use --server or the configuration")]
    NoServer,
    /// Nobody said whom to believe.
    #[error("no CA file is named: use --ca or the configuration")]
    NoAuthority,
    /// A port for other viewers and a viewer of our own.
    #[error("--forward goes with --viewer none only")]
    ForwardBesideViewer,
}

impl LoginArguments {
    /// Joins the command line and the configuration; the command line goes
    /// first. `locale` is that of the environment.
    ///
    /// # Errors
    ///
    /// Says what is missing.
    pub fn plan(self, config: Config, locale: &str) -> Result<Plan, PlanError> {
        let language =
            self.broker.lang.or(config.lang).unwrap_or_else(|| Language::of_locale(locale));
        let choice = self.viewer.or(config.viewer).unwrap_or(ViewerChoice::Freerdp);
        let viewer = match (choice, self.forward) {
            (ViewerChoice::Freerdp, None) => Viewer::Freerdp(config.freerdp),
            (ViewerChoice::Exec(command), None) => Viewer::Exec(command),
            (ViewerChoice::None, Some(address)) => Viewer::Forward(address),
            (ViewerChoice::None, None) => Viewer::Nothing,
            (ViewerChoice::Freerdp | ViewerChoice::Exec(_), Some(_)) => {
                return Err(PlanError::ForwardBesideViewer);
            }
        };
        Ok(Plan {
            server: self.broker.server.or(config.server).ok_or(PlanError::NoServer)?,
            ca: self.broker.ca.or(config.ca).ok_or(PlanError::NoAuthority)?,
            realm: self.realm.or(config.realm),
            username: self.username.or(config.username),
            password_file: self.password_file,
            pool: self.pool.or(config.pool),
            viewer,
            notice: self.notice.or(config.notice).map(|NoticeCommand(command)| command),
            language,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn login(words: &[&str]) -> Result<LoginArguments, clap::Error> {
        let parsed = Arguments::try_parse_from(["tegata-agent", "login"].iter().chain(words))?;
        let Command::Login(arguments) = parsed.command else { panic!("login was asked for") };
        Ok(*arguments)
    }

    fn planned(words: &[&str], config: &str) -> Result<Plan, PlanError> {
        let config = config.parse().expect("a good file");
        login(words).expect("good arguments").plan(config, "C")
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_server_is_read_in_every_spelling() {
        for (text, host, port) in [
            ("vdi.example.jp", "vdi.example.jp", 443),
            ("vdi.example.jp:8443", "vdi.example.jp", 8443),
            ("192.0.2.1:1", "192.0.2.1", 1),
            ("2001:db8::1", "2001:db8::1", 443),
            ("[2001:db8::1]", "2001:db8::1", 443),
            ("[2001:db8::1]:8443", "2001:db8::1", 8443),
        ] {
            let server: Server = text.parse().expect(text);
            assert_eq!((server.host.as_str(), server.port), (host, port), "{text}");
            assert_eq!(server.to_string().parse(), Ok(server), "{text}");
        }
        for bad in ["", ":443", "a:", "a:0", "a:65536", "a:b", "[a]:1", "[::1", "[::1]x", "a b"] {
            assert_eq!(bad.parse::<Server>(), Err(InvalidServer), "{bad}");
        }
    }

    #[test]
    fn a_command_is_split_without_a_shell() {
        let choice: ViewerChoice = r#"exec:show --title "my desk" '$HOME;rm'"#.parse().expect("ok");
        let words = ["show", "--title", "my desk", "$HOME;rm"].map(String::from).to_vec();
        assert_eq!(choice, ViewerChoice::Exec(words));
        for bad in ["exec:", "exec: ", "exec:'a", "exec:\"\""] {
            assert_eq!(bad.parse::<ViewerChoice>(), Err(InvalidViewer::Command), "{bad}");
        }
        assert_eq!("vnc".parse::<ViewerChoice>(), Err(InvalidViewer::Unknown));
    }

    #[test]
    fn notices_are_shown_by_a_command_of_the_line_or_of_the_configuration() {
        let config = "server = \"a\"\nca = \"b\"\nnotice = \"exec:show -t 9\"";
        let shown = |words: &[&str]| planned(words, config).expect("complete").notice;
        assert_eq!(shown(&[]), Some(["show", "-t", "9"].map(String::from).to_vec()));
        assert_eq!(shown(&["--notice", "exec:tell"]), Some(vec!["tell".into()]));
        for bad in ["freerdp", "none", "show", "exec:", "exec:'a"] {
            assert!(login(&["--notice", bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_forward_is_loopback_and_goes_without_a_viewer() {
        for good in ["127.0.0.1:0", "127.9.9.9:3389", "[::1]:3389"] {
            assert!(login(&["--forward", good]).is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:3389", "192.0.2.1:3389", "[::]:3389", "localhost:1", "3389"] {
            assert!(login(&["--forward", bad]).is_err(), "{bad}");
        }
        let both = ["--server=a", "--ca=b", "--forward=127.0.0.1:0"];
        assert!(matches!(planned(&both, ""), Err(PlanError::ForwardBesideViewer)));
    }

    #[test]
    fn the_command_line_goes_before_the_configuration() {
        let config = "server = \"a\"\nca = \"b\"\npool = \"keiri\"\nlang = \"ja\"";
        let plan = planned(&["--pool", "soumu"], config).expect("complete");
        assert_eq!(plan.server.host, "a");
        assert_eq!(plan.pool.as_ref().map(PoolName::as_str), Some("soumu"));
        assert_eq!(plan.language, Language::Ja);
        assert!(matches!(plan.viewer, Viewer::Freerdp(_)));
    }

    #[test]
    fn a_server_and_an_authority_are_needed() {
        assert!(matches!(planned(&["--ca=b"], ""), Err(PlanError::NoServer)));
        assert!(matches!(planned(&["--server=a"], ""), Err(PlanError::NoAuthority)));
    }
}
