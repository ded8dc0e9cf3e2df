use tegata_proto::encoding::{Bytes, Sha256};
use tegata_proto::id::{GatewayId, SeatName};
use tegata_proto::login::{Desktop, Gateway, OfferState};
use tegata_proto::policy::{Policy, Protocol, SignOn};

use super::*;
use crate::office::{answer, pools, welcome, wishes};

fn pool(name: &str) -> PoolName {
    PoolName::new(name).expect("a name")
}

fn gateway() -> Gateway {
    Gateway {
        id: GatewayId::new("g1").expect("a name"),
        addresses: vec!["192.0.2.1:443".parse().expect("an address")],
        spki_sha256: Sha256([1; 32]),
    }
}

/// One of each type of message, as good as it can be.
fn messages() -> Vec<BrokerMessage> {
    vec![
        welcome(),
        BrokerMessage::Queued { place: 1, expected_ms: 500 },
        pools(&["keiri"]),
        BrokerMessage::Progress { phase: Phase::Starting, expected_ms: Some(1) },
        BrokerMessage::Ticket(Box::new(answer(vec![gateway()]))),
        BrokerMessage::Error(Code::Refused.into()),
        BrokerMessage::Unsupported,
    ]
}

fn at(wishes: &Wishes, state: State) -> Login<'_> {
    Login { wishes, state, chosen: None }
}

fn changed(change: impl FnOnce(&mut Welcome)) -> BrokerMessage {
    let BrokerMessage::Welcome(mut said) = welcome() else { panic!("it is a welcome") };
    change(&mut said);
    BrokerMessage::Welcome(said)
}

fn first(message: BrokerMessage) -> Result<Vec<Step>, LoginRefused> {
    Login::new(&wishes()).heard(message)
}

fn password(step: &Step) -> &Password {
    let Step::Say(AgentMessage::Password(password)) = step else { panic!("{step:?}") };
    password
}

#[test]
fn every_message_in_every_state_moves_on_or_is_out_of_order() {
    // What each message leads to: `=` the same state, `!` refused as the broker
    // says, `x` out of order.
    let choosing = State::Choosing { open: vec![pool("keiri")] };
    let table = [
        (State::Greeting, ["identifying", "x", "x", "x", "x", "!", "x"]),
        (State::Identifying, ["x", "=", "assigning", "x", "x", "!", "x"]),
        (choosing, ["x", "x", "x", "x", "x", "!", "x"]),
        (State::Assigning, ["x", "=", "x", "=", "over", "!", "x"]),
        (State::Over, ["x", "x", "x", "x", "x", "x", "x"]),
    ];
    let wishes = wishes();
    for (state, row) in table {
        for (message, wanted) in messages().into_iter().zip(row) {
            let mut login = at(&wishes, state.clone());
            let said = format!("{message:?} in {state:?}");
            let heard = login.heard(message);
            let (outcome, after) = match wanted {
                "=" => (heard.is_ok(), state.clone()),
                "identifying" => (heard.is_ok(), State::Identifying),
                "assigning" => (heard.is_ok(), State::Assigning),
                "over" => (heard.is_ok(), State::Over),
                "!" => (heard == Err(LoginRefused::Said(Code::Refused.into())), State::Over),
                "x" => (matches!(heard, Err(LoginRefused::OutOfOrder { .. })), State::Over),
                other => panic!("no such mark {other}"),
            };
            assert!(outcome, "{said}");
            assert_eq!(login.state, after, "{said}");
        }
    }
}

#[test]
fn a_choice_is_sent_where_one_is_due_and_nowhere_else() {
    let wishes = wishes();
    for state in [State::Greeting, State::Identifying, State::Assigning, State::Over] {
        let chosen = at(&wishes, state).chosen(Some(pool("keiri")));
        assert_eq!(chosen, Err(LoginRefused::OutOfOrder { message: "choose" }));
    }
    let open = vec![pool("keiri"), pool("soumu")];
    let mut login = at(&wishes, State::Choosing { open: open.clone() });
    let choice = login.chosen(Some(pool("soumu")));
    assert_eq!(choice, Ok(AgentMessage::Choose { pool: pool("soumu") }));
    assert_eq!(login.state, State::Assigning);
    let chosen = at(&wishes, State::Choosing { open: open.clone() }).chosen(Some(pool("jinji")));
    assert_eq!(chosen, Err(LoginRefused::NotOpen { pool: pool("jinji"), open: open.clone() }));
    let nobody = at(&wishes, State::Choosing { open: open.clone() }).chosen(None);
    assert_eq!(nobody.as_ref().map_err(LoginRefused::code), Err(Code::Configuration));
    let text = nobody.expect_err("nobody chose").to_string();
    assert!(text.ends_with("keiri, soumu"), "{text}");
}

#[test]
fn the_password_answers_the_welcome_under_its_transaction() {
    let steps = first(welcome()).expect("a good welcome");
    let password = password(&steps[0]);
    assert_eq!((password.txn, password.name.as_str()), (Bytes([7; 16]), "sato"));
    assert_eq!((password.password.expose(), &password.realm), ("hunter2", &None));
    assert_eq!(steps.len(), 1);
}

#[test]
fn a_welcome_that_does_not_fit_ends_the_login_before_the_password_is_said() {
    for (message, code) in [
        (changed(|w| w.v = 2), Code::Unsupported),
        (changed(|w| w.minimum_agent = "0.1.1".into()), Code::AgentTooOld),
        (changed(|w| w.minimum_agent = "1.0.0".into()), Code::AgentTooOld),
        (changed(|w| w.minimum_agent = "new".into()), Code::Malformed),
        (changed(|w| w.methods = vec![Method::Unknown]), Code::Unsupported),
        (changed(|w| w.realms = vec![]), Code::Configuration),
    ] {
        let refused = first(message.clone()).expect_err("not fit");
        assert_eq!(refused.code(), code, "{message:?}");
    }
    for minimum in ["0.0.9", "0.1.0", "0.1.0-rc1+build"] {
        assert!(first(changed(|w| w.minimum_agent = minimum.into())).is_ok(), "{minimum}");
    }
}

#[test]
fn a_realm_is_said_where_it_was_named_and_needed_where_there_are_several() {
    let realm = |name: &str| RealmName::new(name).expect("a name");
    let two = || changed(|w| w.realms = vec![realm("honsho"), realm("shikyoku")]);
    let wish = |name: &str| wishes().with_realm(Some(realm(name)));
    let refused = first(two()).expect_err("which one?");
    assert_eq!(refused.code(), Code::Configuration);
    let named = wish("shikyoku");
    let steps = Login::new(&named).heard(two()).expect("one of the two");
    assert_eq!(password(&steps[0]).realm, Some(realm("shikyoku")));
    let other = wish("elsewhere");
    let refused = Login::new(&other).heard(two()).expect_err("neither");
    assert_eq!(refused.code(), Code::Configuration);
}

#[test]
fn one_pool_goes_on_by_itself_and_several_need_a_choice() {
    let greeted = |wishes: &Wishes, names: &[&str]| {
        let mut login = at(wishes, State::Identifying);
        let steps = login.heard(pools(names));
        (steps.map(|steps| steps.into_iter().nth(1)), login.state)
    };
    let none = wishes();
    assert_eq!(greeted(&none, &["keiri"]), (Ok(None), State::Assigning));
    let (step, state) = greeted(&none, &["keiri", "soumu"]);
    let Ok(Some(Step::Ask(offers))) = step else { panic!("{step:?}") };
    assert_eq!((offers.len(), offers[0].state), (2, OfferState::Ready));
    assert_eq!(state, State::Choosing { open: vec![pool("keiri"), pool("soumu")] });

    let soumu = wishes().with_pool(Some(pool("soumu")));
    let choose = Step::Say(AgentMessage::Choose { pool: pool("soumu") });
    assert_eq!(greeted(&soumu, &["keiri", "soumu"]), (Ok(Some(choose)), State::Assigning));
    assert_eq!(greeted(&soumu, &["soumu"]), (Ok(None), State::Assigning));
    for others in [&["keiri"][..], &["keiri", "jinji"]] {
        let (step, _) = greeted(&soumu, others);
        assert_eq!(step.map_err(|refused| refused.code()), Err(Code::NoEntitlement));
    }
    let (step, _) = greeted(&none, &[]);
    assert_eq!(step, Err(LoginRefused::Incomplete { message: "pools" }));
    let many: Vec<String> = (0..=POOLS_MAX).map(|n| format!("pool-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let (step, _) = greeted(&none, &many);
    assert_eq!(step, Err(LoginRefused::Incomplete { message: "pools" }));
}

#[test]
fn every_code_of_a_broker_ends_the_login_and_none_ends_it_well() {
    for code in Code::ALL.iter().copied().chain([Code::Unknown]) {
        let refused = first(BrokerMessage::Error(code.into())).expect_err("an error");
        assert_ne!(refused.code().exit(), 0, "{code}");
        let expected = if code == Code::LoggedOff { Code::Malformed } else { code };
        assert_eq!(refused.code(), expected);
    }
}

#[test]
fn a_ticket_without_a_way_to_a_gateway_is_incomplete() {
    let desktop = Desktop {
        name: SeatName::new("keiri-0001").expect("a name"),
        protocol: Protocol::Tcp,
        security: None,
        certificate_sha256: None,
        user_hint: None,
    };
    let answered = |gateways| {
        let answer = TicketAnswer {
            ticket: Secret::new("t"),
            grant: Secret::new("g"),
            gateways,
            desktop: desktop.clone(),
            policy: Policy::default(),
            sign_on: SignOn::Prompt,
        };
        let wishes = wishes();
        at(&wishes, State::Assigning).heard(BrokerMessage::Ticket(Box::new(answer)))
    };
    assert!(answered(vec![gateway()]).is_ok());
    let nowhere = Gateway { addresses: vec![], ..gateway() };
    for bad in [vec![], vec![gateway(), nowhere], vec![gateway(); GATEWAYS_MAX + 1]] {
        assert_eq!(answered(bad), Err(LoginRefused::Incomplete { message: "ticket" }));
    }
}

#[test]
fn an_empty_or_overlong_name_or_password_is_never_sent() {
    let long = |length| "a".repeat(length);
    for (name, password, what) in [
        ("", "x", "name"),
        ("x", "", "password"),
        (&long(LOGIN_NAME_MAX + 1), "x", "name"),
        ("x", &long(PASSWORD_MAX + 1), "password"),
    ] {
        let refused = Wishes::new(name, Secret::new(password)).expect_err("unusable");
        assert_eq!(refused, UnusableCredentials { what });
    }
    assert!(Wishes::new(long(LOGIN_NAME_MAX), Secret::new(long(PASSWORD_MAX))).is_ok());
}

#[test]
fn only_a_login_whose_ticket_is_awaited_may_be_had_again_and_with_what_was_chosen() {
    let wishes = wishes();
    let choosing = State::Choosing { open: vec![pool("keiri"), pool("soumu")] };
    for state in [State::Greeting, State::Identifying, choosing.clone(), State::Over] {
        assert!(at(&wishes, state.clone()).again().is_none(), "{state:?}");
    }
    let again = at(&wishes, State::Assigning).again().expect("the password is right");
    assert_eq!((again.name, again.pool), (wishes.name.clone(), None));
    let mut login = at(&wishes, choosing);
    login.chosen(Some(pool("soumu"))).expect("it is open");
    let again = login.again().expect("the password is right");
    assert_eq!(again.pool, Some(pool("soumu")), "nobody chooses twice");
}
