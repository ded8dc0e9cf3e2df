//! The operations port, asked over real sockets.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use prometheus_client::metrics::counter::Counter;
use tegata_edge::metrics::{EdgeMetrics, Refusal, RefusedLabels, registry};
use tegata_edge::operations::{Operations, OperationsError, Readiness};
use tegata_edge::supervisor::Tasks;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::house::{loopback, within};

struct Port {
    address: SocketAddr,
    readiness: Readiness,
    panics: Counter,
    stop: CancellationToken,
    tasks: Tasks,
}

fn bind(
    listen: SocketAddr,
    readiness: &Readiness,
    panics: &Counter,
) -> Result<Operations, OperationsError> {
    let mut registry = registry("test", "1.2.3");
    let metrics = EdgeMetrics::register(&mut registry);
    metrics.retried.inc();
    metrics.refused.get_or_create(&RefusedLabels { reason: Refusal::SourceFull }).inc();
    let take = |body: Bytes| async move { body.len().to_string() };
    let fail = || async { refuse_to_work() };
    let extra = Router::new().route("/take", post(take)).route("/fail", post(fail));
    Operations::bind(listen, Arc::new(registry), readiness.clone(), extra, panics.clone())
}

fn refuse_to_work() -> &'static str {
    panic!("as asked")
}

fn open() -> Port {
    let (readiness, panics) = (Readiness::new(), Counter::default());
    let port = bind(loopback(), &readiness, &panics).expect("a free port");
    let (address, stop) = (port.local_addr(), CancellationToken::new());
    let tasks = Tasks::new(Counter::default());
    tasks.spawn("operations", port.run(stop.clone()));
    Port { address, readiness, panics, stop, tasks }
}

/// Sends one request and returns the whole answer.
async fn ask(port: &Port, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(port.address).await.unwrap();
    let head = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server may close before it has everything.
    let _sent = stream.write_all(body).await;
    let mut answer = Vec::new();
    let _read = within(stream.read_to_end(&mut answer)).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn only_a_loopback_address_is_taken() {
    for outside in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[::ffff:192.0.2.1]:0"] {
        let refused = bind(outside.parse().unwrap(), &Readiness::new(), &Counter::default());
        assert!(matches!(refused, Err(OperationsError::NotLoopback { .. })), "{outside}");
    }
    for inside in ["127.0.0.1:0", "[::1]:0"] {
        bind(inside.parse().unwrap(), &Readiness::new(), &Counter::default()).expect(inside);
    }
}

#[tokio::test]
async fn readiness_names_what_is_missing() {
    let port = open();
    let (store, directory) =
        (port.readiness.condition("store"), port.readiness.condition("directory"));
    assert!(ask(&port, "GET /livez", b"").await.starts_with("HTTP/1.1 200"));
    let neither = ask(&port, "GET /readyz", b"").await;
    assert!(neither.starts_with("HTTP/1.1 503"), "{neither}");
    assert!(neither.ends_with(r#"{"ready":false,"missing":["directory","store"]}"#), "{neither}");
    store.set(true);
    assert!(ask(&port, "GET /readyz", b"").await.ends_with(r#""missing":["directory"]}"#));
    directory.set(true);
    let ready = ask(&port, "GET /readyz", b"").await;
    assert!(ready.starts_with("HTTP/1.1 200") && ready.ends_with(r#"{"ready":true,"missing":[]}"#));
    store.set(false);
    assert!(ask(&port, "GET /readyz", b"").await.starts_with("HTTP/1.1 503"));
}

#[tokio::test]
async fn metrics_are_openmetrics_text() {
    let answer = ask(&open(), "GET /metrics", b"").await;
    assert!(answer.contains("application/openmetrics-text"), "{answer}");
    assert!(answer.contains(r#"tegata_build_info{program="test",version="1.2.3"} 1"#), "{answer}");
    assert!(answer.contains("tegata_edge_retries_total 1"), "{answer}");
    let refused = r#"tegata_edge_connections_refused_total{reason="source_full"} 1"#;
    assert!(answer.contains(refused), "{answer}");
    assert!(answer.ends_with("# EOF\n"), "{answer}");
}

#[tokio::test]
async fn a_body_too_long_is_refused_and_a_head_too_long_as_well() {
    let port = open();
    let fits = ask(&port, "POST /take", &vec![b'x'; 64 * 1024]).await;
    assert!(fits.starts_with("HTTP/1.1 200") && fits.ends_with("65536"), "{fits}");
    let too_long = ask(&port, "POST /take", &vec![b'x'; 64 * 1024 + 1]).await;
    assert!(too_long.starts_with("HTTP/1.1 413"), "{too_long}");
    let path = format!("GET /{}", "x".repeat(32 * 1024));
    assert!(ask(&port, &path, b"").await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn a_head_that_does_not_come_whole_ends_the_connection() {
    let port = open();
    let mut slow = TcpStream::connect(port.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    assert_eq!(within(slow.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_request_that_panics_ends_alone_and_is_counted() {
    let port = open();
    assert_eq!(ask(&port, "POST /fail", b"").await, "");
    assert_eq!(port.panics.get(), 1);
    assert!(ask(&port, "GET /livez", b"").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let port = open();
    let mut idle = TcpStream::connect(port.address).await.unwrap();
    assert!(ask(&port, "GET /livez", b"").await.starts_with("HTTP/1.1 200"));
    port.stop.cancel();
    within(port.tasks.end(tokio::time::Instant::now() + std::time::Duration::from_secs(15))).await;
    assert_eq!(within(idle.read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn connections_that_only_stand_there_keep_nobody_out() {
    let port = open();
    // More than the port holds, the kernel's queue included.
    let mut idle = Vec::new();
    for _ in 0..2_000 {
        idle.push(within(TcpStream::connect(port.address)).await.unwrap());
    }
    assert!(ask(&port, "GET /livez", b"").await.starts_with("HTTP/1.1 200"));
    // The first to come had to make room, long before its head was overdue.
    assert_eq!(within(idle[0].read(&mut [0; 1])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_request_in_progress_keeps_its_connection_however_many_come() {
    let port = open();
    let mut slow = TcpStream::connect(port.address).await.unwrap();
    let head =
        b"POST /take HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 4\r\n\r\nab";
    slow.write_all(head).await.unwrap();
    // The port has looked at the request once it has answered somebody later.
    assert!(ask(&port, "GET /livez", b"").await.starts_with("HTTP/1.1 200"));
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(within(TcpStream::connect(port.address)).await.unwrap());
    }
    assert_eq!(within(idle[0].read(&mut [0; 1])).await.unwrap_or(0), 0, "others made room");
    slow.write_all(b"cd").await.unwrap();
    let mut answer = String::new();
    within(slow.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('4'), "{answer}");
}
