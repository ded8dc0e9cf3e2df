//! What servers' answers mean: result codes, the password policy control,
//! Active Directory's sub-codes, and ids.

use ldap3::LdapResult;
use ldap3::controls::Control;
use tegata_proto::id::{RealmName, UserId};
use uuid::Uuid;

use super::config::IdAttribute;
use super::connection::Entry;
use crate::ports::directory::{Reason, TEXT_MAX};

// Result codes of RFC 4511 section 4.1.9.
pub(super) const SUCCESS: u32 = 0;
const TIME_LIMIT_EXCEEDED: u32 = 3;
pub(super) const SIZE_LIMIT_EXCEEDED: u32 = 4;
const CONSTRAINT_VIOLATION: u32 = 19;
pub(super) const NO_SUCH_OBJECT: u32 = 32;
const INAPPROPRIATE_AUTHENTICATION: u32 = 48;
pub(super) const INVALID_CREDENTIALS: u32 = 49;
pub(super) const INSUFFICIENT_ACCESS: u32 = 50;
const BUSY: u32 = 51;
const UNAVAILABLE: u32 = 52;
const UNWILLING_TO_PERFORM: u32 = 53;
const OTHER: u32 = 80;

/// The control by which a server tells why it declined
/// (draft-behera-ldap-password-policy-11 section 6).
pub(super) const PASSWORD_POLICY: &str = "1.3.6.1.4.1.42.2.27.8.5.1";

/// A result code and what the server says beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) number: u32,
    pub(super) text: String,
}

impl Code {
    /// Tells whether the server itself is in trouble, and another, or the same
    /// one later, may not be.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.number, TIME_LIMIT_EXCEEDED | BUSY | UNAVAILABLE | OTHER)
    }
}

impl From<LdapResult> for Code {
    fn from(result: LdapResult) -> Self {
        let shown = result.text.chars().filter(|c| !c.is_control());
        Self { number: result.rc, text: shown.take(TEXT_MAX).collect() }
    }
}

/// What a bind's answer means.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BindAnswer {
    /// The password is right and may be used.
    Correct,
    /// The person may not log in with it.
    Wrong(Reason),
    /// The answer says nothing about the password. A referral is one of these.
    Unusable(Code),
}

/// Reads a bind's answer.
pub(super) fn of_bind(result: &LdapResult) -> BindAnswer {
    let policy = policy_error(result);
    match result.rc {
        SUCCESS => policy.map_or(BindAnswer::Correct, BindAnswer::Wrong),
        INVALID_CREDENTIALS => {
            BindAnswer::Wrong(policy.or_else(|| sub_code(&result.text)).unwrap_or(Reason::Password))
        }
        // 389 Directory Server locks with 19 and disables with 53.
        CONSTRAINT_VIOLATION => BindAnswer::Wrong(Reason::Locked),
        UNWILLING_TO_PERFORM | INSUFFICIENT_ACCESS | INAPPROPRIATE_AUTHENTICATION => {
            BindAnswer::Wrong(policy.unwrap_or(Reason::Declined))
        }
        NO_SUCH_OBJECT => BindAnswer::Wrong(Reason::Replaced),
        _ => BindAnswer::Unusable(result.clone().into()),
    }
}

/// Returns what the password policy control objects to, if it came along and
/// does. One that cannot be read objects.
fn policy_error(result: &LdapResult) -> Option<Reason> {
    let Control(_, control) = result.ctrls.iter().find(|c| c.1.ctype == PASSWORD_POLICY)?;
    let Some(value) = &control.val else { return None };
    match policy_error_number(value) {
        Ok(None) => None,
        Ok(Some(0)) => Some(Reason::Expired),
        Ok(Some(1)) => Some(Reason::Locked),
        Ok(Some(2)) => Some(Reason::MustChange),
        Ok(Some(_)) | Err(Unreadable) => Some(Reason::Declined),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Unreadable;

/// Reads `SEQUENCE { warning [0] CHOICE OPTIONAL, error [1] ENUMERATED OPTIONAL }`.
/// Every length in it is below 128.
fn policy_error_number(value: &[u8]) -> Result<Option<u8>, Unreadable> {
    let [0x30, length, fields @ ..] = value else { return Err(Unreadable) };
    if usize::from(*length) != fields.len() {
        return Err(Unreadable);
    }
    let mut rest = fields;
    while let [tag, length, more @ ..] = rest {
        let field = more.get(..usize::from(*length)).ok_or(Unreadable)?;
        match (tag, field) {
            (0xa0, _) => rest = &more[field.len()..],
            (0x81, [error]) => return Ok(Some(*error)),
            _ => return Err(Unreadable),
        }
    }
    if rest.is_empty() { Ok(None) } else { Err(Unreadable) }
}

/// Reads the sub-code in Active Directory's text: `…, data 533, v3839`, in hex.
fn sub_code(text: &str) -> Option<Reason> {
    let (_, data) = text.split_once(", data ")?;
    match data.split([',', ' ', '\0']).next()? {
        "530" | "531" => Some(Reason::NotNow),
        "532" | "701" => Some(Reason::Expired),
        "533" => Some(Reason::Disabled),
        "773" => Some(Reason::MustChange),
        "775" => Some(Reason::Locked),
        _ => None,
    }
}

/// Reads who an entry is for good; nothing unless it says so exactly once.
pub(super) fn user_id(realm: &RealmName, id: IdAttribute, entry: &Entry) -> Option<UserId> {
    let mut values = entry.values(id.attribute());
    let (value, None) = (values.next()?, values.next()) else { return None };
    let id = match id {
        IdAttribute::EntryUuid => Uuid::try_parse_ascii(value).ok()?,
        IdAttribute::ObjectGuid => Uuid::from_bytes_le(value.try_into().ok()?),
    };
    // The hyphenated, lower-case text is the canonical one.
    UserId::new(realm.clone(), id.hyphenated().to_string()).ok()
}

#[cfg(test)]
mod tests {
    use ldap3::controls::RawControl;

    use super::*;

    fn result(rc: u32, text: &str, policy: Option<&[u8]>) -> LdapResult {
        let control = policy.map(|value| {
            let val = Some(value.to_vec());
            Control(None, RawControl { ctype: PASSWORD_POLICY.to_owned(), crit: false, val })
        });
        let ctrls = control.into_iter().collect();
        LdapResult { rc, matched: String::new(), text: text.to_owned(), refs: vec![], ctrls }
    }

    #[test]
    fn a_success_with_an_objection_of_the_policy_is_no_success() {
        let answer = |value: &[u8]| of_bind(&result(SUCCESS, "", Some(value)));
        assert_eq!(of_bind(&result(SUCCESS, "", None)), BindAnswer::Correct);
        assert_eq!(answer(&[0x30, 0]), BindAnswer::Correct);
        let warned = [0x30, 5, 0xa0, 3, 0x80, 1, 9];
        assert_eq!(answer(&warned), BindAnswer::Correct, "expires soon");
        assert_eq!(answer(&[0x30, 3, 0x81, 1, 2]), BindAnswer::Wrong(Reason::MustChange));
        let both = [0x30, 8, 0xa0, 3, 0x80, 1, 9, 0x81, 1, 0];
        assert_eq!(answer(&both), BindAnswer::Wrong(Reason::Expired));
        for broken in [&[][..], &[0x30], &[0x30, 9], &[0x30, 2, 0x81, 1], &[0x30, 1, 0xa0], &[4, 0]]
        {
            assert_eq!(answer(broken), BindAnswer::Wrong(Reason::Declined), "{broken:?}");
        }
    }

    #[test]
    fn a_refusal_keeps_its_reason_for_the_log() {
        let ad = |data: &str| {
            let text =
                format!("80090308: LdapErr: DSID-0C090447, comment: x, data {data}, v3839\0");
            of_bind(&result(INVALID_CREDENTIALS, &text, None))
        };
        assert_eq!(ad("52e"), BindAnswer::Wrong(Reason::Password));
        assert_eq!(ad("533"), BindAnswer::Wrong(Reason::Disabled));
        assert_eq!(ad("701"), BindAnswer::Wrong(Reason::Expired));
        assert_eq!(ad("773"), BindAnswer::Wrong(Reason::MustChange));
        assert_eq!(ad("775"), BindAnswer::Wrong(Reason::Locked));
        assert_eq!(ad("531"), BindAnswer::Wrong(Reason::NotNow));
        let locked = result(INVALID_CREDENTIALS, "", Some(&[0x30, 3, 0x81, 1, 1]));
        assert_eq!(of_bind(&locked), BindAnswer::Wrong(Reason::Locked));
    }

    #[test]
    fn an_answer_that_says_nothing_about_the_password_is_no_verdict() {
        for rc in [1, 2, 8, 10, 14, 51, 52, 80, 4096] {
            let answer = of_bind(&result(rc, "", None));
            assert!(matches!(answer, BindAnswer::Unusable(_)), "{rc}: {answer:?}");
        }
    }

    #[test]
    fn an_id_has_one_spelling_whatever_the_server_sends() {
        let realm = RealmName::new("honsho").expect("a name");
        let id = |attribute, name: &str, values: &[&[u8]]| {
            let user = user_id(&realm, attribute, &Entry::new("cn=x", &[(name, values)]));
            user.map(|user| user.id().to_owned())
        };
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let upper = text.to_uppercase();
        let uuid = |values: &[&[u8]]| id(IdAttribute::EntryUuid, "entryuuid", values);
        assert_eq!(uuid(&[text.as_bytes()]).as_deref(), Some(text));
        assert_eq!(uuid(&[upper.as_bytes()]).as_deref(), Some(text));
        assert_eq!(uuid(&[text.as_bytes(), upper.as_bytes()]), None, "two are none");
        assert_eq!(uuid(&[]), None);
        assert_eq!(uuid(&[b"1"]), None);
        let bytes = 0x3322_1100_5544_7766_8899_aabb_ccdd_eeff_u128.to_be_bytes();
        let guid = |values: &[&[u8]]| id(IdAttribute::ObjectGuid, "objectGUID", values);
        assert_eq!(guid(&[&bytes]).as_deref(), Some(text));
        assert_eq!(guid(&[&bytes[1..]]), None);
        assert_eq!(
            guid(&[b"0123456789abcdef"]).as_deref(),
            Some("33323130-3534-3736-3839-616263646566")
        );
    }
}
