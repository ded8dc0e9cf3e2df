//! The one configuration that every figure is measured with: a directory with ten thousand people
//! over LDAPS, one pool of desktops that take plain TCP and are never used twice, one broker with
//! its gateway.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _};
use tegata_parts::ca::{IssuedCertificate, TestCa};
use tegata_parts::slapd::{self, Slapd};

use super::arguments::Arguments;
use super::programs::Programs;
use crate::desktops::Desktops;
use crate::site::Site;

/// How many people the directory has.
const PEOPLE: u32 = 10_000;

/// How many it has for a quick look.
const PEOPLE_QUICK: u32 = 100;

/// How many groups they are spread over; each may use the pool.
const GROUPS: usize = 20;

/// Limits of a source, raised because everybody comes from one address here; and those of
/// all handshakes, which one source may have now.
const LIMITS: &str = "connections_per_source = 20000\n\
                      handshakes = 4096\nhandshakes_per_source = 4096\nretry_above = 2048";

/// And what that one source may do, as the class of its network says.
const SOURCE: &str = "logins_per_minute = 1000000\nfailures_per_minute = 1000000\nshare = 1000\n";

/// Where clients are that have hosts of their own.
const ROAD: &str = "10.77.0.0/16";

/// What the broker logs: what a site logs that has not changed it.
const LOG: &str = "info";

/// The pool's name, and the first part of its desktops'.
const POOL: &str = "bench";

/// A directory, and what sites share.
pub(super) struct Office {
    /// The directory.
    pub(super) directory: Slapd,
    /// How many people it has; they count from 0.
    pub(super) people: u32,
    authority: TestCa,
}

impl Office {
    /// Starts the directory.
    pub(super) fn open(arguments: &Arguments) -> Result<Self> {
        let people = arguments.count(PEOPLE, PEOPLE_QUICK);
        let authority = TestCa::new("bench")?;
        let directory = Slapd::builder().crowd(people as usize).start(&authority)?;
        Ok(Self { directory, people, authority })
    }

    /// Returns a certificate for a peer.
    pub(super) fn certificate(&self) -> Result<IssuedCertificate> {
        self.authority.issue_loopback()
    }

    /// Returns the PEM text of the authority that issued it.
    pub(super) fn authority(&self) -> Result<Vec<u8>> {
        Ok(fs::read(self.authority.certificate())?)
    }

    /// Starts a broker whose pool has so many ready desktops.
    ///
    /// They are made ready in the store, since probing tens of thousands takes minutes.
    pub(super) fn site(
        &self,
        programs: &Programs,
        desktops: &Desktops,
        count: u32,
    ) -> Result<Site> {
        self.site_at(Ipv4Addr::LOCALHOST.into(), programs, desktops, count)
    }

    /// Starts one that listens at this address, for clients on hosts of their own.
    pub(super) fn site_at(
        &self,
        address: IpAddr,
        programs: &Programs,
        desktops: &Desktops,
        count: u32,
    ) -> Result<Site> {
        let entitlements: Vec<_> = (1..=GROUPS)
            .map(|n| json!({"group": {"realm": "honsho", "name": slapd::group_dn(&format!("group{n:03}"))}}))
            .collect();
        let listed: Vec<_> = (0..count)
            .map(|n| json!({"name": format!("{POOL}-{n:06}"), "address": desktops.address(n)}))
            .collect();
        let pool = json!({
            "name": POOL, "label": POOL, "kind": "floating", "reuse": "never", "protocol": "tcp",
            "entitlements": entitlements, "desktops": listed,
        });
        let mut site = Site::builder()
            .programs(&programs.folder)
            .log(LOG)
            .limits(LIMITS)
            .office(SOURCE)
            .network("road", ROAD)
            .at(address)
            .slapd(&self.directory, &self.authority.certificate())
            .pool(pool)
            .start()?;
        site.stop()?;
        // A pool that was made by the API stands in the store alone.
        fs::write(site.path("pools.toml"), "pools = []\n")?;
        make_ready(&site)?;
        site.start()?;
        Ok(site)
    }
}

/// Writes what good probes of all desktops would have written.
fn make_ready(site: &Site) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    let now = i64::try_from(now)?;
    let store = SqliteConnectOptions::new().filename(site.path("tegata.db"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut store = store.connect().await?;
        sqlx::query(
            "UPDATE desktops SET state = 'ready', since = ?1, probed_at = ?1 \
             WHERE state = 'starting'",
        )
        .bind(now)
        .execute(&mut store)
        .await
        .context("the desktops cannot be made ready")?;
        Ok(store.close().await?)
    })
}

/// Returns the name of the person with this number, counted from 0.
pub(super) fn name_of(person: u32) -> String {
    format!("user{:05}", person + 1)
}

/// Returns their password.
pub(super) fn password_of(person: u32) -> String {
    format!("pw-{}", name_of(person))
}

/// Returns the broker's configuration as it stands in its file.
pub(super) fn configuration(site: &Site) -> Result<String> {
    Ok(fs::read_to_string(site.path("broker.toml"))?)
}
