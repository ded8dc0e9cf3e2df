//! A real directory answers as the tests of Tegata rely on.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    time::Duration,
};

use anyhow::Result;
use tegata_parts::{
    ca::TestCa,
    slapd::{BASE, Group, Person, Slapd, Transport, person_dn},
};

fn ministry(ca: &TestCa) -> Result<Slapd> {
    Slapd::builder()
        .person(Person::new("sato", "佐藤 花子", "sakura-1").unit("keiri"))
        .person(Person::new("tanaka", "田中 太郎", "momiji-2").mail("t.tanaka@example.jp"))
        .person(Person::new("suzuki", "鈴木 一郎", "tsubaki-3").locked())
        .person(Person::new("ito", "伊藤 次郎", "ayame-4").disabled())
        .person(Person::new("kato", "加藤 三郎", "kiku-5").must_change_password())
        .group(Group::new("keiri").member("sato"))
        .group(Group::new("jinji").member("tanaka"))
        .group(Group::new("honsho").group("keiri").member("suzuki"))
        .group(Group::new("vdi").group("honsho"))
        .start(ca)
}

/// Binds as a person and reads the suffix, with the ordinary tool, and tells how it ended.
fn bind(slapd: &Slapd, ca: &TestCa, uid: &str, password: &str) -> Result<Option<i32>> {
    let status = Command::new("ldapsearch")
        .args([
            "-x",
            "-o",
            "nettimeout=2",
            "-H",
            &format!("ldaps://127.0.0.1:{}", slapd.ldaps_port()),
        ])
        .args(["-D", &person_dn(uid), "-w", password, "-b", BASE, "-s", "base"])
        .env("LDAPTLS_CACERT", ca.certificate())
        .env("LDAPTLS_REQCERT", "demand")
        .output()?
        .status;
    Ok(status.code())
}

const OK: Option<i32> = Some(0);
const REFUSED: Option<i32> = Some(49);
const UNREACHABLE: Option<i32> = Some(255);

#[test]
fn the_directory_answers_over_both_transports_and_follows_groups_in_groups() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = ministry(&ca)?;
    for transport in [Transport::Ldaps, Transport::StartTls] {
        let entry = slapd.search(transport, "(uid=sato)", &["memberOf", "ou", "mail"])?;
        for line in [
            "memberOf: cn=keiri,ou=groups,dc=test,dc=lan",
            "memberOf: cn=honsho,ou=groups,dc=test,dc=lan",
            "memberOf: cn=vdi,ou=groups,dc=test,dc=lan",
            "ou: keiri",
            "mail: sato@test.lan",
        ] {
            assert!(entry.lines().any(|found| found == line), "{line} is not in {entry}");
        }
        assert!(!entry.contains("jinji"), "{entry}");
    }
    assert_eq!(slapd.entry_uuid("tanaka")?.len(), 36);
    assert!(slapd.entry_uuid("nobody").is_err());
    Ok(())
}

#[test]
fn a_directory_with_the_certificate_of_another_authority_is_not_believed() -> Result<()> {
    let (ours, theirs) = (TestCa::new("ours")?, TestCa::new("theirs")?);
    let slapd = ministry(&theirs)?;
    assert_eq!(bind(&slapd, &theirs, "sato", "sakura-1")?, OK);
    assert_eq!(bind(&slapd, &ours, "sato", "sakura-1")?, UNREACHABLE);
    Ok(())
}

#[test]
fn each_kind_of_account_is_answered_in_its_own_way() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = ministry(&ca)?;
    assert_eq!(bind(&slapd, &ca, "sato", "sakura-1")?, OK);
    assert_eq!(bind(&slapd, &ca, "sato", "momiji-2")?, REFUSED, "the password of another");
    assert_eq!(bind(&slapd, &ca, "suzuki", "tsubaki-3")?, REFUSED, "locked");
    assert_eq!(bind(&slapd, &ca, "ito", "ayame-4")?, REFUSED, "disabled");
    assert_eq!(bind(&slapd, &ca, "kato", "kiku-5")?, Some(50), "must change, so nothing else");

    slapd.lock("sato")?;
    assert_eq!(bind(&slapd, &ca, "sato", "sakura-1")?, REFUSED, "locked just now");
    slapd.set("sato", "pwdAccountLockedTime", None)?;
    assert_eq!(bind(&slapd, &ca, "sato", "sakura-1")?, OK, "open again");

    for _ in 0..3 {
        assert_eq!(bind(&slapd, &ca, "tanaka", "wrong")?, REFUSED);
    }
    assert_eq!(bind(&slapd, &ca, "tanaka", "momiji-2")?, REFUSED, "locked by wrong passwords");
    Ok(())
}

#[test]
fn people_change_groups_and_leave_while_the_directory_runs() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd = ministry(&ca)?;
    let groups = |uid: &str| slapd.search(Transport::Ldaps, &format!("(uid={uid})"), &["memberOf"]);
    slapd.join("tanaka", "honsho")?;
    assert!(groups("tanaka")?.contains("cn=vdi,"));
    slapd.leave("tanaka", "honsho")?;
    assert!(!groups("tanaka")?.contains("cn=vdi,"));
    slapd.remove("tanaka")?;
    assert_eq!(groups("tanaka")?, "");
    Ok(())
}

#[test]
fn a_directory_can_be_stopped_frozen_and_started_again() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let mut slapd = ministry(&ca)?;
    let id = slapd.entry_uuid("sato")?;
    slapd.pause()?;
    let mut stream = TcpStream::connect(("127.0.0.1", slapd.ldaps_port()))?;
    stream.write_all(b"this is no TLS")?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let error = stream.read(&mut [0; 1]).expect_err("a frozen directory says nothing");
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    slapd.resume();
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    assert!(stream.read(&mut [0; 64]).is_ok(), "it refuses at last");
    assert_eq!(bind(&slapd, &ca, "sato", "sakura-1")?, OK);
    slapd.stop()?;
    assert_eq!(bind(&slapd, &ca, "sato", "sakura-1")?, UNREACHABLE);
    slapd.restart()?;
    assert_eq!(slapd.entry_uuid("sato")?, id, "the same entries as before");
    Ok(())
}

#[test]
fn a_crowd_of_ten_thousand_fits() -> Result<()> {
    let ca = TestCa::new("directory")?;
    let slapd =
        Slapd::builder().crowd(10_000).locks_after(100, Duration::from_secs(1)).start(&ca)?;
    assert_eq!(bind(&slapd, &ca, "user10000", "pw-user10000")?, OK);
    let entry = slapd.search(Transport::Ldaps, "(uid=user10000)", &["memberOf"])?;
    assert!(entry.contains("memberOf: cn=group001,"), "{entry}");
    Ok(())
}
