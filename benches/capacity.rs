//! The real server process under 200 str0m viewers of one 2.5 Mbit/s stream, over loopback.
//!
//! Prints CPU per forwarded packet (user and system time of the whole server process, divided by the copies that it gave
//! to viewers) and resident memory per viewer, and fails when a packet is missing at any viewer. Not a criterion
//! bench: the figure is a process's, not a function's. The clients run in this process on the other core and cost more
//! than the server. Not measured: a network card, and what AES-CM would cost (str0m peers negotiate AES-256-GCM).
//!
//! `cargo bench --bench capacity -- [viewers] [seconds]`

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::server::Server;
use common::swarm::Swarm;
use manycast::sim::client::Source;
use manycast::sim::oracle;
use str0m::media::MediaKind;

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    // cargo passes `--bench`.
    let numbers: Vec<u64> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let viewers = numbers.first().copied().unwrap_or(200) as usize;
    let seconds = numbers.get(1).copied().unwrap_or(10);
    println!("{viewers} viewers, one stream of 270 video packets/s of 1150 bytes and 50 audio packets/s, {seconds} s");
    println!("| backend | shards | copies/s | CPU µs/copy | CPU of one core | kB/viewer | missing |");
    println!("|---|---|---|---|---|---|---|");
    for io in ["uring", "mmsg"] {
        for shards in ["1", "2"] {
            measure(io, shards, viewers, Duration::from_secs(seconds));
        }
    }
}

fn measure(io: &str, shards: &str, viewers: usize, time: Duration) {
    let server = Server::start(&["--io", io, "--shards", shards, "--log", "warn"]);
    let publishing = Arc::new(AtomicBool::new(true));
    let publisher = std::thread::spawn({
        let (url, publishing) = (format!("{}/whip/a", server.url), publishing.clone());
        move || publish(&url, &publishing)
    });
    server.wait_for_metric("manycast_media_received_total", "", |packets| packets > 100.0);
    let mut swarm = Swarm::new(viewers);
    let memory = resident_kb(server.pid());
    let members: Vec<_> = (0..viewers)
        .map(|_| {
            let member = swarm.watch(&format!("{}/whep/a", server.url)).member;
            swarm.run_for(Duration::from_millis(5));
            member
        })
        .collect();
    assert!(swarm.run_until(PATIENCE, |s| members.iter().all(|m| s.client(*m).got().len() > 100)), "not all connected");
    // Two seconds, so that the caches for repair are full.
    swarm.run_for(Duration::from_secs(2));

    let (cpu, copies, start) = (cpu_time(server.pid()), copies(&server), swarm.now());
    swarm.run_for(time);
    let cpu = cpu_time(server.pid()) - cpu;
    let copies = copies_since(&server, copies);
    let elapsed = swarm.now() - start;
    let memory = resident_kb(server.pid()) - memory;

    // What is still on its way.
    swarm.run_for(Duration::from_millis(300));
    let missing: u64 = members
        .iter()
        .flat_map(|m| {
            let got = swarm.client(*m).got();
            [MediaKind::Audio, MediaKind::Video].map(|kind| {
                let judged = oracle::judge(got, kind);
                assert!(judged.faults.is_empty(), "{judged:#?}");
                judged.missing
            })
        })
        .sum();
    println!(
        "| {io} | {shards} | {:.0} | {:.2} | {:.0} % | {} | {missing} |",
        copies / elapsed.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / copies,
        cpu.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
        memory / viewers as u64,
    );
    publishing.store(false, Ordering::Relaxed);
    publisher.join().expect("the publisher");
    assert_eq!(missing, 0, "packets were lost");
}

/// Reports come once a second: the same half second of error at both ends.
fn copies(server: &Server) -> f64 {
    server.metric("manycast_media_forwarded_total", "")
}

/// A thread of its own: busy viewers must not hold the stream up.
fn publish(url: &str, go_on: &AtomicBool) {
    let mut swarm = Swarm::new(1);
    swarm.publish(url, Source { packets_per_frame: 9, bytes_per_packet: 1150, ..Source::default() });
    while go_on.load(Ordering::Relaxed) {
        swarm.run_for(Duration::from_millis(100));
    }
}

fn copies_since(server: &Server, before: f64) -> f64 {
    copies(server) - before
}

/// User and system time of a process.
fn cpu_time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the server runs");
    // Fields are counted from behind the command's closing parenthesis: state is the first.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().filter_map(|f| f.parse::<u64>().ok()).sum();
    // Linux reports in USER_HZ, which is 100 everywhere.
    Duration::from_millis(ticks * 10)
}

fn resident_kb(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_default()
}
