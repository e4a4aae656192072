//! What every backend promises, on real loopback sockets, for each backend and way of sending.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::thread;

use super::sockets::open_group;
use super::*;
use crate::datagram::SocketId;
use crate::limits;

/// Far longer than loopback takes, for hosts that are busy with other tests.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

pub(super) const V4: &str = "127.0.0.1:0";
const V6: &str = "[::1]:0";

/// Runs `body` for every backend that works here.
pub(super) fn check(body: impl Fn(BackendKind)) {
    body(BackendKind::Mmsg);
    match probe_uring() {
        Ok(()) => {
            body(BackendKind::Uring(SendPath::Ring));
            body(BackendKind::Uring(SendPath::Mmsg));
        }
        Err(reason) => eprintln!("not tested with io_uring: {reason}"),
    }
}

/// A backend over one socket per address.
pub(super) fn backend(kind: BackendKind, addresses: &[&str]) -> (Box<dyn Backend>, Vec<SocketAddr>) {
    let addresses: Vec<SocketAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
    let mut group = open_group(&addresses, 1).unwrap();
    (open(kind, group.shards.remove(0)).unwrap(), group.locals)
}

fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Got {
    pub socket: SocketId,
    pub remote: SocketAddr,
    pub data: Vec<u8>,
}

/// Receives until `count` datagrams are there or the patience is over.
pub(super) fn receive(backend: &mut dyn Backend, count: usize) -> Vec<Got> {
    let mut batch = RecvBatch::new();
    let mut got = Vec::new();
    let end = now() + PATIENCE;
    while got.len() < count && now() < end {
        batch.clear();
        backend.receive(Some(end.saturating_duration_since(now())), &mut batch).unwrap();
        got.extend(batch.iter().map(|r| Got { socket: r.socket, remote: r.remote, data: r.data.to_vec() }));
    }
    got
}

fn send_one(
    backend: &mut dyn Backend,
    socket: u8,
    remote: SocketAddr,
    data: &[u8],
    segment: Option<u16>,
) -> SendReport {
    let mut batch = SendBatch::new();
    batch.push(SocketId(socket), remote, data, segment);
    backend.send(&mut batch)
}

#[expect(clippy::disallowed_methods, reason = "real sockets are tested against the real clock")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[test]
fn datagrams_arrive_whole_with_remote_and_socket() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4, V4, V6]);
        let sizes = [0, 1, 1200, limits::DATAGRAM_BYTES_MAX];
        for (index, local) in locals.iter().enumerate() {
            let client = client(if local.is_ipv4() { V4 } else { V6 });
            let remote = client.local_addr().unwrap();
            for (i, size) in sizes.into_iter().enumerate() {
                let data = vec![i as u8; size];
                client.send_to(&data, local).unwrap();
                let expected = Got { socket: SocketId(index as u8), remote, data };
                assert_eq!(receive(&mut *backend, 1), [expected], "{kind:?}, {size} bytes");
            }
        }
    });
}

#[test]
fn a_burst_larger_than_the_ring_arrives_complete_and_in_order() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4]);
        let client = client(V4);
        for i in 0..500u32 {
            client.send_to(&i.to_be_bytes(), locals[0]).unwrap();
        }
        let got: Vec<u32> =
            receive(&mut *backend, 500).iter().map(|g| u32::from_be_bytes(g.data[..].try_into().unwrap())).collect();
        assert_eq!(got, (0..500).collect::<Vec<_>>(), "{kind:?}");
        assert_eq!(backend.stats().receive_errors, 0);
    });
}

#[test]
fn a_busy_socket_does_not_starve_another() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4, V4]);
        let client = client(V4);
        for _ in 0..1000 {
            client.send_to(b"busy", locals[0]).unwrap();
        }
        client.send_to(b"quiet", locals[1]).unwrap();
        let mut batch = RecvBatch::new();
        let mut turns = 0;
        while !batch.iter().any(|r| r.data == b"quiet") {
            turns += 1;
            assert!(turns <= 3, "{kind:?}: the quiet socket waits behind the busy one");
            batch.clear();
            backend.receive(Some(PATIENCE), &mut batch).unwrap();
        }
    });
}

#[test]
fn an_answer_reaches_the_sender_from_the_right_socket() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4, V6, V4]);
        let mut batch = SendBatch::new();
        let clients: Vec<_> = [V4, V6, V4].into_iter().map(client).collect();
        for (i, client) in clients.iter().enumerate() {
            batch.push(SocketId(i as u8), client.local_addr().unwrap(), &[i as u8; 100], None);
        }
        let report = backend.send(&mut batch);
        assert_eq!(report, SendReport { messages: 3, datagrams: 3, bytes: 300, ..SendReport::default() }, "{kind:?}");
        for (i, client) in clients.iter().enumerate() {
            let mut data = [0; 200];
            let (len, from) = client.recv_from(&mut data).unwrap();
            assert_eq!((&data[..len], from), (&[i as u8; 100][..], locals[i]));
        }
    });
}

#[test]
fn segments_arrive_as_datagrams() {
    check(|kind| {
        for address in [V4, V6] {
            let (mut backend, _) = backend(kind, &[address]);
            let client = client(address);
            let data: Vec<u8> = (0..3 * 1200 + 500).map(|i| (i / 1200) as u8).collect();
            let report = send_one(&mut *backend, 0, client.local_addr().unwrap(), &data, Some(1200));
            assert_eq!((report.messages, report.datagrams, report.bytes), (1, 4, 4100), "{kind:?}");
            for (i, expected) in [1200, 1200, 1200, 500].into_iter().enumerate() {
                let mut piece = [9; 1500];
                let len = client.recv(&mut piece).unwrap();
                assert_eq!(piece[..len], vec![i as u8; expected]);
            }
        }
    });
}

#[test]
fn a_burst_that_comes_as_segments_is_taken_apart() {
    check(|kind| {
        for address in [V4, V6] {
            let (mut backend, locals) = backend(kind, &[address]);
            let (mut publisher, from) = self::backend(BackendKind::Mmsg, &[address]);
            let client = client(address);
            let data: Vec<u8> = (0..9 * 1100 + 300).map(|i| (i / 1100) as u8).collect();
            // More messages than the ring has buffers, with single ones in between.
            for round in 0..80u8 {
                let _ = send_one(&mut *publisher, 0, locals[0], &data, Some(1100));
                client.send_to(&[round; 3], locals[0]).unwrap();
            }
            let got = receive(&mut *backend, 80 * 11);
            assert_eq!(got.len(), 80 * 11, "{kind:?}");
            for (round, burst) in got.chunks(11).enumerate() {
                for (i, got) in burst[..10].iter().enumerate() {
                    assert_eq!((got.remote, &got.data), (from[0], &vec![i as u8; if i < 9 { 1100 } else { 300 }]));
                }
                assert_eq!(
                    (burst[10].remote, &burst[10].data[..]),
                    (client.local_addr().unwrap(), &[round as u8; 3][..])
                );
            }
            let _ = send_one(&mut *publisher, 0, locals[0], &[0; 7000], Some(3000));
            let _ = send_one(&mut *publisher, 0, locals[0], &[1; 63 * 1000], Some(1000));
            assert_eq!(receive(&mut *backend, 63).len(), 63, "{kind:?}");
            assert_eq!(backend.stats().truncated, 3, "{kind:?}");
        }
    });
}

#[test]
fn segments_that_the_kernel_refuses_go_out_one_by_one() {
    check(|kind| {
        let (mut backend, _) = backend(kind, &[V4]);
        let client = client(V4);
        // 600 segments are more than any kernel takes in one message, and more than two lists of headers.
        let data: Vec<u8> = (0..600u16).flat_map(u16::to_be_bytes).collect();
        let report = send_one(&mut *backend, 0, client.local_addr().unwrap(), &data, Some(2));
        assert_eq!((report.datagrams, report.errors, backend.stats().gso_refused), (600, 0, 1), "{kind:?}");
        let mut piece = [0; 8];
        assert_eq!(client.recv(&mut piece).unwrap(), 2);
        assert_eq!(piece[..2], [0, 0]);
    });
}

#[test]
fn a_doorbell_from_another_thread_ends_the_wait() {
    check(|kind| {
        let (mut backend, _) = backend(kind, &[V4]);
        // Twice: the bell must be armed again after it rang.
        for round in 1..=2 {
            let bell = backend.doorbell();
            let ringer = thread::spawn(move || {
                thread::sleep(Duration::from_millis(20));
                bell.ring();
            });
            let start = now();
            backend.receive(Some(PATIENCE), &mut RecvBatch::new()).unwrap();
            assert!(start.elapsed() < PATIENCE / 2, "{kind:?}");
            ringer.join().unwrap();
            assert_eq!(backend.stats().doorbells, round, "{kind:?}");
        }
    });
}

#[test]
fn a_doorbell_that_rang_before_the_wait_ends_it() {
    check(|kind| {
        let (mut backend, _) = backend(kind, &[V4]);
        backend.doorbell().ring();
        let start = now();
        backend.receive(None, &mut RecvBatch::new()).unwrap();
        backend.doorbell().ring();
        backend.receive(Some(Duration::MAX), &mut RecvBatch::new()).unwrap();
        assert!(start.elapsed() < PATIENCE, "{kind:?}");
        // It is used up: the next wait lasts.
        let start = now();
        backend.receive(Some(Duration::from_millis(30)), &mut RecvBatch::new()).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30), "{kind:?}");
    });
}

#[test]
fn one_backend_rings_another() {
    check(|from| {
        check(|to| {
            let (bell_sender, bell_receiver) = std::sync::mpsc::channel();
            let (woke_sender, woke) = std::sync::mpsc::channel();
            let sleeper = thread::spawn(move || {
                let (mut backend, _) = backend(to, &[V4]);
                bell_sender.send(backend.doorbell()).unwrap();
                let start = now();
                for _ in 0..2 {
                    backend.receive(Some(PATIENCE), &mut RecvBatch::new()).unwrap();
                    woke_sender.send(()).unwrap();
                }
                (start.elapsed(), backend.stats().doorbells)
            });
            let (mut ringer, _) = backend(from, &[V4]);
            let bell = bell_receiver.recv().unwrap();
            for _ in 0..2 {
                thread::sleep(Duration::from_millis(20));
                ringer.ring(&bell);
                // Heard without a receive: the ringer may send for milliseconds first.
                ringer.submit();
                // A sleeper that is late would hear two rings as one.
                woke.recv_timeout(2 * PATIENCE).unwrap();
            }
            let (elapsed, doorbells) = sleeper.join().unwrap();
            assert!(elapsed < PATIENCE && doorbells == 2, "{from:?} rings {to:?}: {elapsed:?}, {doorbells} bells");
            assert_eq!(ringer.stats().bells_failed, 0);

            // Its ring outlives it in the doorbell; ringing the dead harms nobody.
            ringer.ring(&bell);
            ringer.receive(Some(Duration::ZERO), &mut RecvBatch::new()).unwrap();
        });
    });
}

#[test]
fn a_wait_lasts_as_long_as_the_timeout() {
    check(|kind| {
        let (mut backend, _) = backend(kind, &[V4]);
        let mut batch = RecvBatch::new();
        for (timeout, at_most) in [(0, 1000), (15, 1500), (120, 2000)].map(|(a, b)| (ms(a), ms(b))) {
            let start = now();
            backend.receive(Some(timeout), &mut batch).unwrap();
            let elapsed = start.elapsed();
            assert!(elapsed >= timeout && elapsed < at_most, "{kind:?}: {elapsed:?} instead of {timeout:?}");
            assert!(batch.is_empty());
        }
    });
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_datagram_that_is_too_long_is_dropped_and_counted() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4]);
        let client = client(V4);
        for extra in [1, 20, 3000] {
            client.send_to(&vec![1; limits::DATAGRAM_BYTES_MAX + extra], locals[0]).unwrap();
        }
        client.send_to(b"after", locals[0]).unwrap();
        let got = receive(&mut *backend, 1);
        assert_eq!(got.iter().map(|g| &g.data[..]).collect::<Vec<_>>(), [b"after"], "{kind:?}");
        assert_eq!(backend.stats().truncated, 3, "{kind:?}");
    });
}

#[test]
fn a_closed_port_at_the_other_end_does_not_stop_receiving() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4]);
        let closed = client(V4).local_addr().unwrap();
        for _ in 0..3 {
            let report = send_one(&mut *backend, 0, closed, b"anyone?", None);
            assert_eq!((report.datagrams, report.errors), (1, 0), "{kind:?}");
            let client = client(V4);
            client.send_to(b"still here", locals[0]).unwrap();
            assert_eq!(receive(&mut *backend, 1).len(), 1, "{kind:?}");
        }
    });
}

#[test]
fn a_message_that_cannot_be_sent_does_not_stop_the_others() {
    check(|kind| {
        let (mut backend, _) = backend(kind, &[V4]);
        let client = client(V4);
        let mut batch = SendBatch::new();
        batch.push(SocketId(0), client.local_addr().unwrap(), b"one", None);
        batch.push(SocketId(0), "[::1]:9".parse().unwrap(), b"wrong family", None);
        batch.push(SocketId(0), client.local_addr().unwrap(), b"two", None);
        let report = backend.send(&mut batch);
        assert_eq!((report.datagrams, report.errors), (2, 1), "{kind:?}");
        assert_eq!(backend.stats().send_errors, 1);
        for expected in ["one", "two"] {
            let mut data = [0; 16];
            let len = client.recv(&mut data).unwrap();
            assert_eq!(&data[..len], expected.as_bytes());
        }
    });
}

/// A socket that reports ICMP errors of its former sends to whoever calls next.
fn report_icmp(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: `on` lives for the call and its size is what is passed.
    let result = unsafe {
        libc::setsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::IPPROTO_IP,
            libc::IP_RECVERR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn any_number_of_icmp_errors_leaves_the_socket_alive() {
    check(|kind| {
        let mut group = open_group(&[V4.parse().unwrap()], 1).unwrap();
        let sockets = group.shards.remove(0);
        report_icmp(&sockets[0]);
        let mut backend = open(kind, sockets).unwrap();
        let closed = client(V4).local_addr().unwrap();
        let mut batch = RecvBatch::new();
        for _ in 0..FAILURES_IN_A_ROW_MAX + 10 {
            let _ = send_one(&mut *backend, 0, closed, b"anyone?", None);
            backend.receive(Some(Duration::ZERO), &mut batch).unwrap();
        }
        assert!(backend.stats().receive_errors >= FAILURES_IN_A_ROW_MAX.into(), "{kind:?}: {:?}", backend.stats());
        let client = client(V4);
        client.send_to(b"still here", group.locals[0]).unwrap();
        assert_eq!(receive(&mut *backend, 1).len(), 1, "{kind:?}");

        // The next send gets the error of the one before, whoever it is for; the others go out.
        let mut out = SendBatch::new();
        for i in 0..40u8 {
            let remote = if i % 2 == 0 { closed } else { client.local_addr().unwrap() };
            out.push(SocketId(0), remote, &[i], None);
        }
        let report = backend.send(&mut out);
        assert_eq!(report.datagrams + report.errors, 40, "{kind:?}");
        assert!(report.datagrams >= 20, "{kind:?}: {report:?}");
    });
}

#[test]
fn a_batch_larger_than_the_send_buffer_is_accounted_and_never_blocks() {
    check(|kind| {
        let mut group = open_group(&[V4.parse().unwrap()], 1).unwrap();
        let sockets = group.shards.remove(0);
        // Loopback gives the memory back at once, so EAGAIN does not show here. It did by hand: in a network namespace, to a
        // veth neighbour that never answers ARP, a buffer that took 18 of 32 video, 8 audio and 2 control messages had 14
        // video dropped and the ten others kept, control first, by each way and without waiting.
        socket2::SockRef::from(&sockets[0]).set_send_buffer_size(1).unwrap();
        let mut backend = open(kind, sockets).unwrap();
        let client = client(V4);
        let mut batch = SendBatch::new();
        for _ in 0..64 {
            batch.push(SocketId(0), client.local_addr().unwrap(), &[0; 9000], None);
        }
        let report = backend.send(&mut batch);
        assert_eq!(report.datagrams + report.would_block + report.errors + report.kept, 64, "{kind:?}");
        assert_eq!(backend.stats().full_dropped.iter().sum::<u64>(), report.would_block);
    });
}

#[test]
fn datagrams_that_come_while_sending_are_not_lost() {
    check(|kind| {
        let (mut backend, locals) = backend(kind, &[V4]);
        let client = client(V4);
        // To itself: every send makes a datagram arrive in the middle of the batch.
        let mut batch = SendBatch::new();
        for _ in 0..3 {
            for i in 0..200u32 {
                batch.push(SocketId(0), locals[0], &i.to_be_bytes(), None);
            }
            assert_eq!(backend.send(&mut batch).datagrams, 200);
            client.send_to(&999u32.to_be_bytes(), locals[0]).unwrap();
            let got = receive(&mut *backend, 201);
            let numbers = got.iter().map(|g| u32::from_be_bytes(g.data[..].try_into().unwrap()));
            assert!(numbers.eq((0..200).chain([999])), "{kind:?}");
        }
    });
}

#[test]
fn the_group_spreads_and_a_dropped_backend_leaves_it() {
    check(|kind| {
        let mut group = open_group(&[V4.parse().unwrap()], 2).unwrap();
        let local = group.locals[0];
        let mut stays = open(kind, group.shards.remove(0)).unwrap();
        let mut goes = open(kind, group.shards.remove(0)).unwrap();
        // A copy of the doorbell must not keep the sockets open.
        let _bell = goes.doorbell();
        let clients: Vec<_> = (0..64).map(|_| client(V4)).collect();
        let send_all = || clients.iter().for_each(|client| assert_eq!(client.send_to(b"hello", local).unwrap(), 5));

        send_all();
        let mut count = HashMap::new();
        let end = now() + PATIENCE;
        while count.values().sum::<usize>() < 64 && now() < end {
            for (name, backend) in [("stays", &mut stays), ("goes", &mut goes)] {
                let mut batch = RecvBatch::new();
                backend.receive(Some(ms(1)), &mut batch).unwrap();
                *count.entry(name).or_default() += batch.iter().count();
            }
        }
        assert!(
            count["stays"] > 10 && count["goes"] > 10 && count["stays"] + count["goes"] == 64,
            "{kind:?}: {count:?}"
        );

        drop(goes);
        send_all();
        assert_eq!(receive(&mut *stays, 64).len(), 64, "{kind:?}: the dropped socket still takes datagrams");

        drop(stays);
        let again = open_group(&[local], 2).expect("the port is free again");
        drop(again);
    });
}

#[test]
fn auto_falls_back_with_a_reason() {
    let selection = select(IoChoice::Auto).unwrap();
    assert_eq!(selection.kind == BackendKind::Mmsg, selection.fallback.is_some());
    assert_eq!(select(IoChoice::Mmsg).unwrap().kind, BackendKind::Mmsg);
}
