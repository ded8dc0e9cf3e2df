//! Everything that can go wrong between a person and a desktop, in one table:
//! the code on the wire, the agent's exit number, and whether to try again.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether the same attempt may succeed if it is made again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TryAgain {
    /// Nothing changes by waiting; a person or an administrator has to act.
    No,
    /// After the answer's `retry_after_ms`, or a pause of the caller's choice.
    Later,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $exit:literal, $again:ident;)*) => {
        /// The reason of a failure or of an end.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $name,)*
            /// A code of a newer peer. Never sent.
            #[serde(other, skip_serializing)]
            Unknown,
        }

        impl Code {
            /// Every code that can be sent, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Returns the code as it is written on the wire and in logs.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    Self::Unknown => "unknown",
                }
            }

            /// Returns the agent's exit number.
            pub fn exit(self) -> u8 {
                match self {
                    $(Self::$name => $exit,)*
                    Self::Unknown => 70,
                }
            }

            /// Tells whether trying again makes sense.
            pub fn try_again(self) -> TryAgain {
                match self {
                    $(Self::$name => TryAgain::$again,)*
                    Self::Unknown => TryAgain::No,
                }
            }
        }
    };
}

codes! {
    /// The person logged off on the desktop.
    LoggedOff = "logged_off", 0, No;

    /// The agent's arguments or configuration cannot be used.
    Configuration = "configuration", 10, No;
    /// No address of the broker or of a gateway answered.
    Unreachable = "unreachable", 11, Later;
    /// The peer's certificate is not one of our authority's for that role.
    TlsFailed = "tls_failed", 12, No;
    /// The desktop showed another certificate than the broker promised, or
    /// would not secure the connection.
    PinMismatch = "pin_mismatch", 12, No;
    /// The broker wants a newer agent.
    AgentTooOld = "agent_too_old", 13, No;

    /// Wrong name or password, disabled, locked: one code for all.
    Refused = "refused", 20, No;
    /// The second factor was wrong.
    FactorFailed = "factor_failed", 21, No;
    /// Too many tries from this network.
    Throttled = "throttled", 22, Later;
    /// The password is right but has expired.
    PasswordExpired = "password_expired", 23, No;
    /// The password is right but the account is disabled.
    AccountDisabled = "account_disabled", 24, No;
    /// The directory or the broker cannot serve now.
    Unavailable = "unavailable", 25, Later;
    /// The gateway could not ask its broker; the ticket is still good.
    Busy = "busy", 25, Later;
    /// The ticket's life was over before it was redeemed.
    TicketExpired = "ticket_expired", 25, Later;

    /// No pool is open to this person.
    NoEntitlement = "no_entitlement", 30, No;
    /// The pool is not open to this person from the network they are on.
    NotAllowedHere = "not_allowed_here", 30, No;
    /// Every desktop of the pool is taken, and the wait is over.
    PoolExhausted = "pool_exhausted", 31, Later;
    /// The person works on their desktop on another device, and the pool lets
    /// nobody take it over.
    InUse = "in_use", 31, Later;

    /// The desktop did not answer when the gateway dialled it.
    DesktopUnreachable = "desktop_unreachable", 40, Later;
    /// The desktop's connection ended unasked.
    DesktopLost = "desktop_lost", 41, Later;
    /// What the gateway kept for the session is gone; start the viewer again.
    ResumeLost = "resume_lost", 41, Later;
    /// The session is over and is never resumed.
    SessionEnded = "session_ended", 41, No;

    /// The viewer was closed without a log-off; the desktop is kept.
    Disconnected = "disconnected", 50, No;
    /// Nobody used the keyboard for longer than the pool allows.
    IdleLimit = "idle_limit", 51, No;
    /// The session was as long as the pool allows.
    TimeLimit = "time_limit", 51, No;
    /// The password was typed longer ago than the pool allows on this network; the
    /// desktop is kept for the next login.
    LoginAgain = "login_again", 51, No;
    /// The same person took the desktop over on another device.
    TakenOver = "taken_over", 52, No;
    /// An administrator ended the session.
    EndedByAdministrator = "ended_by_administrator", 53, No;
    /// The device was revoked.
    DeviceRevoked = "device_revoked", 54, No;

    /// A newer link of the same session took this one's place.
    Superseded = "superseded", 70, No;
    /// The ticket was redeemed before.
    TicketUsed = "ticket_used", 70, No;
    /// The ticket or grant was not signed by our brokers, or not as it must be.
    TicketInvalid = "ticket_invalid", 70, No;
    /// The proof or the key does not fit the ticket or the connection.
    WrongKey = "wrong_key", 70, No;
    /// The ticket is for other gateways.
    WrongGroup = "wrong_group", 70, No;
    /// The link's number was used before.
    LinkStale = "link_stale", 70, No;
    /// A frame was too long, not JSON, out of order or incomplete.
    Malformed = "malformed", 70, No;
    /// A frame's type or version is not known here.
    Unsupported = "unsupported", 70, No;
    /// The deadline of the conversation passed.
    Timeout = "timeout", 70, Later;
    /// Something broke that should not; the log of that side has it.
    Internal = "internal", 70, Later;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_read_back() {
        for (n, code) in Code::ALL.iter().enumerate() {
            let text = serde_json::to_string(code).expect("a code is JSON");
            assert_eq!(text, format!("\"{code}\""));
            assert_eq!(serde_json::from_str::<Code>(&text).expect("its own text"), *code);
            assert!(Code::ALL[n + 1..].iter().all(|other| other.as_str() != code.as_str()));
        }
    }

    #[test]
    fn a_code_of_a_newer_peer_is_understood_as_unknown() {
        let code: Code = serde_json::from_str("\"on_fire\"").expect("any text");
        assert_eq!((code, code.exit(), code.try_again()), (Code::Unknown, 70, TryAgain::No));
        assert!(serde_json::to_string(&Code::Unknown).is_err(), "and is never sent");
    }
}
