//! Sins against the operations port: HTTP/1.1 over TCP on loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::place::Place;
use super::{Answer, DEADLINE, SLACK};

/// One sin.
pub struct Sin {
    /// What it is.
    pub name: String,
    /// What is sent, in order. `KEY` in it stands for the site's key.
    pub sends: Vec<u8>,
    /// Whether the client then closes its side.
    pub finishes: bool,
    /// What it gets.
    pub gets: Answer,
}

/// Text that stands for the site's key.
const KEY: &str = "KEY";

fn sin(name: impl Into<String>, sends: impl Into<Vec<u8>>, gets: Answer) -> Sin {
    Sin { name: name.into(), sends: sends.into(), finishes: false, gets }
}

fn request(line: &str, headers: &[&str], body: &str) -> String {
    let headers: String = headers.iter().flat_map(|header| [*header, "\r\n"]).collect();
    format!(
        "{line} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The rows.
#[expect(clippy::too_many_lines, reason = "it is a table")]
pub fn table() -> Vec<Sin> {
    let with_key = "authorization: Bearer KEY";
    let json = "content-type: application/json";
    let status = Answer::Status;
    let get = |path: &str, headers: &[&str]| request(&format!("GET {path}"), headers, "");
    let put = |body: &str| request("PUT /v1/pools/keiri", &[with_key, json], body);
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let deep_member = format!(r#"{{"name":{deep}}}"#);
    let length =
        |line: &str, headers: &str| format!("{line} HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n");
    let mut rows = vec![
        sin("none: an honest request", get("/v1/pools", &[with_key]), status(200)),
        sin("no key", get("/v1/pools", &[]), status(401)),
        sin("an empty key", get("/v1/pools", &["authorization: Bearer "]), status(401)),
        sin("a wrong key", get("/v1/pools", &["authorization: Bearer tegata_AAAA"]), status(401)),
        sin(
            "the key in another scheme",
            get("/v1/pools", &["authorization: Basic KEY"]),
            status(401),
        ),
        sin("the key in the path", get("/v1/pools?key=KEY", &[]), status(401)),
        sin(
            "the key in a cookie",
            get("/v1/pools", &["cookie: authorization=Bearer KEY"]),
            status(401),
        ),
        sin("the key and more", get("/v1/pools", &["authorization: Bearer KEYx"]), status(401)),
        sin(
            "a wrong key before the right one",
            get("/v1/pools", &["authorization: Bearer x", with_key]),
            status(401),
        ),
        sin(
            "a key of 8 kB",
            get("/v1/pools", &[&format!("authorization: Bearer {}", "x".repeat(8_000))]),
            status(401),
        ),
        sin(
            "a huge body without a key",
            length("PUT /v1/pools/keiri", "content-length: 1000000000000"),
            status(401),
        ),
        sin("a body of 8 MiB and more", put(&"x".repeat(BODY_MAX + 1)), status(413)),
        sin(
            "a body of 1 TB that is only announced",
            length(
                "PUT /v1/pools/keiri",
                &format!("{with_key}\r\n{json}\r\ncontent-length: 1000000000000"),
            ),
            status(413),
        ),
        sin(
            "a body of 8 MiB and more that is not announced",
            length(
                "PUT /v1/pools/keiri",
                &format!("{with_key}\r\n{json}\r\ntransfer-encoding: chunked"),
            ) + &format!("{:x}\r\n{}\r\n0\r\n\r\n", BODY_MAX + 1, "x".repeat(BODY_MAX + 1)),
            status(413),
        ),
        sin(
            "a length of words",
            length("PUT /v1/pools/keiri", "content-length: many"),
            status(400),
        ),
        sin(
            "two lengths",
            length("PUT /v1/pools/keiri", "content-length: 1\r\ncontent-length: 2"),
            status(400),
        ),
        sin(
            "a length and chunks",
            format!(
                "{}0\r\n\r\n",
                length("GET /livez", "content-length: 5\r\ntransfer-encoding: chunked")
            ),
            Answer::Endured,
        ),
        sin("no JSON", put("pools: yes"), status(400)),
        sin("JSON nested 20,000 deep", put(&deep), Answer::EitherStatus(400, 422)),
        sin("a member nested 20,000 deep", put(&deep_member), Answer::EitherStatus(400, 422)),
        sin("a number where a pool belongs", put("1e999"), status(400)),
        sin("a member twice", put(r#"{"name":"keiri","name":"keiri"}"#), status(422)),
        sin(
            "JSON by another name",
            request("PUT /v1/pools/keiri", &[with_key, "content-type: text/plain"], "{}"),
            status(415),
        ),
        sin("up and away", get("/v1/../../etc/passwd", &[with_key]), status(404)),
        sin(
            "up and away, in code",
            get("/v1/pools/..%2f..%2fetc%2fpasswd", &[with_key]),
            status(405),
        ),
        sin(
            "up and away, in a name",
            request("PUT /v1/pools/..%2f..%2fx", &[with_key, json], "{}"),
            status(400),
        ),
        sin("a NUL in the path", get("/v1/pools/%00", &[with_key]), status(405)),
        sin(
            "a path that is no text",
            request("PUT /v1/pools/%ff%fe", &[with_key, json], "{}"),
            status(400),
        ),
        sin(
            "a path of 20 kB",
            get(&format!("/{}", "x".repeat(20_000)), &[]),
            Answer::EitherStatus(414, 431),
        ),
        sin(
            "a header of 20 kB",
            get("/livez", &[&format!("x: {}", "x".repeat(20_000))]),
            status(431),
        ),
        sin("a thousand headers", get("/livez", &vec!["x: y"; 1_000]), status(431)),
        sin("another method on a list", request("DELETE /v1/pools", &[with_key], ""), status(405)),
        sin("a list by POST", request("POST /v1/pools", &[with_key, json], "{}"), status(405)),
        sin("an action by GET", get("/v1/sessions/actions/disconnect", &[with_key]), status(405)),
        sin("a method of its own", request("BREW /v1/pools", &[with_key], ""), status(405)),
        sin(
            "a method in a header",
            request("POST /v1/pools", &[with_key, "x-http-method-override: GET"], ""),
            status(405),
        ),
        sin(
            "CONNECT",
            "CONNECT 127.0.0.1:22 HTTP/1.1\r\nhost: x\r\n\r\n",
            Answer::EitherStatus(404, 400),
        ),
        sin("no request", "hello\r\n\r\n", status(400)),
        sin("a request of old", "GET /livez\r\n\r\n", status(400)),
        sin("TLS", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 32]].concat(), status(400)),
        sin("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Answer::Closed),
        sin(
            "an upgrade to HTTP/2",
            get(
                "/livez",
                &[
                    "connection: upgrade, http2-settings",
                    "upgrade: h2c",
                    "http2-settings: AAMAAABkAAQAAP__",
                ],
            ),
            status(200),
        ),
        sin("silence", "", Answer::Closed),
        sin("half a head", "GET /livez HTTP/1.1\r\nhost:", Answer::Closed),
        sin(
            "half a body",
            length(
                "POST /v1/sessions/actions/disconnect",
                &format!("{with_key}\r\n{json}\r\ncontent-length: 100"),
            ),
            Answer::EitherStatus(400, 408),
        )
        .finished(),
    ];
    for (what, terms) in rubbish() {
        let pool = format!(
            r#"{{"name":"keiri","label":"keiri","kind":"floating","reuse":"never",
                "protocol":"tcp","entitlements":[],"desktops":[],{terms}}}"#
        );
        rows.push(sin(what, put(&pool), status(422)));
    }
    // Nobody becomes somebody by saying where they are, or through whom.
    for header in [
        "x-forwarded-for: 127.0.0.1",
        "forwarded: for=127.0.0.1;proto=https",
        "x-real-ip: 127.0.0.1",
        "x-user: admin",
        "x-forwarded-host: localhost",
        "x-original-url: /livez",
        "x-rewrite-url: /livez",
        "origin: http://localhost",
    ] {
        rows.push(sin(format!("{header}, and no key"), get("/v1/pools", &[header]), status(401)));
        let known = get("/v1/pools", &[with_key, header]);
        rows.push(sin(format!("{header}, and the key"), known, status(200)));
    }
    for host in ["host: 127.0.0.1", "host: tegata.example.go.jp", "host: ", "host: a b"] {
        let asked = format!("GET /v1/pools HTTP/1.1\r\n{host}\r\n\r\n");
        rows.push(sin(format!("{host}, and no key"), asked, Answer::EitherStatus(401, 400)));
    }
    rows
}

/// Terms that no pool can have.
fn rubbish() -> Vec<(&'static str, String)> {
    let many: Vec<_> = (0..10_000).map(|n| format!(r#"{{"class":"c{n}"}}"#)).collect();
    let own = |text: &str| text.to_owned();
    vec![
        ("terms that are no list", own(r#""by_class":"telework""#)),
        ("terms of no class", own(r#""by_class":[{"allowed":false}]"#)),
        ("terms of a class that nobody knows", own(r#""by_class":[{"class":"moon"}]"#)),
        ("terms of a class that is no name", own(r#""by_class":[{"class":"../office"}]"#)),
        (
            "two terms of a class",
            own(r#""by_class":[{"class":"office"},{"class":"office","allowed":false}]"#),
        ),
        ("ten thousand terms", format!(r#""by_class":[{}]"#, many.join(","))),
        (
            "a key of terms that is misspelt",
            own(r#""by_class":[{"class":"office","alowed":false}]"#),
        ),
        (
            "a password that may be older than the world",
            own(r#""by_class":[{"class":"office","password_age_ms":18446744073709551615}]"#),
        ),
        (
            "a password that may have no age",
            own(r#""by_class":[{"class":"office","password_age_ms":0}]"#),
        ),
        ("a limit below nothing", own(r#""limits":{"idle_ms":-1}"#)),
        ("a limit of nothing", own(r#""limits":{"session_ms":0}"#)),
        ("a limit beyond all time", own(r#""limits":{"session_ms":18446744073709551615}"#)),
        ("a takeover by force", own(r#""takeover":"force""#)),
        ("a profile with a path", own(r#""policy":{"profile":"../../etc"}"#)),
    ]
}

/// Requests that are refused, of each kind that a crowd would send.
fn crowd() -> [Sin; 4] {
    let status = Answer::Status;
    let json = "content-type: application/json";
    let wrong = "authorization: Bearer tegata_AAAA";
    let huge = "x".repeat(BODY_MAX + 1);
    let put = |key, body: &str| request("PUT /v1/pools/keiri", &[key, json], body);
    let announced =
        "PUT /v1/pools/keiri HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000000000\r\n\r\n";
    [
        sin("no key", request("GET /v1/pools", &[], ""), status(401)),
        sin("a wrong key", request("GET /v1/sessions", &[wrong], ""), status(401)),
        sin("a huge body that is only announced", announced, status(401)),
        sin("a huge body", put("authorization: Bearer KEY", &huge), status(413)),
    ]
}

/// Largest body that is taken, in bytes.
const BODY_MAX: usize = 8 * 1024 * 1024;

/// How many of a crowd ask at once.
const HANDS: usize = 16;

/// How long one of a crowd rests before it asks, 300 requests a second in all. What is looked at
/// is the broker, and a crowd without rest takes the cores that it has in common with it.
pub const REST: Duration = Duration::from_millis(50);

/// How often somebody asks again whose connection made room before it was heard.
const TRIES: usize = 20;

/// Sends so many requests that are refused, many at once, and returns how many
/// connections made room for others before they were heard.
///
/// # Errors
///
/// Names a request that got something else.
pub async fn pester(place: &Place, key: &str, requests: usize) -> Result<usize> {
    let to = place.site.operations();
    // Written once: what the requests cost here is not to be taken from the broker.
    let crowd: Arc<[_]> = crowd().map(|sin| (sin.sends(key), sin)).into();
    let mut hands = JoinSet::new();
    for hand in 0..HANDS {
        let crowd = Arc::clone(&crowd);
        hands.spawn(async move {
            let mut unheard = 0;
            for n in (hand..requests).step_by(HANDS) {
                sleep(REST).await;
                // Not all of them the huge one at the same time.
                let (sends, sin) = &crowd[(n / HANDS + hand) % crowd.len()];
                let mut answer = ask(to, sends, false).await?;
                for _ in 1..TRIES {
                    if answer != Answer::Closed {
                        break;
                    }
                    unheard += 1;
                    answer = ask(to, sends, false).await?;
                }
                ensure!(sin.gets.is(answer), "{}: {answer:?}, not {:?}", sin.name, sin.gets);
            }
            Ok(unheard)
        });
    }
    hands.join_all().await.into_iter().sum()
}

impl Sin {
    fn finished(mut self) -> Self {
        self.finishes = true;
        self
    }

    /// Returns what it sends where the site's key is this one.
    fn sends(&self, key: &str) -> Vec<u8> {
        let mut sends = Vec::with_capacity(self.sends.len());
        let mut rest = &self.sends[..];
        while let Some(at) = rest.windows(KEY.len()).position(|window| window == KEY.as_bytes()) {
            sends.extend([&rest[..at], key.as_bytes()].concat());
            rest = &rest[at + KEY.len()..];
        }
        sends.extend(rest);
        sends
    }
}

/// Commits a sin, and returns what came of it.
///
/// # Errors
///
/// When nothing comes of it in time.
pub async fn commit(place: &Place, key: &str, sin: &Sin) -> Result<Answer> {
    ask(place.site.operations(), &sin.sends(key), sin.finishes).await
}

async fn ask(to: SocketAddr, sends: &[u8], finishes: bool) -> Result<Answer> {
    let mut stream = TcpStream::connect(to).await?;
    // The port may close before it has everything.
    let _sent = stream.write_all(sends).await;
    if finishes {
        let _closed = stream.shutdown().await;
    }
    answer(&mut stream).await
}

async fn answer(stream: &mut TcpStream) -> Result<Answer> {
    let mut head = Vec::new();
    let line_read = timeout(DEADLINE + SLACK, async {
        while !head.ends_with(b"\r\n") && head.len() < 256 {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
    });
    line_read.await.context("nothing came of it in time")?;
    if head.is_empty() {
        return Ok(Answer::Closed);
    }
    let line = String::from_utf8_lossy(&head);
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Answer::Status(status.with_context(|| line.clone().into_owned())?))
}

/// Commits each sin.
///
/// # Errors
///
/// Names every sin that got something else.
pub async fn commit_all(place: &Place, key: &str, sins: Vec<Sin>) -> Result<()> {
    let mut wrong = Vec::new();
    for sin in &sins {
        match commit(place, key, sin).await {
            Ok(answer) if sin.gets.is(answer) => {}
            Ok(answer) => wrong.push(format!("{}: {answer:?}, not {:?}", sin.name, sin.gets)),
            Err(error) => wrong.push(format!("{}: {error:#}", sin.name)),
        }
        if let Err(error) = place.is_well().await {
            wrong.push(format!("after {}: {error:#}", sin.name));
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), sins.len(), wrong.join("\n"));
    Ok(())
}

/// Opens connections that only stand there, or, every other one, have said half
/// a head.
///
/// # Errors
///
/// When the machine has no more.
pub async fn stand_there(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut standing = Vec::with_capacity(count);
    for n in 0..count {
        let connected = timeout(DEADLINE + SLACK, TcpStream::connect(to)).await;
        let mut stream = connected.with_context(|| format!("connection {n} waits"))??;
        if n % 2 == 0 {
            // One that was closed by now is closed.
            let _said = stream.write_all(b"GET /livez HTTP/1.1\r\nhost:").await;
        }
        standing.push(stream);
    }
    Ok(standing)
}

/// Waits until the port has closed every one of them.
///
/// # Errors
///
/// When one still stands long after its deadline.
pub async fn are_ended(standing: Vec<TcpStream>) -> Result<()> {
    let ended = timeout(DEADLINE + SLACK, async {
        for mut stream in standing {
            while !matches!(stream.read(&mut [0; 256]).await, Ok(0) | Err(_)) {}
        }
    });
    ended.await.context("some still stand there")
}

/// Asks as an operator does, and returns the whole answer.
///
/// # Errors
///
/// When it does not come in time.
pub async fn ask_within(to: SocketAddr, path: &str, limit: Duration) -> Result<String> {
    let asked = timeout(limit, async {
        let mut stream = TcpStream::connect(to).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    });
    asked.await.with_context(|| format!("{path} is not answered"))?
}

/// Returns the text of `/metrics`.
///
/// # Errors
///
/// When it does not come in time.
pub async fn metrics(to: SocketAddr) -> Result<String> {
    ask_within(to, "/metrics", DEADLINE + SLACK).await
}

/// Returns a counter of that text; one that was never counted is 0.
pub fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|number| number.trim().parse().ok()).unwrap_or_default()
}
