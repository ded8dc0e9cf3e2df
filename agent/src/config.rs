//! The agent's configuration file: defaults of a site for its thin clients.
//!
//! Everything in it may be left out; what the command line says goes first. All
//! faults are reported at once, each with its key.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use tegata_proto::id::{PoolName, RealmName};

use crate::arguments::{NoticeCommand, Server, ViewerChoice};
use crate::viewer::freerdp::{EXTRA_ALLOWED, Options, Screen};
use crate::viewer::redirection::{Drive, USB_MAX};
use crate::words::Language;

/// Smallest and largest side of a window, in pixels.
const SIDE: std::ops::RangeInclusive<u32> = 200..=8192;

/// Most monitors that can be named.
const MONITORS_MAX: usize = 16;

/// What `FreeRDP` can scale to, in percent.
const SCALES: [u32; 3] = [100, 140, 180];

/// Keyboard types that Windows knows (MS-RDPBCGR §2.2.1.3.2 `keyboardType`).
const KEYBOARD_TYPES: std::ops::RangeInclusive<u32> = 1..=7;

/// Subtypes are one byte wide in practice.
const KEYBOARD_SUBTYPES: std::ops::RangeInclusive<u32> = 0..=255;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawConfig {
    server: Option<String>,
    ca: Option<PathBuf>,
    realm: Option<String>,
    username: Option<String>,
    pool: Option<String>,
    lang: Option<String>,
    notice: Option<String>,
    viewer: RawViewer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawViewer {
    program: Option<String>,
    keyboard_layout: Option<String>,
    keyboard_type: Option<u32>,
    keyboard_subtype: Option<u32>,
    size: Option<String>,
    monitors: Option<Vec<u32>>,
    scale: Option<u32>,
    sound: Option<bool>,
    clipboard: Option<bool>,
    printer: Option<bool>,
    drive: Option<RawDrive>,
    usb: Vec<String>,
    extra: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDrive {
    name: String,
    folder: String,
}

/// What a configuration file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Where the broker is.
    pub server: Option<Server>,
    /// The file with our authority's certificates.
    pub ca: Option<PathBuf>,
    /// The person's realm.
    pub realm: Option<RealmName>,
    /// The person's name.
    pub username: Option<String>,
    /// The pool to go to.
    pub pool: Option<PoolName>,
    /// The language to speak.
    pub lang: Option<Language>,
    /// What shows notices above a full screen.
    pub notice: Option<NoticeCommand>,
    /// The viewer to use.
    pub viewer: Option<ViewerChoice>,
    /// What `FreeRDP` is told.
    pub freerdp: Options,
}

/// What is wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is not TOML, or not with these keys and types.
    #[error("the configuration cannot be read")]
    Unreadable(#[source] toml::de::Error),
    /// Values cannot be used.
    #[error("the configuration has faults: {}", .0.join("; "))]
    Faults(Vec<String>),
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        toml::from_str::<RawConfig>(text).map_err(ConfigError::Unreadable)?.try_into()
    }
}

/// Collects faults while values are made.
#[derive(Default)]
struct Faults(Vec<String>);

impl Faults {
    fn parsed<T: FromStr<Err: ToString>>(&mut self, key: &str, text: Option<String>) -> Option<T> {
        let parsed = text?.parse::<T>();
        parsed.map_err(|error| self.0.push(format!("{key}: {}", error.to_string()))).ok()
    }

    fn demand(&mut self, key: &str, fits: bool, demand: &str) {
        if !fits {
            self.0.push(format!("{key}: {demand}"));
        }
    }
}

impl TryFrom<RawConfig> for Config {
    type Error = ConfigError;

    fn try_from(raw: RawConfig) -> Result<Self, ConfigError> {
        let mut faults = Faults::default();
        let mut raw_viewer = raw.viewer;
        let config = Self {
            server: faults.parsed("server", raw.server),
            ca: raw.ca,
            realm: faults.parsed("realm", raw.realm),
            username: raw.username,
            pool: faults.parsed("pool", raw.pool),
            lang: faults.parsed("lang", raw.lang),
            notice: faults.parsed("notice", raw.notice),
            viewer: faults.parsed("viewer.program", raw_viewer.program.take()),
            freerdp: options(raw_viewer, &mut faults),
        };
        if faults.0.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults.0)) }
    }
}

fn options(raw: RawViewer, faults: &mut Faults) -> Options {
    let default = Options::default();
    let within = |value: Option<u32>, range: &std::ops::RangeInclusive<u32>| {
        value.is_none_or(|value| range.contains(&value))
    };
    faults.demand("viewer.keyboard_type", within(raw.keyboard_type, &KEYBOARD_TYPES), "is 1 to 7");
    faults.demand(
        "viewer.keyboard_subtype",
        within(raw.keyboard_subtype, &KEYBOARD_SUBTYPES),
        "is 0 to 255",
    );
    faults.demand(
        "viewer.scale",
        raw.scale.is_none_or(|scale| SCALES.contains(&scale)),
        "is 100, 140 or 180",
    );
    for argument in &raw.extra {
        faults.demand(
            "viewer.extra",
            EXTRA_ALLOWED.contains(&argument.as_str()),
            &format!("{argument:?} is not an argument that may be added"),
        );
    }
    faults.demand("viewer.usb", raw.usb.len() <= USB_MAX, "names 16 devices at most");
    Options {
        screen: screen(raw.size, raw.monitors, faults),
        keyboard_layout: faults
            .parsed::<Layout>("viewer.keyboard_layout", raw.keyboard_layout)
            .map(|layout| layout.0),
        keyboard_type: raw.keyboard_type,
        keyboard_subtype: raw.keyboard_subtype,
        scale: raw.scale,
        sound: raw.sound.unwrap_or(default.sound),
        clipboard: raw.clipboard.unwrap_or(default.clipboard),
        printer: raw.printer.unwrap_or(default.printer),
        drive: raw.drive.and_then(|RawDrive { name, folder }| {
            let drive = Drive::new(name, folder);
            drive.map_err(|error| faults.0.push(format!("viewer.drive: {error}"))).ok()
        }),
        usb: raw.usb.into_iter().filter_map(|id| faults.parsed("viewer.usb", Some(id))).collect(),
        extra: raw.extra,
    }
}

fn screen(size: Option<String>, monitors: Option<Vec<u32>>, faults: &mut Faults) -> Screen {
    faults.demand(
        "viewer.size",
        size.is_none() || monitors.is_none(),
        "cannot be had together with viewer.monitors",
    );
    if let Some(monitors) = monitors {
        let fits = monitors.len() <= MONITORS_MAX;
        faults.demand("viewer.monitors", fits, "names 16 monitors at most");
        return Screen::Monitors(monitors);
    }
    let size = faults.parsed::<Size>("viewer.size", size);
    size.map_or(Screen::Full, |Size { width, height }| Screen::Window { width, height })
}

/// A Windows keyboard layout id, as in `0x00000411`.
struct Layout(u32);

impl FromStr for Layout {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("0x").filter(|digits| (1..=8).contains(&digits.len()));
        digits
            .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .map(Self)
            .ok_or("is a Windows keyboard layout, as in \"0x00000411\"")
    }
}

/// A window's size, as in `1280x1024`.
struct Size {
    width: u32,
    height: u32,
}

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let side = |text: &str| text.parse().ok().filter(|side| SIDE.contains(side));
        text.split_once('x')
            .and_then(|(width, height)| Some(Self { width: side(width)?, height: side(height)? }))
            .ok_or("is WIDTHxHEIGHT, each 200 to 8192")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_may_be_left_out() {
        assert_eq!("".parse::<Config>().expect("an empty file"), Config::default());
    }

    #[test]
    fn what_is_written_is_read() {
        let text = r#"
            server = "vdi.example.jp"
            ca = "/etc/tegata/ca.pem"
            realm = "honsho"
            pool = "keiri"
            lang = "ja"
            [viewer]
            program = "freerdp"
            keyboard_layout = "0x00000411"
            keyboard_type = 7
            keyboard_subtype = 2
            size = "1280x1024"
            scale = 140
            sound = false
            drive = { name = "share", folder = "/srv/share" }
            usb = ["054c:0268"]
            extra = ["/bpp:32", "-wallpaper"]
        "#;
        let config: Config = text.parse().expect("a good file");
        assert_eq!(config.server.expect("a server").to_string(), "vdi.example.jp:443");
        assert_eq!(config.lang, Some(Language::Ja));
        let Options { screen, keyboard_layout, sound, clipboard, drive, usb, extra, .. } =
            config.freerdp;
        assert_eq!(drive, Drive::new("share".into(), "/srv/share".into()).ok());
        assert_eq!(usb, ["054c:0268".parse().expect("a device")]);
        assert_eq!(screen, Screen::Window { width: 1280, height: 1024 });
        assert_eq!((keyboard_layout, sound, clipboard), (Some(0x411), false, true));
        assert_eq!(extra, ["/bpp:32", "-wallpaper"]);
    }

    #[test]
    fn all_faults_are_told_at_once_each_with_its_key() {
        let text = r#"
            server = "vdi.example.jp:0"
            realm = "Honsho"
            pool = ""
            lang = "fr"
            [viewer]
            program = "rdesktop"
            keyboard_layout = "japanese"
            keyboard_type = 9
            keyboard_subtype = 300
            size = "10x10"
            monitors = [0]
            scale = 120
            drive = { name = "share", folder = "share" }
            usb = ["054c:0268", "auto"]
            extra = ["/drive:home,/", "/bpp:32", "/p:secret"]
        "#;
        let Err(ConfigError::Faults(faults)) = text.parse::<Config>() else {
            panic!("faults were expected");
        };
        let keys: Vec<_> = faults.iter().filter_map(|fault| fault.split(':').next()).collect();
        assert_eq!(
            keys,
            [
                "server",
                "realm",
                "pool",
                "lang",
                "viewer.program",
                "viewer.keyboard_type",
                "viewer.keyboard_subtype",
                "viewer.scale",
                "viewer.extra",
                "viewer.extra",
                "viewer.size",
                "viewer.keyboard_layout",
                "viewer.drive",
                "viewer.usb",
            ]
        );
    }

    #[test]
    fn the_sample_is_good_as_it_is_and_with_everything_that_it_offers() {
        let sample = include_str!("../../deploy/config/agent.toml");
        assert_eq!(sample.parse::<Config>().expect("the sample"), Config::default());
        let offers = |line: &&str| line.contains(" = ") && !line.starts_with("# size");
        let all: Vec<_> = sample
            .lines()
            .filter(|line| line.starts_with('[') || offers(line))
            .map(|line| line.trim_start_matches("# "))
            .collect();
        let all = all.join("\n");
        let Config { server, freerdp, .. } = all.parse().expect("the sample with all");
        assert!(server.is_some() && freerdp.drive.is_some() && freerdp.usb.len() == 1);
        for key in keys::<RawConfig>().into_iter().chain(keys::<RawViewer>()) {
            let is_told = sample.contains(&format!("# {key} = ")) || key == "viewer";
            assert!(is_told, "{key} is not in the sample");
        }
    }

    /// Returns the keys that a table may have, as its refusal of another one names them.
    fn keys<T: serde::de::DeserializeOwned + std::fmt::Debug>() -> Vec<String> {
        let refusal = toml::from_str::<T>("'?' = 0").expect_err("no such key").to_string();
        let (_, keys) = refusal.split_once("expected one of ").expect("a list of keys");
        keys.split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn an_unknown_key_is_refused() {
        for text in ["sever = \"a\"", "[viewer]\nargs = [\"/p:x\"]", "server = 1"] {
            assert!(matches!(text.parse::<Config>(), Err(ConfigError::Unreadable(_))), "{text}");
        }
    }
}
