//! How the door closes.

use std::time::Duration;

use quinn::ConnectionError;
use tegata_edge::Limits;

use crate::house::{FIRST, GOING_AWAY, House, ask, loopback, within};

#[tokio::test]
async fn handlers_are_asked_to_end_and_nobody_else_comes_in() {
    let house = House::new();
    let mut server = house.open(Limits::default());
    let visitor = house.visitor(&[FIRST]);
    let connection = visitor.connect(server.address).await;
    ask(&connection, "hello").await.unwrap();
    server.stop.cancel();
    let closed = within(connection.closed()).await;
    let polite =
        matches!(&closed, ConnectionError::ApplicationClosed(c) if c.error_code == GOING_AWAY);
    assert!(polite, "{closed:?}");
    within(server.stopped.wait_for(|stopped| *stopped)).await.unwrap();
}

#[tokio::test]
async fn a_handler_that_does_not_end_is_dropped_after_the_grace_period() {
    let house = House::new();
    let mut server = house.open_at(loopback(), Limits::default(), Duration::from_millis(50));
    let connection = house.visitor(&[FIRST]).connect(server.address).await;
    ask(&connection, "be deaf").await.unwrap();
    server.stop.cancel();
    within(server.stopped.wait_for(|stopped| *stopped)).await.unwrap();
    let closed = within(connection.closed()).await;
    assert!(matches!(closed, ConnectionError::ApplicationClosed(_)), "{closed:?}");
}
