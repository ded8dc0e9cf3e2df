//! A session that goes from one transport to the other.

use tegata_edge::connection::Transport;

use crate::office::Office;
use crate::quic::resume::carry_over_many_links;

/// By QUIC, by TCP, by QUIC …
fn other(office: &mut Office, _: usize) {
    office.by = match office.by {
        Transport::Quic => Transport::Tcp,
        Transport::Tcp => Transport::Quic,
    };
}

#[tokio::test]
async fn every_byte_arrives_once_though_each_link_is_by_another_transport() {
    carry_over_many_links(other).await;
}

#[tokio::test]
async fn every_byte_arrives_once_though_links_change_transport_two_by_two() {
    carry_over_many_links(|office, number| {
        if number % 2 == 0 {
            other(office, number);
        }
    })
    .await;
}
