//! What an operator sees stands in the operator's document, all of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tegata_parts::fake::FakeDesktop;
use tegata_proto::code::Code;
use tegata_proto::session::GatewayMessage;
use tegata_tests::site::{Site, crowd_name, pool};
use tegata_tests::stranger::{self, Keys, Line};
use tegata_tests::wait;
use tokio::runtime::Runtime;

use super::PASSWORD;

/// A file that operators are given.
fn deployed(file: &str) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
    Ok(root.join("deploy").join(file))
}

/// The metrics that have a row of their own in the document.
fn documented() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(deployed("operations.md")?)?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `tegata_"));
    let names = rows.filter_map(|row| row.split_once('`'));
    Ok(names.map(|(name, _)| format!("tegata_{name}")).collect())
}

/// The metrics of a broker, by the names that a query uses.
fn exported(metrics: &str) -> BTreeSet<String> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let name = |line: &str| match line.split_once(' ') {
        Some((name, "counter")) => format!("{name}_total"),
        Some((name, "info")) => format!("{name}_info"),
        Some((name, _)) => name.to_owned(),
        None => line.to_owned(),
    };
    types.map(name).collect()
}

/// The metrics that the alarms ask for, a histogram's parts by its own name.
fn alarmed() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(deployed("alarms.yml")?)?;
    let rules = text.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    let words = rules.flat_map(|rule| rule.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    let names = words.filter(|word| word.starts_with("tegata_"));
    Ok(names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect())
}

#[test]
fn prometheus_takes_the_alarms() -> Result<()> {
    let rules = deployed("alarms.yml")?;
    let checked = Command::new("promtool").args(["check", "rules"]).arg(rules).output()?;
    let told = String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.success(), "{told}");
    Ok(())
}

#[test]
fn every_metric_of_the_broker_stands_in_the_operators_table() -> Result<()> {
    let documented = documented()?;
    let desktop = FakeDesktop::echo(b"")?;
    let site = Site::builder()
        .crowd(1..=1, PASSWORD, "keiri")?
        .pool(pool("keiri", "keiri", &[desktop.address()]))
        .start()?;
    let api = site.api()?;
    api.wait_for_desktops("keiri", "ready", 1)?;

    // Something of everything, because histograms and sessions are shown when they are seen.
    let (runtime, keys, name) = (Runtime::new()?, Keys::generate()?, crowd_name(1));
    runtime.block_on(async {
        ensure!(Line::open(site.listen(), b"h3").await.is_err(), "an ALPN that nobody has");
        stranger::login(site.listen(), &keys, &name, "a guess").await?;
        let answer = stranger::ticket(site.listen(), &keys, &name, PASSWORD).await?;
        let (attached, line) = stranger::attach(site.listen(), &keys, &answer.ticket, 1).await?;
        ensure!(matches!(attached, GatewayMessage::Attached(_)), "{attached:?}");
        let (again, _) = stranger::attach(site.listen(), &keys, &answer.ticket, 2).await?;
        let used = |code| code == Code::TicketUsed;
        ensure!(
            matches!(&again, GatewayMessage::Error(failure) if used(failure.code)),
            "{again:?}"
        );
        // Her network goes; the session stays, and is counted.
        drop(line);
        Ok(())
    })?;
    let metrics = api.metrics()?;
    // No alarm sees a rise of what is not there before it happens.
    for zero in [
        r#"tegata_desktops{pool="keiri",state="quarantined"} 0"#,
        r#"tegata_logins_total{result="unavailable"} 0"#,
        r#"tegata_redeems_total{result="ticket_expired"} 0"#,
        r#"tegata_refused_logins_total{reason="Throttled"} 0"#,
        r#"tegata_gateway_attach_refusals_total{code="wrong_key"} 0"#,
        r#"tegata_edge_connections_refused_total{reason="full"} 0"#,
    ] {
        ensure!(metrics.lines().any(|line| line == zero), "not {zero}: {metrics}");
    }
    let mut exported_now = BTreeSet::new();
    wait::until("all that is documented to be exported", || {
        exported_now = exported(&api.metrics()?);
        Ok(documented.is_subset(&exported_now).then_some(()))
    })
    .with_context(|| format!("not exported: {:?}", &documented - &exported_now))?;
    let missing = &exported_now - &documented;
    ensure!(missing.is_empty(), "not in deploy/operations.md: {missing:?}");
    let alarmed = alarmed()?;
    ensure!(alarmed.len() > 10, "few alarms: {alarmed:?}");
    let unknown = &alarmed - &exported_now;
    ensure!(unknown.is_empty(), "alarms on what is not there: {unknown:?}");
    Ok(())
}
