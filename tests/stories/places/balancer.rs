//! Where people are when a balancer brings them: by its word, and by nobody else's.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use serde_json::json;
use tegata_parts::balancer::Balancer;
use tegata_parts::netns::{Network, SERVER, Uplink};
use tegata_parts::port::{free_tcp, free_udp};
use tegata_tests::staff::echo;

use super::{Office, PASSWORD, networks};

/// A balancer that the broker knows, and one that it does not.
const LISTED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));
const UNLISTED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 8));

#[test]
fn a_listed_balancer_says_where_people_are_and_from_another_its_word_is_refused() -> Result<()> {
    let network = Network::builder().start()?;
    let (office, balancer, impostor) = network.server().inside(|| {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_udp()?));
        let doors = [free_tcp()?, free_tcp()?].map(|port| SocketAddr::from((SERVER, port)));
        let office = Office::open(&json!({}), |site| {
            networks(site).behind(listen, doors[0]).balancers(&format!("{LISTED}/32"))
        })?;
        let balancer = Balancer::start(doors[0], LISTED, listen)?;
        Ok((office, balancer, Balancer::start(doors[1], UNLISTED, listen)?))
    })?;
    let sessions = || network.server().inside(|| office.site.api()?.sessions());
    let comes_by = |balancer: &Balancer| {
        let door = balancer.address().to_string();
        network.client().inside(|| office.site.device("sato", PASSWORD).server(&door).start())
    };
    for (uplink, class) in [(Uplink::Lte, "telework"), (Uplink::Wifi, "desk")] {
        network.switch_to(uplink)?;
        let mut sato = comes_by(&balancer)?;
        let mut desktop = network.client().inside(|| sato.desktop())?;
        echo(&mut desktop, class)?;
        assert_eq!(sato.event("attached")?["transport"], "tcp", "{}", sato.log());
        let session = sessions()?;
        assert_eq!((session.len(), &session[0]["class"]), (1, &class.into()), "{session:?}");
        drop(desktop);
        assert_eq!(sato.exit()?, 50, "{}", sato.log());
    }
    let before = sessions()?;
    let mut sato = comes_by(&impostor)?;
    // What it says before is no TLS.
    assert_eq!(sato.exit()?, 12, "{}", sato.log());
    assert_eq!(sessions()?, before, "nothing was granted");
    Ok(())
}
