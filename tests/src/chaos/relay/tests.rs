use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;
use crate::chaos::schedule::Step;
use crate::chaos::weather::{Chance, Loss, Weather};
use crate::wait;

const SEED: u64 = 4;
/// As many as wait in the kernel for a test that does not read yet.
const COUNT: u32 = 60;
const LAST: &[u8] = b"the last one";

/// A client and a server with a relay between them.
struct Line {
    relay: Relay,
    client: UdpSocket,
    server: UdpSocket,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(wait::LIMIT)).unwrap();
    socket
}

fn line(seed: u64, weather: Weather) -> Line {
    let server = socket();
    let (here, there) = ((Ipv4Addr::LOCALHOST, 0).into(), server.local_addr().unwrap());
    let relay = Relay::start(here, there, seed, Schedule::steady(weather)).unwrap();
    let client = socket();
    client.connect(relay.address()).unwrap();
    Line { relay, client, server }
}

fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut room = [0; 2_048];
    let (length, from) = socket.recv_from(&mut room).unwrap();
    (room[..length].to_vec(), from)
}

impl Line {
    fn set(&self, weather: Weather) {
        self.relay.set(Schedule::steady(weather)).unwrap();
    }

    /// Sends numbered datagrams of so many bytes to the server, and returns what arrives.
    fn arrivals(&self, length: usize) -> Vec<Vec<u8>> {
        let came = self.relay.tallies().unwrap().there.came + u64::from(COUNT);
        for n in 0..COUNT {
            self.client.send(&numbered(n, length)).unwrap();
        }
        wait::until("the relay to have all", || {
            Ok((self.relay.tallies()?.there.came == came).then_some(()))
        })
        .unwrap();
        // Late ones are before it, whatever the weather was.
        let late = Weather { delay_ms: 50, ..Weather::CLEAR };
        self.set(late);
        self.client.send(LAST).unwrap();
        std::iter::from_fn(|| Some(next(&self.server).0).filter(|datagram| datagram != LAST))
            .collect()
    }
}

fn numbered(n: u32, length: usize) -> Vec<u8> {
    let mut datagram = vec![0x55; length];
    datagram[..4].copy_from_slice(&n.to_be_bytes());
    datagram
}

fn all(length: usize) -> Vec<Vec<u8>> {
    (0..COUNT).map(|n| numbered(n, length)).collect()
}

#[test]
fn in_clear_weather_everything_arrives_both_ways() {
    let line = line(SEED, Weather::CLEAR);
    assert_eq!(line.arrivals(1_200), all(1_200));
    line.client.send(b"there").unwrap();
    let (there, seen) = next(&line.server);
    assert_eq!(there, b"there");
    assert_ne!(seen, line.client.local_addr().unwrap(), "the server sees the relay");
    line.server.send_to(b"back", seen).unwrap();
    assert_eq!(next(&line.client), (b"back".to_vec(), line.relay.address()));
}

#[test]
fn the_same_seed_does_the_same_to_the_same_datagrams() {
    let weather = Weather {
        loss: Loss::bursts(Chance::percent(5), 4),
        duplicate: Chance::percent(20),
        corrupt: Chance::percent(20),
        ..Weather::CLEAR
    };
    let first = line(SEED, weather).arrivals(100);
    assert_ne!(first, all(100), "something was done");
    assert_eq!(line(SEED, weather).arrivals(100), first);
    assert_ne!(line(SEED + 1, weather).arrivals(100), first);
}

#[test]
fn loss_loses_some_and_the_tally_tells_how_many() {
    let line = line(SEED, Weather { loss: Loss::even(Chance::percent(20)), ..Weather::CLEAR });
    let arrived = line.arrivals(100);
    let lost = all(100).iter().filter(|sent| !arrived.contains(sent)).count();
    assert!((4..30).contains(&lost), "{lost} of {COUNT}");
    assert_eq!(line.relay.tallies().unwrap().there.lost, lost as u64);
}

#[test]
fn in_the_dark_nothing_arrives_and_afterwards_everything_does() {
    let line = line(SEED, Weather::DARK);
    assert_eq!(line.arrivals(100), Vec::<Vec<u8>>::new());
    assert_eq!(line.relay.tallies().unwrap().there.dark, u64::from(COUNT));
    line.set(Weather::CLEAR);
    assert_eq!(line.arrivals(100), all(100));
}

#[test]
fn the_dark_may_be_one_way() {
    let line = line(SEED, Weather::CLEAR);
    let one_way = Step { back: Weather::DARK, ..Step::default() };
    line.relay.set(Schedule::new(vec![one_way]).unwrap()).unwrap();
    line.client.send(b"there").unwrap();
    let (there, seen) = next(&line.server);
    assert_eq!(there, b"there");
    line.server.send_to(b"lost", seen).unwrap();
    wait::until("the answer to be lost", || {
        Ok((line.relay.tallies()?.back.dark == 1).then_some(()))
    })
    .unwrap();
    line.set(Weather::CLEAR);
    line.server.send_to(b"back", seen).unwrap();
    assert_eq!(next(&line.client).0, b"back");
}

#[test]
fn only_what_fits_passes() {
    let line = line(SEED, Weather { mtu: 1_200, ..Weather::CLEAR });
    line.client.send(&[1; 1_201]).unwrap();
    line.client.send(&[2; 1_200]).unwrap();
    assert_eq!(next(&line.server).0, [2; 1_200]);
    assert_eq!(line.relay.tallies().unwrap().there.too_long, 1);
}

#[test]
fn what_is_doubled_arrives_twice() {
    let line = line(SEED, Weather { duplicate: Chance::ALWAYS, ..Weather::CLEAR });
    let twice: Vec<_> = all(100).into_iter().flat_map(|one| [one.clone(), one]).collect();
    assert_eq!(line.arrivals(100), twice);
}

#[test]
fn what_is_damaged_has_one_wrong_bit() {
    let line = line(SEED, Weather { corrupt: Chance::ALWAYS, ..Weather::CLEAR });
    let arrived = line.arrivals(100);
    assert_eq!(arrived.len(), all(100).len());
    for (arrived, sent) in arrived.iter().zip(all(100)) {
        let wrong: u32 = arrived.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!(wrong, 1);
    }
}

#[test]
fn who_is_overtaken_arrives_out_of_order_and_nobody_else_does() {
    let line = line(SEED, Weather { reorder: Chance::percent(50), ..Weather::CLEAR });
    let arrived = line.arrivals(100);
    assert_ne!(arrived, all(100), "some are out of order");
    let sorted: BTreeSet<_> = arrived.into_iter().collect();
    assert!(sorted.into_iter().eq(all(100)), "all are there, once");
}

#[test]
fn what_is_delayed_arrives_in_order_and_not_before_its_time() {
    let line = line(SEED, Weather { delay_ms: 40, jitter_ms: 20, ..Weather::CLEAR });
    let began = Instant::now();
    line.client.send(b"late").unwrap();
    assert_eq!(next(&line.server).0, b"late");
    assert!(began.elapsed() >= Duration::from_millis(40));
    // The last one is as late as the others may be, and in line behind them.
    assert_eq!(line.arrivals(100), all(100));
}

#[test]
fn the_dark_lasts_for_its_span() {
    const SPAN_MS: u64 = 100;

    let line = line(SEED, Weather::CLEAR);
    let dark = Step { there: Weather::DARK, ..Step::default() };
    let clear = Step { at_ms: SPAN_MS, ..Step::default() };
    let began = Instant::now();
    line.relay.set(Schedule::new(vec![dark, clear]).unwrap()).unwrap();
    line.server.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    wait::until("the end of the dark", || {
        line.client.send(b"anybody there?")?;
        Ok(line.server.recv(&mut [0; 64]).ok())
    })
    .unwrap();
    assert!(began.elapsed() >= Duration::from_millis(SPAN_MS));
}

#[test]
fn a_client_that_moves_is_seen_at_another_port_and_heard_at_that_only() {
    let line = line(SEED, Weather::CLEAR);
    line.client.send(b"before").unwrap();
    let (_, before) = next(&line.server);
    let moves = Step { moves: true, ..Step::default() };
    line.relay.set(Schedule::new(vec![moves]).unwrap()).unwrap();

    line.server.send_to(b"to where it was", before).unwrap();
    line.client.send(b"after").unwrap();
    let (_, after) = next(&line.server);
    assert_ne!(after, before);
    line.server.send_to(b"to where it is", after).unwrap();
    assert_eq!(next(&line.client).0, b"to where it is");
    assert_eq!(line.relay.tallies().unwrap().moves, 1);
}

#[test]
fn every_client_has_a_source_port_of_its_own_and_its_own_answers() {
    let line = line(SEED, Weather::CLEAR);
    let clients: Vec<_> = (0..50).map(|_| socket()).collect();
    for (n, client) in clients.iter().enumerate() {
        client.send_to(n.to_string().as_bytes(), line.relay.address()).unwrap();
    }
    let heard: Vec<_> = clients.iter().map(|_| next(&line.server)).collect();
    let ports: BTreeSet<_> = heard.iter().map(|(_, from)| *from).collect();
    assert_eq!(ports.len(), clients.len());
    for (datagram, from) in heard {
        line.server.send_to(&datagram, from).unwrap();
    }
    for (n, client) in clients.iter().enumerate() {
        assert_eq!(next(client).0, n.to_string().as_bytes());
    }
}

#[test]
fn a_client_too_many_takes_the_place_of_whoever_was_silent_longest() {
    let server = socket();
    let clear = Schedule::steady(Weather::CLEAR);
    let (here, there) = ((Ipv4Addr::LOCALHOST, 0).into(), server.local_addr().unwrap());
    let relay = Relay::for_clients(2, here, there, SEED, clear).unwrap();
    let clients = [socket(), socket(), socket()];
    let say = |n: usize| {
        clients[n].send_to(b"hello", relay.address()).unwrap();
        next(&server).1
    };
    let first = say(0);
    say(1);
    assert_eq!(say(0), first, "it is known");
    say(2);
    assert_eq!(say(0), first, "it is known still");
    assert_eq!(relay.tallies().unwrap().clients, 3);
    say(1);
    assert_eq!(relay.tallies().unwrap().clients, 4, "it was forgotten");
}
