//! One run: the real server and `manycast load` as processes of their own, and what they have shown.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use manycast::load::process;
use manycast::srtp::keys::Profile;
use serde_json::Value;

use crate::common::server::{self, Server};
use crate::reference;

const MANYCAST: &str = env!("CARGO_BIN_EXE_manycast");
/// Of a row's measurement.
const SECONDS: usize = 5;
/// Joins a second.
const RAMP: usize = 250;
/// Of each run together. A run that hangs is given up.
const RUN_SECONDS_MAX: u64 = 60;
/// Between two looks at a process or at what the server tells.
const LOOK: Duration = Duration::from_millis(100);
const SIGINT: i32 = 2;

/// What is sent to whom.
#[derive(Clone, Copy)]
pub struct Row {
    pub io: &'static str,
    pub shards: usize,
    pub streams: usize,
    /// Of each stream.
    pub viewers: usize,
    /// Packets a second from each publisher, in bursts of `burst`.
    pub rate: usize,
    pub burst: usize,
    /// Of a full packet.
    pub payload_bytes: usize,
    /// As `--packet-sizes` has them.
    pub sizes: &'static str,
    /// 50 packets/s beside `rate`.
    pub audio: bool,
    pub gro: bool,
}

impl Default for Row {
    fn default() -> Row {
        Row {
            io: "uring",
            shards: 1,
            streams: 1,
            viewers: 100,
            rate: 800,
            burst: 10,
            payload_bytes: 1100,
            sizes: "even",
            audio: false,
            gro: false,
        }
    }
}

impl Row {
    pub fn viewers_in_all(&self) -> usize {
        self.streams * self.viewers
    }

    /// Of the reference. It knows one stream, no audio, and sizes only that segments of one message can have.
    pub fn options(&self) -> reference::Options {
        reference::Options {
            viewers: self.viewers,
            rate: self.rate as u64,
            burst: self.burst,
            seconds: 3,
            payload_bytes: self.payload_bytes,
            short_tails: self.sizes == "tail",
            gro: self.gro,
            // What the load tester's str0m and our DTLS agree on.
            profile: Profile::Aes256Gcm,
        }
    }
}

/// What a row has shown.
pub struct Measured {
    pub cpu_us: f64,
    pub loss_percent: f64,
    pub latency_ms: (f64, f64),
    pub inside_ms: f64,
    /// Datagrams in a message.
    pub segments: f64,
    pub memory_kb: f64,
    /// Share of the copies that the busiest shard sent.
    pub busiest: f64,
    pub load_cpu_percent: f64,
}

/// Runs a row. `None` when the load tester failed, which it has then told.
pub fn measure(row: &Row) -> Option<Measured> {
    let server = serve(row);
    let report = Load::start(row, &server, &[]).finish()?;
    wait_for_figures();
    let metrics = server.metrics();
    let shards: Vec<f64> = samples(&metrics, "manycast_media_forwarded_total").map(|(_, value)| value).collect();
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

/// `null` is no number.
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// The server under a row's figures.
pub fn serve(row: &Row) -> Server {
    let mut program = pinned(row, "0");
    program.arg(MANYCAST);
    Server::start_by(program, &["--log", "warn", "--io", row.io, "--shards", &row.shards.to_string()])
}

/// A `manycast load` that runs; killed when dropped.
pub struct Load(Child);

impl Load {
    /// What `more` says comes after the row's own flags, and wins.
    pub fn start(row: &Row, server: &Server, more: &[&str]) -> Load {
        let mut command = pinned(row, "1");
        command.arg(MANYCAST).args(["load", &server.url, "--codec", "vp8", "--json", "-"]);
        let mut numbers = vec![
            ("--streams", row.streams),
            ("--viewers", row.viewers),
            ("--packet-bytes", row.payload_bytes),
            ("--bitrate", row.rate * row.payload_bytes * 8),
            ("--server-pid", server.pid() as usize),
            ("--ramp", RAMP),
            ("--duration", SECONDS),
        ];
        numbers.retain(|(flag, _)| !more.contains(flag));
        for (flag, value) in numbers {
            command.args([flag, &value.to_string()]);
        }
        command.args(["--fps", &format!("{}", row.rate as f64 / row.burst as f64), "--packet-sizes", row.sizes]);
        command.arg(if row.gro { "--gro" } else { "--no-gro" }).args(row.audio.then_some("--audio")).args(more);
        Load(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the load tester starts"))
    }

    /// Asks it to end with its report, of the time until now.
    pub fn interrupt(&self) {
        server::kill(self.0.id(), SIGINT);
    }

    /// Its report; `None` when it failed or took too long, which is told. What it says meanwhile fits in the pipes.
    pub fn finish(mut self) -> Option<Value> {
        let ended = wait_until(RUN_SECONDS_MAX, || self.0.try_wait().expect("our child").is_some());
        let _ = self.0.kill();
        let status = self.0.wait().expect("our child");
        let report = serde_json::from_str(&read(self.0.stdout.take())).ok();
        if report.is_none() {
            let said = read(self.0.stderr.take());
            eprintln!("{}: {status}: {}", if ended { "ended" } else { "hung" }, said.lines().last().unwrap_or(""));
        }
        report
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn read(pipe: Option<impl Read>) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = pipe {
        let _ = pipe.read_to_string(&mut text);
    }
    text
}

/// Whether it became true within so many seconds.
pub fn wait_until(seconds_max: u64, mut done: impl FnMut() -> bool) -> bool {
    for _ in 0..seconds_max * 10 {
        if done() {
            return true;
        }
        std::thread::sleep(LOOK);
    }
    done()
}

/// Shards report their figures once a second.
pub fn wait_for_figures() {
    std::thread::sleep(Duration::from_millis(1100));
}

/// Connected viewers of all streams.
pub fn viewers(server: &Server) -> usize {
    let listed: Value = serde_json::from_str(&server::get(&format!("{}/api/streams", server.url)).1).expect("JSON");
    let streams = listed["streams"].as_array().expect("a list");
    streams.iter().filter_map(|stream| stream["viewers"].as_u64()).sum::<u64>() as usize
}

/// What all threads of the server have run, by the scheduler's own account.
pub fn cpu(server: &Server) -> Duration {
    process::usage(server.pid()).expect("the server runs").cpu
}

/// On one CPU where the server has one shard.
fn pinned(row: &Row, cpu: &str) -> Command {
    let mut command = Command::new(if row.shards == 1 { "taskset" } else { "env" });
    if row.shards == 1 {
        command.args(["-c", cpu]);
    }
    command
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
