//! Refusals in the audit trail: one record for each code, network prefix and
//! minute, whatever a stranger does (invariant I14).
//!
//! What we signed ourselves has a record of its own for each refusal; repeats
//! within a minute are counted with the rest, so that nobody fills the store with
//! a single ticket.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tegata_domain::time::Timestamp;
use tegata_edge::source::Prefix;
use tegata_proto::code::Code;
use tegata_proto::id::TicketId;

use crate::ports::store::{Actor, AuditRecord, action};

/// Most different records a minute; the rest are counted together.
pub const RECORDS_MAX: usize = 1_024;

/// Most refusals of what we signed that have a record of their own in a minute.
pub const SIGNED_MAX: usize = 1_024;

/// Counts refusals until they are written.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<Counts>,
    /// What has had its own record since the counts were taken last.
    told: Mutex<BTreeSet<(TicketId, &'static str)>>,
}

/// What was refused, to be counted under its action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// A login.
    Login,
    /// An attach.
    Attach,
}

impl Door {
    fn action(self) -> &'static str {
        match self {
            Self::Login => action::LOGIN_REFUSED,
            Self::Attach => action::ATTACH_REFUSED,
        }
    }
}

/// How many refusals there were, by action, prefix and code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(&'static str, String, &'static str), u64>);

impl Refusals {
    /// Starts with none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one.
    pub fn count(&self, door: Door, source: IpAddr, code: Code) {
        self.counts().add((door.action(), Prefix::of(source).to_string(), code.as_str()), 1);
    }

    /// Tells whether the refusal of something that we signed is to have a record of
    /// its own; if not, it is to be counted.
    pub fn is_news(&self, token: TicketId, code: Code) -> bool {
        // Each change is whole, so a poisoned lock hides nothing.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.len() < SIGNED_MAX && told.insert((token, code.as_str()))
    }

    /// Takes what was counted since the last time.
    pub fn take(&self) -> Counts {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clear();
        std::mem::take(&mut *self.counts())
    }

    /// Counts again what was taken and could not be written. What the store has
    /// written without saying so is then counted twice, which is better than not
    /// at all.
    pub fn put_back(&self, taken: Counts) {
        let mut counts = self.counts();
        for (key, number) in taken.0 {
            counts.add(key, number);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add(&mut self, mut key: (&'static str, String, &'static str), number: u64) {
        if self.0.len() >= RECORDS_MAX && !self.0.contains_key(&key) {
            REST.clone_into(&mut key.1);
        }
        *self.0.entry(key).or_default() += number;
    }

    /// Returns them as audit records.
    pub fn records(&self, now: Timestamp) -> Vec<AuditRecord> {
        let record = |((action, prefix, code), count): (&(&str, String, &str), &u64)| AuditRecord {
            at: now,
            action: (*action).to_owned(),
            actor: Actor::Broker,
            sid: None,
            desktop: None,
            detail: BTreeMap::from([
                ("prefix".to_owned(), prefix.clone()),
                ("code".to_owned(), (*code).to_owned()),
                ("count".to_owned(), count.to_string()),
            ]),
        };
        self.0.iter().map(record).collect()
    }
}

/// The prefix of those that did not fit.
const REST: &str = "rest";

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use uuid::Uuid;

    use super::*;

    const SATO: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    fn stranger(n: usize) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 | u32::try_from(n).unwrap()).into()
    }

    #[test]
    fn a_flood_of_refusals_is_a_bounded_number_of_records() {
        let refusals = Refusals::new();
        for n in 0..10 * RECORDS_MAX {
            refusals.count(Door::Login, stranger(n), Code::Refused);
            refusals.count(Door::Attach, SATO, Code::TicketInvalid);
        }
        let counted = |refusals: &Refusals| {
            let taken = refusals.take();
            let records = taken.records(Timestamp::from_millis(1));
            assert!(records.len() <= RECORDS_MAX + 2 * Code::ALL.len(), "{}", records.len());
            let numbers = records.iter().map(|record| record.detail["count"].parse::<usize>());
            (numbers.sum::<Result<usize, _>>().unwrap(), taken)
        };
        let (number, taken) = counted(&refusals);
        assert_eq!(number, 20 * RECORDS_MAX, "none is forgotten");
        assert_eq!(refusals.take(), Counts::default());

        // Nor when they come back to a house that is full again.
        for n in 0..RECORDS_MAX {
            refusals.count(Door::Login, stranger(1 << 20 | n), Code::Refused);
        }
        refusals.put_back(taken);
        assert_eq!(counted(&refusals).0, 21 * RECORDS_MAX);
    }

    #[test]
    fn one_ticket_is_news_once_a_minute_and_not_too_many_are() {
        let refusals = Refusals::new();
        let ticket = |n: usize| TicketId(Uuid::from_u128(n as u128));
        assert!(refusals.is_news(ticket(1), Code::WrongKey));
        assert!(!refusals.is_news(ticket(1), Code::WrongKey));
        assert!(refusals.is_news(ticket(1), Code::LinkStale), "for another reason");
        let news = (2..10 * SIGNED_MAX).filter(|n| refusals.is_news(ticket(*n), Code::WrongKey));
        assert_eq!(news.count(), SIGNED_MAX - 2);
        refusals.take();
        assert!(refusals.is_news(ticket(1), Code::WrongKey), "in the next minute");
    }
}
