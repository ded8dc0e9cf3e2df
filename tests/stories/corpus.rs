//! What the fuzzer found worth keeping is run again, without a fuzzer.

#![allow(clippy::unwrap_used, missing_docs)]
// What is public there is so for the fuzzer.
#![allow(unreachable_pub)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
pub mod tegata_fuzz;

use tegata_broker::flows::login::{CHOICE_DEADLINE, HELLO_DEADLINE, PASSWORD_DEADLINE};
use tegata_fuzz::{TARGETS, login_desk};

#[test]
fn every_kept_input_of_every_target_keeps_its_promises() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let folders: BTreeSet<_> = fs::read_dir(&corpus)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let names: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(folders, names, "each target has a corpus, and each corpus a target");
    for (name, target) in TARGETS {
        let mut inputs: Vec<_> =
            fs::read_dir(corpus.join(name)).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(inputs.len() >= 5, "{name} has {} inputs", inputs.len());
        for input in inputs {
            // The name of the input is told if it panics.
            println!("{}", input.display());
            target(&fs::read(&input).unwrap());
        }
    }
}

#[test]
fn an_agent_that_falls_silent_is_waited_for_until_its_deadline_and_no_longer() {
    // Directory and store answer at once and well, two pools are open, and the agent reads.
    const WELL: [u8; 8] = [0; 8];
    const HELLO: u8 = 0;
    // Of this login, sato, right, in any realm.
    const PASSWORD: [u8; 5] = [2, 0, 0, 0, 0];
    for (said, waited) in [
        (vec![], HELLO_DEADLINE),
        (vec![HELLO], PASSWORD_DEADLINE),
        ([&[HELLO], &PASSWORD[..]].concat(), CHOICE_DEADLINE),
    ] {
        let held = login_desk::held(&[&WELL[..], &said].concat());
        assert_eq!(held, waited, "{said:?}");
    }
}
