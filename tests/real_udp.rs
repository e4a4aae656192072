//! The real server process, str0m clients on real sockets, both I/O backends.

mod common;

use std::time::Duration;

use common::server::Server;
use common::swarm::Swarm;
use manycast::sim::client::Source;
use manycast::sim::oracle;
use str0m::media::MediaKind;

const SECOND: Duration = Duration::from_secs(1);
/// A bound on events, not a pace: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(20);
const SIGINT: i32 = 2;

/// The stream reaches every viewer whole, and a clean stop says goodbye to everyone.
fn check(io: &str, shards: &str) {
    let server = Server::start(&["--io", io, "--shards", shards]);
    let mut swarm = Swarm::new(9);
    let publisher = swarm.publish(&format!("{}/whip/live", server.url), Source::default()).member;
    assert!(swarm.run_until(PATIENCE, |s| s.client(publisher).video_packets_sent() > 30));
    let viewers: Vec<_> = (0..8).map(|_| swarm.watch(&format!("{}/whep/live", server.url)).member).collect();
    let enough = |s: &Swarm| viewers.iter().all(|v| s.client(*v).got().len() > 400);
    assert!(swarm.run_until(PATIENCE, enough), "{io} {shards}: {:#?}", server.logs());
    for viewer in &viewers {
        for kind in [MediaKind::Audio, MediaKind::Video] {
            let judged = oracle::judge(swarm.client(*viewer).got(), kind);
            assert!(judged.faults.is_empty(), "{io} {shards} {kind}: {judged:#?}");
            assert_eq!((judged.missing, judged.starts_whole), (0, true), "{io} {shards} {kind}: {judged:#?}");
        }
    }
    let ended = std::thread::scope(|scope| {
        let stopping = scope.spawn(|| server.end_by(SIGINT));
        let goodbye = |s: &Swarm| viewers.iter().chain([&publisher]).all(|m| s.client(*m).closed);
        assert!(swarm.run_until(PATIENCE, goodbye), "{io} {shards}: not everyone was told goodbye");
        stopping.join().expect("stopped")
    });
    assert_eq!(ended.code, Some(0), "{:#?}", ended.log);
}

#[test]
fn uring_one_shard() {
    check("uring", "1");
}

#[test]
fn uring_four_shards() {
    check("uring", "4");
}

#[test]
fn mmsg_one_shard() {
    check("mmsg", "1");
}

#[test]
fn mmsg_four_shards() {
    check("mmsg", "4");
}

/// A second path of a viewer, killed publishers, takeovers: the simulator has them all. Here only that a real process
/// does the same.
#[test]
fn a_killed_publisher_comes_back() {
    let server = Server::start(&["--shards", "2"]);
    let mut swarm = Swarm::new(4);
    let url = format!("{}/whip/live", server.url);
    let first = swarm.publish(&url, Source { id: 1, ..Source::default() }).member;
    assert!(swarm.run_until(PATIENCE, |s| s.client(first).video_packets_sent() > 30));
    let viewer = swarm.watch(&format!("{}/whep/live", server.url)).member;
    assert!(swarm.run_until(PATIENCE, |s| s.client(viewer).got().len() > 100));
    swarm.kill(first);
    swarm.run_for(2 * SECOND);
    swarm.publish(&url, Source { id: 2, ..Source::default() });
    let plays = |s: &Swarm| s.client(viewer).got().iter().filter(|g| g.stamp.source == 2).count() > 100;
    assert!(swarm.run_until(PATIENCE, plays), "{:#?}", server.logs());
    for kind in [MediaKind::Audio, MediaKind::Video] {
        let judged = oracle::judge(swarm.client(viewer).got(), kind);
        assert!(judged.faults.is_empty() && judged.missing == 0, "{kind}: {judged:#?}");
    }
}
