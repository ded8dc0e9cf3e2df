//! The desktop's first answer: whatever more comes, a verdict stands, and
//! exactly the missing bytes are asked for.

use tegata_agent::viewer::x224::{CONFIRM_LEN, Verdict, confirms};
use tegata_proto::policy::Security;

use super::script::Script;

/// Reads the bytes as the security that was asked for, and the answer.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let asked = script.pick(&[Security::Tls, Security::Nla]);
    let answer = script.rest();
    let mut before = None;
    for length in 0..=answer.len().min(2 * CONFIRM_LEN) {
        let verdict = confirms(&answer[..length], asked);
        match verdict {
            Verdict::More(missing) => assert_eq!(length + missing, CONFIRM_LEN),
            Verdict::Secured => assert!(length >= CONFIRM_LEN, "after {length} bytes"),
            Verdict::NotSecured(_) => {}
        }
        let stands = matches!(before, None | Some(Verdict::More(_))) || before == Some(verdict);
        // Which byte was wrong first may change the reason, never the refusal.
        let refused = |verdict: Option<Verdict>| matches!(verdict, Some(Verdict::NotSecured(_)));
        assert!(stands || (refused(before) && refused(Some(verdict))), "{before:?} {verdict:?}");
        before = Some(verdict);
    }
}
