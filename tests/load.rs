//! `manycast load` as a program: against the real server, against other servers' manners, and against what goes wrong.

mod common;

#[path = "load/front.rs"]
mod front;

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use common::server::{Server, get, kill};
use front::{Front, Manners};
use serde_json::Value;

const SIGINT: i32 = 2;

/// What a run left behind.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    json: Value,
}

fn load(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_manycast"));
    command.arg("load").args(args.split_whitespace()).stdin(Stdio::null());
    command
}

fn ran(output: &Output) -> Ran {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
    Ran { code: output.status.code(), stdout, stderr, json }
}

/// Runs to the end. With `--json -` the report is in `json`.
fn run(args: &str) -> Ran {
    ran(&load(args).output().expect("it starts"))
}

fn number(ran: &Ran, path: &str) -> f64 {
    let value = ran.json.pointer(path).unwrap_or_else(|| panic!("no {path}: {}{}", ran.stdout, ran.stderr));
    value.as_f64().unwrap_or_else(|| panic!("{path} is {value}: {}{}", ran.stdout, ran.stderr))
}

/// Everyone connects, plays, and misses nothing in the end; the server is left empty.
fn check(server: &Server, viewers: u32, args: &str) -> Ran {
    let ran = run(args);
    assert_eq!(ran.code, Some(0), "{args}: {}{}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/viewers_connected"), f64::from(viewers), "{args}: {}", ran.stdout);
    assert_eq!(number(&ran, "/viewers_silent"), 0.0, "{args}: {}", ran.stdout);
    assert!(number(&ran, "/packets_received") > f64::from(viewers), "{args}: {}", ran.stdout);
    assert_eq!(number(&ran, "/unreadable"), 0.0, "{args}: {}", ran.stdout);
    assert!(number(&ran, "/latency_us/samples") > 0.0, "{args}: {}", ran.stdout);
    for milestone in ["connect_ms", "first_packet_ms"] {
        assert!(number(&ran, &format!("/{milestone}/p99")) > 0.0, "{args}: {}", ran.stdout);
    }
    left_empty(server);
    ran
}

/// Sessions are deleted at the end; shards tell control of it a moment later.
fn left_empty(server: &Server) {
    let mut streams = String::new();
    for _ in 0..200 {
        streams = get(&format!("{}/api/streams", server.url)).1;
        let listed: Value = serde_json::from_str(&streams).expect("JSON");
        let sessions = |s: &Value| s["viewers"] != 0 || s["viewers_pending"] != 0 || s["live"] != false;
        if !listed["streams"].as_array().is_some_and(|all| all.iter().any(sessions)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("sessions were left: {streams}");
}

#[test]
fn twenty_viewers_of_vp8_and_opus() {
    let server = Server::start(&[]);
    let pid = server.pid();
    let args = format!("{} --viewers 20 --audio --duration 2 --server-pid {pid} --json -", server.url);
    let ran = check(&server, 20, &args);
    assert_eq!(number(&ran, "/packets_lost"), 0.0, "{}", ran.stdout);
    assert!(number(&ran, "/packets_expected") > 2000.0, "{}", ran.stdout);
    assert!(number(&ran, "/first_keyframe_ms/p50") > 0.0);
    assert!(number(&ran, "/server_cpu_us_per_packet") > 0.0);
    number(&ran, "/server_rss_kb_per_viewer");
    assert!(number(&ran, "/client_cpu_percent") > 0.0);
    assert!(ran.stderr.contains("viewers connected      20 of 20, 1 stream\n"), "a table too: {}", ran.stderr);
}

#[test]
fn h264_on_three_streams_with_gro() {
    let server = Server::start(&["--shards", "2"]);
    let args = "--codec h264 --streams 3 --viewers 6 --gro --duration 2 --sample 1 --json -";
    let ran = check(&server, 18, &format!("{} {args}", server.url));
    assert!(number(&ran, "/first_keyframe_ms/p99") > 0.0);
}

#[test]
fn opus_alone() {
    let server = Server::start(&[]);
    check(&server, 5, &format!("{} --codec opus --viewers 5 --duration 1 --sample 1 --json -", server.url));
}

#[test]
fn the_base64_endpoint() {
    let server = Server::start(&[]);
    check(&server, 20, &format!("{} --sdp --viewers 20 --audio --duration 2 --json -", server.url));
}

#[test]
fn emulated_losses_are_repaired() {
    let server = Server::start(&[]);
    let args = "--viewers 5 --loss 3 --delay 5 --seed 7 --sample 1 --duration 4 --max-loss 0.5 --json -";
    let ran = check(&server, 5, &format!("{} {args}", server.url));
    assert!(number(&ran, "/emulated_losses") > 0.0, "{}", ran.stdout);
    assert!(number(&ran, "/rtx_repaired") > 0.0, "{}", ran.stdout);
    assert!(number(&ran, "/latency_us/p50") >= 5000.0, "the delay is in the latency: {}", ran.stdout);
}

#[test]
fn viewers_stay_when_the_publisher_falls_silent() {
    let server = Server::start(&[]);
    let pid = server.pid();
    let args = format!("--viewers 4 --media-for 0.5 --duration 3 --server-pid {pid} --json -");
    let ran = run(&format!("{} {args}", server.url));
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(number(&ran, "/viewers_connected"), 4.0, "{}", ran.stdout);
    assert!(number(&ran, "/first_keyframe_ms/p99") > 0.0, "they played: {}", ran.stdout);
    for nothing in ["packets_received", "viewers_silent", "viewers_closed"] {
        assert_eq!(number(&ran, &format!("/{nothing}")), 0.0, "{nothing}: {}", ran.stdout);
    }
    assert!(number(&ran, "/server_cpu_percent") > 0.0, "{}", ran.stdout);
    assert!(!ran.stdout.contains("publishers sent"), "it was asked for: {}", ran.stdout);
    left_empty(&server);
}

#[test]
fn viewers_of_another_process_come_and_go() {
    let server = Server::start(&[]);
    let mut first = load(&format!("{} --viewers 2 --duration 8 --max-loss 0 --json -", server.url));
    let first = first.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    server.wait_for_metric("manycast_media_forwarded_total", "", |copies| copies > 100.0);
    let newcomers = run(&format!("{} --no-publish --viewers 3 --duration 1 --max-loss 0 --json -", server.url));
    assert_eq!(newcomers.code, Some(0), "{}{}", newcomers.stdout, newcomers.stderr);
    assert_eq!(number(&newcomers, "/viewers_connected"), 3.0, "{}", newcomers.stdout);
    assert!(number(&newcomers, "/packets_received") > 60.0, "{}", newcomers.stdout);
    assert_eq!(number(&newcomers, "/latency_us/samples"), 0.0, "of another clock: {}", newcomers.stdout);
    let first = ran(&first.wait_with_output().expect("it ends"));
    assert_eq!(first.code, Some(0), "it lost nothing: {}{}", first.stdout, first.stderr);
    left_empty(&server);
}

#[test]
fn packets_of_mixed_sizes_arrive() {
    let server = Server::start(&[]);
    for (codec, sizes) in [("vp8", "tail"), ("h264", "random")] {
        let args = format!("--codec {codec} --packet-sizes {sizes} --packet-bytes 1200 --bitrate 1440k --viewers 3");
        let ran = check(&server, 3, &format!("{} {args} --duration 1 --sample 1 --json -", server.url));
        let mean = number(&ran, "/bits_per_second") / 8.0 / number(&ran, "/packets_per_second");
        // 12 bytes of header and 16 of tag; five packets a frame.
        assert!((600.0..1150.0).contains(&mean), "{sizes}: {mean} bytes");
    }
}

#[test]
fn thresholds_decide_the_exit_code() {
    let server = Server::start(&[]);
    let held = run(&format!("{} --viewers 2 --duration 1 --sample 1 --max-loss 50 --max-p99 90000", server.url));
    assert_eq!(held.code, Some(0), "{}{}", held.stdout, held.stderr);
    let missed = run(&format!("{} --viewers 2 --duration 1 --sample 1 --delay 20 --max-p99 5", server.url));
    assert_eq!(missed.code, Some(1), "{}{}", missed.stdout, missed.stderr);
    assert!(missed.stderr.contains("threshold missed: p99 latency"), "{}", missed.stderr);
}

/// Plain, on one line, with the URL in it, and exit code 2.
fn refused(args: &str, expected: &[&str]) {
    let ran = run(args);
    assert_eq!(ran.code, Some(2), "{args}: {}{}", ran.stdout, ran.stderr);
    let line = ran.stderr.lines().find(|l| l.starts_with("manycast load: ")).unwrap_or_default();
    for part in expected {
        assert!(line.contains(part), "{args}: {part:?} is not in: {}", ran.stderr);
    }
}

#[test]
fn a_wrong_url_is_named() {
    let server = Server::start(&[]);
    let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port");
    refused(&format!("http://{free}"), &[&format!("http://{free}/whip/load"), "is the server running there?"]);
    refused(&format!("{}/page", server.url), &["--whip-url"]);
    refused("https://127.0.0.1", &["https"]);
    refused("http://nowhere.invalid", &["http://nowhere.invalid", "no such host"]);
    let url = &server.url;
    refused(&format!("--whip-url {url}/no/{{stream}} --whep-url {url}/no"), &["/no/load", "404", "no such"]);
    refused(&format!("{url} --server-pid 4000000000"), &["no such process"]);
}

#[test]
fn a_refused_offer_is_quoted() {
    let server = Server::start(&["--publish-token", "secret", "--view-token", "other"]);
    refused(&server.url, &["/whip/load", "401", "a bearer token is needed"]);
    refused(&format!("{} --token wrong", server.url), &["/whip/load", "401", "not valid"]);
    refused(&format!("{} --token secret --viewers 3", server.url), &["/whep/load", "401"]);
    refused(&format!("{} --token secret --sdp --codec h264", server.url), &["/sdp", "422", "codec"]);
}

#[test]
fn a_silent_server_is_told_apart_from_a_dead_one() {
    let server = Server::start(&[]);
    let silent = Front::start(&server.url, Manners::Silent);
    let url = silent.url();
    refused(&url, &[&format!("{url}/whip/load"), "nothing came by UDP within 10 s", "127.0.0.1:9"]);
}

#[test]
fn mediamtx_emulated_has_relative_locations() {
    let server = Server::start(&[]);
    let front = Front::start(&server.url, Manners::MediaMtx);
    let url = front.url();
    let args = format!("--whip-url {url}/{{stream}}/whip --whep-url {url}/{{stream}}/whep --viewers 4 --duration 1");
    check(&server, 4, &format!("{args} --sample 1 --json -"));
    assert_eq!(front.deleted(), 5, "every session is deleted by its Location");
}

#[test]
fn broadcast_box_emulated_tells_streams_by_token() {
    let server = Server::start(&[]);
    let front = Front::start(&server.url, Manners::BroadcastBox);
    let url = front.url();
    let args = format!("--whip-url {url}/api/whip --whep-url {url}/api/whep --streams 2 --viewers 2 --duration 1");
    check(&server, 4, &format!("{args} --token {{stream}} --sample 1 --json -"));
}

#[test]
fn ctrl_c_ends_with_the_table_and_leaves_nothing_behind() {
    let server = Server::start(&[]);
    let mut command = load(&format!("{} --viewers 4 --duration 600", server.url));
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    server.wait_for_metric("manycast_media_forwarded_total", "", |copies| copies > 100.0);
    // By itself it would take ten minutes. All four have joined long before their pictures amount to that, and the
    // measurement may or may not have begun.
    kill(child.id(), SIGINT);
    let ran = ran(&child.wait_with_output().expect("it ends"));
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("viewers connected      4 of 4"), "{}", ran.stdout);
    assert!(ran.stdout.contains("note: interrupted"), "{}", ran.stdout);
    left_empty(&server);
}
