//! Sessions that come back by the dozen after the broker was killed, and people who log in
//! meanwhile: these wait for those, and not for ever.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use tegata_domain::rush::{MANY, SPAN};
use tegata_proto::login::{BrokerMessage, TicketAnswer};
use tegata_proto::session::GatewayMessage;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tegata_tests::desktops::Desktops;
use tegata_tests::site::{Site, crowd_name, pool};
use tegata_tests::stranger::{self, Keys, Line};
use tegata_tests::wait;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::{PASSWORD, tell};

/// How many come back in one burst: more than make a rush.
const RETURNING: usize = MANY + 8;

/// How many log in meanwhile.
const NEWCOMERS: usize = 8;

/// Somebody whose session comes back again and again.
struct Returner {
    keys: Keys,
    answer: TicketAnswer,
    links: u64,
    /// Where they are now.
    _line: Option<Line>,
}

impl Returner {
    async fn begins(to: SocketAddr, n: usize) -> Result<Self> {
        let keys = Keys::generate()?;
        let answer = stranger::ticket(to, &keys, &crowd_name(n), PASSWORD).await?;
        match stranger::attach(to, &keys, &answer.ticket, 1).await? {
            (GatewayMessage::Attached(_), line) => {
                Ok(Self { keys, answer, links: 1, _line: Some(line) })
            }
            (other, _) => bail!("{other:?}"),
        }
    }

    async fn returns_over(mut self, line: Line) -> Result<Self> {
        self.links += 1;
        let (keys, grant) = (&self.keys, &self.answer.grant);
        match stranger::come_back_over(line, keys, grant, self.links, None).await? {
            (GatewayMessage::Attached(_), line) => Ok(Self { _line: Some(line), ..self }),
            (other, _) => bail!("{other:?}"),
        }
    }
}

/// Lets everybody come back at once, over lines that are there already, and returns when
/// the first of them may have been let in, at the earliest.
async fn burst(to: SocketAddr, returners: &mut Vec<Returner>) -> Result<Instant> {
    let opening = returners
        .drain(..)
        .map(|returner| async move { anyhow::Ok((returner, Line::open(to, ALPN_SESSION).await?)) });
    let ready = opening.collect::<JoinSet<_>>().join_all().await;
    let ready = ready.into_iter().collect::<Result<Vec<_>>>()?;
    let begun = Instant::now();
    let returning = ready.into_iter().map(|(returner, line)| returner.returns_over(line));
    for back in returning.collect::<JoinSet<_>>().join_all().await {
        returners.push(back?);
    }
    Ok(begun)
}

/// When newcomers asked, and were let in, beside a rush.
struct Rush {
    began: Instant,
    asked: Instant,
    let_in: Vec<Instant>,
    bursts: u32,
}

/// Has people log in during a rush, which goes on until all of them are in.
async fn rush(
    to: SocketAddr,
    returners: &mut Vec<Returner>,
    newcomers: RangeInclusive<usize>,
) -> Result<Rush> {
    let mut welcome = Vec::new();
    for n in newcomers {
        let mut line = Line::open(to, ALPN_LOGIN).await?;
        let txn = stranger::hello(&mut line, &Keys::generate()?).await?;
        welcome.push((line, txn, crowd_name(n)));
    }
    // Until everybody has come back so quickly that whoever asks next meets the rush.
    let mut began = burst(to, returners).await?;
    for _ in 0..20 {
        if began.elapsed() < SPAN / 2 {
            break;
        }
        began = burst(to, returners).await?;
    }
    let asked = Instant::now();
    let asking = welcome.into_iter().map(|(mut line, txn, name)| async move {
        let answer = stranger::say_password(&mut line, txn, &name, PASSWORD).await?;
        ensure!(matches!(answer, BrokerMessage::Ticket(_)), "{name}: {answer:?}");
        anyhow::Ok(Instant::now())
    });
    let mut asking: JoinSet<_> = asking.collect();
    let (mut let_in, mut bursts) = (Vec::new(), 0);
    while !asking.is_empty() {
        ensure!(asked.elapsed() < wait::LIMIT, "they still wait after {bursts} bursts");
        burst(to, returners).await?;
        bursts += 1;
        while let Some(answered) = asking.try_join_next() {
            let_in.push(answered??);
        }
    }
    let_in.sort_unstable();
    Ok(Rush { began, asked, let_in, bursts })
}

#[test]
fn who_returns_goes_first_and_whoever_is_new_comes_in_all_the_same() -> Result<()> {
    let people = RETURNING + NEWCOMERS;
    let desktops = Desktops::start(1)?;
    let numbers = 0..u32::try_from(people)?;
    let addresses: Vec<_> = numbers.map(|n| desktops.ticking_address(n)).collect();
    let mut site = Site::builder()
        .crowd(1..=people, PASSWORD, "keiri")?
        .pool(pool("keiri", "keiri", &addresses))
        .log("info")
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", people)?;
    let (to, runtime) = (site.listen(), Runtime::new()?);
    let mut returners = runtime.block_on(async {
        let mut returners = Vec::new();
        for n in 1..=RETURNING {
            returners.push(Returner::begins(to, n).await?);
        }
        anyhow::Ok(returners)
    })?;
    site.kill()?;
    site.start()?;
    let rush = runtime.block_on(rush(to, &mut returners, RETURNING + 1..=people))?;
    let waited = |at: &Instant| at.duration_since(rush.asked).as_millis();
    tell(&json!({
        "returning": RETURNING, "newcomers": NEWCOMERS, "bursts_meanwhile": rush.bursts,
        "asked_ms_after_it_began": rush.asked.duration_since(rush.began).as_millis(),
        "first_waited_ms": rush.let_in.first().map(waited),
        "last_waited_ms": rush.let_in.last().map(waited),
    }));
    assert_eq!(rush.let_in.len(), NEWCOMERS);
    // Until then, all returns that the broker remembered were younger than a second.
    for at in &rush.let_in {
        let after = at.duration_since(rush.began);
        ensure!(after >= SPAN, "somebody was let in {after:?} after the rush began");
    }
    ensure!(site.is_running(), "the broker has ended: {}", site.log());
    Ok(())
}
