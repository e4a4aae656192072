//! What viewers cost who only wait: 1000 of them connected, and a publisher who has fallen silent.

use std::thread;
use std::time::Duration;

use crate::common::server::Server;
use crate::run::{self, Load, Row};

/// Of silence that is measured. Shards report once a second, so a count of datagrams may be wrong by a fifteenth.
const SECONDS: u64 = 15;
/// 4 s of joins.
const JOIN_SECONDS_MAX: u64 = 30;
/// 4 s of media, and what is left of first pictures.
const SILENCE_LOOKS_MAX: usize = 10;

/// What the server did in a second.
struct Idle {
    cpu_percent: f64,
    received: f64,
    sent: f64,
}

/// Prints a table of both backends, and of a server without viewers.
pub fn table(viewers: usize) {
    println!("| backend | viewers, no media | server CPU, % of a core | datagrams/s received | sent |");
    println!("|---|---|---|---|---|");
    for (io, viewers) in [("uring", 0), ("uring", viewers), ("mmsg", viewers)] {
        match measure(&Row { io, viewers, rate: 80, ..Row::default() }) {
            Some(Idle { cpu_percent, received, sent }) => {
                println!("| {io} | {viewers} | {cpu_percent:.2} | {received:.0} | {sent:.0} |");
            }
            None => println!("| {io} | {viewers} | gave up |"),
        }
    }
}

fn measure(row: &Row) -> Option<Idle> {
    let server = run::serve(row);
    let load = Load::start(row, &server, &["--media-for", "3", "--duration", "50"]);
    let silent = wait_for_silence(row, &server).then(|| look(&server));
    load.interrupt();
    let report = load.finish()?;
    let lost = run::number(&report["viewers_closed"]);
    if lost > 0.0 {
        eprintln!("{lost} viewers were disconnected while they waited");
        return None;
    }
    silent
}

/// All have connected, and the counts of the publisher's packets and of their copies stand still.
fn wait_for_silence(row: &Row, server: &Server) -> bool {
    let media = || ["manycast_media_received_total", "manycast_media_forwarded_total"].map(|n| server.metric(n, ""));
    let joined = || run::viewers(server) == row.viewers_in_all() && media()[0] > 0.0;
    if !run::wait_until(JOIN_SECONDS_MAX, joined) {
        eprintln!("{} of {} viewers have connected", run::viewers(server), row.viewers_in_all());
        return false;
    }
    let mut before = media();
    for _ in 0..SILENCE_LOOKS_MAX {
        // Between two looks, each shard has reported at least once.
        run::wait_for_figures();
        run::wait_for_figures();
        let now = media();
        if now == before {
            return true;
        }
        before = now;
    }
    eprintln!("media did not end");
    false
}

fn look(server: &Server) -> Idle {
    let counts =
        || ["manycast_datagram_received_total", "manycast_datagram_sent_total"].map(|name| server.metric(name, ""));
    // The requests for them stay outside.
    let before = counts();
    let cpu = run::cpu(server);
    thread::sleep(Duration::from_secs(SECONDS));
    let cpu = run::cpu(server) - cpu;
    let after = counts();
    let [received, sent] = [0, 1].map(|i| (after[i] - before[i]) / SECONDS as f64);
    Idle { cpu_percent: cpu.as_secs_f64() * 100.0 / SECONDS as f64, received, sent }
}
