//! `FreeRDP`: where it is, what it is told, what its exit means.
//!
//! Debian 12 has 2.11 as `xfreerdp`, later releases have 3.x as `xfreerdp3`. The
//! two take a secret in different ways and spell the keyboard differently.

use std::fmt::Write as _;
use std::path::PathBuf;

use tegata_proto::code::Code;
use tegata_proto::encoding::Sha256;
use tegata_proto::policy::Security;

use crate::viewer::Scene;
use crate::viewer::process::{SECRET_FD, SOCKET_FD, SecretLines};
use crate::viewer::redirection::{self, Drive, UsbDevice};

/// The names under which it is looked for, in this order.
pub const PROGRAMS: [&str; 2] = ["xfreerdp", "xfreerdp3"];

/// Arguments that a site may add: they change how the picture is carried and
/// how the window behaves, and nothing about security, devices or files.
pub const EXTRA_ALLOWED: &[&str] = &[
    "/bpp:16",
    "/bpp:24",
    "/bpp:32",
    "/gfx",
    "/gfx:RFX",
    "/gfx:AVC420",
    "/gfx:AVC444",
    "/rfx",
    "/network:auto",
    "/network:lan",
    "/network:wan",
    "/network:broadband",
    "/network:broadband-high",
    "/network:broadband-low",
    "/network:modem",
    "/dynamic-resolution",
    "/smart-sizing",
    "/floatbar",
    "+fonts",
    "-fonts",
    "+aero",
    "-aero",
    "+themes",
    "-themes",
    "+wallpaper",
    "-wallpaper",
    "+window-drag",
    "-window-drag",
    "+menu-anims",
    "-menu-anims",
    "+grab-keyboard",
    "-grab-keyboard",
    "+decorations",
    "-decorations",
    "+compression",
    "-compression",
];

/// How a `FreeRDP` wants to be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grammar {
    /// 2.x.
    Two,
    /// 3.x.
    Three,
}

/// What the site or the person wants of the window and the keyboard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How large the desktop is.
    pub screen: Screen,
    /// Windows keyboard layout id, as in `0x411` for Japanese.
    pub keyboard_layout: Option<u32>,
    /// Keyboard type, as in 7 for a Japanese one.
    pub keyboard_type: Option<u32>,
    /// Keyboard subtype, as in 2 for a 106-key one.
    pub keyboard_subtype: Option<u32>,
    /// How much larger everything is drawn, in percent: 100, 140 or 180.
    pub scale: Option<u32>,
    /// Whether sound is played where the pool allows it.
    pub sound: bool,
    /// Whether the clipboard is shared where the pool allows it.
    pub clipboard: bool,
    /// Whether printers are shared where the pool allows it.
    pub printer: bool,
    /// The folder that is shared where the pool allows drives.
    pub drive: Option<Drive>,
    /// The USB devices that are shared where the pool allows them.
    pub usb: Vec<UsbDevice>,
    /// Arguments out of [`EXTRA_ALLOWED`].
    pub extra: Vec<String>,
}

/// How large the desktop is on the thin client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Screen {
    /// The whole screen.
    Full,
    /// All of these monitors; every one where none is named.
    Monitors(Vec<u32>),
    /// A window.
    Window {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
}

impl Default for Options {
    fn default() -> Self {
        Self {
            screen: Screen::Full,
            keyboard_layout: None,
            keyboard_type: None,
            keyboard_subtype: None,
            scale: None,
            sound: true,
            clipboard: true,
            printer: true,
            drive: None,
            usb: Vec::new(),
            extra: Vec::new(),
        }
    }
}

/// Finds `FreeRDP` in the search path.
pub(crate) fn find() -> Option<(PathBuf, Grammar)> {
    let path = std::env::var_os("PATH")?;
    PROGRAMS.iter().zip([Grammar::Two, Grammar::Three]).find_map(|(name, grammar)| {
        let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|p| p.is_file());
        found.map(|program| (program, grammar))
    })
}

/// What `FreeRDP` is told, openly and by a pipe.
pub(super) struct Told {
    pub(super) arguments: Vec<String>,
    /// For 2.x the answers to its prompts, on standard input; for 3.x all
    /// arguments, on [`SECRET_FD`].
    pub(super) secret_lines: Option<SecretLines>,
}

/// Says how to show this desktop. A scene without RDP is shown by no `FreeRDP`
/// and gives no security argument, which `FreeRDP` then refuses.
pub(super) fn arguments(options: &Options, grammar: Grammar, scene: &Scene) -> Told {
    let mut arguments = vec![format!("/v:|:{SOCKET_FD}")];
    if let Some(rdp) = scene.rdp {
        arguments.push(format!("/cert:fingerprint:sha256:{}", colons(rdp.certificate_sha256)));
        arguments.push(match rdp.security {
            Security::Tls => "/sec:tls".into(),
            Security::Nla => "/sec:nla".into(),
        });
    }
    if let Some(user) = &scene.user {
        let (domain, user) = user.split_once('\\').unwrap_or(("", user));
        // Without a domain 2.11 asks for one and takes the password's line for it.
        arguments.push(format!("/d:{domain}"));
        arguments.push(format!("/u:{user}"));
    }
    arguments.extend(window(options));
    arguments.extend(keyboard(options, grammar));
    arguments.extend(redirection::arguments(options, &scene.policy));
    // The only word of the thin client's that a desktop sees before anybody logs on.
    arguments
        .extend(scene.policy.profile.map(|name| format!("/client-hostname:{}", name.as_str())));
    arguments.push("/log-level:WARN".into());
    arguments.extend(options.extra.iter().cloned());
    let Some(secret) = &scene.secret else { return Told { arguments, secret_lines: None } };
    match grammar {
        Grammar::Two => {
            // `force` asks for the password at once, before it connects; without
            // it 2.11 asks only where CredSSP needs one.
            arguments.push("/from-stdin:force".into());
            let mut lines = SecretLines::new(Vec::with_capacity(secret.expose().len() + 1));
            lines.extend_from_slice(secret.expose().as_bytes());
            lines.push(b'\n');
            Told { arguments, secret_lines: Some(lines) }
        }
        Grammar::Three => {
            // One argument a line, and none beside `/args-from` itself.
            let length: usize = arguments.iter().map(|argument| argument.len() + 1).sum();
            let capacity = length + "/p:\n".len() + secret.expose().len();
            let mut lines = SecretLines::new(Vec::with_capacity(capacity));
            for argument in arguments {
                lines.extend_from_slice(argument.as_bytes());
                lines.push(b'\n');
            }
            lines.extend_from_slice(b"/p:");
            lines.extend_from_slice(secret.expose().as_bytes());
            lines.push(b'\n');
            let arguments = vec![format!("/args-from:fd:{SECRET_FD}")];
            Told { arguments, secret_lines: Some(lines) }
        }
    }
}

fn window(options: &Options) -> Vec<String> {
    let mut arguments = match &options.screen {
        Screen::Full => vec!["/f".into()],
        Screen::Monitors(ids) => {
            let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
            let which = (!ids.is_empty()).then(|| format!("/monitors:{}", ids.join(",")));
            ["/f".into(), "/multimon".into()].into_iter().chain(which).collect()
        }
        Screen::Window { width, height } => vec![format!("/size:{width}x{height}")],
    };
    arguments.extend(options.scale.map(|percent| format!("/scale:{percent}")));
    arguments
}

fn keyboard(options: &Options, grammar: Grammar) -> Vec<String> {
    let Options { keyboard_layout, keyboard_type, keyboard_subtype, .. } = options;
    let layout = keyboard_layout.map(|layout| format!("0x{layout:08x}"));
    match grammar {
        Grammar::Two => [
            layout.map(|layout| format!("/kbd:{layout}")),
            keyboard_type.map(|kind| format!("/kbd-type:{kind}")),
            keyboard_subtype.map(|kind| format!("/kbd-subtype:{kind}")),
        ]
        .into_iter()
        .flatten()
        .collect(),
        Grammar::Three => {
            let parts: Vec<_> = [
                layout.map(|layout| format!("layout:{layout}")),
                keyboard_type.map(|kind| format!("type:{kind}")),
                keyboard_subtype.map(|kind| format!("subtype:{kind}")),
            ]
            .into_iter()
            .flatten()
            .collect();
            if parts.is_empty() { vec![] } else { vec![format!("/kbd:{}", parts.join(","))] }
        }
    }
}

fn colons(pin: Sha256) -> String {
    pin.0.iter().enumerate().fold(String::new(), |mut text, (at, byte)| {
        let colon = if at == 0 { "" } else { ":" };
        let _ = write!(text, "{colon}{byte:02x}");
        text
    })
}

/// Tells whether an exit means that the desktop's security was not as promised:
/// `XF_EXIT_NEGO_FAILURE` and `XF_EXIT_TLS_CONNECT_FAILED`.
pub(super) fn is_pin_mismatch(number: i32) -> bool {
    matches!(number, 133 | 143)
}

/// Says what an exit number means.
///
/// The numbers are `XF_EXIT_CODE` of `client/X11/xfreerdp.h` in 2.x; those below
/// 13 are the server's Set Error Info (MS-RDPBCGR §2.2.5.1.1). Seen with 2.11: 0
/// when the window is closed, 12 when the desktop's side logs off, 131 when the
/// stream is cut, 133 when the desktop chooses standard security, 143 at a wrong
/// pin.
pub(super) fn meaning(number: i32) -> Code {
    match number {
        number if is_pin_mismatch(number) => Code::PinMismatch,
        2 | 12 => Code::LoggedOff,
        3 => Code::IdleLimit,
        4 => Code::TimeLimit,
        5 => Code::TakenOver,
        // Authentication and account failures, which only NLA can tell.
        132 | 134 | 135 | 148..=159 => Code::Refused,
        // Out of memory, arguments, before the connection.
        6 | 128 | 129 | 136 => Code::Internal,
        // Protocol, transport, MCS, licence: the desktop is there and was lost.
        16..=127 | 130 | 131 | 137..=142 | 147 => Code::DesktopLost,
        // 0 the window was closed, 1 and 11 disconnected by tool or person.
        _ => Code::Disconnected,
    }
}

#[cfg(test)]
mod tests {
    use tegata_proto::encoding::Secret;
    use tegata_proto::policy::Policy;

    use super::*;
    use crate::viewer::Rdp;

    const PASSWORD: &str = "correct horse";

    fn scene(security: Security) -> Scene {
        Scene {
            rdp: Some(Rdp { security, certificate_sha256: Sha256([0xab; 32]) }),
            user: Some("sato".into()),
            secret: Some(Secret::new(PASSWORD)),
            policy: Policy::default(),
        }
    }

    #[test]
    fn the_desktop_is_pinned_its_security_named_and_the_secret_not_an_argument() {
        for (security, text) in [(Security::Tls, "/sec:tls"), (Security::Nla, "/sec:nla")] {
            let told = arguments(&Options::default(), Grammar::Two, &scene(security));
            let pin = format!("/cert:fingerprint:sha256:{}", ["ab"; 32].join(":"));
            for wanted in ["/v:|:3", &pin, text, "/d:", "/u:sato", "/from-stdin:force"] {
                assert!(told.arguments.iter().any(|argument| argument == wanted), "{wanted}");
            }
            assert!(!told.arguments.iter().any(|argument| argument.contains(PASSWORD)));
            let lines = told.secret_lines.expect("a secret");
            assert_eq!(&lines[..], format!("{PASSWORD}\n").as_bytes());
        }
    }

    #[test]
    fn three_takes_everything_by_the_pipe() {
        let told = arguments(&Options::default(), Grammar::Three, &scene(Security::Tls));
        assert_eq!(told.arguments, ["/args-from:fd:4"]);
        let lines = told.secret_lines.expect("a secret");
        let text = std::str::from_utf8(&lines).expect("UTF-8");
        assert!(text.starts_with("/v:|:3\n/cert:fingerprint:sha256:ab:"), "{text}");
        assert!(text.ends_with(&format!("\n/p:{PASSWORD}\n")), "{text}");
    }

    #[test]
    fn without_a_secret_the_desktop_asks() {
        let scene = Scene { secret: None, ..scene(Security::Tls) };
        for grammar in [Grammar::Two, Grammar::Three] {
            let told = arguments(&Options::default(), grammar, &scene);
            assert!(told.secret_lines.is_none());
            assert!(!told.arguments.iter().any(|argument| argument.contains("from")));
        }
    }

    #[test]
    fn a_domain_before_the_user_is_told_apart() {
        let scene = Scene { user: Some("HONSHO\\sato".into()), ..scene(Security::Nla) };
        let told = arguments(&Options::default(), Grammar::Two, &scene);
        assert!(told.arguments.contains(&"/d:HONSHO".into()));
        assert!(told.arguments.contains(&"/u:sato".into()));
    }

    #[test]
    fn a_profile_is_the_clients_name_and_without_one_the_machines_own_is() {
        let names = |profile: Option<&str>| {
            let profile = profile.map(|name| name.parse().expect("a profile"));
            let scene =
                Scene { policy: Policy { profile, ..Policy::default() }, ..scene(Security::Tls) };
            let told = arguments(&Options::default(), Grammar::Two, &scene).arguments;
            told.into_iter().filter(|one| one.starts_with("/client-hostname")).collect::<Vec<_>>()
        };
        assert_eq!(names(Some("telework")), ["/client-hostname:telework"]);
        assert_eq!(names(None), [""; 0]);
    }

    #[test]
    fn keyboard_and_screen_are_spelt_as_each_release_wants() {
        let options = Options {
            screen: Screen::Monitors(vec![0, 2]),
            keyboard_layout: Some(0x411),
            keyboard_type: Some(7),
            keyboard_subtype: Some(2),
            scale: Some(140),
            extra: vec!["/bpp:32".into()],
            ..Options::default()
        };
        let scene = Scene { secret: None, ..scene(Security::Tls) };
        let told = |grammar| arguments(&options, grammar, &scene).arguments.join(" ");
        let two = told(Grammar::Two);
        let screen = "/f /multimon /monitors:0,2 /scale:140";
        assert!(two.contains(&format!("{screen} /kbd:0x00000411 /kbd-type:7 /kbd-subtype:2")));
        assert!(two.ends_with(" /bpp:32"), "{two}");
        let three = told(Grammar::Three);
        assert!(three.contains(&format!("{screen} /kbd:layout:0x00000411,type:7,subtype:2")));
        let window =
            Options { screen: Screen::Window { width: 800, height: 600 }, ..Options::default() };
        let told = arguments(&window, Grammar::Two, &scene).arguments;
        assert!(told.contains(&"/size:800x600".into()) && !told.contains(&"/f".into()));
    }

    #[test]
    fn an_exit_says_what_became_of_the_session() {
        for (number, code) in [
            (0, Code::Disconnected),
            (1, Code::Disconnected),
            (2, Code::LoggedOff),
            (11, Code::Disconnected),
            (12, Code::LoggedOff),
            (3, Code::IdleLimit),
            (5, Code::TakenOver),
            (131, Code::DesktopLost),
            (132, Code::Refused),
            (133, Code::PinMismatch),
            (143, Code::PinMismatch),
            (128, Code::Internal),
            (255, Code::Disconnected),
        ] {
            assert_eq!(meaning(number), code, "{number}");
        }
    }
}
