//! The life of a session can be read from the log, and nothing in it helps an eavesdropper.

mod common;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use common::server::{Ended, Server, agent};
use common::swarm::{Joined, Swarm};
use manycast::sim::client::Source;

const PATIENCE: Duration = Duration::from_secs(20);
const SIGINT: i32 = 2;
const PUBLISH_TOKEN: &str = "may-publish-0123456789";
const VIEW_TOKEN: &str = "may-watch-0123456789";
const WRONG_TOKEN: &str = "may-nothing-0123456789";

/// A publisher, a viewer who leaves by DELETE, a takeover, somebody with a wrong token, and a clean stop.
fn some_life(filter: &str) -> (Ended, Vec<Joined>) {
    let server = Server::start(&["--log", filter, "--publish-token", PUBLISH_TOKEN, "--view-token", VIEW_TOKEN]);
    let (whip, whep) = (format!("{}/whip/live", server.url), format!("{}/whep/live", server.url));
    let mut swarm = Swarm::new(3);
    swarm.token = Some(PUBLISH_TOKEN.into());
    let first = swarm.publish(&whip, Source { id: 1, ..Source::default() });
    assert!(swarm.run_until(PATIENCE, |s| s.client(first.member).video_packets_sent() > 30));
    swarm.token = Some(VIEW_TOKEN.into());
    let viewer = swarm.watch(&whep);
    assert!(swarm.run_until(PATIENCE, |s| s.client(viewer.member).got().len() > 50));
    swarm.token = Some(PUBLISH_TOKEN.into());
    let second = swarm.publish(&whip, Source { id: 2, ..Source::default() });
    let taken_over = |s: &Swarm| s.client(viewer.member).got().iter().any(|g| g.stamp.source == 2);
    assert!(swarm.run_until(PATIENCE, taken_over));
    let refused = agent().post(&whip).header("Authorization", format!("Bearer {WRONG_TOKEN}"));
    let refused = refused.header("Content-Type", "application/sdp").send(b"v=0\r\n").expect("an answer");
    assert_eq!(refused.status().as_u16(), 401);
    let left = agent().delete(&viewer.location).header("Authorization", format!("Bearer {VIEW_TOKEN}")).call();
    assert_eq!(left.expect("an answer").status().as_u16(), 200);
    assert!(swarm.run_until(PATIENCE, |s| s.client(viewer.member).closed));
    (server.end_by(SIGINT), vec![first, viewer, second])
}

/// Each line holds the words of one step, in this order and with others between.
fn assert_tells(log: &[String], steps: &[&[&str]]) {
    let mut lines = log.iter();
    for step in steps {
        let found = lines.any(|line| step.iter().all(|words| line.contains(words)));
        assert!(found, "{step:?} is not told, or out of order:\n{}", log.join("\n"));
    }
}

/// Words of a line that may be addresses: between blanks, quotes, brackets and `=`.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let edge = |c: char| c.is_whitespace() || "=\"'(){},;".contains(c);
    line.split(edge).map(|w| w.trim_end_matches(['.', ':']))
}

fn is_address(word: &str) -> bool {
    word.parse::<SocketAddr>().is_ok() || word.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

fn assert_keeps_secrets(log: &[String], sessions: &[Joined]) {
    let mut secrets = vec!["ice-pwd", "ice-ufrag", "a=candidate", "a=fingerprint", "Bearer"];
    secrets.extend([PUBLISH_TOKEN, VIEW_TOKEN, WRONG_TOKEN]);
    for session in sessions {
        secrets.push(session.location.rsplit('/').next().expect("a path"));
        secrets.extend(session.answer.lines().filter_map(|l| l.strip_prefix("a=ice-pwd:")));
        secrets.extend(session.answer.lines().filter_map(|l| l.strip_prefix("a=fingerprint:sha-256 ")));
    }
    for line in log {
        for secret in &secrets {
            assert!(!line.contains(secret), "{secret} is in the log: {line}");
        }
    }
}

/// Each in its order. Shards and control are threads of their own: what one of them tells of an event may come before or after what
/// another does.
const LIVES: &[&[&[&str]]] = &[
    OF_THE_STREAM,
    &[&["viewer joined", "session=2"], &["publisher left", "session=1", "TakenOver"], &["stopping"]],
    &[&["viewer joined", "session=2"], &["viewer left", "session=2"], &["stopping"]],
];

const OF_THE_STREAM: &[&[&str]] = &[
    &["session created", "stream=\"live\"", "publisher"],
    &["ICE checking", "session=1", "shard="],
    &["ICE connected", "session=1"],
    &["DTLS connected", "session=1", "dtls=DTLS1_", "srtp=A"],
    &["track started", "session=1", "kind=", "codec=", "payload_type=", "ssrc="],
    &["stream is live", "session=1"],
    &["session created", "session=2", "viewer"],
    &["viewer joined", "session=2"],
    &["session created", "session=3", "publisher"],
    &["stream is live", "session=3"],
    &["stopping"],
];

#[test]
fn the_info_log_tells_a_life_without_addresses_and_secrets() {
    let (ended, sessions) = some_life("info");
    assert_eq!(ended.code, Some(0), "{:#?}", ended.log);
    LIVES.iter().for_each(|life| assert_tells(&ended.log, life));
    assert_keeps_secrets(&ended.log, &sessions);
    for line in &ended.log {
        assert!(!line.contains('\x1b'), "colours in a pipe: {line}");
        let address = words(line).find(|word| is_address(word));
        assert_eq!(address, None, "{line}");
    }
}

/// There, addresses may be: who looks for a lost path needs them.
#[test]
fn the_debug_log_tells_the_paths_too_but_no_secrets() {
    let (ended, sessions) = some_life("manycast=debug");
    LIVES.iter().for_each(|life| assert_tells(&ended.log, life));
    assert_tells(&ended.log, &[&["pair selected", "session=1", "127.0.0.1:"], &["request refused", "401"]]);
    assert_keeps_secrets(&ended.log, &sessions);
}

#[test]
fn addresses_are_recognised() {
    for line in ["remote=127.0.0.1:80", "from (192.0.2.2)", "to [::1]:80", "fd00::2: refused", "[fe80::1]"] {
        assert!(words(line).any(is_address), "{line}");
    }
    for line in ["2026-11-22T12:03:07.310106Z  INFO manycast::shard: ICE checking session=1", "version 1.2.3"] {
        assert!(!words(line).any(is_address), "{line}");
    }
}
