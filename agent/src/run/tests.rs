//! Whole runs against brokers and gateways that misbehave as told.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::Mutex;

use tegata_proto::id::{LinkNumber, PoolName};
use tegata_proto::login::{BrokerMessage, Gateway, TicketAnswer};
use tegata_proto::session::{AgentMessage, Right};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;

mod away;
mod ends;
mod limits;
mod login;
mod lost;
mod path;
mod person;
mod place;
mod tcp;

use tegata_proto::session::GatewayMessage;

use super::*;
use crate::link::LinkError;
use crate::office::{Ca, Office, Peer, Recorder, answer, pools, rdp_answer, soon, wishes};

/// What a run left behind.
struct Report {
    code: Code,
    events: Vec<Event>,
}

impl Report {
    fn last(&self) -> &Event {
        self.events.last().expect("at least one event")
    }

    fn names(&self) -> Vec<String> {
        let name = |event: &Event| {
            let json = serde_json::to_value(event).expect("JSON");
            json["event"].as_str().expect("a name").to_owned()
        };
        self.events.iter().map(name).collect()
    }
}

fn to(server: std::net::SocketAddr, viewer: Viewer) -> Run {
    Run { server: server.to_string().parse().expect("an address"), viewer, wishes: wishes() }
}

/// Carries a run out while the test does something beside it.
async fn beside(
    agent: &Agent,
    run: Run,
    stop: &CancellationToken,
    doing: impl AsyncFnOnce(Receiver<Event>),
) -> Report {
    let (mut person, watch) = Recorder::new();
    let run = Box::pin(run.carry_out(agent, &mut person, stop));
    let both = Box::pin(async { tokio::join!(run, doing(watch)) });
    let (code, ()) = soon(both).await;
    Report { code, events: person.events }
}

/// Carries a run by one gateway, its desktop on a loopback port, while the test does
/// something beside it.
async fn forwarded_by(
    office: &mut Office,
    gateway: Gateway,
    doing: impl AsyncFnOnce(Receiver<Event>),
) -> Report {
    let broker = admitting(office, &answer(vec![gateway]));
    let stop = CancellationToken::new();
    beside(&office.agent(), to(broker, forward()), &stop, doing).await
}

async fn alone(agent: &Agent, run: Run) -> Report {
    beside(agent, run, &CancellationToken::new(), |_| async {}).await
}

/// A broker that admits everybody to one gateway.
fn admitting(office: &mut Office, answer: &TicketAnswer) -> std::net::SocketAddr {
    let answer = answer.clone();
    office.broker(move |_, mut peer: Peer| {
        let answer = answer.clone();
        async move { peer.admit(answer).await }
    })
}

/// A broker that says this instead of `pools`.
async fn refused_with(code: Code) -> Report {
    let mut office = Office::new();
    let broker = office.broker(move |_, mut peer: Peer| async move {
        peer.welcome().await?;
        peer.say(&BrokerMessage::Error(code.into())).await
    });
    alone(&office.agent(), to(broker, Viewer::Nothing)).await
}

/// What gateways heard as the agents' last words.
type Byes = Arc<Mutex<Vec<Code>>>;

/// A gateway whose desktop sends everything back; it writes down each `bye`.
fn echoing(office: &mut Office, byes: &Byes) -> Gateway {
    let byes = Arc::clone(byes);
    office.gateway(move |_, mut peer: Peer| {
        let byes = Arc::clone(&byes);
        async move {
            let attach = peer.attach().await?;
            let (mut send, mut recv) = peer.carry(attach.link).await?;
            let echo = async {
                while let Ok(Some(bytes)) = recv.read(usize::MAX).await {
                    if send.write_chunk(bytes).await.is_err() {
                        break;
                    }
                }
                send.finish();
            };
            let heard = async {
                loop {
                    if let AgentMessage::Bye { code } = peer.hear.next(1024).await? {
                        byes.lock().expect("no panic").push(code);
                        return Ok::<_, LinkError>(());
                    }
                }
            };
            tokio::join!(echo, heard).1
        }
    })
}

/// A gateway whose first RDP bytes are these.
fn answering(office: &mut Office, first: &'static [u8]) -> Gateway {
    office.gateway(move |_, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        let (mut send, mut recv) = peer.carry(attach.link).await?;
        let _ = recv.read(1024).await;
        let _ = send.write_chunk(bytes::Bytes::copy_from_slice(first)).await;
        peer.connection.closed().await;
        Ok(())
    })
}

async fn forwarded(watch: &mut Receiver<Event>) -> TcpStream {
    loop {
        let event = watch.recv().await.expect("attached comes first");
        if let Event::Attached { forward, .. } = event {
            let address = forward.expect("a port was asked for");
            return TcpStream::connect(address).await.expect("it listens");
        }
    }
}

fn forward() -> Viewer {
    Viewer::Forward("127.0.0.1:0".parse().expect("an address"))
}

fn script(text: &str) -> (tempfile::TempDir, Viewer) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("viewer");
    let mut file = std::fs::File::create(&path).expect("a file");
    write!(file, "#!/bin/bash\n{text}\n").expect("room");
    drop(file);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).expect("our own");
    let command = vec![path.display().to_string(), folder.path().display().to_string()];
    (folder, Viewer::Exec(command))
}

#[tokio::test]
async fn bytes_go_through_the_forward_and_its_close_is_a_disconnect() {
    let mut office = Office::new();
    let byes = Byes::default();
    let gateway = echoing(&mut office, &byes);
    let report = forwarded_by(&mut office, gateway, |mut watch| async move {
        let mut viewer = forwarded(&mut watch).await;
        let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut read, mut write) = viewer.split();
        let mut back = vec![0; sent.len()];
        let (sending, reading) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        assert!(
            sending.is_ok() && reading.is_ok() && back == sent,
            "every byte came back in order"
        );
    })
    .await;
    assert_eq!(report.code, Code::Disconnected);
    assert_eq!(
        report.names(),
        [
            "connecting",
            "connected",
            "authenticated",
            "assigned",
            "ticket",
            "attached",
            "first_byte",
            "ended"
        ]
    );
    assert_eq!(*byes.lock().expect("no panic"), [Code::Disconnected]);
}

#[tokio::test]
async fn a_forward_takes_one_connection_only() {
    let mut office = Office::new();
    let gateway = echoing(&mut office, &Byes::default());
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    beside(&agent, to(broker, forward()), &stop, |mut watch| async move {
        let mut first = forwarded(&mut watch).await;
        first.write_all(b"x").await.expect("it is carried");
        first.read_exact(&mut [0]).await.expect("and comes back");
        let address = first.peer_addr().expect("connected");
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    })
    .await;
}

#[tokio::test]
async fn each_code_of_a_broker_becomes_the_end_of_the_run() {
    for code in [
        Code::Refused,
        Code::FactorFailed,
        Code::Throttled,
        Code::Unavailable,
        Code::NoEntitlement,
        Code::PoolExhausted,
        Code::Internal,
    ] {
        let report = refused_with(code).await;
        assert_eq!(report.code, code);
        assert!(matches!(report.last(), Event::Error { code: said, .. } if *said == code));
    }
}

#[tokio::test]
async fn nobody_at_the_address_is_unreachable() {
    let office = Office::new();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("bound");
    drop(socket);
    let report = alone(&office.agent(), to(address, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::Unreachable, 11));
}

#[tokio::test]
async fn a_full_broker_is_not_one_that_nobody_reaches() {
    let mut office = Office::new();
    (office.has_tcp, office.is_full) = (true, true);
    let broker = office.broker(|_, _| async { panic!("it takes nobody in") });
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::Unavailable, 25));
    assert_eq!(office.tcp_comers.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_broker_of_another_authority_never_hears_the_password() {
    let mut office = Office::new();
    let stranger = Ca::new().issue(&["tegata:broker/b1"]);
    let hear = |_, mut peer: Peer| async move {
        peer.welcome().await?;
        panic!("the password was said");
    };
    let address = office.serve(&stranger, tegata_proto::ALPN_LOGIN, hear);
    let report = alone(&office.agent(), to(address, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::TlsFailed, 12));

    let gateway = office.ca.issue(&["tegata:gateway/g1"]);
    let address = office.serve(&gateway, tegata_proto::ALPN_LOGIN, hear);
    let report = alone(&office.agent(), to(address, Viewer::Nothing)).await;
    assert_eq!(report.code, Code::TlsFailed, "a gateway is no broker");
}

#[tokio::test]
async fn an_expired_certificate_points_at_the_clock() {
    let mut office = Office::new();
    let old = office.ca.issue_for_years(&["tegata:broker/b1"], 2001, 2002);
    let address = office.serve(&old, tegata_proto::ALPN_LOGIN, |_, _| async { Ok(()) });
    let report = alone(&office.agent(), to(address, Viewer::Nothing)).await;
    let last = report.last();
    assert!(
        matches!(last, Event::Error { code: Code::TlsFailed, clock_suspect: true, .. }),
        "{last:?}"
    );
}

#[tokio::test]
async fn a_gateway_that_was_not_announced_never_hears_the_ticket() {
    for (uri, keep_key) in [("tegata:gateway/g2", true), ("tegata:gateway/g1", false)] {
        let mut office = Office::new();
        let leaf = office.ca.issue(&[uri]);
        let mut spki_sha256 = leaf.spki_sha256();
        if !keep_key {
            spki_sha256.0[0] ^= 1;
        }
        let hear = |_, mut peer: Peer| async move {
            peer.attach().await?;
            panic!("the ticket was said");
        };
        let address = office.serve(&leaf, tegata_proto::ALPN_SESSION, hear);
        let id = tegata_proto::id::GatewayId::new("g1").expect("a name");
        let gateway = Gateway { id, addresses: vec![address], spki_sha256 };
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
        assert_eq!(report.code, Code::TlsFailed, "{uri}");
    }
}

#[tokio::test]
async fn several_pools_and_nobody_to_choose_is_a_matter_of_configuration() {
    let mut office = Office::new();
    let gateway = echoing(&mut office, &Byes::default());
    let answered = answer(vec![gateway]);
    let broker = office.broker(move |_, mut peer: Peer| {
        let answered = answered.clone();
        async move {
            peer.welcome().await?;
            peer.say(&pools(&["keiri", "soumu"])).await?;
            let chosen: tegata_proto::login::AgentMessage = peer.hear().await?;
            let pool = PoolName::new("soumu").expect("a name");
            assert_eq!(chosen, tegata_proto::login::AgentMessage::Choose { pool });
            peer.say(&BrokerMessage::Ticket(Box::new(answered))).await
        }
    });
    let agent = office.agent();
    let report = alone(&agent, to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::Configuration, 10));
    let text = format!("{:?}", report.last());
    assert!(text.contains("keiri, soumu"), "they are listed: {text}");

    let (mut person, mut watch) = Recorder::new();
    person.choice = Some(PoolName::new("soumu").expect("a name"));
    let stop = CancellationToken::new();
    let run = Box::pin(to(broker, Viewer::Nothing).carry_out(&agent, &mut person, &stop));
    let attached = async {
        while !matches!(watch.recv().await, Some(Event::Attached { .. })) {}
        stop.cancel();
    };
    let (code, ()) = soon(async { tokio::join!(run, attached) }).await;
    assert_eq!(code, Code::Disconnected);
}

#[tokio::test]
async fn a_busy_gateway_is_asked_again_with_the_same_ticket_and_the_next_number() {
    let mut office = Office::new();
    let heard: Arc<Mutex<Vec<(bool, u64)>>> = Arc::default();
    let write = Arc::clone(&heard);
    let gateway = office.gateway(move |number, mut peer: Peer| {
        let write = Arc::clone(&write);
        async move {
            let attach = peer.attach().await?;
            let is_ticket = matches!(attach.right, Right::Ticket(_));
            write.lock().expect("no panic").push((is_ticket, attach.link.0));
            if number < 2 {
                let failure = Failure { code: Code::Busy, retry_after_ms: Some(100) };
                return peer.say(&GatewayMessage::Error(failure)).await;
            }
            peer.carry(attach.link).await?;
            peer.say(&GatewayMessage::End { cause: Code::EndedByAdministrator }).await
        }
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::EndedByAdministrator, 53));
    assert_eq!(*heard.lock().expect("no panic"), [(true, 1), (true, 2), (true, 3)]);
}

#[tokio::test]
async fn an_unanswered_ticket_is_tried_again_and_then_the_grant() {
    let mut office = Office::new();
    let gateway = office.gateway(move |number, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        let grant = matches!(attach.right, Right::Grant(_));
        assert_eq!((attach.link, grant), (LinkNumber(number as u64 + 1), number == 2));
        match number {
            0 => {
                peer.connection.close(1_u8.into(), b"");
                Ok(())
            }
            1 => peer.say(&GatewayMessage::Error(Code::TicketUsed.into())).await,
            _ => peer.say(&GatewayMessage::Error(Code::ResumeLost.into())).await,
        }
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::ResumeLost, 41));
}

#[tokio::test]
async fn a_link_that_is_lost_before_its_channel_is_open_is_followed_by_another() {
    let mut office = Office::new();
    let transport = Arc::get_mut(&mut office.transport).expect("nothing is started");
    transport.max_concurrent_bidi_streams(1_u8.into());
    let gateway = office.gateway(move |number, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        let grant = matches!(attach.right, Right::Grant(_));
        assert_eq!((attach.link, grant), (LinkNumber(number as u64 + 1), number == 2));
        match number {
            0 => {
                // The channel waits for its turn, which does not come.
                let attached = crate::office::attached(attach.link);
                peer.say(&GatewayMessage::Attached(Box::new(attached))).await?;
                tokio::time::sleep(Duration::from_millis(300)).await;
                peer.connection.close(1_u8.into(), b"");
                Ok(())
            }
            1 => peer.say(&GatewayMessage::Error(Code::TicketUsed.into())).await,
            _ => {
                let crate::office::Guest::Quic(connection) = &peer.connection else {
                    panic!("nobody comes by TCP");
                };
                connection.set_max_concurrent_bi_streams(2_u8.into());
                peer.carry(attach.link).await?;
                peer.say(&GatewayMessage::End { cause: Code::TimeLimit }).await
            }
        }
    });
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::TimeLimit, 51));
}

#[tokio::test]
async fn beside_a_silent_address_another_is_attached() {
    let mut office = Office::new();
    let silent = office.ca.issue(&["tegata:gateway/g1"]);
    let spki_sha256 = silent.spki_sha256();
    let address = office.serve(&silent, tegata_proto::ALPN_SESSION, |_, peer: Peer| async move {
        let _: &Peer = &peer;
        peer.connection.closed().await;
        Ok(())
    });
    let talking = office.gateway(|_, mut peer: Peer| async move {
        let attach = peer.attach().await?;
        assert_eq!(attach.link, LinkNumber(2), "the first was the silent one's");
        peer.carry(attach.link).await?;
        peer.say(&GatewayMessage::End { cause: Code::TimeLimit }).await
    });
    let silent = Gateway { id: talking.id.clone(), addresses: vec![address], spki_sha256 };
    let broker = admitting(&mut office, &answer(vec![silent, talking]));
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::TimeLimit, 51));
}

#[tokio::test]
async fn a_desktop_that_does_not_answer_costs_one_more_login_and_no_third() {
    let mut office = Office::new();
    let logins = Arc::new(Mutex::new(0));
    let gateway = office.gateway(|_, mut peer: Peer| async move {
        peer.attach().await?;
        peer.say(&GatewayMessage::Error(Code::DesktopUnreachable.into())).await
    });
    let answered = answer(vec![gateway]);
    let count = Arc::clone(&logins);
    let broker = office.broker(move |_, mut peer: Peer| {
        *count.lock().expect("no panic") += 1;
        let answered = answered.clone();
        async move { peer.admit(answered).await }
    });
    let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
    assert_eq!((report.code, report.code.exit()), (Code::DesktopUnreachable, 40));
    assert_eq!(*logins.lock().expect("no panic"), 2);
}

#[tokio::test]
async fn each_end_of_a_gateway_becomes_the_end_of_the_run() {
    for code in [
        Code::IdleLimit,
        Code::TakenOver,
        Code::EndedByAdministrator,
        Code::DeviceRevoked,
        Code::DesktopLost,
    ] {
        let mut office = Office::new();
        let gateway = office.gateway(move |_, mut peer: Peer| async move {
            let attach = peer.attach().await?;
            peer.carry(attach.link).await?;
            let args = [("minutes".to_owned(), "5".to_owned())].into();
            peer.say(&GatewayMessage::Notice { code: "ending".into(), args }).await?;
            peer.say(&GatewayMessage::End { cause: code }).await
        });
        let broker = admitting(&mut office, &answer(vec![gateway]));
        // A viewer that outlives its socket is ended, and has no say.
        let (_folder, viewer) = script("exec sleep 600");
        let report = alone(&office.agent(), to(broker, viewer)).await;
        assert_eq!(report.code, code);
        assert!(report.names().contains(&"notice".into()));
    }
}

#[tokio::test]
async fn what_only_ends_a_link_does_not_say_why_the_desktop_is_lost() {
    for (word, close) in [
        (Some(GatewayMessage::End { cause: Code::Superseded }), &b""[..]),
        (Some(GatewayMessage::Error(Code::Unavailable.into())), b""),
        (None, b"disconnected"),
    ] {
        let mut office = Office::new();
        let said = word.clone();
        let gateway = office.gateway(move |_, mut peer: Peer| {
            let word = word.clone();
            async move {
                let attach = peer.attach().await?;
                let (mut send, mut recv) = peer.carry(attach.link).await?;
                send.finish();
                while let Ok(Some(_)) = recv.read(1024).await {}
                // The viewer has closed; it is given time to have ended.
                tokio::time::sleep(Duration::from_millis(300)).await;
                if let Some(word) = word {
                    return peer.say(&word).await;
                }
                peer.connection.close(50_u8.into(), close);
                Ok(())
            }
        });
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let (_folder, viewer) = script(r#"cat <&"$TEGATA_FD" >/dev/null; exit 1"#);
        let report = alone(&office.agent(), to(broker, viewer)).await;
        assert_eq!((report.code, report.code.exit()), (Code::DesktopLost, 41), "{said:?}");
    }
}

#[tokio::test]
async fn a_command_gets_socket_pin_user_and_secret_and_its_exit_counts() {
    let mut office = Office::new();
    let gateway = answering(&mut office, b"\x03\0\0\x13\x0e\xd0\0\0\0\0\0\x02\0\x08\0\x01\0\0\0");
    let broker = admitting(&mut office, &rdp_answer(vec![gateway]));
    let (folder, viewer) = script(
        r#"secret=$(cat <&"$TEGATA_SECRET_FD")
           printf 'hello' >&"$TEGATA_FD"
           head -c 19 <&"$TEGATA_FD" | od -An -tx1 | tr -d ' \n' >"$1/answer"
           echo "$TEGATA_USER $TEGATA_CERT_SHA256 $TEGATA_SECURITY $secret" >"$1/told"
           tr '\0' '\n' </proc/$$/environ >"$1/environment"
           find /proc/$$/fd -lname 'socket:*' ! -name '[0-2]' -printf '%f\n' >"$1/sockets"
           exit 0"#,
    );
    let report = alone(&office.agent(), to(broker, viewer)).await;
    assert_eq!((report.code, report.code.exit()), (Code::LoggedOff, 0));
    let read = |name| std::fs::read_to_string(folder.path().join(name)).expect("written");
    assert_eq!(read("told").trim(), format!("sato {} tls hunter2", "ab".repeat(32)));
    assert_eq!(read("answer"), "030000130ed00000000000020008000100000000"[..38].to_owned());
    assert!(!read("environment").contains("hunter2"));
    // What the test itself inherited may be there too, but no socket of ours.
    let sockets = read("sockets");
    assert_eq!(sockets.trim(), "3", "of all our sockets only the viewer's own is inherited");
}

#[tokio::test]
async fn a_commands_exit_tells_a_pin_mismatch_from_a_disconnect() {
    for (exit, code, number) in [(143, Code::PinMismatch, 12), (1, Code::Disconnected, 50)] {
        let mut office = Office::new();
        let byes = Byes::default();
        let gateway = echoing(&mut office, &byes);
        let broker = admitting(&mut office, &answer(vec![gateway]));
        let (_folder, viewer) = script(&format!("exit {exit}"));
        let report = alone(&office.agent(), to(broker, viewer)).await;
        assert_eq!((report.code, report.code.exit()), (code, number));
    }
}

#[tokio::test]
async fn a_desktop_that_lowers_the_security_is_cut_before_the_viewer_reads_a_byte() {
    for first in [
        &b"\x03\0\0\x13\x0e\xd0\0\0\0\0\0\x02\0\x08\0\x00\0\0\0more"[..],
        b"\x03\0\0\x0b\x06\xd0\0\0\0\0\0",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ] {
        let mut office = Office::new();
        let gateway = answering(&mut office, first);
        let broker = admitting(&mut office, &rdp_answer(vec![gateway]));
        let agent = office.agent();
        let stop = CancellationToken::new();
        let report = beside(&agent, to(broker, forward()), &stop, |mut watch| async move {
            let mut viewer = forwarded(&mut watch).await;
            viewer.write_all(b"connect").await.expect("it is carried");
            let mut seen = Vec::new();
            let _ = viewer.read_to_end(&mut seen).await;
            assert_eq!(seen, b"", "not a byte");
        })
        .await;
        assert_eq!((report.code, report.code.exit()), (Code::PinMismatch, 12), "{first:?}");
    }
}

#[tokio::test]
async fn freerdp_is_not_shown_a_desktop_that_speaks_no_rdp() {
    let scene = Scene::new(&answer(vec![]), wishes().password()).expect("complete");
    assert!(scene.secret.is_none(), "no sign-on where there is no RDP");
    let mut broken = rdp_answer(vec![]);
    broken.desktop.certificate_sha256 = None;
    let refused = Scene::new(&broken, wishes().password()).expect_err("no pin");
    assert_eq!(refused.code(), Code::Malformed);
    let mut broken = rdp_answer(vec![]);
    broken.desktop.user_hint = Some("sato\n/cert:ignore".into());
    let refused = Scene::new(&broken, wishes().password()).expect_err("two arguments");
    assert_eq!(refused.code(), Code::Malformed);
}

#[tokio::test]
async fn a_stop_says_disconnected_and_ends_the_viewer() {
    let mut office = Office::new();
    let byes = Byes::default();
    let gateway = echoing(&mut office, &byes);
    let broker = admitting(&mut office, &answer(vec![gateway]));
    let agent = office.agent();
    let stop = CancellationToken::new();
    let (folder, viewer) =
        script("echo $$ >\"$1/new\" && mv \"$1/new\" \"$1/pid\"; exec sleep 600");
    let pid = folder.path().join("pid");
    let report = beside(&agent, to(broker, viewer), &stop, |_watch| async {
        while !pid.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    })
    .await;
    assert_eq!((report.code, report.code.exit()), (Code::Disconnected, 50));
    assert_eq!(*byes.lock().expect("no panic"), [Code::Disconnected]);
    let pid = std::fs::read_to_string(pid).expect("written");
    soon(async {
        let state = format!("/proc/{}/stat", pid.trim());
        // Gone, or waiting to be collected.
        while std::fs::read_to_string(&state).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_stop_before_there_is_a_session_ends_the_run_too() {
    let mut office = Office::new();
    let broker = office.broker(|_, peer: Peer| async move {
        peer.connection.closed().await;
        Ok::<_, LinkError>(())
    });
    let agent = office.agent();
    let stop = CancellationToken::new();
    let report =
        beside(&agent, to(broker, Viewer::Nothing), &stop, async |mut watch: Receiver<Event>| {
            while !matches!(watch.recv().await, Some(Event::Connected { .. }) | None) {}
            stop.cancel();
            drop(watch);
        })
        .await;
    assert_eq!(report.code, Code::Disconnected);
}

#[tokio::test]
async fn a_frame_too_long_or_no_frame_ends_the_run_with_70() {
    for bytes in [&b"\xff\xff\xff\xff"[..], b"\0\0\0\x02{]", b"\0\0\0\0"] {
        let mut office = Office::new();
        let broker = office.broker(move |_, mut peer: Peer| async move {
            let _: tegata_proto::login::AgentMessage = peer.hear().await?;
            let _ = peer.say.write_chunk(bytes::Bytes::copy_from_slice(bytes)).await;
            peer.connection.closed().await;
            Ok(())
        });
        let report = alone(&office.agent(), to(broker, Viewer::Nothing)).await;
        assert_eq!((report.code, report.code.exit()), (Code::Malformed, 70), "{bytes:?}");
    }
}
