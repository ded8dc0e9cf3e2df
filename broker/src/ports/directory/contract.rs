//! What every directory keeps to, whatever lies behind it. An adapter's tests
//! build the same office and run the same suite.
//!
//! The office: Sato of accounting, with every attribute; Tanaka of general
//! affairs, with none but a name; Suzuki, who is disabled; Yamada, whose groups
//! are nested in a circle. `keiri` and `soumu` are in `staff`.

use std::collections::BTreeSet;

use async_trait::async_trait;
use tegata_proto::encoding::Secret;

use super::{Directory, Found, GroupName, LoginName, NonEmptyPassword, Person, Reason, Verdict};

/// A directory with the office's people in it, and a hand on what it reads.
#[async_trait]
pub(crate) trait Office: Send + Sync {
    /// The directory under test.
    fn directory(&self) -> &dyn Directory;
    /// The name that a group has in this directory.
    fn group(&self, name: &str) -> GroupName;
    /// Changes Tanaka's account so that they are in `keiri` besides `soumu`.
    async fn tanaka_joins_keiri(&mut self);
    /// Removes Tanaka and makes another person of the same name and password.
    async fn tanaka_is_replaced(&mut self);
}

/// Passwords of the office are `pw-` and the name.
pub(crate) const PASSWORD_OF_SATO: &str = "pw-sato";

pub(crate) fn name(text: &str) -> LoginName {
    LoginName::new(text).expect("a name")
}

pub(crate) fn password(text: &str) -> NonEmptyPassword {
    NonEmptyPassword::new(Secret::new(text)).expect("a password")
}

pub(crate) async fn found(directory: &dyn Directory, who: &str) -> Found {
    let found = directory.find(&name(who)).await.expect("an answer");
    found.unwrap_or_else(|| panic!("{who} is in the directory"))
}

pub(crate) async fn verdict(directory: &dyn Directory, who: &str, typed: &str) -> Verdict {
    let found = found(directory, who).await;
    directory.verify(&found, &password(typed)).await.expect("an answer")
}

pub(crate) async fn person(directory: &dyn Directory, who: &str) -> Person {
    match verdict(directory, who, &format!("pw-{who}")).await {
        Verdict::Correct(person) => person,
        Verdict::Wrong { reason } => panic!("{who} should be let in, but: {reason}"),
    }
}

fn groups(office: &dyn Office, names: &[&str]) -> BTreeSet<GroupName> {
    names.iter().map(|name| office.group(name)).collect()
}

pub(crate) async fn the_right_password_is_correct_and_describes_the_person(office: &dyn Office) {
    let sato = person(office.directory(), "sato").await;
    assert_eq!(sato.user.realm(), office.directory().realm());
    assert_eq!(sato.display_name, "佐藤 花子");
    assert_eq!(sato.account.as_deref(), Some("hsato@honsho.lan"));
    assert_eq!(sato.unit.as_deref(), Some("経理課"));
    let tanaka = person(office.directory(), "tanaka").await;
    assert_eq!((tanaka.unit, tanaka.display_name.as_str()), (None, "田中"));
    assert_ne!(tanaka.user, sato.user);
}

pub(crate) async fn a_wrong_password_is_wrong(office: &dyn Office) {
    for wrong in ["pw-tanaka", "PW-SATO", "pw-sato ", "pw-sat", "*", "佐藤"] {
        let verdict = verdict(office.directory(), "sato", wrong).await;
        assert_eq!(verdict, Verdict::Wrong { reason: Reason::Password }, "{wrong}");
    }
    person(office.directory(), "sato").await;
}

pub(crate) async fn an_unknown_name_finds_nobody(office: &dyn Office) {
    for nobody in ["nobody", "sat", "satoo", "佐藤", "keiri"] {
        let found = office.directory().find(&name(nobody)).await.expect("an answer");
        assert!(found.is_none(), "{nobody}");
    }
}

pub(crate) async fn every_spelling_of_a_name_finds_one_user(office: &dyn Office) {
    let user = found(office.directory(), "sato").await.user().clone();
    for spelling in ["Sato", "SATO", "sAtO"] {
        let found = found(office.directory(), spelling).await;
        assert_eq!(found.user(), &user, "{spelling}");
        let verdict = office.directory().verify(&found, &password(PASSWORD_OF_SATO)).await;
        assert!(matches!(verdict, Ok(Verdict::Correct(p)) if p.user == user), "{spelling}");
    }
}

pub(crate) async fn a_disabled_person_is_found_and_refused(office: &dyn Office) {
    for typed in ["pw-suzuki", "wrong"] {
        let verdict = verdict(office.directory(), "suzuki", typed).await;
        assert!(matches!(verdict, Verdict::Wrong { .. }), "{typed}: {verdict:?}");
    }
}

pub(crate) async fn groups_within_groups_are_followed(office: &dyn Office) {
    let sato = person(office.directory(), "sato").await;
    assert_eq!(sato.groups, groups(office, &["keiri", "staff"]));
    let yamada = person(office.directory(), "yamada").await;
    assert_eq!(yamada.groups, groups(office, &["loop-a", "loop-b"]), "a circle has an end");
}

pub(crate) async fn a_group_of_others_is_not_taken_for_ones_own(office: &dyn Office) {
    let tanaka = person(office.directory(), "tanaka").await;
    assert_eq!(tanaka.groups, groups(office, &["soumu", "staff"]));
}

pub(crate) async fn characters_of_a_filter_are_only_characters(office: &dyn Office) {
    for odd in [
        "*",
        "s*",
        "*)(uid=*",
        "sato)(uid=*",
        "sato)",
        "(sato",
        "\\2a",
        "sato\\00",
        "sato\\",
        "sato)(|(uid=*",
        "uid=sato,ou=people,dc=test,dc=lan",
        "DOM\\sato",
        "sato@",
        "ＳＡＴＯ",
        "é\u{200b}",
        "sato\u{fffd}",
        "&|!=~<>,;\"#+",
    ] {
        let found = office.directory().find(&name(odd)).await.expect("an answer");
        // A directory may take full-width letters for plain ones, but never
        // for anybody else's.
        let sato = found.as_ref().is_none_or(|_| odd == "ＳＡＴＯ");
        assert!(sato, "{odd}");
    }
}

pub(crate) async fn the_longest_name_is_answered(office: &dyn Office) {
    let found = office.directory().find(&name(&"n".repeat(256))).await.expect("an answer");
    assert!(found.is_none());
    assert!(LoginName::new("n".repeat(257)).is_err(), "and no longer one can be asked");
}

pub(crate) async fn what_changes_in_the_directory_counts_at_the_next_login(
    office: &mut dyn Office,
) {
    let before = person(office.directory(), "tanaka").await;
    office.tanaka_joins_keiri().await;
    let after = person(office.directory(), "tanaka").await;
    assert_eq!(after.user, before.user);
    assert_eq!(after.groups, groups(office, &["keiri", "soumu", "staff"]));
}

pub(crate) async fn a_name_given_to_another_person_is_another_user(office: &mut dyn Office) {
    let old = found(office.directory(), "tanaka").await;
    office.tanaka_is_replaced().await;
    let verdict = office.directory().verify(&old, &password("pw-tanaka")).await.expect("an answer");
    assert_eq!(verdict, Verdict::Wrong { reason: Reason::Replaced }, "found as the one before");
    let new = person(office.directory(), "tanaka").await;
    assert_ne!(&new.user, old.user());
}

pub(crate) async fn a_probe_of_a_directory_that_serves_succeeds(office: &dyn Office) {
    office.directory().probe().await.expect("it serves");
}

/// Makes a test of every promise, each on an office of its own.
macro_rules! keeps_the_contract {
    ($office:expr) => {
        $crate::ports::directory::contract::keeps_the_contract!(@ $office =>
            the_right_password_is_correct_and_describes_the_person
            a_wrong_password_is_wrong
            an_unknown_name_finds_nobody
            every_spelling_of_a_name_finds_one_user
            a_disabled_person_is_found_and_refused
            groups_within_groups_are_followed
            a_group_of_others_is_not_taken_for_ones_own
            characters_of_a_filter_are_only_characters
            the_longest_name_is_answered
            what_changes_in_the_directory_counts_at_the_next_login
            a_name_given_to_another_person_is_another_user
            a_probe_of_a_directory_that_serves_succeeds
        );
    };
    (@ $office:expr => $($promise:ident)*) => {
        $(
            #[tokio::test]
            async fn $promise() {
                let mut office = $office;
                $crate::ports::directory::contract::$promise(&mut office).await;
            }
        )*
    };
}
pub(crate) use keeps_the_contract;
