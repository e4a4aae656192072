//! Real browsers against a real server: the demo page is used by its own buttons, in Debian's headless Chromium.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use browser::{Browser, DemoPage, PATIENCE, Page, program, wait_until};
use common::server::Server;
use common::turn;
use serde_json::json;

const SECOND: Duration = Duration::from_secs(1);

/// How long playing is looked at; `MANYCAST_SOAK_SECONDS` asks for more.
fn playing_time() -> Duration {
    let asked = std::env::var("MANYCAST_SOAK_SECONDS").ok().and_then(|s| s.parse().ok());
    Duration::from_secs(asked.unwrap_or(10))
}

/// Opens the Publish tab and presses its button.
fn publish<'a>(browser: &'a Browser, server: &Server, query: &str) -> Page<'a> {
    let page = browser.open(&format!("{}/?size=640x360&{query}#publish", server.url));
    page.start("publish");
    page
}

/// Opens the Watch tab and presses its button.
fn watch<'a>(browser: &'a Browser, server: &Server, stream: &str) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream={stream}#watch", server.url));
    page.start("watch");
    page
}

fn assert_shows_something(page: &Page, id: &str) {
    let lit = page.lit_share(id);
    assert!(lit > 0.8, "{id} is dark: {lit}");
}

// ------------------------------------------------------------------------------------------------ publish and watch

fn check_two_viewers(io: &str, shards: &str) {
    let _turn = turn();
    let server = Server::start(&["--io", io, "--shards", shards]);
    let browser = Browser::start();
    let publisher = publish(&browser, &server, "stream=live");
    let viewers = [watch(&browser, &server, "live"), watch(&browser, &server, "live")];
    for viewer in &viewers {
        viewer.click("watch-unmute");
        // The first second may stutter while encoder and jitter buffer settle.
        viewer.wait_for_frames("watch", PATIENCE, 30.0);
    }
    let before: Vec<_> = viewers.iter().map(|v| v.stats("watch")).collect();
    let started = Instant::now();
    std::thread::sleep(playing_time());
    for (viewer, before) in viewers.iter().zip(before) {
        let seconds = started.elapsed().as_secs_f64();
        let after = viewer.stats("watch");
        let grown = |key| after.video_in(key) - before.video_in(key);
        let publisher = || format!("{io} {shards}: publisher {:#?}", publisher.stats("publish"));
        assert!(grown("framesDecoded") > 10.0 * seconds, "{} in {seconds} s; {}", grown("framesDecoded"), publisher());
        assert_eq!(grown("freezeCount"), 0.0, "{after:#?} {}", publisher());
        assert_eq!((after.video_in("packetsLost"), after.audio_in("packetsLost")), (0.0, 0.0), "{}", publisher());
        assert!(after.audio_in("totalAudioEnergy") > before.audio_in("totalAudioEnergy"), "{}", publisher());
        assert_shows_something(viewer, "watch-video");
    }
    assert_eq!(browser.console_errors(), [""; 0]);
}

#[test]
fn two_viewers_play_over_uring_with_one_shard() {
    check_two_viewers("uring", "1");
}

#[test]
fn two_viewers_play_over_uring_with_four_shards() {
    check_two_viewers("uring", "4");
}

#[test]
fn two_viewers_play_over_mmsg_with_one_shard() {
    check_two_viewers("mmsg", "1");
}

#[test]
fn two_viewers_play_over_mmsg_with_four_shards() {
    check_two_viewers("mmsg", "4");
}

// --------------------------------------------------------------------------------------------------- copy and paste

/// What a person does in a terminal.
fn curl(server: &Server, offer: &str) -> String {
    let url = format!("{}/sdp", server.url.trim_start_matches("http://"));
    let run = Command::new(program("curl")).args(["-s", &url, "-d", offer]).output().expect("curl runs");
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).expect("base64")
}

/// Presses one of the two buttons, carries the offer by curl, and brings the answer back.
fn copy_and_paste<'a>(browser: &'a Browser, server: &Server, button: &str) -> Page<'a> {
    let page = browser.open(&format!("{}/#paste", server.url));
    page.click(button);
    let ready = || Some(page.value("legacy-offer")).filter(|o| !o.is_empty());
    let offer = wait_until(PATIENCE, ready, || page.text("legacy-status-text"));
    // Typing thousands of characters by key is slow; a paste is one input event as well.
    let paste = "const box = document.getElementById('legacy-answer'); box.value = arguments[0]; \
        box.dispatchEvent(new Event('input', { bubbles: true }));";
    page.run(paste, vec![json!(curl(server, &offer))]);
    page.click("legacy-start");
    page.wait_for_state("legacy", "live");
    page
}

#[test]
fn a_session_is_carried_by_curl_as_in_2019() {
    let _turn = turn();
    let server = Server::start(&[]);
    let browser = Browser::start();
    let publisher = copy_and_paste(&browser, &server, "legacy-publish");
    // Nobody watches, so nobody asks for key frames but the endpoint's own clock, every 3 s.
    let plis = || publisher.stats("legacy").video_out("pliCount");
    wait_until(PATIENCE, || (plis() > 0.0).then_some(()), || "no PLI".into());
    let before = plis();
    std::thread::sleep(9 * SECOND);
    let asked = plis() - before;
    assert!((2.0..=4.0).contains(&asked), "{asked} PLI in 9 s");
    let sent = publisher.stats("legacy");
    assert_eq!(sent.codec("outbound-rtp", "video"), Some("video/VP8"));

    let viewer = copy_and_paste(&browser, &server, "legacy-join");
    viewer.wait_for_frames("legacy", PATIENCE, 60.0);
    assert_eq!(viewer.stats("legacy").codec("inbound-rtp", "video"), Some("video/VP8"));
    assert_shows_something(&viewer, "legacy-video");
    assert_eq!(browser.console_errors(), [""; 0]);
}

// ------------------------------------------------------------------------------------------- the publisher's fortunes

#[test]
fn a_killed_publisher_comes_back_and_the_viewer_plays_on() {
    let _turn = turn();
    let server = Server::start(&[]);
    let first = Browser::start();
    publish(&first, &server, "stream=live");
    let audience = Browser::start();
    let viewer = watch(&audience, &server, "live");
    viewer.mark("watch");
    viewer.wait_for_frames("watch", PATIENCE, 10.0);

    first.kill();
    // What was on its way may still be decoded, then the picture stands.
    let mut last = -1.0;
    let still = || {
        let now = viewer.stats("watch").video_in("framesDecoded");
        let stood = now == std::mem::replace(&mut last, now);
        stood.then_some(())
    };
    wait_until(PATIENCE, still, || "the killed publisher's frames still come".into());

    let second = Browser::start();
    publish(&second, &server, "stream=live");
    viewer.wait_for_frames("watch", 3 * SECOND, 10.0);
    viewer.wait_for_state("watch", "live");
    assert!(viewer.is_marked("watch"), "the viewer has negotiated again");
    assert_shows_something(&viewer, "watch-video");
    assert_eq!((audience.console_errors(), second.console_errors()), (vec![], vec![]));
}

#[test]
fn a_second_publisher_takes_over_and_the_first_says_so() {
    let _turn = turn();
    let server = Server::start(&[]);
    let browser = Browser::start();
    let first = publish(&browser, &server, "stream=live");
    let viewer = watch(&browser, &server, "live");
    viewer.mark("watch");
    let second = publish(&browser, &server, "stream=live&source=synthetic");
    first.wait_for_state("publish", "failed");
    let (text, hint) = (first.text("publish-status-text"), first.text("publish-status-hint"));
    assert!(text.contains("ended the session") && hint.contains("taken this stream over"), "{text} {hint}");

    // Longer than the page waits before it tries a lost connection again.
    viewer.wait_for_frames("watch", PATIENCE, 90.0);
    assert_eq!((first.state("publish").as_str(), second.state("publish").as_str()), ("failed", "live"));
    assert!(viewer.is_marked("watch"), "the viewer has negotiated again");
    assert_shows_something(&viewer, "watch-video");
    assert_eq!(browser.console_errors(), [""; 0]);
}

// ------------------------------------------------------------------------------------------------------------ codecs

/// Without candidates on 127.0.0.1, as in a browser that was not started by a test.
#[test]
fn viewers_decode_what_the_publisher_prefers() {
    let _turn = turn();
    let server = Server::start(&[]);
    let browser = Browser::start_with(&[]);
    for codec in ["H264", "VP9", "AV1"] {
        let publisher = browser.open(&format!("{}/?stream={codec}&size=640x360", server.url));
        publisher.choose("publish-codec", codec);
        publisher.start("publish");
        let viewer = watch(&browser, &server, codec);
        viewer.wait_for_frames("watch", PATIENCE, 20.0);
        let expected = format!("video/{codec}");
        assert_eq!(publisher.stats("publish").codec("outbound-rtp", "video"), Some(expected.as_str()));
        assert_eq!(viewer.stats("watch").codec("inbound-rtp", "video"), Some(expected.as_str()));
        assert_shows_something(&viewer, "watch-video");
        publisher.click("publish-stop");
        viewer.click("watch-stop");
        // Or the check above would prove nothing.
        assert!(viewer.lit_share("watch-stage") < 0.3);
    }
}

// ------------------------------------------------------------------------------------------------------ other origins

/// An origin with one empty page.
fn other_origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let origin = format!("http://{}", listener.local_addr().expect("bound"));
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut request = BufReader::new(client.try_clone().expect("a socket"));
            let mut line = String::new();
            while request.read_line(&mut line).is_ok_and(|n| n > 2) {
                line.clear();
            }
            let page = "<!doctype html><link rel=icon href=data:,><title>elsewhere</title>";
            let length = page.len();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n");
            let _ = client.write_all(format!("{head}Connection: close\r\n\r\n{page}").as_bytes());
        }
    });
    origin
}

/// One session from offer to DELETE; returns what the page could read on the way.
const WHOLE_SESSION: &str = r#"
const [url, token] = arguments;
return (async () => {
  const pc = new RTCPeerConnection();
  pc.addTransceiver("video", { direction: url.includes("/whip/") ? "sendonly" : "recvonly" });
  await pc.setLocalDescription();
  const { sdp } = pc.localDescription;
  const authorization = { Authorization: `Bearer ${token}` };
  const request = (to, method, type, body, more = {}) =>
    fetch(to, { method, body, headers: { ...authorization, ...(type && { "Content-Type": type }), ...more } });
  const posted = await request(url, "POST", "application/sdp", sdp);
  const seen = { post: posted.status, location: posted.headers.get("Location"), etag: posted.headers.get("ETag") };
  if (!posted.ok) return { ...seen, body: await posted.text(), retry: posted.headers.get("Retry-After") };
  await pc.setRemoteDescription({ type: "answer", sdp: await posted.text() });
  const session = new URL(seen.location, url);
  const line = (name) => sdp.match(new RegExp(`^a=${name}:.*$`, "m"))[0].trim();
  const fragment = [line("ice-ufrag"), line("ice-pwd"), "m=video 9 UDP/TLS/RTP/SAVPF 0", line("mid"), "a=end-of-candidates", ""];
  const ice = "application/trickle-ice-sdpfrag";
  const body = fragment.join("\r\n");
  seen.patch = (await request(session, "PATCH", ice, body, { "If-Match": seen.etag })).status;
  const stale = await request(session, "PATCH", ice, body, { "If-Match": '"of-another-session"' });
  seen.stale = stale.status;
  seen.remove = (await request(session, "DELETE")).status;
  pc.close();
  return seen;
})();
"#;

#[test]
fn a_page_of_another_origin_may_publish_and_watch() {
    let _turn = turn();
    let server = Server::start(&["--publish-token", "let-me-in", "--view-token", "let-me-see"]);
    let browser = Browser::start();
    publish_with_token(&browser, &server, "let-me-in");
    let page = browser.open(&other_origin());
    for (path, token) in [("/whip/other", "let-me-in"), ("/whep/live", "let-me-see")] {
        let seen = page.run(WHOLE_SESSION, vec![json!(format!("{}{path}", server.url)), json!(token)]);
        assert_eq!(seen["post"], 201, "{seen}");
        assert!(seen["location"].as_str().is_some_and(|l| l.contains(path)), "{seen}");
        assert!(seen["etag"].as_str().is_some_and(|e| e.starts_with('"')), "{seen}");
        assert_eq!((&seen["patch"], &seen["remove"]), (&json!(204), &json!(200)), "{seen}");
        assert_eq!(seen["stale"], 412, "{seen}");
    }
    // The page may read refusals too; Chromium itself notes these, and the stale If-Match above, as failed loads.
    let refused = page.run(WHOLE_SESSION, vec![json!(format!("{}/whep/live", server.url)), json!("wrong")]);
    assert_eq!(refused["post"], 401, "{refused}");
    let errors = browser.console_errors();
    assert!(errors.iter().all(|e| e.contains("412") || e.contains("401")), "{errors:#?}");
}

fn publish_with_token(browser: &Browser, server: &Server, token: &str) {
    let page = browser.open(&format!("{}/?stream=live&size=640x360", server.url));
    page.click("publish-start");
    page.wait_for_state("publish", "failed");
    assert!(page.text("publish-status-text").contains("asks for a token"));
    // The page has opened the box by itself.
    page.type_into("publish-token", token);
    page.start("publish");
}

/// The browser gives no camera there, and its candidates name nothing that can be reached.
#[test]
fn an_insecure_origin_is_explained_and_publishes_the_test_card() {
    let _turn = turn();
    let interfaces = if_addrs::get_if_addrs().expect("interfaces");
    let Some(ip) = interfaces.iter().map(|i| i.ip()).find(|ip| ip.is_ipv4() && !ip.is_loopback()) else {
        eprintln!("this machine has no address but loopback: nothing to test");
        return;
    };
    let server = Server::start(&["--http", &format!("{ip}:0"), "--udp", &format!("{ip}:0")]);
    let browser = Browser::start_with(&[&format!("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE {ip}")]);
    let page = browser.open(&format!("{}/?stream=live&size=640x360", server.url));
    assert!(page.is_shown("insecure-notice"));
    assert!(page.text("insecure-origin").contains(&ip.to_string()));
    page.start("publish");
    let viewer = watch(&browser, &server, "live");
    assert!(!viewer.is_shown("insecure-notice"), "watching needs no camera");
    viewer.wait_for_frames("watch", PATIENCE, 20.0);
    assert_shows_something(&viewer, "watch-video");
    // Who is not on this machine is not told what is live; the page asks once and hides the list.
    let errors = browser.console_errors();
    assert!(errors.len() <= 2 && errors.iter().all(|e| e.contains("/api/streams")), "{errors:#?}");
}
