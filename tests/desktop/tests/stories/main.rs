//! The built programs against each other: what a person sees, and what a viewer refuses.

#![allow(clippy::unwrap_used, reason = "a story that cannot be told has failed")]

mod office;

use std::fs;
use std::net::TcpStream;
use std::process::Output;
use std::time::Duration;

use office::{Desktops, Folder, Impostor, Viewing};

const BLUE: [u8; 3] = [0x33, 0x66, 0x99];
const ORANGE: [u8; 3] = [0xcc, 0x88, 0x00];

/// How long something may take that has nothing left to wait for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection confirm (MS-RDPBCGR 2.2.1.2) with `selectedProtocol` 0.
const SELECTS_NO_SECURITY: &[u8] =
    &[3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0, 8, 0, 0, 0, 0, 0];
/// A connection confirm as desktops sent it before there was a choice.
const KNOWS_NO_SECURITY: &[u8] = &[3, 0, 0, 11, 6, 0xd0, 0, 0, 0x12, 0x34, 0];

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn each_desktop_of_a_process_shows_its_own_colour() {
    let desktops = Desktops::open(&[
        "--desktop",
        "keiri-0001=#336699@127.0.0.1:0",
        "--desktop",
        "keiri-0002=#cc8800@127.0.0.1:0",
    ]);
    for (desktop, colour) in desktops.ready.iter().zip([BLUE, ORANGE]) {
        let viewing = Viewing::of(desktop);
        let output = viewing.output();
        assert!(output.status.success(), "{}", error_of(&output));
        assert_eq!(viewing.corner(), colour, "{} shows its colour", desktop.name);
        let painted: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(painted["first_frame_ms"].is_u64() && painted["first_frame_at_unix_ms"].is_u64());
    }
}

#[test]
fn a_viewer_gets_socket_pin_and_secret_by_inheritance() {
    let desktops = Desktops::with_account(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    let viewing = Viewing::of(&desktops.ready[0]).with_secret(office::PASSWORD).inheriting();
    let output = viewing.output();
    assert!(output.status.success(), "{}", error_of(&output));
    assert_eq!(viewing.corner(), BLUE);
    assert!(output.stdout.is_empty(), "the time goes to its file only");
    assert!(viewing.timeline().contains("first_frame_at_unix_ms"));
}

#[test]
fn a_desktop_lets_only_its_account_in() {
    let desktops = Desktops::with_account(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    let viewing = Viewing::of(&desktops.ready[0]).with_secret("not the password");
    let output = viewing.output();
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    assert!(!viewing.out.exists(), "nothing was painted");
}

#[test]
fn network_level_authentication_asks_for_the_secret_first() {
    let desktops = Desktops::with_account(&[
        "--security",
        "nla",
        "--desktop",
        "keiri-0001=#336699@127.0.0.1:0",
    ]);
    let known = Viewing::of(&desktops.ready[0]).with_secret(office::PASSWORD);
    let output = known.output();
    assert!(output.status.success(), "{}", error_of(&output));
    assert_eq!(known.corner(), BLUE);

    let stranger = Viewing::of(&desktops.ready[0]).with_secret("not the password");
    let output = stranger.output();
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    assert!(!stranger.out.exists(), "nothing was painted");
}

#[test]
fn a_desktop_with_another_certificate_is_not_spoken_to() {
    let desktops = Desktops::with_account(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    let viewing =
        Viewing::of(&desktops.ready[0]).with_secret(office::PASSWORD).with_pin(&"0".repeat(64));
    let output = viewing.output();
    assert_eq!(output.status.code(), Some(143), "{}", error_of(&output));
    assert!(error_of(&output).contains("not the pinned one"));
    assert!(!viewing.out.exists(), "nothing was painted");
}

#[test]
fn a_desktop_that_would_not_secure_the_connection_is_not_spoken_to() {
    for answer in [SELECTS_NO_SECURITY, KNOWS_NO_SECURITY] {
        let impostor = Impostor::answering(answer);
        let viewing = Viewing::at(impostor.address).with_secret(office::PASSWORD);
        let output = viewing.output();
        assert_eq!(output.status.code(), Some(143), "{}", error_of(&output));
        assert_eq!(impostor.heard_afterwards(), b"", "nothing follows the refused answer");
    }
}

#[test]
fn a_probe_that_stays_does_not_keep_people_out() {
    let desktops = Desktops::open(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    let _probe = TcpStream::connect(desktops.ready[0].address).unwrap();
    for _visit in 0..2 {
        let viewing = Viewing::of(&desktops.ready[0]);
        let output = viewing.output();
        assert!(output.status.success(), "{}", error_of(&output));
        assert_eq!(viewing.corner(), BLUE);
    }
}

#[test]
fn the_newest_person_takes_the_desktop_over() {
    let desktops = Desktops::open(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    let long_stay = Viewing::of(&desktops.ready[0]).lingering();
    let viewer = long_stay.start_and_wait_for_the_first_frame();
    let visit = Viewing::of(&desktops.ready[0]).output();
    assert!(visit.status.success(), "{}", error_of(&visit));
    let stayed = viewer.end_within(PATIENCE).expect("the desktop was taken over");
    assert!(stayed.success());
    assert_eq!(long_stay.corner(), BLUE, "what was seen until then is kept");
}

#[test]
fn the_desktops_end_when_they_are_told_to() {
    let mut desktops = Desktops::open(&["--desktop", "keiri-0001=#336699@127.0.0.1:0"]);
    assert!(desktops.terminate().success());
}

#[test]
fn a_given_certificate_keeps_its_pin_across_restarts() {
    let made = rcgen::generate_simple_self_signed(["keiri".to_owned()]).unwrap();
    let folder = Folder::new();
    let (certificate, key) = (folder.0.join("cert.pem"), folder.0.join("key.pem"));
    fs::write(&certificate, made.cert.pem()).unwrap();
    fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let pins = [(); 2].map(|()| {
        let desktops = Desktops::open(&[
            "--certificate",
            certificate.to_str().unwrap(),
            "--key",
            key.to_str().unwrap(),
            "--desktop",
            "keiri-0001=#336699@127.0.0.1:0",
        ]);
        let output = Viewing::of(&desktops.ready[0]).output();
        assert!(output.status.success(), "{}", error_of(&output));
        desktops.ready[0].certificate_sha256.clone()
    });
    assert_eq!(pins[0], pins[1]);
}
