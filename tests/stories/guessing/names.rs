//! Names by the thousand that nobody has: what they cost, and what they cost others.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tegata_parts::ca::TestCa;
use tegata_parts::fake::FakeDesktop;
use tegata_parts::slapd::group_dn;
use tegata_proto::code::Code;
use tegata_tests::dice::long;
use tegata_tests::evidence::{audit_trail, row_counts};
use tegata_tests::site::{Site, pool};
use tegata_tests::stranger::try_from;
use tegata_tests::timing::Honest;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{PASSWORD, directory};

/// Where Hanako sits, behind an address that nobody tries names from.
const DESK: Ipv4Addr = Ipv4Addr::new(127, 8, 0, 1);

/// Strangers who are all behind one address, in a network that may do a lot.
const HOTEL: Ipv4Addr = Ipv4Addr::new(127, 9, 0, 1);

/// One stranger, in a network without limits of its own.
const STRANGER: Ipv4Addr = Ipv4Addr::new(127, 10, 0, 1);

/// Failures that a source may have in a minute where nothing is configured.
const FAILURES: usize = 30;

/// Tries at once.
const IN_FLIGHT: usize = 32;

/// How much memory the broker may have after all of them that it had not before, in KiB.
/// Ten thousand names, or what else is left of each try, that were kept with a page each
/// would be more.
const FLAT_KIB: u32 = 16 * 1024;

/// How many names are tried before memory is looked at: as many as it takes until every
/// connection at a time has had its buffers.
const WARM_UP: usize = 4 * IN_FLIGHT;

/// Time between two times that refusals are written to the audit trail.
const BOOKS: Duration = Duration::from_mins(1);

/// What was answered, by how many names.
#[derive(Debug, Default, Clone, Copy)]
struct Answered {
    refused: usize,
    throttled: usize,
}

/// Tries as many names, each from the address that `from` tells for it.
async fn tries(
    broker: SocketAddr,
    names: usize,
    from: impl Fn(usize) -> Ipv4Addr,
) -> Result<Answered> {
    let turns = Arc::new(Semaphore::new(IN_FLIGHT));
    let mut running = JoinSet::new();
    for n in 0..names {
        let turn = Arc::clone(&turns).acquire_owned().await?;
        let from = from(n);
        running.spawn(async move {
            // As long as a name may be: if any are kept, it shows.
            let name = format!("{from}-{n}-{}", "x".repeat(200));
            let tried = try_from(from, broker, &name, "wrong").await?;
            drop(turn);
            tried.code()
        });
    }
    let mut answered = Answered::default();
    while let Some(code) = running.join_next().await {
        match code?? {
            Some(Code::Refused) => answered.refused += 1,
            Some(Code::Throttled) => answered.throttled += 1,
            other => anyhow::bail!("a name that nobody has: {other:?}"),
        }
    }
    Ok(answered)
}

#[test]
fn names_that_nobody_has_cost_no_memory_and_no_row_each_and_keep_nobody_out() -> Result<()> {
    let (names, sources, alone) = if long() { (10_000, 1_000, 400) } else { (120, 30, 20) };
    let ca = TestCa::new("directory")?;
    let slapd = directory(&ca)?;
    let desktop = FakeDesktop::echo(b"")?;
    let mut site = Site::builder()
        .pool(pool("keiri", &group_dn("keiri"), &[desktop.address()]))
        .slapd(&slapd, &ca.certificate())
        .office("")
        .network("desks", "127.8.0.0/16")
        .network("hotel", "127.9.0.0/16")
        .start()?;
    site.api()?.wait_for_desktops("keiri", "ready", 1)?;
    let (runtime, broker) = (Runtime::new()?, site.listen());
    let honest = Honest { broker, from: DESK, name: "hanako", password: PASSWORD };
    // What comes with the first login of a person is there before rows are counted.
    runtime.block_on(honest.alone(1))?;
    site.stop()?;
    let rows_before = row_counts(&site.store())?;
    site.start()?;
    let began = Instant::now();

    runtime.block_on(tries(broker, WARM_UP, |_| HOTEL))?;
    let alone = runtime.block_on(honest.alone(alone))?;
    let kib_before = site.resident_kib()?;
    let elsewhere = |n: usize| {
        let n = u32::try_from(n % sources).unwrap_or_default();
        Ipv4Addr::from_bits(Ipv4Addr::new(127, 11, 0, 1).to_bits() + n)
    };
    let mut told = Vec::new();
    let mut logins = 1 + alone.logins;
    for (how, sources) in [("one address", 1), ("one stranger", 1), ("many addresses", sources)] {
        let flood = tries(broker, names, |n| match how {
            "one address" => HOTEL,
            "one stranger" => STRANGER,
            _ => elsewhere(n),
        });
        let (answered, beside) = runtime.block_on(honest.beside(flood))?;
        logins += beside.logins;
        let kib = site.resident_kib()?;
        println!(
            "{}",
            json!({
                "bench": "unknown_names", "from": how, "names": names, "sources": sources,
                "refused": answered.refused, "throttled": answered.throttled,
                "kib_before": kib_before, "kib": kib, "alone": alone, "beside": beside,
            })
        );
        ensure!(kib <= kib_before + FLAT_KIB, "{how}: from {kib_before} to {kib} KiB");
        told.push(answered);
    }
    let [from_one, by_one, from_many] = told[..] else { unreachable!("three floods") };
    assert_eq!((from_one.throttled, from_many.throttled), (0, 0), "their networks let them");
    let minutes = usize::try_from(began.elapsed().as_secs() / 60 + 1)?;
    let most = IN_FLIGHT + FAILURES * (1 + minutes);
    ensure!(by_one.refused <= most, "{} tries of one stranger: {by_one:?}", by_one.refused);

    let rows = |table: &str| -> Result<f64> {
        let metrics = site.api()?.metrics()?;
        let name = format!("tegata_throttle_rows{{table=\"{table}\"}} ");
        let row = metrics.lines().find_map(|line| line.strip_prefix(&name));
        Ok(row.context("no such table")?.parse()?)
    };
    ensure!(rows("people")? <= 1.0, "names that nobody has are people");
    let most = u32::try_from(sources)? + 3;
    ensure!(rows("sources")? <= most.into(), "{} sources", rows("sources")?);

    site.stop()?;
    let books = began.elapsed().as_secs() / BOOKS.as_secs() + 2;
    let trail = audit_trail(&site)?;
    let refusals = trail.iter().filter(|record| record.action == "login.refused");
    let refusals: Vec<_> = refusals.map(|record| &record.detail).collect();
    let counted: usize =
        refusals.iter().filter_map(|refusal| refusal["count"].parse::<usize>().ok()).sum();
    assert_eq!(counted, WARM_UP + 3 * names, "every refusal is counted in the audit trail");
    let kinds: BTreeSet<_> =
        refusals.iter().map(|refusal| (&refusal["prefix"], &refusal["code"])).collect();
    assert_eq!(kinds.len(), sources + 3, "by prefix and code: {kinds:?}");
    let most = kinds.len() as u64 * books;
    ensure!(refusals.len() as u64 <= most, "{} records, not {most}", refusals.len());
    for (table, rows) in row_counts(&site.store())? {
        let more = rows - rows_before.get(&table).copied().unwrap_or_default();
        // A login is one session; that it began and that the one before it ended is audited.
        let logins = logins as u64;
        let due = 4 + if table == "audit" { 4 * logins + most } else { logins };
        ensure!(more <= due, "{table} has {more} more rows after {logins} logins");
    }
    Ok(())
}
