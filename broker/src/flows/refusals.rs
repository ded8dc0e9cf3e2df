//! Refused logins in the audit trail: one record for each code, network prefix
//! and minute, whatever a stranger does (invariant I14).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tegata_domain::time::Timestamp;
use tegata_proto::code::Code;

use crate::ports::store::{Actor, AuditRecord};

/// Most different records a minute; the rest are counted together.
pub const RECORDS_MAX: usize = 1_024;

/// Counts refusals until they are written.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<Counts>,
}

/// How many refusals there were, by prefix and code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<(String, &'static str), u64>);

impl Refusals {
    /// Starts with none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one.
    pub fn count(&self, prefix: &str, code: Code) {
        self.counts().add(prefix.to_owned(), code.as_str(), 1);
    }

    /// Takes what was counted since the last time.
    pub fn take(&self) -> Counts {
        std::mem::take(&mut *self.counts())
    }

    /// Counts again what was taken and could not be written. What the store has
    /// written without saying so is then counted twice, which is better than not
    /// at all.
    pub fn put_back(&self, taken: Counts) {
        let mut counts = self.counts();
        for ((prefix, code), number) in taken.0 {
            counts.add(prefix, code, number);
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // Each change is whole, so a poisoned lock hides nothing.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn add(&mut self, prefix: String, code: &'static str, number: u64) {
        let mut key = (prefix, code);
        if self.0.len() >= RECORDS_MAX && !self.0.contains_key(&key) {
            REST.clone_into(&mut key.0);
        }
        *self.0.entry(key).or_default() += number;
    }

    /// Returns them as audit records.
    pub fn records(&self, now: Timestamp) -> Vec<AuditRecord> {
        let record = |((prefix, code), count): (&(String, &str), &u64)| AuditRecord {
            at: now,
            action: "login.refused".to_owned(),
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
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_a_bounded_number_of_records() {
        let refusals = Refusals::new();
        for n in 0..10 * RECORDS_MAX {
            refusals.count(&format!("198.51.100.{n}"), Code::Refused);
            refusals.count("192.0.2.1/32", Code::Refused);
        }
        let counted = |refusals: &Refusals| {
            let taken = refusals.take();
            let records = taken.records(Timestamp::from_millis(1));
            assert!(records.len() <= RECORDS_MAX + Code::ALL.len(), "{}", records.len());
            let numbers = records.iter().map(|record| record.detail["count"].parse::<usize>());
            (numbers.sum::<Result<usize, _>>().unwrap(), taken)
        };
        let (number, taken) = counted(&refusals);
        assert_eq!(number, 20 * RECORDS_MAX, "none is forgotten");
        assert_eq!(refusals.take(), Counts::default());

        // Nor when they come back to a house that is full again.
        for n in 0..RECORDS_MAX {
            refusals.count(&format!("203.0.113.{n}"), Code::Refused);
        }
        refusals.put_back(taken);
        assert_eq!(counted(&refusals).0, 21 * RECORDS_MAX);
    }
}
