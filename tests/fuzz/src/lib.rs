//! What is fuzzed. Each target takes any bytes at all and panics where a promise
//! is broken; the fuzzer and the story that replays the kept corpus call the
//! same functions.

pub mod assignment;
pub mod attach;
pub mod configuration;
pub mod frames;
pub mod links;
pub mod login;
pub mod login_desk;
pub mod replay;
pub mod script;
pub mod tokens;
pub mod x224;

/// One target.
pub type Target = fn(&[u8]);

/// Every target by its name, which is that of its corpus as well.
pub const TARGETS: [(&str, Target); 10] = [
    ("assignment", assignment::run),
    ("attach", attach::run),
    ("configuration", configuration::run),
    ("frames", frames::run),
    ("links", links::run),
    ("login", login::run),
    ("login_desk", login_desk::run),
    ("replay", replay::run),
    ("tokens", tokens::run),
    ("x224", x224::run),
];
