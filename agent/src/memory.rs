//! What the process does so that its memory stays its own.

use std::fs;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Leaves no core dump, hides the memory from other processes of the user, and
/// keeps it out of the swap where that is allowed without a limit.
///
/// Each is best effort. Under a limit of locked memory a later allocation would
/// fail, so there nothing is locked.
pub fn keep_private() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if is_lockable() {
        let flags = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT;
        let _ = mlockall(flags);
    }
}

/// Tells whether this machine has a swap that a program's memory may reach.
pub(crate) fn may_be_swapped() -> bool {
    !is_lockable() && fs::read_to_string("/proc/swaps").is_ok_and(|swaps| has_swap(&swaps))
}

fn is_lockable() -> bool {
    getrlimit(Resource::Memlock).current.is_none()
}

/// Below its headings, the file has a line for each swap (`proc_swaps(5)`).
fn has_swap(swaps: &str) -> bool {
    swaps.lines().count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_has_a_line_below_the_headings() {
        let none = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        assert!(!has_swap(none) && !has_swap(""));
        assert!(has_swap(&format!("{none}/dev/sda2 partition\t4194300\t\t0\t\t-2\n")));
    }
}
