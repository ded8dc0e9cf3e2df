//! The agent's tries at the gateways: link numbers only rise, the tries come to
//! an end, and a grant is shown only where the ticket may have been used.

use std::time::Duration;

use tegata_agent::attach::{Attempts, Next, Shown};
use tegata_proto::code::Code;
use tegata_proto::id::LinkNumber;
use tegata_proto::login::Failure;

use super::script::Script;

/// Reads the bytes as what happens to the tries, in order.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut attempts = Attempts::default();
    let mut begun: Vec<LinkNumber> = Vec::new();
    let mut unanswered = false;
    while let Some(what) = script.byte() {
        // Now and then a number that was never begun.
        let any = usize::from(script.byte().unwrap_or_default());
        let link = begun.get(any % (begun.len() + 1)).copied().unwrap_or(LinkNumber(99));
        let elapsed = Duration::from_millis(script.number() % 40_000);
        let next = match what % 4 {
            0 => {
                let Some((shown, link)) = attempts.begin() else { continue };
                assert!(begun.iter().all(|earlier| *earlier < link), "{link} again");
                assert!(shown == Shown::Ticket || unanswered, "a grant out of nowhere");
                begun.push(link);
                continue;
            }
            1 => {
                unanswered |= attempts.is_waiting();
                let _another = attempts.fell_silent(link);
                continue;
            }
            2 => {
                let code = script.pick(Code::ALL);
                let retry_after_ms = script.pick(&[None, Some(0), Some(u64::MAX)]);
                attempts.refused(link, Failure { code, retry_after_ms }, elapsed)
            }
            _ => {
                unanswered = true;
                attempts.unanswered(link, elapsed)
            }
        };
        match next {
            Next::Wait => assert!(attempts.is_waiting(), "for nothing"),
            Next::Again(pause) => assert!(pause <= Duration::from_secs(5), "{pause:?}"),
            Next::Stop(failure) => assert_ne!(failure.code.exit(), 0, "a link ends well later"),
        }
    }
}
