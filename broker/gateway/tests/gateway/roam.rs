//! An agent by QUIC whose address changes.

use tegata_gateway::proof::sha256;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWriteExt as _;

use super::open;
use super::relay::{MIB, echo, noise, seated};
use crate::office::{Line, take, within};

#[tokio::test]
async fn an_agent_that_changes_networks_in_the_middle_loses_nothing() {
    let office = open();
    let (up, down) = (noise(6 * MIB + 1, 8), noise(12 * MIB + 5, 9));
    let (_, mut call, mut line, mut desktop) = seated(&office, 1).await;
    let (mut desktop_read, mut desktop_write) = desktop.split();
    let (mut at_desktop, mut at_agent) = (vec![0; up.len()], vec![0; down.len()]);
    let Line { send, recv } = &mut line;
    let all = async {
        tokio::join!(
            async { send.write_all(&up).await.expect("room") },
            async { desktop_write.write_all(&down).await.expect("room") },
            async { desktop_read.read_exact(&mut at_desktop).await.expect("all") },
            // Each time when a third of it is there.
            async {
                let mut before = 0;
                for part in at_agent.chunks_mut(4 * MIB) {
                    take(recv, &mut call, before, part).await;
                    before += part.len() as u64;
                    office.roam();
                }
            },
        )
    };
    within(all).await;
    assert!(sha256(&at_desktop) == sha256(&up), "what went up");
    assert!(sha256(&at_agent) == sha256(&down), "what came down");
    echo(&mut line, &mut desktop).await;
}
