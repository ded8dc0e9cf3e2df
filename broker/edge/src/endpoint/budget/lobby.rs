//! Who waits for something, by source: whoever waits longest of the source that has most
//! waiting makes room first.

use std::collections::{HashMap, VecDeque};

use tokio_util::sync::CancellationToken;

use crate::source::Prefix;

/// Peers that wait, each known by what tells it to go.
#[derive(Debug, Default)]
pub(super) struct Lobby {
    all: usize,
    sources: HashMap<Prefix, VecDeque<CancellationToken>>,
}

impl Lobby {
    pub(super) fn enter(&mut self, source: Prefix, displaced: CancellationToken) {
        self.all += 1;
        self.sources.entry(source).or_default().push_back(displaced);
    }

    /// Returns how many wait in all.
    pub(super) fn len(&self) -> usize {
        self.all
    }

    /// Returns how many of a source wait.
    pub(super) fn of(&self, source: Prefix) -> usize {
        self.sources.get(&source).map_or(0, VecDeque::len)
    }

    /// Returns the source of which most wait, and how many those are.
    pub(super) fn busiest(&self) -> Option<(Prefix, usize)> {
        let waiting = self.sources.iter().map(|(source, waiting)| (*source, waiting.len()));
        waiting.max_by_key(|(_, waiting)| *waiting)
    }

    /// Takes the one out of a source that has waited longest.
    pub(super) fn oldest(&mut self, source: Prefix) -> Option<CancellationToken> {
        let waiting = self.sources.get_mut(&source)?;
        let oldest = waiting.pop_front();
        self.all -= usize::from(oldest.is_some());
        if waiting.is_empty() {
            self.sources.remove(&source);
        }
        oldest
    }

    /// Takes somebody out who waits no longer. Tells whether it was still here.
    pub(super) fn leave(&mut self, source: Prefix, displaced: &CancellationToken) -> bool {
        let Some(waiting) = self.sources.get_mut(&source) else { return false };
        // Equal ones are the same one.
        let Some(at) = waiting.iter().position(|other| other == displaced) else { return false };
        waiting.remove(at);
        self.all -= 1;
        if waiting.is_empty() {
            self.sources.remove(&source);
        }
        true
    }
}
