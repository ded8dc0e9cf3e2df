//! `tegata-bench` works: every bench runs, on small counts, and prints what it promises. What it
//! measures is nobody's concern here.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tegata_parts::process::Child;

/// How long one bench may take; `replay` measures everything twice.
const LIMIT: Duration = Duration::from_mins(4);

/// Runs a bench with small counts and returns its lines.
fn bench(name: &str) -> Vec<Value> {
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tegata-bench"));
    command.args([name, "--quick"]);
    let mut bench = Child::spawn(name, &mut command, folder.path()).unwrap();
    let status = bench.wait(LIMIT).unwrap();
    assert!(status.success(), "{}", bench.log());
    let output = bench.output();
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Asserts that a bench prints its figures, and its summary last.
fn prints(name: &str, fields: &[&str]) -> Vec<Value> {
    let lines = bench(name);
    assert!(lines.iter().all(|line| line["bench"] == name), "{lines:?}");
    let (summary, figures) = lines.split_last().unwrap();
    assert_eq!(summary["summary"], true);
    for field in fields {
        assert!(summary[field].is_number(), "{field} in {summary}");
    }
    assert_eq!(summary.as_object().unwrap().len(), fields.len() + 2, "no more in {summary}");
    let circumstances = &figures[0];
    for field in ["commit", "machine", "cipher_tegata", "configuration"] {
        assert!(!circumstances[field].is_null(), "{field} in {circumstances}");
    }
    figures[1..].to_vec()
}

#[test]
fn storm_counts_logins_and_none_fails() {
    let figures = prints("storm", &["logins_per_s", "p50_ms", "p99_ms", "errors"]);
    let logins = figures.iter().find(|line| line["figure"] == "logins").unwrap();
    assert!(logins["logins_per_s"].as_f64().unwrap() > 0.0, "{logins}");
    let errors = figures.iter().find(|line| line["figure"] == "errors").unwrap();
    assert!(errors["by_code"].as_object().unwrap().is_empty(), "{errors}");
}

#[test]
fn relay_compares_every_way_in_both_directions() {
    let figures = prints("relay", &["ratio_to_haproxy", "ratio_to_haproxy_9"]);
    for path in ["tegata-quic", "haproxy", "haproxy-bufsize-65536", "stunnel"] {
        for direction in ["down", "up"] {
            for streams in [1, 9] {
                let figure = figures.iter().find(|line| {
                    line["path"] == path
                        && line["direction"] == direction
                        && line["streams"] == streams
                });
                let cost = figure.unwrap()["gateway_cpu_s_per_gb"].as_f64().unwrap();
                assert!(cost > 0.0, "{path} {direction} {streams}");
            }
        }
    }
}

#[test]
fn echo_measures_alone_and_beside_bulk() {
    let figures = prints(
        "echo",
        &["added_p50_us", "added_p99_us", "bulk_p50_ratio_to_haproxy", "bulk_p99_ratio_to_haproxy"],
    );
    for path in ["tegata-quic", "haproxy", "haproxy-2-threads", "stunnel"] {
        for beside_bulk in [false, true] {
            let figure = figures
                .iter()
                .find(|line| line["path"] == path && line["beside_bulk"] == beside_bulk);
            let figure = figure.unwrap();
            assert!(figure["p50_us"].as_f64().unwrap() > 0.0, "{figure}");
        }
    }
}

#[test]
fn replay_compares_both_builds() {
    let fields = ["cpu_ratio_down", "cpu_ratio_up", "echo_p50_ratio", "echo_p99_ratio"];
    let figures = prints("replay", &fields);
    for path in ["tegata-quic", "tegata-tcp", "haproxy"] {
        let costs = figures.iter().filter(|line| {
            line["figure"] == "gateway_cpu_s_per_gb"
                && line["path"] == path
                && line["ratio"].as_f64().unwrap() > 0.0
        });
        assert_eq!(costs.count(), 4, "{path}: both directions, one session and nine");
    }
}

#[test]
fn idle_keeps_its_sessions() {
    let figures = prints("idle", &["kib_per_session", "idle_cpu_percent", "sessions"]);
    assert_eq!(figures[0]["sessions"], 20);
}

#[test]
fn start_waits_until_the_broker_serves() {
    let figures = prints("start", &["ready_ms", "desktops"]);
    assert!(figures[0]["ready_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn roam_loses_nothing_and_its_picture_can_be_drawn() {
    let summary = ["change_stall_over_2rtt_p95_ms", "outage_stall_over_rtt_p95_ms", "bytes_lost"];
    let figures = prints("roam", &summary);
    for whole in figures.iter().filter(|line| line["figure"] == "whole") {
        assert_eq!((&whole["bytes_lost"], &whole["logins"]), (&0.into(), &0.into()), "{whole}");
    }
    let stalls = figures.iter().filter(|line| line["figure"] == "stall");
    assert_eq!(stalls.count(), 8, "each case with and without NAT");

    let mut picture = Command::new(env!("CARGO_BIN_EXE_tegata-bench"))
        .arg("picture")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = picture.stdin.take().unwrap();
    for figure in &figures {
        writeln!(lines, "{figure}").unwrap();
    }
    drop(lines);
    let drawn = picture.wait_with_output().unwrap();
    assert!(drawn.status.success());
    assert!(String::from_utf8(drawn.stdout).unwrap().contains("outage then other uplink, NAT"));
}

#[test]
fn voice_hears_a_call_beside_everything() {
    let figures = prints("voice", &["gap_p95_ms", "ratio_to_tcp"]);
    for path in ["tegata-quic", "tegata-tcp", "haproxy"] {
        let gaps = figures.iter().filter(|line| line["figure"] == "gap" && line["path"] == path);
        assert_eq!(gaps.count(), 2, "{path}");
    }
}

#[test]
fn revoke_ends_every_session() {
    let figures = prints("revoke", &["last_byte_ms", "sessions"]);
    let answered = figures.iter().find(|line| line["figure"] == "answered").unwrap();
    assert!(answered["ms"].as_f64().unwrap() > 0.0, "{answered}");
}

#[test]
fn programs_of_another_commit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("tegata-bench");
    fs::copy(env!("CARGO_BIN_EXE_tegata-bench"), &copy).unwrap();
    for program in ["tegata-broker", "tegata-agent"] {
        let other = "#!/bin/sh\necho program 0.1.0 0123456789abcdef0123456789abcdef01234567\n";
        fs::write(folder.path().join(program), other).unwrap();
        fs::set_permissions(folder.path().join(program), Permissions::from_mode(0o755)).unwrap();
    }
    let output = Command::new(copy).args(["start", "--quick"]).output().unwrap();
    assert!(!output.status.success());
    assert_eq!(output.stdout, b"", "nothing was measured");
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("was built from 0123456789abcdef"), "{complaint}");
}
