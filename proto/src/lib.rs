//! The words that Tegata's programs share.
//!
//! This crate holds ids, frames, messages, codes, claims, the exact bytes that
//! are signed, and the window of bytes that may be sent again. It decides nothing and does nothing: no cryptography, no
//! input or output, no clock. The agent depends on it, and so does the broker;
//! neither sees the other.
//!
//! Start with [`login`] and [`session`], the two conversations; [`code`] is the
//! table of everything that can go wrong in them.

pub mod claims;
pub mod code;
pub mod encoding;
pub mod frame;
pub mod id;
pub mod key;
pub mod login;
pub mod policy;
pub mod proof;
pub mod replay;
pub mod session;

/// The only version of both conversations that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// ALPN of the login conversation, answered by a broker.
pub const ALPN_LOGIN: &[u8] = b"tegata-login/1";

/// ALPN of the session conversation, answered by a gateway.
pub const ALPN_SESSION: &[u8] = b"tegata-session/1";

/// Scheme and role of a broker's certificate URI: `tegata:broker/ID`.
pub const URI_BROKER: &str = "tegata:broker/";

/// Scheme and role of a gateway's certificate URI: `tegata:gateway/ID`.
pub const URI_GATEWAY: &str = "tegata:gateway/";
