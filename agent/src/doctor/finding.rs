//! What was found of one part, and how it is told.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use tegata_proto::code::Code;

use super::remarks::Remark;
use crate::words::Language;

/// A part that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// The file with our authority's certificates.
    Authority,
    /// The server's name.
    Name,
    /// The way by QUIC.
    Quic,
    /// The way by TCP.
    Tcp,
    /// Addresses of IPv6.
    Ipv6,
    /// Addresses of IPv4.
    Ipv4,
    /// The server's certificate.
    Certificate,
    /// The gateway beside the broker, and its certificate.
    Gateway,
    /// What the broker says to a hello.
    Broker,
    /// This machine's clock.
    Clock,
    /// Whether packets get through that every network should carry.
    Mtu,
    /// Whether the agent's memory stays out of the swap.
    Memory,
    /// The viewer.
    Freerdp,
}

/// How a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A session works, and less well than it could.
    Warning,
    /// No session works.
    Failed,
}

/// What was found of one part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which part.
    pub check: Check,
    /// How it is.
    pub verdict: Verdict,
    /// What a session would end with, or what it would suffer from.
    pub code: Option<Code>,
    remark: Remark,
    value: String,
    took: Option<Duration>,
}

impl Finding {
    pub(super) fn ok(check: Check, remark: Remark, value: String) -> Self {
        Self { check, verdict: Verdict::Ok, code: None, remark, value, took: None }
    }

    pub(super) fn warning(check: Check, code: Code, remark: Remark, value: String) -> Self {
        Self { verdict: Verdict::Warning, code: Some(code), ..Self::ok(check, remark, value) }
    }

    pub(super) fn failed(check: Check, code: Code, remark: Remark, value: String) -> Self {
        Self { verdict: Verdict::Failed, code: Some(code), ..Self::ok(check, remark, value) }
    }

    pub(super) fn after(self, took: Duration) -> Self {
        Self { took: Some(took), ..self }
    }
}

/// Whoever is told what was found.
pub trait Report {
    /// Hears of one part.
    fn add(&mut self, finding: Finding);
}

/// One JSON object a line, or one paragraph.
#[derive(Debug)]
pub struct Told<W> {
    out: W,
    language: Language,
    is_json: bool,
    first: Option<Code>,
}

#[derive(Serialize)]
struct Line<'a> {
    check: Check,
    result: Verdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    found: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elapsed_ms: Option<u64>,
}

impl<W: Write> Told<W> {
    /// Writes to `out` in this language, for a program or a person.
    pub fn new(out: W, language: Language, is_json: bool) -> Self {
        Self { out, language, is_json, first: None }
    }

    /// Returns the code of the first part that failed; nothing where a session would
    /// work.
    pub fn failure(&self) -> Option<Code> {
        self.first
    }
}

impl<W: Write> Report for Told<W> {
    fn add(&mut self, finding: Finding) {
        let Finding { check, verdict, code, remark, value, took } = finding;
        if verdict == Verdict::Failed {
            self.first = self.first.or(code);
        }
        let found = remark.found(self.language, &value);
        let advice = remark.advice(self.language, &value);
        let elapsed_ms = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        let text = if self.is_json {
            let (found, advice) = (found.as_str(), advice.as_deref());
            let line = Line { check, result: verdict, code, found, advice, elapsed_ms };
            let Ok(line) = serde_json::to_string(&line) else { return };
            line + "\n"
        } else {
            // Text of a peer must not drive the terminal.
            let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
            let mark = match verdict {
                Verdict::Ok => "[ok]",
                Verdict::Warning => "[!] ",
                Verdict::Failed => "[X] ",
            };
            let took = elapsed_ms.map_or_else(String::new, |ms| format!(" ({ms} ms)"));
            let advice = advice.map_or_else(String::new, |text| format!("     {}\n", clean(&text)));
            format!("{mark} {}{took}\n{advice}", clean(&found))
        };
        let _ = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
    }
}
