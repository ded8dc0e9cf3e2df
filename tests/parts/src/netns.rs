//! Networks of their own, on which nothing else of this machine is: a client host with two
//! uplinks, a router and a server host, each a network namespace.
//!
//! ```text
//!  client ══ wifi 10.77.1.0/24 ══ router ── 10.77.9.0/24 ── server
//!         ══ lte  10.77.2.0/24 ══
//! ```
//!
//! With IPv6 each network has a prefix of that too, `fd77:0:0:9::/64` as the last one's.
//!
//! Whatever is started [inside](Host::inside) a host is on that host: sockets, threads and
//! programs. Addresses are the same in every network, and no network reaches another or the
//! machine itself.

use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
    panic::resume_unwind,
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    process::geteuid,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{folder::Folder, guard::Debt, package, port, process::run};

mod link;

pub use link::Quality;

use link::Link;

/// Numbers that networks get, one each.
const NETWORKS: std::ops::Range<u16> = 0..500;

/// Where namespaces have names.
const NAMES: &str = "/run/netns";

/// How long one change may take.
const CHANGE: Duration = Duration::from_secs(30);

/// The address of the server host.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 2);

/// The address of the server host by IPv6.
pub const SERVER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 9, 0, 0, 0, 2);

/// The address of the router on the server's side, which the server sees behind a NAT.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 77, 9, 1);

/// A way of the client's to the router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// The network of an office or a home.
    Wifi,
    /// A telephone's.
    Lte,
}

/// A running network.
pub struct Network {
    wifi: Link,
    lte: Link,
    has_ipv6: bool,
    client: Host,
    router: Host,
    server: Host,
    _folder: Folder,
}

/// A network that is being described.
#[must_use]
#[derive(Clone, Copy, Debug)]
pub struct Builder {
    mtu: u16,
    nat: bool,
    has_ipv6: bool,
    wifi: Quality,
    lte: Quality,
}

/// A machine of its own, as far as networks go.
pub struct Host {
    name: String,
    namespace: File,
    _debt: Debt,
}

impl Uplink {
    /// Returns the client's address on it.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.network(), 2)
    }

    fn network(self) -> u8 {
        match self {
            Self::Wifi => 1,
            Self::Lte => 2,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wifi => "wifi",
            Self::Lte => "lte",
        }
    }
}

impl Network {
    /// Begins a network with perfect uplinks for packets of 1500 bytes, without NAT.
    pub fn builder() -> Builder {
        let quality = Quality::PERFECT;
        Builder { mtu: 1500, nat: false, has_ipv6: false, wifi: quality, lte: quality }
    }

    /// Sends what leaves the client by this uplink from now on, with its address on it. Both
    /// uplinks go on carrying what is sent to the address of each.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn switch_to(&self, uplink: Uplink) -> Result<()> {
        let (network, name) = (uplink.network(), uplink.name());
        self.client.ip(&format!("route replace default via 10.77.{network}.1 dev {name}\n"))?;
        if self.has_ipv6 {
            let router = format!("fd77:0:0:{network}::1");
            self.client.ip(&format!("route replace default via {router} dev {name}\n"))?;
        }
        Ok(())
    }

    /// Changes what an uplink does, for everything that is sent from now on.
    ///
    /// # Errors
    ///
    /// When the uplink does not take it.
    pub fn set_quality(&self, uplink: Uplink, quality: Quality) -> Result<()> {
        self.link(uplink).set_quality(quality)
    }

    /// Makes an uplink carry nothing, and tells nobody: addresses and routes stay.
    ///
    /// # Errors
    ///
    /// When the uplink does not take it.
    pub fn cut(&self, uplink: Uplink) -> Result<()> {
        self.link(uplink).set_cut(true)
    }

    /// Makes a cut uplink carry again as before. What was sent meanwhile is lost.
    ///
    /// # Errors
    ///
    /// When the uplink does not take it.
    pub fn mend(&self, uplink: Uplink) -> Result<()> {
        self.link(uplink).set_cut(false)
    }

    /// Switches an uplink off, as the kernel sees it: routes by it are gone until the client
    /// [switches](Self::switch_to) to it again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn switch_off(&self, uplink: Uplink) -> Result<()> {
        self.client.ip(&format!("link set {} down\n", uplink.name()))
    }

    /// Switches an uplink on again, with the same address.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn switch_on(&self, uplink: Uplink) -> Result<()> {
        self.client.ip(&format!("link set {} up\n", uplink.name()))
    }

    /// Lets no UDP pass the router either way, as some hotels do.
    ///
    /// # Errors
    ///
    /// When it is forbidden already, or a program is missing.
    pub fn forbid_udp(&self) -> Result<()> {
        self.router.nft(
            "create table inet hotel; add chain inet hotel through { type filter hook forward \
             priority 0; }; add rule inet hotel through meta l4proto udp drop\n",
        )
    }

    /// Lets UDP pass again.
    ///
    /// # Errors
    ///
    /// When it was not forbidden.
    pub fn allow_udp(&self) -> Result<()> {
        self.router.nft("delete table inet hotel\n")
    }

    /// Lets no IPv6 pass the router either way, and tells nobody.
    ///
    /// # Errors
    ///
    /// When it is forbidden already, or a program is missing.
    pub fn forbid_ipv6(&self) -> Result<()> {
        self.router.nft(
            "create table ip6 old; add chain ip6 old through { type filter hook forward \
             priority 0; }; add rule ip6 old through drop\n",
        )
    }

    /// Returns the host with the two uplinks.
    pub fn client(&self) -> &Host {
        &self.client
    }

    /// Returns the host behind the router.
    pub fn server(&self) -> &Host {
        &self.server
    }

    fn link(&self, uplink: Uplink) -> &Link {
        match uplink {
            Uplink::Wifi => &self.wifi,
            Uplink::Lte => &self.lte,
        }
    }
}

impl Builder {
    /// Lets packets of so many bytes pass the uplinks, and no longer ones.
    pub fn mtu(mut self, mtu: u16) -> Self {
        self.mtu = mtu;
        self
    }

    /// Hides the client's addresses from the server.
    pub fn nat(mut self) -> Self {
        self.nat = true;
        self
    }

    /// Has IPv6 beside IPv4.
    pub fn ipv6(mut self) -> Self {
        self.has_ipv6 = true;
        self
    }

    /// Starts with this quality of an uplink.
    pub fn quality(mut self, uplink: Uplink, quality: Quality) -> Self {
        match uplink {
            Uplink::Wifi => self.wifi = quality,
            Uplink::Lte => self.lte = quality,
        }
        self
    }

    /// Starts the network, with the client on its wifi.
    ///
    /// # Errors
    ///
    /// Without root, when a program is missing, and where the kernel refuses.
    pub fn start(self) -> Result<Network> {
        ensure!(geteuid().is_root(), "network namespaces need root");
        package::require(&["ip", "cc"])?;
        let number = port::reserve("network", NETWORKS, |_| true)?;
        let folder = Folder::new()?;
        let carrier = link::compile(folder.path())?;
        let [client, router, server] =
            ["client", "router", "server"].map(|host| Host::new(format!("tegata-{number}-{host}")));
        let (client, router, server) = (client?, router?, server?);
        if self.has_ipv6 {
            // Nobody else has these addresses, so nobody has to be asked for a second or two.
            let is_known = || write_setting("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
            [&client, &router, &server].into_iter().try_for_each(|host| host.inside(is_known))?;
        }
        router.inside(|| {
            write_setting("ip_forward", "1")?;
            answer_whoever_asks()
        })?;
        client.inside(answer_whoever_asks)?;

        router.ip(&format!(
            "link add server type veth peer name router netns {}\n\
             address add {ROUTER}/24 dev server\nlink set server up\n",
            server.name
        ))?;
        server.ip(&format!(
            "address add {SERVER}/24 dev router\nlink set router up\n\
             route add default via {ROUTER}\n"
        ))?;
        if self.has_ipv6 {
            router.inside(|| write_setting("/proc/sys/net/ipv6/conf/all/forwarding", "1"))?;
            router.ip("address add fd77:0:0:9::1/64 dev server nodad\n")?;
            server.ip(&format!(
                "address add {SERVER_IPV6}/64 dev router nodad\n\
                 route add default via fd77:0:0:9::1\n"
            ))?;
        }
        if self.nat {
            router.nft(
                "table ip nat { chain out { type nat hook postrouting priority 100; \
                 oifname \"server\" masquerade; }; }\n",
            )?;
        }
        let link = |which, quality| {
            let (mtu, has_ipv6) = (self.mtu, self.has_ipv6);
            let hosts = (&client, &router);
            Link::start(which, &carrier, hosts, (mtu, has_ipv6), quality, folder.path())
        };
        let (wifi, lte) = (link(Uplink::Wifi, self.wifi)?, link(Uplink::Lte, self.lte)?);
        let has_ipv6 = self.has_ipv6;
        let network = Network { wifi, lte, has_ipv6, client, router, server, _folder: folder };
        network.switch_to(Uplink::Wifi)?;
        Ok(network)
    }
}

impl Host {
    fn new(name: String) -> Result<Self> {
        let ip = package::program("ip")?;
        if Path::new(NAMES).join(&name).exists() {
            // Its number is ours, so nobody who lives has made it.
            delete(&name)?;
        }
        let debt = Debt::namespace(&ip, &name)?;
        run("ip", Command::new(ip).args(["netns", "add", &name]), b"", CHANGE)?;
        let namespace = File::open(Path::new(NAMES).join(&name))?;
        let host = Self { name, namespace, _debt: debt };
        host.ip("link set lo up\n")?;
        Ok(host)
    }

    /// Does something on this host, in a thread of its own. The sockets that it opens, the threads
    /// and the programs that it starts stay on the host.
    ///
    /// # Errors
    ///
    /// What it fails with, or that the host cannot be entered.
    pub fn inside<T: Send>(&self, what: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(self.namespace.as_fd(), network)
                    .with_context(|| format!("cannot enter {}", self.name))?;
                what()
            });
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Returns the name of its namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of the program `ip` on it.
    fn ip(&self, lines: &str) -> Result<()> {
        let mut command = Command::new(package::program("ip")?);
        command.args(["-netns", &self.name, "-batch", "-"]);
        run("ip", &mut command, lines.as_bytes(), CHANGE).map(drop)
    }

    /// Runs lines of the program `nft` on it.
    fn nft(&self, lines: &str) -> Result<()> {
        let mut command = Command::new(package::program("nft")?);
        command.args(["-f", "-"]);
        self.inside(|| run("nft", &mut command, lines.as_bytes(), CHANGE).map(drop))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = delete(&self.name);
    }
}

/// Lets a host take what comes by another way than its answer goes.
fn answer_whoever_asks() -> Result<()> {
    write_setting("conf/all/rp_filter", "0")?;
    write_setting("conf/default/rp_filter", "0")
}

/// Writes a setting on the host of this thread: one of IPv4, or one with its whole path.
fn write_setting(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net/ipv4").join(name);
    fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
}

fn delete(name: &str) -> Result<()> {
    let mut command = Command::new(package::program("ip")?);
    run("ip", command.args(["netns", "delete", name]), b"", CHANGE).map(drop)
}
