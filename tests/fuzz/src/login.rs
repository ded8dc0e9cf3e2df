//! The agent's side of a login: whatever a broker says, the password is said
//! once at most, and nothing is said or done after the end.

use tegata_agent::login::{Login, LoginRefused, Step, Wishes};
use tegata_proto::encoding::Secret;
use tegata_proto::frame;
use tegata_proto::id::PoolName;
use tegata_proto::login::{AgentMessage, BrokerMessage};

use super::script::Script;

/// Reads the bytes as what the person wishes, and then as the broker's messages,
/// a line each; an empty line is the person's choice.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let pools = ["keiri", "soumu"].map(|name| PoolName::new(name).expect("a name"));
    let pool = script.pick(&[None, Some(0), Some(1)]).map(|n: usize| pools[n].clone());
    let realm = script.pick(&[None, Some("honsho")]).map(|name| name.parse().expect("a name"));
    let wishes = Wishes::new("sato", Secret::new("a password")).expect("good ones");
    let wishes = wishes.with_realm(realm).with_pool(pool);

    let mut login = Login::new(&wishes);
    let mut told = Told::default();
    let mut lines = script.rest().split(|byte| *byte == b'\n');
    while let Some(line) = lines.next() {
        if line.is_empty() {
            let which = lines.next().and_then(<[u8]>::first).map(|byte| usize::from(*byte) % 2);
            let chosen = login.chosen(which.map(|which| pools[which].clone()));
            told.check(chosen.map(|message| vec![Step::Say(message)]));
        } else if let Ok(message) = frame::read::<BrokerMessage>(line) {
            told.check(login.heard(message));
        }
    }
}

#[derive(Default)]
struct Told {
    passwords: usize,
    over: bool,
}

impl Told {
    fn check(&mut self, outcome: Result<Vec<Step>, LoginRefused>) {
        let steps = match outcome {
            Ok(steps) => steps,
            Err(refused) => {
                assert_ne!(refused.code().exit(), 0, "a login does not end well by an error");
                let out_of_order = matches!(refused, LoginRefused::OutOfOrder { .. });
                assert!(!self.over || out_of_order, "{refused} after the end");
                self.over = true;
                return;
            }
        };
        assert!(!self.over, "{steps:?} after the end");
        for step in steps {
            match step {
                Step::Say(AgentMessage::Password(_)) => self.passwords += 1,
                Step::Say(_) | Step::Tell(_) => {}
                Step::Ask(pools) => assert!(pools.len() > 1, "nothing to choose from"),
                Step::Done(answer) => {
                    assert!(!answer.gateways.is_empty() && self.passwords == 1);
                    self.over = true;
                }
            }
        }
        assert!(self.passwords <= 1, "the password was said again");
    }
}
