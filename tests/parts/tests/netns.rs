//! Networks do to packets what the tests of Tegata rely on.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    io::Errno,
    net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover},
};
use tegata_parts::{
    netns::{Host, Network, Quality, ROUTER, SERVER, Uplink},
    process::Child,
};

const LIMIT: Duration = Duration::from_secs(30);

/// What IPv4 and UDP put before a datagram, in bytes.
const HEADERS: usize = 28;

/// One socket of the client's, which any address may send, and one of the server's.
struct Pair {
    client: UdpSocket,
    server: UdpSocket,
    at: SocketAddr,
}

fn socket(host: &Host, address: Ipv4Addr) -> Result<UdpSocket> {
    let socket = host.inside(|| Ok(UdpSocket::bind((address, 0))?))?;
    socket.set_read_timeout(Some(LIMIT))?;
    Ok(socket)
}

impl Pair {
    fn of(network: &Network) -> Result<Self> {
        let server = socket(network.server(), SERVER)?;
        let at = server.local_addr()?;
        Ok(Self { client: socket(network.client(), Ipv4Addr::UNSPECIFIED)?, server, at })
    }

    fn say(&self, text: &str) -> Result<()> {
        self.client.send_to(text.as_bytes(), self.at)?;
        Ok(())
    }

    fn hear(&self) -> Result<(String, SocketAddr)> {
        let mut room = [0; 2048];
        let (length, from) =
            self.server.recv_from(&mut room).context("the server hears nothing")?;
        Ok((String::from_utf8_lossy(&room[..length]).into_owned(), from))
    }

    /// Says something to the server and returns where it came from.
    fn seen(&self, text: &str) -> Result<SocketAddr> {
        self.say(text)?;
        let (heard, from) = self.hear()?;
        ensure!(heard == text, "{heard} was heard, not {text}");
        Ok(from)
    }
}

fn namespaces(network: &Network) -> Vec<String> {
    let name = network.client().name();
    ["client", "router", "server"].map(|host| name.replace("client", host)).into()
}

fn exists(namespace: &str) -> bool {
    Path::new("/run/netns").join(namespace).exists()
}

#[test]
fn a_client_that_changes_networks_is_seen_at_its_other_address() -> Result<()> {
    let network = Network::builder().start()?;
    let pair = Pair::of(&network)?;
    let route = || {
        network.client().inside(|| {
            let shown = Command::new("ip").args(["route", "show", "default"]).output()?;
            Ok(String::from_utf8(shown.stdout)?.trim_end().to_owned())
        })
    };
    for (uplink, shown) in [
        (Uplink::Wifi, "default via 10.77.1.1 dev wifi"),
        (Uplink::Lte, "default via 10.77.2.1 dev lte"),
        (Uplink::Wifi, "default via 10.77.1.1 dev wifi"),
    ] {
        network.switch_to(uplink)?;
        let from = pair.seen("hello")?;
        assert_eq!(from.ip(), uplink.address(), "{uplink:?}");
        assert_eq!(route()?, shown, "a program inside sees it too");
        pair.server.send_to(b"back", from)?;
        let mut back = [0; 4];
        assert_eq!(pair.client.recv_from(&mut back)?, (4, pair.at));
    }
    Ok(())
}

#[test]
fn a_cut_uplink_carries_nothing_and_the_other_one_does() -> Result<()> {
    let network = Network::builder().start()?;
    let pair = Pair::of(&network)?;
    let on_wifi = pair.seen("before")?;
    network.cut(Uplink::Wifi)?;
    for _ in 0..20 {
        pair.say("lost")?;
        pair.server.send_to(b"lost", on_wifi)?;
    }
    network.switch_to(Uplink::Lte)?;
    let on_lte = pair.seen("by the other way")?;
    pair.server.send_to(b"back", on_lte)?;
    let mut back = [0; 8];
    assert_eq!(pair.client.recv(&mut back)?, 4, "nothing came by the one that is cut");

    network.mend(Uplink::Wifi)?;
    network.switch_to(Uplink::Wifi)?;
    assert_eq!(pair.seen("after")?, on_wifi, "what was lost stays lost");
    Ok(())
}

#[test]
fn an_uplink_that_is_switched_off_takes_its_route_with_it() -> Result<()> {
    let network = Network::builder().start()?;
    let pair = Pair::of(&network)?;
    network.switch_off(Uplink::Wifi)?;
    let unreachable = pair.say("nowhere").expect_err("there is no way");
    let unreachable = unreachable.downcast::<std::io::Error>()?.kind();
    assert_eq!(unreachable, std::io::ErrorKind::NetworkUnreachable);
    network.switch_to(Uplink::Lte)?;
    assert_eq!(pair.seen("by the other way")?.ip(), Uplink::Lte.address());
    network.switch_on(Uplink::Wifi)?;
    network.switch_to(Uplink::Wifi)?;
    assert_eq!(pair.seen("back")?.ip(), Uplink::Wifi.address());
    Ok(())
}

#[test]
fn where_udp_is_forbidden_tcp_passes() -> Result<()> {
    let network = Network::builder().start()?;
    let pair = Pair::of(&network)?;
    let from = pair.seen("before")?;
    network.forbid_udp()?;
    pair.say("lost")?;
    pair.server.send_to(b"lost", from)?;
    let listener = network.server().inside(|| Ok(TcpListener::bind((SERVER, 0))?))?;
    let address = listener.local_addr()?;
    let mut there = network.client().inside(|| Ok(TcpStream::connect_timeout(&address, LIMIT)?))?;
    there.set_read_timeout(Some(LIMIT))?;
    let (mut back, _) = listener.accept()?;
    back.write_all(b"by TCP")?;
    let mut came = [0; 6];
    there.read_exact(&mut came)?;
    assert_eq!(&came, b"by TCP");
    network.allow_udp()?;
    pair.seen("after")?;
    pair.server.send_to(b"back", from)?;
    let mut came = [0; 8];
    assert_eq!(pair.client.recv(&mut came)?, 4);
    assert_eq!(&came[..4], b"back", "what was lost stays lost");
    Ok(())
}

#[test]
fn behind_a_nat_the_clients_address_is_hidden() -> Result<()> {
    let network = Network::builder().nat().start()?;
    let pair = Pair::of(&network)?;
    for uplink in [Uplink::Wifi, Uplink::Lte] {
        network.switch_to(uplink)?;
        let from = pair.seen("hello")?;
        assert_eq!(from.ip(), ROUTER, "{uplink:?}");
        pair.server.send_to(b"back", from)?;
        let mut back = [0; 4];
        assert_eq!(pair.client.recv_from(&mut back)?, (4, pair.at), "answers find the way");
    }
    Ok(())
}

#[test]
fn no_packet_is_longer_than_an_uplink_lets_pass() -> Result<()> {
    const MTU: usize = 1280;

    let network = Network::builder().mtu(1280).start()?;
    let pair = Pair::of(&network)?;
    for socket in [&pair.client, &pair.server] {
        set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?;
    }
    let (fits, too_long) = ([1; MTU - HEADERS], [2; MTU - HEADERS + 1]);
    let refused = |sent: std::io::Result<usize>| {
        sent.err().and_then(|error| error.raw_os_error()) == Some(Errno::MSGSIZE.raw_os_error())
    };

    pair.client.send_to(&fits, pair.at)?;
    let (heard, client) = pair.hear()?;
    assert_eq!(heard.len(), fits.len());
    assert!(refused(pair.client.send_to(&too_long, pair.at)), "the client's own uplink is short");

    // The server finds out from the router.
    pair.server.send_to(&too_long, client)?;
    pair.server.send_to(&fits, client)?;
    let mut room = [0; 2048];
    assert_eq!(pair.client.recv(&mut room)?, fits.len(), "the long one was lost");
    assert!(refused(pair.server.send_to(&too_long, client)), "the server was told");
    Ok(())
}

#[test]
fn an_uplink_delays_and_loses_as_it_is_told_while_it_runs() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(30);
    const COUNT: usize = 100;

    let network = Network::builder().start()?;
    let pair = Pair::of(&network)?;
    let from = pair.seen("hello")?;
    network.set_quality(Uplink::Wifi, Quality { delay: DELAY, ..Quality::PERFECT })?;
    let began = Instant::now();
    assert_eq!(pair.seen("there")?, from);
    assert!(began.elapsed() >= DELAY, "there");
    pair.server.send_to(b"back", from)?;
    pair.client.recv(&mut [0; 4])?;
    assert!(began.elapsed() >= DELAY * 2, "and back");

    network.set_quality(Uplink::Wifi, Quality { loss_per_mille: 500, ..Quality::PERFECT })?;
    for _ in 0..COUNT {
        pair.say("perhaps")?;
    }
    network.set_quality(Uplink::Wifi, Quality::PERFECT)?;
    pair.say("the last one")?;
    let mut arrived = 0;
    while pair.hear()?.0 != "the last one" {
        arrived += 1;
    }
    assert!((1..COUNT).contains(&arrived), "{arrived} of {COUNT}");
    Ok(())
}

#[test]
fn a_slow_uplink_takes_its_time() -> Result<()> {
    let network = Network::builder()
        .quality(Uplink::Wifi, Quality { rate_kbit: Some(800), ..Quality::PERFECT })
        .start()?;
    let pair = Pair::of(&network)?;
    // Ten thousand bytes at a hundred thousand a second.
    let text = "x".repeat(1000 - HEADERS);
    let began = Instant::now();
    for _ in 0..10 {
        pair.say(&text)?;
    }
    for _ in 0..10 {
        assert_eq!(pair.hear()?.0, text);
    }
    assert!(began.elapsed() >= Duration::from_millis(100));
    Ok(())
}

#[test]
fn networks_beside_one_another_have_nothing_in_common() -> Result<()> {
    let (one, other) = (Network::builder().start()?, Network::builder().start()?);
    let server = socket(one.server(), SERVER)?;
    let port = server.local_addr()?.port();
    let other_server = other.server().inside(|| Ok(UdpSocket::bind((SERVER, port))?))?;
    other_server.set_read_timeout(Some(LIMIT))?;
    for (network, server, text) in [(&other, &other_server, "other"), (&one, &server, "one")] {
        let client = socket(network.client(), Ipv4Addr::UNSPECIFIED)?;
        client.send_to(text.as_bytes(), (SERVER, port))?;
        let mut room = [0; 8];
        let length = server.recv(&mut room)?;
        assert_eq!(&room[..length], text.as_bytes());
    }
    let outside = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let inside = one.client().inside(|| Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?))?;
    assert!(
        inside.send_to(b"out", (Ipv4Addr::LOCALHOST, outside.local_addr()?.port())).is_ok(),
        "loopback is there"
    );
    outside.set_nonblocking(true)?;
    assert!(outside.recv(&mut [0; 8]).is_err(), "and it is not this machine's");
    Ok(())
}

#[test]
fn a_dropped_network_leaves_no_namespace() -> Result<()> {
    let network = Network::builder().nat().start()?;
    let names = namespaces(&network);
    assert!(names.iter().all(|name| exists(name)), "{names:?}");
    drop(network);
    assert!(!names.iter().any(|name| exists(name)), "{names:?}");
    Ok(())
}

#[test]
fn a_killed_test_leaves_no_namespace() -> Result<()> {
    // The part of the killed test is played by this test binary, run again on the one test below,
    // which never ends by itself.
    let folder = tempfile::tempdir()?;
    let note = folder.path().join("note");
    let mut killed = Child::spawn(
        "test",
        Command::new(std::env::current_exe()?)
            .args(["--exact", "a_test_that_is_killed", "--ignored", "--nocapture"])
            .env("TEGATA_KILLED_TEST", &note),
        folder.path(),
    )?;
    let told = until("the network", || {
        ensure!(killed.is_running(), "{}", killed.log());
        Ok(fs::read_to_string(&note).ok().filter(|text| text.ends_with('\n')))
    })?;
    let names: Vec<_> = told.split_whitespace().collect();
    assert!(names.len() == 3 && names.iter().all(|name| exists(name)), "{names:?}");
    killed.kill()?;
    until("the guard", || Ok((!names.iter().any(|name| exists(name))).then_some(())))
}

#[test]
#[ignore = "plays the killed test in the test above"]
fn a_test_that_is_killed() -> Result<()> {
    let Some(note) = std::env::var_os("TEGATA_KILLED_TEST") else { return Ok(()) };
    let network = Network::builder().start()?;
    fs::write(note, namespaces(&network).join(" ") + "\n")?;
    loop {
        thread::park();
    }
}

fn until<T>(what: &str, mut answer: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(answer) = answer()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "waited {} s for {what}", LIMIT.as_secs());
        thread::sleep(Duration::from_millis(10));
    }
}
