//! An embedded RDP desktop: one address, one picture, any number of people after one another.
//!
//! Every connection gets an RDP server of its own, so that a probe which says hello and leaves never
//! disturbs the person at the desktop. As soon as a connection is signed on and about to be painted,
//! the one painted before it is closed: the newest person wins, as on a real desktop.

use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroUsize};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use ironrdp_pdu::rdp::capability_sets::server_codecs_capabilities;
use ironrdp_server::{
    BitmapUpdate, CredentialDecision, CredentialValidationError, CredentialValidator, Credentials,
    DesktopSize, DisplayUpdate, PixelFormat, RdpServer, RdpServerDisplay, RdpServerDisplayUpdates,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::colour::Colour;
use crate::identity::Identity;
use crate::picture::{HEIGHT, PIXEL, Picture, Rows, WIDTH};

/// How many connections one desktop serves at a time, most of them probes; more wait in the backlog.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may take from its first byte to its first picture.
const SIGN_ON_DEADLINE: Duration = Duration::from_secs(30);
/// How often the clock is painted.
const CLOCK_PERIOD: Duration = Duration::from_secs(1);
/// How long to wait after `accept` failed, which is for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One desktop as it is asked for on the command line: `NAME=COLOUR@ADDRESS`.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The name painted on it.
    pub name: String,
    /// The colour of its background.
    pub colour: Colour,
    /// Where it listens; port 0 picks a free one.
    pub address: SocketAddr,
}

/// A wish that is not `NAME=COLOUR@ADDRESS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a desktop is written NAME=#rrggbb@ADDRESS:PORT")]
pub struct WishError;

impl FromStr for Wish {
    type Err = WishError;

    fn from_str(text: &str) -> Result<Self, WishError> {
        let (name, rest) = text.split_once('=').ok_or(WishError)?;
        let (colour, address) = rest.split_once('@').ok_or(WishError)?;
        Ok(Self {
            name: name.to_owned(),
            colour: colour.parse().map_err(|_no_colour| WishError)?,
            address: address.parse().map_err(|_no_address| WishError)?,
        })
    }
}

/// How a desktop secures its connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Security {
    /// TLS; the account comes inside it.
    Tls,
    /// TLS with network level authentication by NTLM; needs an account.
    Nla,
}

/// The only account a desktop lets in.
#[derive(Clone)]
pub struct Account {
    /// The user name, compared without its domain.
    pub user: String,
    /// The password.
    pub password: String,
}

/// One listening desktop.
pub struct Desktop {
    listener: TcpListener,
    address: SocketAddr,
    name: String,
    colour: Colour,
    acceptor: TlsAcceptor,
    public_key: Vec<u8>,
    security: Security,
    account: Option<Account>,
    /// How many connections have been painted; the last of them is the one to go on.
    painted: watch::Sender<u64>,
}

impl Desktop {
    /// Starts to listen.
    ///
    /// # Errors
    ///
    /// Fails when the address is taken or the identity cannot be used, and refuses network level
    /// authentication without an account.
    pub async fn open(
        wish: Wish,
        identity: &Identity,
        security: Security,
        account: Option<Account>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            security == Security::Tls || account.is_some(),
            "network level authentication needs an account"
        );
        let listener = TcpListener::bind(wish.address)
            .await
            .with_context(|| format!("cannot listen on {}", wish.address))?;
        Ok(Self {
            address: listener.local_addr().context("cannot tell the listening address")?,
            listener,
            name: wish.name,
            colour: wish.colour,
            acceptor: identity.acceptor()?,
            public_key: identity.public_key()?,
            security,
            account,
            painted: watch::Sender::new(0),
        })
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the future is dropped, which ends every connection.
    ///
    /// It has to run inside a [`tokio::task::LocalSet`], because the RDP server is bound to its
    /// thread.
    pub async fn serve(self) {
        let desktop = Arc::new(self);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                Some(_ended) = connections.join_next() => {}
                accepted = desktop.listener.accept(), if connections.len() < MAX_CONNECTIONS => {
                    match accepted {
                        Ok((stream, _peer)) => {
                            connections.spawn_local(Arc::clone(&desktop).connection(stream));
                        }
                        Err(error) => {
                            eprintln!("{}: cannot accept a connection: {error}", desktop.name);
                            sleep(ACCEPT_PAUSE).await;
                        }
                    }
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let signed_on = Arc::new(Notify::new());
        let mut server = self.server(Arc::clone(&signed_on));
        let run = server.run_connection(stream);
        tokio::pin!(run);
        let ended = tokio::select! {
            ended = &mut run => ended,
            in_time = timeout(SIGN_ON_DEADLINE, signed_on.notified()) => match in_time {
                Ok(()) => run.await,
                Err(_elapsed) => Err(anyhow::anyhow!("no sign-on within {SIGN_ON_DEADLINE:?}")),
            },
        };
        if let Err(error) = ended {
            eprintln!("{}: a connection ended: {error:#}", self.name);
        }
    }

    fn server(&self, signed_on: Arc<Notify>) -> RdpServer {
        // CredSSP has checked the account before the door is asked, and then shows none.
        let known = self.account.as_ref().filter(|_known| self.security == Security::Nla);
        let account = known.map(|known| known.user.clone()).unwrap_or_default();
        let account = Arc::new(Mutex::new(account));
        let address = RdpServer::builder().with_addr(self.address);
        let secured = match self.security {
            Security::Tls => address.with_tls(self.acceptor.clone()),
            Security::Nla => address.with_hybrid(self.acceptor.clone(), self.public_key.clone()),
        };
        let codecs = server_codecs_capabilities(&["remotefx:off"]).expect("a codec IronRDP knows");
        let mut server = secured
            .with_no_input()
            .with_display_handler(Screen {
                name: self.name.clone(),
                colour: self.colour,
                account: Arc::clone(&account),
                painted: self.painted.clone(),
                signed_on,
            })
            .with_bitmap_codecs(codecs)
            .with_credential_validator(Some(Arc::new(Door {
                wanted: self.account.clone(),
                account,
            })))
            .build();
        if self.security == Security::Nla {
            server.set_credentials(self.account.as_ref().map(|account| Credentials {
                username: account.user.clone(),
                password: account.password.clone(),
                domain: None,
            }));
        }
        server
    }
}

/// Lets in the wanted account, or everybody, and keeps the name to be painted.
struct Door {
    wanted: Option<Account>,
    account: Arc<Mutex<String>>,
}

#[async_trait::async_trait]
impl CredentialValidator for Door {
    async fn validate(
        &self,
        shown: &Credentials,
    ) -> Result<CredentialDecision, CredentialValidationError> {
        let welcome = self.wanted.as_ref().is_none_or(|wanted| {
            wanted.user == shown.username && wanted.password == shown.password
        });
        if !welcome {
            return Ok(CredentialDecision::Reject);
        }
        self.account.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&shown.username);
        Ok(CredentialDecision::Accept)
    }
}

/// The display of one connection.
struct Screen {
    name: String,
    colour: Colour,
    account: Arc<Mutex<String>>,
    painted: watch::Sender<u64>,
    signed_on: Arc<Notify>,
}

#[async_trait::async_trait]
impl RdpServerDisplay for Screen {
    async fn size(&mut self) -> DesktopSize {
        DesktopSize { width: WIDTH, height: HEIGHT }
    }

    async fn updates(&mut self) -> anyhow::Result<Box<dyn RdpServerDisplayUpdates>> {
        self.signed_on.notify_one();
        self.painted.send_modify(|count| *count += 1);
        let mut clock = interval(CLOCK_PERIOD);
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        Ok(Box::new(Updates {
            picture: Picture {
                colour: self.colour,
                name: self.name.clone(),
                account: self.account.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            },
            // Subscribed after its own count: whatever changes from now on is somebody newer.
            newer: self.painted.subscribe(),
            clock,
            whole: true,
        }))
    }
}

struct Updates {
    picture: Picture,
    newer: watch::Receiver<u64>,
    clock: Interval,
    whole: bool,
}

#[async_trait::async_trait]
impl RdpServerDisplayUpdates for Updates {
    async fn next_update(&mut self) -> anyhow::Result<Option<DisplayUpdate>> {
        tokio::select! {
            biased;
            _somebody = self.newer.changed() => Ok(None),
            _tick = self.clock.tick() => {
                let now = SystemTime::now();
                let rows = if self.whole { self.picture.whole(now) } else { self.picture.clock(now) };
                self.whole = false;
                Ok(Some(DisplayUpdate::Bitmap(bitmap(rows))))
            }
        }
    }
}

fn bitmap(rows: Rows) -> BitmapUpdate {
    BitmapUpdate {
        x: 0,
        y: rows.top,
        width: NonZeroU16::new(WIDTH).expect("a screen has a width"),
        height: NonZeroU16::new(rows.height).expect("a picture has rows"),
        format: PixelFormat::BgrX32,
        data: rows.pixels,
        stride: NonZeroUsize::new(usize::from(WIDTH) * PIXEL).expect("a screen has a width"),
    }
}
