//! Many peers at once, each of which stops somewhere else.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use quinn::crypto::rustls::QuicClientConfig;
use tegata_proto::{ALPN_LOGIN, ALPN_SESSION};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::conversation::closed;
use super::forge::Forge;
use super::place::Place;
use super::{DEADLINE, SLACK};
use crate::stranger::credulous;

/// Where a peer stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// After so many bytes of its handshake.
    Handshake(usize),
    /// With the handshake done, before a stream.
    Stream,
    /// With a stream, after so many bytes of a frame.
    Frame(usize),
}

/// Bytes of a client's handshake: its hello of some 270 bytes, and its finish.
const HANDSHAKE: usize = 330;

/// Spreads so many peers over everything that there is to stop at, in an order
/// that the seed decides.
pub fn stops(count: usize, seed: u64) -> Vec<Stop> {
    const FRAME: usize = 40;
    let everywhere = HANDSHAKE + 1 + FRAME;
    let mut stops: Vec<_> = (0..count)
        .map(|n| match n * everywhere / count.max(1) {
            at if at < HANDSHAKE => Stop::Handshake(at + 1),
            HANDSHAKE => Stop::Stream,
            at => Stop::Frame(at - HANDSHAKE),
        })
        .collect();
    // Fisher and Yates, with the numbers of a linear congruence.
    let mut state = seed;
    for n in (1..stops.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let other = usize::try_from(state >> 33).unwrap_or_default() % (n + 1);
        stops.swap(n, other);
    }
    stops
}

/// Lets each peer go as far as it goes, and waits until the broker has ended all
/// of them.
///
/// # Errors
///
/// Names the peers that are still held when their deadline is long over.
pub async fn gathers(place: &Arc<Place>, stops: Vec<Stop>) -> Result<()> {
    let mut peers = JoinSet::new();
    for (n, stop) in stops.into_iter().enumerate() {
        let (from, to) = (place.caller(), place.site.listen());
        let alpn = if n % 2 == 0 { ALPN_LOGIN } else { ALPN_SESSION };
        let honest = credulous(&[alpn])?;
        peers.spawn(async move {
            let ended = goes(honest, from, to, stop).await;
            ended.with_context(|| format!("{stop:?}")).err().map(|error| format!("{error:#}"))
        });
    }
    let held: Vec<_> = peers.join_all().await.into_iter().flatten().collect();
    anyhow::ensure!(held.is_empty(), "{}:\n{}", held.len(), held.join("\n"));
    Ok(())
}

async fn goes(
    honest: QuicClientConfig,
    from: Ipv4Addr,
    to: std::net::SocketAddr,
    stop: Stop,
) -> Result<()> {
    let cut = if let Stop::Handshake(bytes) = stop { Some(bytes) } else { None };
    let config = Forge { cut, ..Forge::default() }.client(honest);
    let endpoint = quinn::Endpoint::client((from, 0).into())?;
    let connecting = endpoint.connect_with(config, to, "tegata")?;
    let why = timeout(DEADLINE + SLACK, async {
        let connection = match connecting.await {
            Ok(connection) => connection,
            Err(error) => return Ok(error),
        };
        let _stream = match stop {
            Stop::Handshake(_) | Stop::Stream => None,
            Stop::Frame(bytes) => {
                let mut stream = connection.open_bi().await?;
                let frame = [&[0, 0, 0, 99][..], &[b' '; 99]].concat();
                stream.0.write_all(&frame[..bytes.min(frame.len())]).await?;
                Some(stream)
            }
        };
        anyhow::Ok(connection.closed().await)
    });
    closed(&why.await.context("it is still held")??).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_stops_everywhere() {
        let stops = stops(500, 1);
        assert_eq!(stops.len(), 500);
        for stop in [Stop::Handshake(1), Stop::Handshake(200), Stop::Stream, Stop::Frame(3)] {
            assert!(stops.contains(&stop), "{stop:?}");
        }
    }
}
