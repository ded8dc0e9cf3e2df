//! Agents, a gateway and desktops in one process, over real sockets, with a
//! broker that only keeps books. Every story is told by QUIC and by TLS on TCP.

#![expect(clippy::duplicate_mod, reason = "each story is told twice")]

mod crossing;
mod office;
mod tokens;
mod transport;

/// By QUIC.
#[path = "."]
mod quic {
    use tegata_edge::connection::Transport;

    use crate::office::Office;

    mod acknowledgements;
    mod attach;
    mod ending;
    mod places;
    mod relay;
    pub(crate) mod resume;
    mod roam;

    fn open() -> Office {
        Office::open(Transport::Quic)
    }
}

/// By TLS on TCP.
#[path = "."]
mod tcp {
    use tegata_edge::connection::Transport;

    use crate::office::Office;

    mod acknowledgements;
    mod attach;
    mod ending;
    mod relay;
    mod resume;

    fn open() -> Office {
        Office::open(Transport::Tcp)
    }
}
