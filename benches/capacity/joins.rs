//! What a join costs, and what those notice of it who watch already: 500 joins in one second beside 100 viewers.
//!
//! Those who watch and those who come are of two load testers, so each has a report of its own; they share a CPU.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::server::Server;
use crate::run::{self, Load, Row};

/// From 0.1 s before the joins' first trace to 0.1 s after the last one's.
const LOOK: Duration = Duration::from_millis(100);
/// Of the steady state before, and after.
const STEADY: Duration = Duration::from_secs(3);
/// From the viewers' last connection to what is steady: first pictures, and the load tester's own settling.
const SETTLE: Duration = Duration::from_millis(2500);
const JOIN_SECONDS_MAX: u64 = 15;
const WATCHING: usize = 100;
/// 30 frames/s of three packets: 0.8 Mbit/s. More would hide the joins.
const MEDIA: Row = Row {
    io: "uring",
    shards: 1,
    streams: 1,
    viewers: WATCHING,
    rate: 90,
    burst: 3,
    payload_bytes: 1100,
    sizes: "even",
    audio: false,
    gro: false,
};

/// The server at one moment.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    cpu: Duration,
    viewers: usize,
}

impl Sample {
    fn of(server: &Server) -> Sample {
        // The time in the middle is the processor time's.
        let viewers = run::viewers(server);
        Sample { at: Instant::now(), cpu: run::cpu(server), viewers }
    }

    /// CPU time a second from one to the other.
    fn rate(self, later: Sample) -> f64 {
        (later.cpu - self.cpu).as_secs_f64() / (later.at - self.at).as_secs_f64()
    }
}

/// What the joins have shown.
struct Joins {
    seconds: f64,
    cpu_us: f64,
    /// Share of a core before, and after.
    steady: (f64, f64),
    newcomers: Value,
    watching: Value,
}

/// Prints a table with a row for each backend.
pub fn table(backends: &[&'static str], joins: usize) {
    println!(
        "| backend | joins | within s | CPU µs/join | connected ms p50 / p99 | first keyframe ms p50 / p99 | CPU % before / after | \
         watching | their loss % | RTX repaired | duplicates | latency ms p50 / p99 |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for io in backends {
        match measure(&Row { io, ..MEDIA }, joins) {
            Some(measured) => print(io, joins, &measured),
            None => println!("| {io} | {joins} | gave up |"),
        }
    }
}

fn print(io: &str, joins: usize, measured: &Joins) {
    let Joins { seconds, cpu_us, steady, newcomers, watching } = measured;
    let spread = |report: &Value, of: &str| {
        let (p50, p99) = (run::number(&report[of]["p50"]), run::number(&report[of]["p99"]));
        if of.ends_with("_us") {
            format!("{:.2} / {:.2}", p50 / 1e3, p99 / 1e3)
        } else {
            format!("{p50:.1} / {p99:.1}")
        }
    };
    println!(
        "| {io} | {joins} | {seconds:.1} | {cpu_us:.0} | {} | {} | {:.1} / {:.1} | {} | {:.3} | {} | {} | {} |",
        spread(newcomers, "connect_ms"),
        spread(newcomers, "first_keyframe_ms"),
        steady.0 * 100.0,
        steady.1 * 100.0,
        watching["viewers_connected"],
        run::number(&watching["loss_percent"]),
        watching["rtx_repaired"],
        watching["duplicates"],
        spread(watching, "latency_us"),
    );
}

fn measure(row: &Row, joins: usize) -> Option<Joins> {
    let server = run::serve(row);
    let watching = Load::start(row, &server, &["--ramp", "100", "--duration", "50"]);
    if !run::wait_until(JOIN_SECONDS_MAX, || run::viewers(&server) == row.viewers) {
        eprintln!("{} of {} viewers watch", run::viewers(&server), row.viewers);
        return None;
    }
    thread::sleep(SETTLE);
    let before = steady(&server);
    let ramp = joins.to_string();
    let more = ["--no-publish", "--ramp", &ramp, "--viewers", &ramp, "--duration", "50"];
    let newcomers = Load::start(row, &server, &more);
    let during = joining(&server, row.viewers, joins);
    thread::sleep(SETTLE);
    let after = steady(&server);
    // Those who watch are measured to here; only then their publisher goes, and then all.
    watching.interrupt();
    let watching = watching.finish()?;
    newcomers.interrupt();
    let newcomers = newcomers.finish()?;
    let (first, last) = during?;
    let seconds = (last.at - first.at).as_secs_f64();
    let beyond = (last.cpu - first.cpu).as_secs_f64() - seconds * (before + after) / 2.0;
    Some(Joins { seconds, cpu_us: beyond * 1e6 / joins as f64, steady: (before, after), newcomers, watching })
}

/// Share of a core, polled as the joins are: what that costs the server drops out.
fn steady(server: &Server) -> f64 {
    let first = Sample::of(server);
    let mut last = first;
    while last.at - first.at < STEADY {
        thread::sleep(LOOK);
        last = Sample::of(server);
    }
    first.rate(last)
}

/// The moments around the joins; `None`, and told, when not all came.
fn joining(server: &Server, watching: usize, joins: usize) -> Option<(Sample, Sample)> {
    let mut samples = [Sample::of(server); 2];
    let mut first = None;
    let all_in = run::wait_until(JOIN_SECONDS_MAX, || {
        samples = [samples[1], Sample::of(server)];
        if samples[1].viewers > watching {
            first.get_or_insert(samples[0]);
        }
        // One more look: the last one's first packet.
        samples[0].viewers == watching + joins
    });
    if !all_in {
        eprintln!("{} of {joins} joined", samples[1].viewers.saturating_sub(watching));
    }
    first.filter(|_| all_in).map(|first| (first, samples[1]))
}
