//! What a forwarded packet costs the real server process, beside the floor of this machine, as one Markdown table.
//!
//! Each row starts `manycast serve` and `manycast load` (one synthetic publisher, viewers on UDP ports of their own) over
//! loopback, and next to it, in the same minute, the reference of `reference.rs` with the same bursts, viewers and SRTP
//! profile. With one shard the server has CPU 0 and the load tester CPU 1; with two shards all share both.
//!
//! - CPU: user and system time of the whole server process (its scheduler's nanoseconds) by the packets that viewers
//!   received, while all of them are connected. It holds the kernel's UDP stack down into the receivers' queues.
//! - ratio: that, by the reference's. The reference's thread alone is counted.
//! - latency: as viewers see it, from the publisher's stamp, through both kernels' queues and the load tester's own.
//! - inside: of the server's own histogram, from the receipt of a packet to the return of the send, each copy.
//!
//! Not measured: a network card. Absolute figures drift by half with the machine's mood; ratios within a row hold.
//!
//! `scripts/bench` builds and runs it. `cargo bench --bench capacity -- quick` runs five rows, `... -- join` the cost of
//! joins, `... -- reference VIEWERS PACKETS/S BURST` the reference alone.

#[path = "../../tests/common/mod.rs"]
mod common;
mod reference;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::server::Server;
use manycast::load::process;
use serde_json::Value;

const MANYCAST: &str = env!("CARGO_BIN_EXE_manycast");
/// Of a row's measurement.
const SECONDS: u64 = 5;
/// Joins a second.
const RAMP: usize = 250;
/// Of each run together. A row that hangs is given up.
const ROW_SECONDS_MAX: u64 = 60;

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    io: &'static str,
    shards: usize,
    viewers: usize,
    /// Packets a second from the publisher, in bursts of `burst`.
    rate: usize,
    burst: usize,
    payload_bytes: usize,
    gro: bool,
}

/// What a row has shown.
struct Measured {
    cpu_us: f64,
    loss_percent: f64,
    latency_ms: (f64, f64),
    inside_ms: f64,
    /// Datagrams in a message.
    segments: f64,
    memory_kb: f64,
    /// Share of the copies that the busiest shard sent.
    busiest: f64,
    load_cpu_percent: f64,
}

fn main() {
    // cargo passes `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |at: usize, default: usize| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(default);
    match words.first().map(String::as_str) {
        Some("reference") => {
            let row = Row { viewers: number(1, 100), rate: number(2, 800), burst: number(3, 10), ..Row::default() };
            println!("reference: {:.3} µs CPU per forwarded packet", reference::cpu_us(&row.options()));
        }
        Some("join") => joins(number(1, 1000)),
        Some("quick") => table(&quick()),
        Some("one") => {
            table(&[Row { viewers: number(1, 100), rate: number(2, 800), burst: number(3, 10), ..Row::default() }])
        }
        _ => {
            table(&all());
            joins(1000);
        }
    }
}

impl Default for Row {
    fn default() -> Row {
        Row { io: "uring", shards: 1, viewers: 100, rate: 800, burst: 10, payload_bytes: 1100, gro: false }
    }
}

impl Row {
    fn options(&self) -> reference::Options {
        reference::Options {
            viewers: self.viewers,
            rate: self.rate as u64,
            burst: self.burst,
            seconds: 3,
            payload_bytes: self.payload_bytes,
            gro: self.gro,
            // What the load tester's str0m and our DTLS agree on.
            profile: manycast::srtp::keys::Profile::Aes256Gcm,
        }
    }
}

fn quick() -> Vec<Row> {
    let row = Row::default();
    vec![
        row,
        Row { viewers: 10, rate: 8000, ..row },
        Row { viewers: 1000, rate: 80, ..row },
        Row { burst: 1, ..row },
        Row { shards: 2, rate: 400, ..row },
    ]
}

/// 80,000 packets/s go out in all, 40,000 where the load tester has no CPU of its own.
fn all() -> Vec<Row> {
    let row = Row::default();
    let mut rows = Vec::new();
    for gro in [false, true] {
        for io in ["uring", "mmsg"] {
            for viewers in [10, 50, 100, 500, 1000] {
                rows.push(Row { io, viewers, rate: 80_000 / viewers, gro, ..row });
            }
        }
    }
    // The orientation row of the comparison with other servers.
    rows.push(Row { rate: 1000, ..row });
    rows.push(Row { burst: 1, ..row });
    rows.push(Row { burst: 3, rate: 900, ..row });
    rows.push(Row { burst: 8, ..row });
    // 30 frames/s of 10 packets.
    rows.push(Row { viewers: 250, rate: 300, ..row });
    rows.push(Row { payload_bytes: 200, ..row });
    for shards in [1, 2] {
        rows.push(Row { shards, rate: 400, ..row });
        rows.push(Row { shards, viewers: 1000, rate: 40, ..row });
    }
    rows
}

fn table(rows: &[Row]) {
    println!("{}", machine());
    println!(
        "| backend | shards | viewers | packets/s in | burst | payload B | GRO | CPU µs/packet | reference | ratio | loss % | \
         latency ms p50 / p99 | inside ms p99 | segments | kB/viewer | busiest shard | load tester |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let Row { io, shards, viewers, rate, burst, payload_bytes, gro } = *row;
        let before = reference::cpu_us(&row.options());
        let Some(got) = measure(row) else {
            println!("| {io} | {shards} | {viewers} | {rate} | {burst} | {payload_bytes} | gave up |");
            continue;
        };
        // On both sides of the row: the machine drifts.
        let floor = (before + reference::cpu_us(&row.options())) / 2.0;
        println!(
            "| {io} | {shards} | {viewers} | {rate} | {burst} | {payload_bytes} | {} | {:.2} | {floor:.2} | {:.2} | {:.3} | \
             {:.2} / {:.2} | {:.2} | {:.1} | {:.0} | {:.0} % | {:.0} % |",
            if gro { "on" } else { "off" },
            got.cpu_us,
            got.cpu_us / floor,
            got.loss_percent,
            got.latency_ms.0,
            got.latency_ms.1,
            got.inside_ms,
            got.segments,
            got.memory_kb,
            got.busiest * 100.0,
            got.load_cpu_percent,
        );
    }
}

/// What joins cost: the server's whole CPU time for viewers that come, get a packet a second, and go.
fn joins(viewers: usize) {
    let row = Row { viewers, rate: 1, burst: 1, ..Row::default() };
    let server = serve(&row);
    let before = cpu(&server);
    let Some(report) = load(&row, &server, 500) else { return println!("joins: gave up") };
    let spent = (cpu(&server) - before).as_secs_f64() * 1e6;
    let forwarded = report["packets_received"].as_f64().unwrap_or_default();
    let each = report["server_cpu_us_per_packet"].as_f64().unwrap_or_default();
    let seconds = report["window_seconds"].as_f64().unwrap_or(1.0);
    println!(
        "{viewers} joins at 500/s: {:.0} µs CPU a join, media and goodbye included; connected p50 / p99 {:.1} / {:.1} ms; \
         then, at one packet a second each: {:.2} % of a core",
        spent / viewers as f64,
        report["connect_ms"]["p50"].as_f64().unwrap_or_default(),
        report["connect_ms"]["p99"].as_f64().unwrap_or_default(),
        each * forwarded / seconds / 1e4,
    );
}

fn measure(row: &Row) -> Option<Measured> {
    let server = serve(row);
    let report = load(row, &server, RAMP)?;
    // Reports come once a second.
    std::thread::sleep(Duration::from_millis(1100));
    let metrics = server.metrics();
    let shards: Vec<f64> = samples(&metrics, "manycast_media_forwarded_total").map(|(_, value)| value).collect();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let latency = &report["latency_us"];
    Some(Measured {
        cpu_us: number(&report["server_cpu_us_per_packet"]),
        loss_percent: number(&report["loss_percent"]),
        latency_ms: (number(&latency["p50"]) / 1e3, number(&latency["p99"]) / 1e3),
        inside_ms: percentile(&metrics, 0.99) * 1e3,
        segments: server.metric("manycast_datagram_sent_total", "") / server.metric("manycast_message_sent_total", ""),
        memory_kb: number(&report["server_rss_kb_per_viewer"]),
        busiest: shards.iter().copied().fold(0.0, f64::max) / shards.iter().sum::<f64>(),
        load_cpu_percent: number(&report["client_cpu_percent"]),
    })
}

/// Runs the load tester and returns its report; `None` when it failed, which it has then told.
fn load(row: &Row, server: &Server, ramp: usize) -> Option<Value> {
    let json = std::env::temp_dir().join(format!("manycast-bench-{}.json", std::process::id()));
    let mut command = pinned(row, "1");
    command.arg(MANYCAST).args(["load", &server.url, "--codec", "vp8", "--streams", "1"]);
    let numbers = [
        ("--viewers", row.viewers),
        ("--packet-bytes", row.payload_bytes),
        ("--bitrate", row.rate * row.payload_bytes * 8),
        ("--ramp", ramp),
        ("--duration", SECONDS as usize),
        ("--server-pid", server.pid() as usize),
    ];
    for (flag, value) in numbers {
        command.args([flag, &value.to_string()]);
    }
    command.args(["--fps", &format!("{}", row.rate as f64 / row.burst as f64)]);
    command.arg(if row.gro { "--gro" } else { "--no-gro" }).arg("--json").arg(&json);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the load tester starts");
    let stderr = child.stderr.take().expect("piped");
    let said = std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).collect::<Vec<_>>());
    for _ in 0..ROW_SECONDS_MAX * 10 {
        std::thread::sleep(Duration::from_millis(100));
        if child.try_wait().expect("our child").is_some() {
            break;
        }
    }
    let _ = child.kill();
    let status = child.wait().expect("our child");
    let said = said.join().unwrap_or_default();
    let report = std::fs::read_to_string(&json).ok().and_then(|text| serde_json::from_str(&text).ok());
    let _ = std::fs::remove_file(&json);
    if report.is_none() {
        eprintln!("{status}: {}", said.last().map_or("", |l| l));
    }
    report
}

/// On one CPU where the server has one shard.
fn pinned(row: &Row, cpu: &str) -> Command {
    let mut command = Command::new(if row.shards == 1 { "taskset" } else { "env" });
    if row.shards == 1 {
        command.args(["-c", cpu]);
    }
    command
}

/// With the figures of the row.
fn serve(row: &Row) -> Server {
    let mut program = pinned(row, "0");
    program.arg(MANYCAST);
    Server::start_by(program, &["--log", "warn", "--io", row.io, "--shards", &row.shards.to_string()])
}

/// Labels and value of each sample of a metric.
fn samples<'a>(metrics: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    metrics.lines().filter_map(move |line| {
        let (labels, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then_some((labels, value.parse().ok()?))
    })
}

/// Upper bound of the latency bucket that this share of all copies is within, in seconds.
fn percentile(metrics: &str, share: f64) -> f64 {
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (labels, count) in samples(metrics, "manycast_forward_latency_seconds_bucket") {
        let Some(bound) = labels.split("le=\"").nth(1).and_then(|l| l.split('"').next()) else { continue };
        let bound = bound.parse().unwrap_or(f64::INFINITY);
        match buckets.iter_mut().find(|(b, _)| *b == bound) {
            Some((_, sum)) => *sum += count,
            None => buckets.push((bound, count)),
        }
    }
    let total = buckets.last().map_or(0.0, |(_, count)| *count);
    buckets.iter().find(|(_, count)| *count >= total * share).map_or(f64::NAN, |(bound, _)| *bound)
}

/// What all threads of the server have run, by the scheduler's own account.
fn cpu(server: &Server) -> Duration {
    process::usage(server.pid()).expect("the server runs").cpu
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{cpus} CPUs of {model}, Linux {}, load average {}\n", kernel.trim(), load.split(' ').next().unwrap_or(""))
}
