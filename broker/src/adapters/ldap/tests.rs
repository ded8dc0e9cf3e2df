//! The contract on a real slapd, in both ways of reaching it and both ways of
//! nesting groups; and what only a directory on a network does.

use std::path::Path;

use async_trait::async_trait;
use tegata_parts::ca::TestCa;
use tegata_parts::slapd::{self, Group, Slapd};

use super::*;
use crate::ports::directory::GroupName;
use crate::ports::directory::contract::{
    Office, found, keeps_the_contract, name, password, person, verdict,
};
use fake::{Fake, Script};

mod fake;
mod network;

/// How long a test waits for what must come.
const SOON: Duration = Duration::from_secs(20);

fn attribute(name: &str) -> AttributeName {
    AttributeName::new(name).expect("an attribute")
}

fn dn(text: &str) -> DistinguishedName {
    DistinguishedName::new(text).expect("a distinguished name")
}

fn member_of() -> GroupSource {
    GroupSource::MemberOf { attribute: attribute("memberOf") }
}

fn group_search() -> GroupSource {
    let base = dn(&format!("ou=groups,{}", slapd::BASE));
    GroupSource::Search { base, member: attribute("member") }
}

fn in_chain() -> GroupSource {
    let base = dn(&format!("ou=groups,{}", slapd::BASE));
    GroupSource::InChain { base, member: attribute("member") }
}

/// Waits that are never reached where the server is well, on a busy machine.
fn patient() -> LdapLimits {
    LdapLimits { connect: SOON, operation: SOON, patience: SOON, ..LdapLimits::default() }
}

fn config(servers: &[String], ca: &Path) -> LdapConfig {
    let urls = servers.iter().map(|url| ServerUrl::new(url).expect("a server"));
    LdapConfig {
        realm: RealmName::new("honsho").expect("a name"),
        servers: urls.collect(),
        trust: Trust::from_file(ca).expect("a certificate"),
        service_dn: dn(slapd::SERVICE_DN),
        service_password: password(slapd::SERVICE_PASSWORD),
        people_base: dn(&format!("ou=people,{}", slapd::BASE)),
        people_filter: Some(PeopleFilter::new("(objectClass=person)").expect("a filter")),
        login_attribute: attribute("uid"),
        id: IdAttribute::EntryUuid,
        display_name: attribute("displayName"),
        account: Some(attribute("mail")),
        unit: Some(attribute("departmentNumber")),
        groups: member_of(),
        limits: patient(),
    }
}

fn directory(config: LdapConfig) -> LdapDirectory {
    LdapDirectory::new(config).expect("a good configuration")
}

struct LdapOffice {
    directory: LdapDirectory,
    slapd: Slapd,
    ca: TestCa,
}

fn people() -> slapd::Builder {
    let person = |uid: &str, name: &str| slapd::Person::new(uid, name, &format!("pw-{uid}"));
    Slapd::builder()
        .person(person("sato", "佐藤 花子").mail("hsato@honsho.lan").unit("経理課"))
        .person(person("tanaka", "田中"))
        .person(person("suzuki", "鈴木").locked())
        .person(person("yamada", "山田"))
        .person(person("kato", "加藤").must_change_password())
        .group(Group::new("keiri").member("sato"))
        .group(Group::new("soumu").member("tanaka"))
        .group(Group::new("staff").group("keiri").group("soumu"))
        .group(Group::new("loop-a").member("yamada").group("loop-b"))
        .group(Group::new("loop-b").group("loop-a"))
}

impl LdapOffice {
    fn open(url: fn(&Slapd) -> String, groups: GroupSource) -> Self {
        let ca = TestCa::new("Honsho").expect("a CA");
        let slapd = people().locks_after(100, Duration::from_secs(5)).start(&ca).expect("slapd");
        let config = LdapConfig { groups, ..config(&[url(&slapd)], &ca.certificate()) };
        Self { directory: directory(config), slapd, ca }
    }

    fn config(&self) -> LdapConfig {
        config(&[self.slapd.ldaps_url()], &self.ca.certificate())
    }
}

#[async_trait]
impl Office for LdapOffice {
    fn directory(&self) -> &dyn Directory {
        &self.directory
    }

    fn group(&self, name: &str) -> GroupName {
        GroupName::new(&slapd::group_dn(name)).expect("a group")
    }

    async fn tanaka_joins_keiri(&mut self) {
        self.slapd.join("tanaka", "keiri").expect("changed");
    }

    async fn tanaka_is_replaced(&mut self) {
        self.slapd.remove("tanaka").expect("removed");
        let person = slapd::person_dn("tanaka");
        let entry = format!(
            "dn: {person}\nchangetype: add\nobjectClass: inetOrgPerson\nuid: tanaka\n\
             cn: T\nsn: T\nuserPassword: pw-tanaka\n"
        );
        self.slapd.modify(&entry).expect("added");
    }
}

mod over_ldaps_with_member_of {
    use super::*;
    keeps_the_contract!(LdapOffice::open(Slapd::ldaps_url, member_of()));
}

mod over_start_tls_with_group_search {
    use super::*;
    keeps_the_contract!(LdapOffice::open(Slapd::ldap_url, group_search()));
}

fn open() -> LdapOffice {
    LdapOffice::open(Slapd::ldaps_url, member_of())
}

#[tokio::test]
async fn a_user_is_who_the_directory_says_for_good() {
    let office = open();
    let uuid = office.slapd.entry_uuid("sato").expect("an id");
    let sato = found(&office.directory, "sato").await;
    assert_eq!(sato.user().to_string(), format!("honsho/{uuid}"));
}

#[tokio::test]
async fn locked_and_must_change_are_told_apart_in_the_log_only() {
    let office = open();
    let locked = Verdict::Wrong { reason: Reason::Locked };
    assert_eq!(verdict(&office.directory, "suzuki", "pw-suzuki").await, locked);
    let must_change = Verdict::Wrong { reason: Reason::MustChange };
    assert_eq!(verdict(&office.directory, "kato", "pw-kato").await, must_change);
    let wrong = Verdict::Wrong { reason: Reason::Password };
    assert_eq!(verdict(&office.directory, "kato", "x").await, wrong);
}

#[tokio::test]
async fn two_entries_of_one_name_are_a_refusal() {
    let office = open();
    let twin = format!("uid=twin+cn=Other,ou=people,{}", slapd::BASE);
    let entry = format!(
        "dn: {twin}\nchangetype: add\nobjectClass: inetOrgPerson\nuid: twin\nuid: sato\n\
         cn: Other\nsn: Other\nuserPassword: pw-sato\n"
    );
    office.slapd.modify(&entry).expect("added");
    let both = office.directory.find(&name("sato")).await;
    assert!(matches!(both, Err(DirectoryError::Ambiguous { .. })), "{both:?}");
    assert!(office.directory.find(&name("twin")).await.expect("an answer").is_some());
}

#[tokio::test]
async fn somebody_outside_the_people_filter_is_nobody() {
    let office = open();
    let filter = PeopleFilter::new("(departmentNumber=経理課)").expect("a filter");
    let directory = directory(LdapConfig { people_filter: Some(filter), ..office.config() });
    person(&directory, "sato").await;
    assert!(directory.find(&name("tanaka")).await.expect("an answer").is_none());
}

#[tokio::test]
async fn a_service_account_with_a_wrong_password_is_a_misconfiguration() {
    let office = open();
    let service_password = password("not-this");
    let directory = directory(LdapConfig { service_password, ..office.config() });
    let error = directory.find(&name("sato")).await.expect_err("refused");
    assert!(matches!(error, DirectoryError::Misconfigured { .. }), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_base_that_does_not_exist_is_a_misconfiguration() {
    let office = open();
    let people_base = dn(&format!("ou=nowhere,{}", slapd::BASE));
    let directory = directory(LdapConfig { people_base, ..office.config() });
    for error in [directory.probe().await.err(), directory.find(&name("sato")).await.err()] {
        assert!(matches!(error, Some(DirectoryError::Misconfigured { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn groups_nested_beyond_the_limit_are_an_error_and_not_half_an_answer() {
    let ca = TestCa::new("Honsho").expect("a CA");
    let depth = crate::ports::directory::GROUP_DEPTH_MAX;
    let mut builder = people().group(Group::new("g0").member("sato"));
    for n in 1..=depth {
        builder = builder.group(Group::new(&format!("g{n}")).group(&format!("g{}", n - 1)));
    }
    let slapd = builder.start(&ca).expect("slapd");
    let config = config(&[slapd.ldaps_url()], &ca.certificate());
    let directory = directory(LdapConfig { groups: group_search(), ..config });
    let sato = found(&directory, "sato").await;
    let error = directory.verify(&sato, &password("pw-sato")).await.expect_err("too deep");
    assert!(matches!(error, DirectoryError::Misconfigured { .. }), "{error:?}");
    person(&directory, "tanaka").await;
}

#[tokio::test]
async fn a_server_that_knows_no_chains_is_a_misconfiguration_and_not_a_person_without_groups() {
    let office = LdapOffice::open(Slapd::ldaps_url, in_chain());
    let sato = found(&office.directory, "sato").await;
    for _ in 0..2 {
        let error =
            office.directory.verify(&sato, &password("pw-sato")).await.expect_err("a fault");
        let DirectoryError::Misconfigured { source, .. } = &error else { panic!("{error:?}") };
        assert!(source.to_string().contains("groups_in_chain"), "{source}");
    }
}

#[tokio::test]
async fn a_server_that_knows_chains_is_asked_once_for_all_groups() {
    let ca = TestCa::new("Honsho").expect("a CA");
    let fake = Fake::start(&ca, Script { chains: true, ..Script::default() }).await;
    let config = config(&[fake.url()], &ca.certificate());
    let directory = directory(LdapConfig { groups: in_chain(), ..config });
    let names = ["keiri", "staff"].map(|name| GroupName::new(&slapd::group_dn(name)));
    let wanted: BTreeSet<_> = names.into_iter().map(|name| name.expect("a group")).collect();
    // Found, found once more as oneself, asked whether it knows chains, asked for groups.
    for searches in [4, 7] {
        assert_eq!(person(&directory, "sato").await.groups, wanted);
        assert_eq!(fake.searches(), searches);
    }
}
