//! Servers that are down, slow, strangers, or lie.

use std::net::Ipv6Addr;

use tokio::sync::watch;
use tokio::time::timeout;

use super::fake::{Answer, Bind, ID};
use super::*;

/// Short waits, for servers that never answer; long enough for a fake one that
/// does, on a busy machine.
fn hurried() -> LdapLimits {
    LdapLimits { operation: Duration::from_secs(1), ..patient() }
}

fn authority() -> TestCa {
    TestCa::new("Honsho").expect("a CA")
}

fn to(fake: &Fake, ca: &TestCa) -> LdapConfig {
    config(&[fake.url()], &ca.certificate())
}

async fn soon<T>(answer: impl Future<Output = T>) -> T {
    timeout(SOON, answer).await.expect("in time")
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let office = open();
    let stranger = authority();
    for url in [office.slapd.ldaps_url(), office.slapd.ldap_url()] {
        let directory = directory(config(&[url], &stranger.certificate()));
        let error = directory.find(&name("sato")).await.expect_err("not trusted");
        assert!(matches!(error, DirectoryError::Untrusted { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_is_refused() {
    let ca = authority();
    let elsewhere = ca.issue(&["ldap.honsho.lan"]).expect("a certificate");
    let fake = Fake::with(elsewhere, Script::default()).await;
    let error = directory(to(&fake, &ca)).find(&name("sato")).await.expect_err("not trusted");
    assert!(matches!(error, DirectoryError::Untrusted { .. }), "{error:?}");
    assert_eq!(fake.searches(), 0);
}

#[tokio::test]
async fn a_server_is_reached_and_verified_by_its_ipv6_address() {
    let office = open();
    let port = |url: String| url.rsplit_once(':').expect("a port").1.to_owned();
    let (ldaps, ldap) = (port(office.slapd.ldaps_url()), port(office.slapd.ldap_url()));
    let urls = [format!("ldaps://[::1]:{ldaps}"), format!("ldap://[::1]:{ldap}")];
    for url in &urls {
        let directory = directory(config(std::slice::from_ref(url), &office.ca.certificate()));
        person(&directory, "sato").await;
    }
    let stranger = authority();
    for url in urls {
        let directory = directory(config(&[url], &stranger.certificate()));
        let error = directory.find(&name("sato")).await.expect_err("not trusted");
        assert!(matches!(error, DirectoryError::Untrusted { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_certificate_without_the_ipv6_address_is_refused() {
    let ca = authority();
    let elsewhere =
        ca.issue(&["localhost", "127.0.0.1", "address.invalid"]).expect("a certificate");
    let fake = Fake::at(Ipv6Addr::LOCALHOST.into(), elsewhere, Script::default()).await;
    let url = fake.url().replace("localhost", "[::1]");
    let directory = directory(config(&[url], &ca.certificate()));
    let error = directory.find(&name("sato")).await.expect_err("not trusted");
    assert!(matches!(error, DirectoryError::Untrusted { .. }), "{error:?}");
    assert_eq!((fake.connections(), fake.searches()), (1, 0));
}

#[tokio::test]
async fn a_server_that_declines_start_tls_is_told_nothing() {
    let ca = authority();
    let fake = Fake::start(&ca, Script { tls: false, ..Script::default() }).await;
    let directory = directory(to(&fake, &ca));
    assert!(directory.find(&name("sato")).await.is_err());
    assert_eq!((fake.connections(), fake.searches(), fake.binds()), (1, 0, 0));
}

#[tokio::test]
async fn when_a_server_is_down_the_next_one_serves() {
    let office = open();
    let mut first = people().start(&office.ca).expect("slapd");
    let servers = [first.ldaps_url(), office.slapd.ldaps_url()];
    let directory = directory(config(&servers, &office.ca.certificate()));
    person(&directory, "tanaka").await;
    first.stop().expect("stopped");
    person(&directory, "sato").await;
    let from_second = office.slapd.entry_uuid("sato").expect("an id");
    assert_eq!(found(&directory, "sato").await.user().id(), from_second);
}

#[tokio::test]
async fn a_server_that_is_back_after_a_restart_serves_again() {
    let mut office = open();
    person(&office.directory, "sato").await;
    office.slapd.restart().expect("restarted");
    person(&office.directory, "sato").await;
    person(&office.directory, "tanaka").await;
}

#[tokio::test]
async fn a_frozen_server_is_given_up_for_the_next() {
    let office = open();
    let mut first = people().start(&office.ca).expect("slapd");
    let servers = [first.ldaps_url(), office.slapd.ldaps_url()];
    let limit = Duration::from_secs(3);
    let limits = LdapLimits { connect: limit, operation: limit, ..patient() };
    let config = LdapConfig { limits, ..config(&servers, &office.ca.certificate()) };
    let directory = directory(config);
    let from_second = office.slapd.entry_uuid("sato").expect("an id");
    assert_ne!(found(&directory, "sato").await.user().id(), from_second);
    first.pause().expect("it stands still");
    assert_eq!(soon(found(&directory, "sato")).await.user().id(), from_second);
    first.resume();
}

#[tokio::test]
async fn with_every_server_down_the_answer_is_an_outage() {
    let mut office = open();
    let sato = found(&office.directory, "sato").await;
    office.slapd.stop().expect("stopped");
    let no_bind = office.directory.verify(&sato, &password("pw-sato")).await.expect_err("down");
    let first = office.directory.find(&name("sato")).await.expect_err("down");
    let again = office.directory.find(&name("sato")).await.expect_err("still down");
    for error in [no_bind, first, again] {
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error:?}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn a_server_that_accepts_and_never_speaks_is_given_up_in_time() {
    let ca = authority();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    for scheme in ["ldaps", "ldap"] {
        let url = format!("{scheme}://localhost:{port}");
        let connect = Duration::from_millis(200);
        let limits = LdapLimits { connect, ..patient() };
        let config = LdapConfig { limits, ..config(&[url], &ca.certificate()) };
        let error = soon(directory(config).find(&name("sato"))).await.expect_err("silent");
        assert!(matches!(error, DirectoryError::TimedOut { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_a_caller_has_no_time_left_for_is_not_left_alone() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let silent = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").expect("a port"));
    let port = |listener: &std::net::TcpListener| listener.local_addr().expect("bound").port();
    let mut servers: Vec<_> =
        silent.iter().map(|silent| format!("ldaps://localhost:{}", port(silent))).collect();
    servers.push(fake.url());
    let connect = Duration::from_secs(1);
    let limits = LdapLimits { connect, patience: 2 * connect, ..patient() };
    let directory = directory(LdapConfig { limits, ..config(&servers, &ca.certificate()) });
    let error = soon(directory.find(&name("sato"))).await.expect_err("no time is left");
    assert!(matches!(error, DirectoryError::TimedOut { .. }), "{error:?}");
    soon(directory.find(&name("sato"))).await.expect("the third is asked");
}

#[tokio::test]
async fn a_search_that_is_never_answered_is_given_up_in_time() {
    let ca = authority();
    let fake = Fake::start(&ca, Script { search: Answer::Silence, ..Script::default() }).await;
    let directory = directory(LdapConfig { limits: hurried(), ..to(&fake, &ca) });
    let error = soon(directory.find(&name("sato"))).await.expect_err("silent");
    assert!(matches!(error, DirectoryError::TimedOut { .. }), "{error:?}");
}

#[tokio::test]
async fn an_answer_that_comes_late_is_nobody_elses() {
    let ca = authority();
    let (tell, told) = watch::channel(false);
    let script = Script { bind: Bind::SuccessOnceTold(told), ..Script::default() };
    let fake = Fake::start(&ca, script).await;
    let limits = LdapLimits { connections: 1, ..hurried() };
    let directory = directory(LdapConfig { limits, ..to(&fake, &ca) });
    let sato = found(&directory, "sato").await;
    let error = directory.verify(&sato, &password("secret")).await.expect_err("late");
    assert!(matches!(error, DirectoryError::TimedOut { .. }), "{error:?}");
    let before = fake.connections();
    // The server now says "success", to a connection that nobody listens to.
    tell.send(true).expect("a server");
    let wrong = Verdict::Wrong { reason: Reason::Password };
    let verdict = loop {
        // The server rests for a moment after its silence.
        match directory.verify(&sato, &password("guess")).await {
            Err(DirectoryError::Unavailable { .. }) => tokio::task::yield_now().await,
            answer => break answer.expect("an answer"),
        }
    };
    assert_eq!(verdict, wrong);
    assert_eq!((fake.connections(), fake.binds()), (before + 1, 2));
}

#[tokio::test]
async fn a_login_given_up_half_way_leaves_no_connection_behind() {
    let ca = authority();
    let (tell, told) = watch::channel(false);
    let script = Script { bind: Bind::SuccessOnceTold(told), ..Script::default() };
    let fake = Fake::start(&ca, script).await;
    let limits = LdapLimits { connections: 1, ..patient() };
    let directory = directory(LdapConfig { limits, ..to(&fake, &ca) });
    let sato = found(&directory, "sato").await;
    let secret = password("secret");
    let given_up = async {
        while fake.binds() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = directory.verify(&sato, &secret) => panic!("answered: {answer:?}"),
        () = given_up => {}
    }
    let before = fake.connections();
    tell.send(true).expect("a server");
    let verdict = soon(directory.verify(&sato, &password("guess"))).await.expect("an answer");
    assert_eq!(verdict, Verdict::Wrong { reason: Reason::Password });
    assert_eq!(fake.connections(), before + 1);
}

#[tokio::test]
async fn a_connection_is_kept_after_a_clean_answer() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let directory = directory(to(&fake, &ca));
    for _ in 0..5 {
        person(&directory, "sato").await;
    }
    assert_eq!(fake.connections(), 2, "one for searches, one for binds");
}

#[tokio::test]
async fn a_bind_is_sent_once_whatever_becomes_of_it() {
    let ca = authority();
    let fakes = [
        Fake::start(&ca, Script { bind: Bind::HangUp, ..Script::default() }).await,
        Fake::start(&ca, Script::default()).await,
    ];
    let urls = [fakes[0].url(), fakes[1].url()];
    let directory = directory(config(&urls, &ca.certificate()));
    let sato = found(&directory, "sato").await;
    let error = directory.verify(&sato, &password("pw-sato")).await.expect_err("cut off");
    assert!(matches!(error, DirectoryError::CutOff { .. }), "{error:?}");
    assert_eq!((fakes[0].binds(), fakes[1].binds()), (1, 0));
    person(&directory, "sato").await;
}

#[tokio::test]
async fn an_empty_password_never_reaches_a_server_that_says_yes_to_all() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let directory = directory(to(&fake, &ca));
    let sato = found(&directory, "sato").await;
    for empty in ["", "\0", "\0pw-sato"] {
        let typed = NonEmptyPassword::new(tegata_proto::encoding::Secret::new(empty));
        if let Ok(typed) = typed {
            let verdict = directory.verify(&sato, &typed).await;
            panic!("{empty:?} was tried: {verdict:?}");
        }
    }
    assert_eq!(fake.binds(), 0);
    person(&directory, "sato").await;
    assert_eq!(fake.binds(), 1, "the server does count");
}

#[tokio::test]
async fn whoever_the_server_says_is_bound_has_to_be_the_one_that_was_found() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let directory = directory(to(&fake, &ca));
    let mut sato = found(&directory, "sato").await;
    let other = ID.replace('1', "9");
    let user = tegata_proto::id::UserId::new(directory.realm().clone(), other).expect("an id");
    let claimed = Person { user, ..sato.claimed().clone() };
    sato = Found::new(sato.locator().to_owned(), claimed);
    let verdict = directory.verify(&sato, &password("pw-sato")).await.expect("an answer");
    assert_eq!(verdict, Verdict::Wrong { reason: Reason::Replaced });
}

#[tokio::test]
async fn a_success_for_nobody_in_particular_is_no_success() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let silent = Fake::start(&ca, Script { search: Answer::Code(0), ..Script::default() }).await;
    let sato = found(&directory(to(&fake, &ca)), "sato").await;
    let error = directory(to(&silent, &ca)).verify(&sato, &password("x")).await;
    assert!(matches!(error, Err(DirectoryError::Misconfigured { .. })), "{error:?}");
    assert_eq!(silent.binds(), 1);
}

#[tokio::test]
async fn after_a_bind_that_allows_nothing_the_password_has_to_be_changed() {
    let ca = authority();
    let fake = Fake::start(&ca, Script::default()).await;
    let bound = Fake::start(&ca, Script { search: Answer::Code(50), ..Script::default() }).await;
    let sato = found(&directory(to(&fake, &ca)), "sato").await;
    let verdict = directory(to(&bound, &ca)).verify(&sato, &password("x")).await;
    assert!(matches!(verdict, Ok(Verdict::Wrong { reason: Reason::MustChange })), "{verdict:?}");
}

#[tokio::test]
async fn a_referral_is_not_followed_and_is_no_answer() {
    let ca = authority();
    let fake = Fake::start(&ca, Script { search: Answer::Referral, ..Script::default() }).await;
    let error = directory(to(&fake, &ca)).find(&name("sato")).await.expect_err("no answer");
    assert!(matches!(error, DirectoryError::Misconfigured { .. }), "{error:?}");
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_only() {
    let ca = authority();
    let well = Fake::start(&ca, Script::default()).await;
    // An unknown operation, an entry and a result without content, a string.
    for nonsense in [&[0x7e, 0][..], &[0x64, 0], &[0x65, 0], &[0x65, 3, 10, 1, 0], &[4, 1, b'x']] {
        let search = Answer::Nonsense(nonsense);
        let fake = Fake::start(&ca, Script { search, ..Script::default() }).await;
        let error = directory(to(&fake, &ca)).find(&name("sato")).await.expect_err("nonsense");
        assert!(matches!(error, DirectoryError::Unavailable { .. }), "{nonsense:x?}: {error:?}");
        let both = directory(config(&[fake.url(), well.url()], &ca.certificate()));
        person(&both, "sato").await;
    }
}

#[tokio::test]
async fn entries_without_end_are_cut_off() {
    let ca = authority();
    let fake = Fake::start(&ca, Script { search: Answer::Endless, ..Script::default() }).await;
    let error = soon(directory(to(&fake, &ca)).find(&name("sato"))).await.expect_err("too many");
    assert!(matches!(error, DirectoryError::Ambiguous { .. }), "{error:?}");
}

#[tokio::test]
async fn a_busy_server_is_passed_over() {
    let ca = authority();
    let busy = Fake::start(&ca, Script { search: Answer::Code(51), ..Script::default() }).await;
    let well = Fake::start(&ca, Script::default()).await;
    let servers = directory(config(&[busy.url(), well.url()], &ca.certificate()));
    found(&servers, "sato").await;
    assert_eq!(busy.searches(), 1);
    let error = directory(to(&busy, &ca)).find(&name("sato")).await.expect_err("busy");
    assert!(matches!(error, DirectoryError::Unavailable { .. }), "{error:?}");
    let unwell = Fake::start(&ca, Script { bind: Bind::Code(52), ..Script::default() }).await;
    let directory = directory(to(&unwell, &ca));
    let sato = found(&directory, "sato").await;
    let error = directory.verify(&sato, &password("x")).await.expect_err("unavailable");
    assert!(error.is_transient(), "{error:?}");
}

#[tokio::test]
async fn requests_beyond_those_that_may_wait_are_refused_at_once() {
    let ca = authority();
    let (_tell, told) = watch::channel(false);
    let script = Script { bind: Bind::SuccessOnceTold(told), ..Script::default() };
    let fake = Fake::start(&ca, script).await;
    let limits = LdapLimits { connections: 1, waiting: 1, ..patient() };
    let directory = directory(LdapConfig { limits, ..to(&fake, &ca) });
    let sato = found(&directory, "sato").await;
    let secret = password("secret");
    let third = async {
        while fake.binds() == 0 {
            tokio::task::yield_now().await;
        }
        directory.verify(&sato, &secret).await
    };
    tokio::select! {
        biased;
        answer = directory.verify(&sato, &secret) => panic!("answered: {answer:?}"),
        answer = directory.verify(&sato, &secret) => panic!("answered: {answer:?}"),
        refused = third => assert!(matches!(refused, Err(DirectoryError::Busy { .. })), "{refused:?}"),
    }
    assert_eq!(fake.binds(), 1, "the second waits its turn");
    found(&directory, "sato").await;
}
