use std::net::Ipv4Addr;

use super::*;
use crate::office::{Ca, Office, Peer, soon};
use crate::words::Language;

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Report for Findings {
    fn add(&mut self, finding: Finding) {
        self.0.push(finding);
    }
}

impl Findings {
    fn of(&self, check: Check) -> Option<(Verdict, Option<Code>)> {
        let finding = self.0.iter().find(|finding| finding.check == check)?;
        Some((finding.verdict, finding.code))
    }
}

impl Findings {
    /// Returns what a person reads of one part.
    fn told(&self, check: Check) -> String {
        let mut told = Vec::new();
        let mut all = Told::new(&mut told, Language::En, false);
        self.0.iter().filter(|found| found.check == check).for_each(|found| all.add(found.clone()));
        String::from_utf8(told).expect("text")
    }
}

const OK: Option<(Verdict, Option<Code>)> = Some((Verdict::Ok, None));

async fn examined(office: &Office, server: &str) -> Findings {
    let server = server.parse().expect("an address");
    let examination = Examination { server, viewer: ViewerChoice::None };
    let mut findings = Findings::default();
    soon(Box::pin(examination.carry_out(&office.agent(), &mut findings))).await;
    findings
}

fn broker(office: &mut Office) -> SocketAddr {
    office.broker(|_, mut peer: Peer| async move {
        peer.welcome().await?;
        panic!("nobody logs in");
    })
}

#[test]
fn both_languages_say_something_of_their_own_with_the_same_value() {
    for remark in Remark::ALL {
        let (en, ja) = (remark.texts(Language::En), remark.texts(Language::Ja));
        assert!(en.0.is_ascii() && !en.0.is_empty(), "{}", en.0);
        assert!(ja.0.chars().any(|c| c > '\u{3000}'), "{}", ja.0);
        let values = |texts: (&str, Option<&str>)| {
            (texts.0.matches("{}").count(), texts.1.map(|text| text.matches("{}").count()))
        };
        assert_eq!(values(en), values(ja), "{}", en.0);
    }
}

#[tokio::test]
async fn where_all_is_well_a_broker_is_greeted_and_hears_no_password() {
    let mut office = Office::new();
    office.has_tcp = true;
    let gateway = office.ca.issue(&["tegata:gateway/g1"]);
    let key = gateway.spki_sha256().to_string();
    office.beside = Some(gateway);
    let address = broker(&mut office);
    let found = examined(&office, &address.to_string()).await;
    for check in [Check::Name, Check::Quic, Check::Tcp, Check::Ipv4, Check::Ipv6] {
        assert_eq!(found.of(check), OK, "{check:?}");
    }
    for check in [Check::Certificate, Check::Gateway, Check::Broker, Check::Mtu] {
        assert_eq!(found.of(check), OK, "{check:?}");
    }
    assert!(found.told(Check::Gateway).contains(&key), "{}", found.told(Check::Gateway));
    // This broker believes that it is 1970.
    assert_eq!(found.of(Check::Clock).map(|(verdict, _)| verdict), Some(Verdict::Warning));
}

#[tokio::test]
async fn without_udp_or_without_tcp_there_is_a_warning_and_without_both_a_failure() {
    let mut office = Office::new();
    let address = broker(&mut office);
    let found = examined(&office, &address.to_string()).await;
    assert_eq!(found.of(Check::Quic), OK);
    let warned = Some((Verdict::Warning, Some(Code::Unreachable)));
    assert_eq!(found.of(Check::Tcp), warned);

    office.has_tcp = true;
    let address = broker(&mut office);
    let (address, wire) = office.wire(address);
    wire.set_udp_dark(true);
    let found = examined(&office, &address.to_string()).await;
    assert_eq!((found.of(Check::Quic), found.of(Check::Tcp)), (warned, OK));
    assert_eq!((found.of(Check::Broker), found.of(Check::Mtu)), (OK, None));

    let nobody = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let found = examined(&office, &nobody.local_addr().expect("bound").to_string()).await;
    let failed = Some((Verdict::Failed, Some(Code::Unreachable)));
    assert_eq!((found.of(Check::Quic), found.of(Check::Tcp)), (failed, failed));
    assert_eq!(found.of(Check::Certificate), None, "nobody has shown one");
}

#[tokio::test]
async fn a_full_broker_is_told_from_a_network_that_lets_nothing_pass() {
    let mut office = Office::new();
    (office.has_tcp, office.is_full) = (true, true);
    let address = broker(&mut office);
    let found = examined(&office, &address.to_string()).await;
    let full = Some((Verdict::Failed, Some(Code::Unavailable)));
    assert_eq!((found.of(Check::Quic), found.of(Check::Tcp)), (full, full));
    assert_eq!(found.of(Check::Ipv4), OK, "it answers");
    assert_eq!((found.of(Check::Certificate), found.of(Check::Broker)), (None, None));
}

#[tokio::test]
async fn a_certificate_says_what_is_wrong_with_it() {
    let mut office = Office::new();
    let stranger = Ca::new().issue(&["tegata:broker/b1"]);
    let gateway = office.ca.issue(&["tegata:gateway/g1"]);
    let old = office.ca.issue_for_years(&["tegata:broker/b1"], 2001, 2002);
    for (leaf, is_clock) in [(stranger, false), (gateway, false), (old, true)] {
        let address = office.serve(&leaf, tegata_proto::ALPN_LOGIN, |_, _| async { Ok(()) });
        let found = examined(&office, &address.to_string()).await;
        let failed = Some((Verdict::Failed, Some(Code::TlsFailed)));
        assert_eq!(found.of(Check::Certificate), failed);
        let warned = Some((Verdict::Warning, Some(Code::TlsFailed)));
        assert_eq!(found.of(Check::Ipv4), warned, "somebody is there");
        let nothing = Some((Verdict::Failed, Some(Code::Unreachable)));
        assert_eq!(found.of(Check::Tcp), nothing, "no session goes by the other way instead");
        assert_eq!(found.of(Check::Clock), failed.filter(|_| is_clock));
    }
}

#[tokio::test]
async fn who_answers_wrongly_is_told_beside_what_is_ours() {
    let mut office = Office::new();
    office.has_tcp = true;
    office.between = Some(Ca::new().issue(&["tegata:broker/b1"]));
    let address = broker(&mut office);
    let found = examined(&office, &address.to_string()).await;
    assert_eq!((found.of(Check::Quic), found.of(Check::Broker)), (OK, OK));
    let warned = Some((Verdict::Warning, Some(Code::TlsFailed)));
    assert_eq!((found.of(Check::Tcp), found.of(Check::Ipv4)), (warned, OK));
    let certificates: Vec<_> =
        found.0.into_iter().filter(|finding| finding.check == Check::Certificate).collect();
    let [good, stranger] = certificates.as_slice() else { panic!("{certificates:?}") };
    assert_eq!((good.verdict, stranger.verdict), (Verdict::Ok, Verdict::Warning));
    let mut told = Vec::new();
    Told::new(&mut told, Language::En, false).add(stranger.clone());
    let told = String::from_utf8(told).expect("text");
    assert!(told.contains(&format!("TCP {address} (")), "{told}");
}

#[tokio::test]
async fn a_gateway_beside_a_good_broker_has_to_be_ours_by_either_transport() {
    let mut office = Office::new();
    office.has_tcp = true;
    let stranger = || Ca::new().issue(&["tegata:gateway/g1"]);
    let broker_of_ours = office.ca.issue(&["tegata:broker/b1"]);
    let old = office.ca.issue_for_years(&["tegata:gateway/g1"], 2001, 2002);
    for (leaf, is_udp_dark, advice) in [
        (stranger(), false, "of the same authority"),
        (stranger(), true, "of the same authority"),
        (broker_of_ours, false, "that was made for it"),
        (old, false, "renew the gateway's"),
    ] {
        office.beside = Some(leaf);
        let address = broker(&mut office);
        let (address, wire) = office.wire(address);
        wire.set_udp_dark(is_udp_dark);
        let found = examined(&office, &address.to_string()).await;
        assert_eq!((found.of(Check::Certificate), found.of(Check::Broker)), (OK, OK));
        let failed = Some((Verdict::Failed, Some(Code::TlsFailed)));
        assert_eq!(found.of(Check::Gateway), failed, "{advice}");
        let told = found.told(Check::Gateway);
        assert!(told.contains(advice), "{told}");
    }
}

#[tokio::test]
async fn a_broker_without_a_gateway_is_a_remark_and_no_fault() {
    for is_udp_dark in [false, true] {
        let mut office = Office::new();
        office.has_tcp = true;
        let address = broker(&mut office);
        let (address, wire) = office.wire(address);
        wire.set_udp_dark(is_udp_dark);
        let found = examined(&office, &address.to_string()).await;
        assert_eq!(found.of(Check::Gateway), OK);
        let told = found.told(Check::Gateway);
        assert!(told.contains(&format!("No gateway is at {address}")), "{told}");
    }
}

#[tokio::test]
async fn a_broker_that_takes_nobody_just_now_is_worth_another_try() {
    for (code, advice) in [(Code::Unavailable, "Try again"), (Code::Unsupported, "fit together")] {
        let mut office = Office::new();
        let address = office.broker(move |_, mut peer: Peer| async move {
            let _: tegata_proto::login::AgentMessage = peer.hear().await?;
            peer.say(&tegata_proto::login::BrokerMessage::Error(code.into())).await
        });
        let found = examined(&office, &address.to_string()).await;
        assert_eq!(found.of(Check::Broker), Some((Verdict::Failed, Some(code))));
        let told = found.told(Check::Broker);
        assert!(told.contains(advice) && told.contains(code.as_str()), "{told}");
    }
}
