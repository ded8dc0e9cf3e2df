//! The desktop's first answer, as far as the agent looks at it.
//!
//! An RDP connection begins with the client's X.224 Connection Request and the
//! server's Connection Confirm, both in clear. With standard RDP security a
//! viewer never looks at the pinned certificate; so whoever carries the bytes
//! could answer "standard security" and read along. The agent lets nothing pass
//! to the viewer before the confirm names exactly the security that the broker
//! promised (MS-RDPBCGR §2.2.1.2).

use tegata_proto::policy::Security;

/// Length of the one confirm that is let through: TPKT header (RFC 1006 §6),
/// Connection Confirm (X.224 §13.4), RDP Negotiation Response, in bytes.
pub const CONFIRM_LEN: usize = 4 + 7 + 8;

/// `PROTOCOL_SSL`, `PROTOCOL_HYBRID` and `PROTOCOL_HYBRID_EX` (MS-RDPBCGR
/// §2.2.1.2.1).
const SSL: u32 = 1;
const HYBRID: u32 = 2;
const HYBRID_EX: u32 = 8;

/// What the bytes so far say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// At most this many more are needed; never 0.
    More(usize),
    /// The security is the one asked for.
    Secured,
    /// It is not.
    NotSecured(NotSecured),
}

/// How a desktop's first answer lowers the security.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotSecured {
    /// The answer is not a Connection Confirm with a negotiation response; one
    /// without means standard RDP security.
    #[error("the desktop's first answer chooses no security")]
    NoChoice,
    /// The desktop declined to negotiate.
    #[error("the desktop declined the security asked for")]
    Declined,
    /// The desktop chose other than promised.
    #[error("the desktop chose security {selected} and not the one promised")]
    Other {
        /// `selectedProtocol`.
        selected: u32,
    },
}

/// Tells whether the first bytes of a desktop confirm the security asked for.
///
/// Only the first [`CONFIRM_LEN`] bytes are looked at.
pub fn confirms(bytes: &[u8], asked: Security) -> Verdict {
    // Everything but the references, the class and the flags is fixed.
    const FIXED: [Option<u8>; CONFIRM_LEN - 4] = [
        Some(3),
        None,
        Some(0),
        Some(19),
        Some(14),
        Some(0xd0),
        None,
        None,
        None,
        None,
        None,
        None,
        None,
        Some(8),
        Some(0),
    ];
    const TYPE_AT: usize = 11;
    const RESPONSE: u8 = 2;
    const FAILURE: u8 = 3;
    let fits = |(byte, fixed): (&u8, &Option<u8>)| fixed.is_none_or(|fixed| fixed == *byte);
    if !bytes.iter().zip(&FIXED).all(fits) {
        return Verdict::NotSecured(NotSecured::NoChoice);
    }
    match bytes.get(TYPE_AT) {
        None | Some(&RESPONSE) => {}
        Some(&FAILURE) => return Verdict::NotSecured(NotSecured::Declined),
        Some(_) => return Verdict::NotSecured(NotSecured::NoChoice),
    }
    let Some(selected) = bytes.get(FIXED.len()..).and_then(|rest| rest.first_chunk()) else {
        return Verdict::More(CONFIRM_LEN - bytes.len());
    };
    let selected = u32::from_le_bytes(*selected);
    let as_asked = match asked {
        Security::Tls => selected == SSL,
        Security::Nla => selected == HYBRID || selected == HYBRID_EX,
    };
    if as_asked { Verdict::Secured } else { Verdict::NotSecured(NotSecured::Other { selected }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn confirm(selected: u32) -> Vec<u8> {
        let mut bytes = vec![3, 0, 0, 19, 14, 0xd0, 0, 0, 0x12, 0x34, 0, 2, 0x1f, 8, 0];
        bytes.extend(selected.to_le_bytes());
        bytes
    }

    #[test]
    fn exactly_the_security_asked_for_passes() {
        for selected in 0..=16 {
            let judged = |asked| confirms(&confirm(selected), asked) == Verdict::Secured;
            assert_eq!(judged(Security::Tls), selected == 1, "{selected}");
            assert_eq!(judged(Security::Nla), selected == 2 || selected == 8, "{selected}");
        }
        let high = confirms(&confirm(0x0100_0001), Security::Tls);
        assert_eq!(high, Verdict::NotSecured(NotSecured::Other { selected: 0x0100_0001 }));
    }

    #[test]
    fn an_answer_without_a_choice_means_standard_security_and_does_not_pass() {
        let short = [3, 0, 0, 11, 6, 0xd0, 0, 0, 0x12, 0x34, 0];
        let judged = confirms(&short, Security::Tls);
        assert_eq!(judged, Verdict::NotSecured(NotSecured::NoChoice));
        let mut declined = confirm(5);
        declined[11] = 3;
        let judged = confirms(&declined, Security::Tls);
        assert_eq!(judged, Verdict::NotSecured(NotSecured::Declined));
    }

    #[test]
    fn what_follows_the_confirm_is_not_looked_at() {
        let bytes = [confirm(1), vec![0xff; 100]].concat();
        assert_eq!(confirms(&bytes, Security::Tls), Verdict::Secured);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_and_only_a_confirm_of_the_security_passes(
            bytes in prop::collection::vec(any::<u8>(), 0..40),
            broken in 0_usize..CONFIRM_LEN,
            by in 1_u8..,
            nla in any::<bool>(),
        ) {
            let asked = if nla { Security::Nla } else { Security::Tls };
            prop_assert_ne!(confirms(&bytes, asked), Verdict::Secured);
            let mut near = confirm(if nla { 2 } else { 1 });
            near[broken] = near[broken].wrapping_add(by);
            let free = [1, 6, 7, 8, 9, 10, 12].contains(&broken);
            let other = nla && broken == 15 && near[broken] == 8;
            prop_assert_eq!(confirms(&near, asked) == Verdict::Secured, free || other);
        }

        #[test]
        fn a_good_confirm_passes_however_it_is_cut(cut in 0_usize..CONFIRM_LEN) {
            let verdict = confirms(&confirm(1)[..cut], Security::Tls);
            prop_assert_eq!(verdict, Verdict::More(CONFIRM_LEN - cut));
        }
    }
}
