//! Refused logins in the audit trail: one record for each code, network prefix
//! and minute, whatever a stranger does (invariant I14).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tegata_domain::time::Timestamp;
use tegata_proto::code::Code;

use crate::ports::store::{Actor, AuditRecord};

/// Most different records a minute; the rest are counted together.
pub const RECORDS_MAX: usize = 1_024;

/// Counts refusals until they are written.
#[derive(Default)]
pub struct Refusals {
    counts: Mutex<BTreeMap<(String, &'static str), u64>>,
}

impl Refusals {
    /// Starts with none.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one.
    pub fn count(&self, prefix: &str, code: Code) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = (prefix.to_owned(), code.as_str());
        if counts.len() >= RECORDS_MAX && !counts.contains_key(&key) {
            REST.clone_into(&mut key.0);
        }
        *counts.entry(key).or_default() += 1;
    }

    /// Takes what was counted since the last time, as audit records.
    pub fn take(&self, now: Timestamp) -> Vec<AuditRecord> {
        let counts = {
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *counts)
        };
        let record = |((prefix, code), count): ((String, &str), u64)| AuditRecord {
            at: now,
            action: "login.refused".to_owned(),
            actor: Actor::Broker,
            sid: None,
            desktop: None,
            detail: BTreeMap::from([
                ("prefix".to_owned(), prefix),
                ("code".to_owned(), code.to_owned()),
                ("count".to_owned(), count.to_string()),
            ]),
        };
        counts.into_iter().map(record).collect()
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
        let records = refusals.take(Timestamp::from_millis(1));
        assert!(records.len() <= RECORDS_MAX + Code::ALL.len());
        let counts = records.iter().map(|record| record.detail["count"].parse::<usize>().unwrap());
        assert_eq!(counts.sum::<usize>(), 20 * RECORDS_MAX, "none is forgotten");
        assert!(refusals.take(Timestamp::from_millis(2)).is_empty());
    }
}
