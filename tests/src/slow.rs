//! A line that delays everything a server says, so that each of its steps takes
//! as long as it is told.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Most pieces that are under way on one connection.
const PIECES_MAX: usize = 64;

/// Largest piece, in bytes.
const PIECE_MAX: usize = 16 * 1024;

/// A slow line; dropping it cuts it.
pub struct SlowLine {
    port: u16,
    _connections: JoinSet<()>,
}

impl SlowLine {
    /// Lays a line to a port of this machine.
    ///
    /// # Errors
    ///
    /// When there is no port for it.
    pub async fn to(port: u16, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own = listener.local_addr()?.port();
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                open.spawn(async move {
                    // Either side may end it at any time.
                    let _ended = carry(client, port, delay).await;
                });
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self { port: own, _connections: connections })
    }

    /// Returns the port where the line begins.
    pub fn port(&self) -> u16 {
        self.port
    }
}

async fn carry(client: TcpStream, port: u16, delay: Duration) -> Result<()> {
    let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await?;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (send, mut receive) = mpsc::channel::<(Instant, Vec<u8>)>(PIECES_MAX);
    let up = async {
        tokio::io::copy(&mut from_client, &mut to_server).await?;
        anyhow::Ok(to_server.shutdown().await?)
    };
    let hears = async move {
        let mut piece = vec![0; PIECE_MAX];
        loop {
            match from_server.read(&mut piece).await? {
                0 => return anyhow::Ok(()),
                n => send.send((Instant::now() + delay, piece[..n].to_vec())).await?,
            }
        }
    };
    let says = async move {
        while let Some((due, piece)) = receive.recv().await {
            sleep_until(due).await;
            to_client.write_all(&piece).await?;
        }
        anyhow::Ok(to_client.shutdown().await?)
    };
    tokio::try_join!(up, hears, says)?;
    Ok(())
}
