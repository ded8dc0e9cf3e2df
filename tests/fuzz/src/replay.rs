//! What is kept to be sent again: whatever offsets a peer names, on however many
//! links, the next byte that is sent is the one that it lacks, and no offset is
//! gone back to that it cannot have reached or that is forgotten.

use bytes::Bytes;
use tegata_proto::replay::Replay;

use super::script::Script;

/// Bytes that are kept.
const LIMIT: u64 = 500;

/// What a sender knows, without the bytes.
#[derive(Default)]
struct Known {
    end: u64,
    sent: u64,
    /// What was sent on any link.
    highest: u64,
    acknowledged: u64,
}

/// Reads the bytes as what desktop and agent do, in order.
pub fn run(bytes: &[u8]) {
    let mut script = Script::new(bytes);
    let mut replay = Replay::new(LIMIT);
    let mut known = Known::default();
    while let Some(what) = script.byte() {
        match what % 4 {
            0 => {
                assert_eq!(replay.end() - replay.acknowledged(), known.end - known.acknowledged);
                if replay.has_room() {
                    let length = u64::from(script.byte().unwrap_or_default());
                    replay.push((known.end..known.end + length).map(byte).collect::<Bytes>());
                    known.end += length;
                }
                assert!(known.end - known.acknowledged < LIMIT + 255, "it keeps ever more");
            }
            1 => {
                let most = usize::from(script.byte().unwrap_or_default());
                let some = replay.unsent().map_or(0, |chunk| chunk.len().min(most));
                replay.advance(some);
                known.sent += some as u64;
                known.highest = known.highest.max(known.sent);
            }
            2 => {
                let offset = known.any(&mut script);
                let may = offset <= known.sent;
                assert_eq!(replay.acknowledge(offset).is_ok(), may, "{offset} acknowledged");
                if may {
                    known.acknowledged = known.acknowledged.max(offset);
                }
            }
            _ => {
                let offset = known.any(&mut script);
                let may = (known.acknowledged..=known.highest).contains(&offset);
                assert_eq!(replay.may_resume(offset), may, "back to {offset}");
                assert_eq!(replay.resume(offset).is_ok(), may, "back to {offset}");
                if may {
                    (known.sent, known.acknowledged) = (offset, offset);
                }
            }
        }
        assert_eq!((replay.acknowledged(), replay.end()), (known.acknowledged, known.end));
        let next = replay.unsent().map(|chunk| chunk[0]);
        assert_eq!(next, (known.sent < known.end).then(|| byte(known.sent)), "another byte");
    }
}

impl Known {
    /// Returns an offset that may be right, or wrong by little or by much.
    fn any(&self, script: &mut Script<'_>) -> u64 {
        let from = [self.acknowledged, self.sent, self.highest, self.end, 0, u64::MAX];
        let from = script.pick(&from);
        let by = u64::from(script.byte().unwrap_or_default());
        if by % 2 == 0 { from.saturating_add(by / 2) } else { from.saturating_sub(by / 2) }
    }
}

/// A byte that tells its offset.
fn byte(offset: u64) -> u8 {
    u8::try_from(offset % 251).expect("less than 251")
}
