//! A real browser's simulcast: three layers in, the right one out, and viewers that start at once.

#![expect(clippy::disallowed_methods, reason = "real browsers live in real time")]

mod common;

#[path = "common/browser.rs"]
#[expect(dead_code, reason = "each test binary uses its part")]
mod browser;

use browser::{Browser, DemoPage, PATIENCE, Page, wait_until};
use common::server::Server;
use common::turn;
use serde_json::json;

/// Publishes the fake camera in three layers: 320x180, 640x360, 1280x720.
fn publish<'a>(browser: &'a Browser, server: &Server) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream=live&simulcast=1", server.url));
    page.start("publish");
    page
}

fn watch<'a>(browser: &'a Browser, server: &Server) -> Page<'a> {
    let page = browser.open(&format!("{}/?stream=live#watch", server.url));
    page.start("watch");
    page
}

fn wait_for_height(page: &Page, height: f64) {
    let seen = || page.stats("watch").video_in("frameHeight");
    wait_until(PATIENCE, || (seen() == height).then_some(()), || format!("{} lines, not {height}", seen()));
}

/// What the menu offers: values and texts.
fn menu(page: &Page) -> Vec<(String, String)> {
    page.options("watch-quality")
}

#[test]
fn the_highest_of_three_layers_is_shown() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    publish(&browser, &server);
    let viewer = watch(&browser, &server);
    wait_for_height(&viewer, 720.0);
    viewer.wait_for_frames("watch", PATIENCE, 60.0);
    assert_eq!(viewer.stats("watch").video_in("packetsLost"), 0.0);
}

#[test]
fn the_menu_switches_between_layers_without_a_new_negotiation() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    publish(&browser, &server);
    let viewer = watch(&browser, &server);
    viewer.mark("watch");
    wait_for_height(&viewer, 720.0);
    let rates = |menu: &[(String, String)]| menu.iter().filter(|(_, text)| text.contains("bit/s)")).count();
    let menu_of_three = || Some(menu(&viewer)).filter(|menu| rates(menu) == 3);
    let options = wait_until(PATIENCE, menu_of_three, || format!("{:?}", menu(&viewer)));
    assert!(viewer.is_shown("watch-quality"));
    let values: Vec<&str> = options.iter().map(|(value, _)| value.as_str()).collect();
    let sizes: Vec<&str> = options.iter().map(|(_, text)| text.split(' ').next().unwrap_or_default()).collect();
    assert_eq!((values, sizes), (vec!["", "h", "m", "l"], vec!["Auto", "720p", "360p", "180p"]));

    for (rid, height) in [("l", 180.0), ("", 720.0)] {
        viewer.choose("watch-quality", rid);
        wait_for_height(&viewer, height);
        viewer.wait_for_frames("watch", PATIENCE, 30.0);
    }
    assert!(viewer.is_marked("watch"), "the viewer has negotiated again");
    assert_eq!(viewer.stats("watch").video_in("packetsLost"), 0.0);
    assert_eq!(browser.console_errors(), [""; 0]);
}

/// As [`publish`] does, but all in one stream, for which the page has no button.
const SPATIAL: &str = "const add = RTCPeerConnection.prototype.addTransceiver;
    RTCPeerConnection.prototype.addTransceiver = function (track, init) {
        const svc = track.kind === 'video' && init?.direction === 'sendonly';
        return add.call(this, track, svc ? { ...init, sendEncodings: [{ scalabilityMode: 'L3T3_KEY' }] } : init);
    };";

#[test]
fn the_menu_has_spatial_layers_too() {
    let _turn = turn();
    let server = Server::start(&["--shards", "2"]);
    let browser = Browser::start();
    let publisher = browser.open(&format!("{}/?stream=live&size=640x360", server.url));
    publisher.run(SPATIAL, vec![]);
    publisher.choose("publish-codec", "VP9");
    publisher.start("publish");
    let viewer = watch(&browser, &server);
    let menu_of_two = || Some(menu(&viewer)).filter(|menu| menu.len() == 3);
    let options = wait_until(PATIENCE, menu_of_two, || format!("{:?}", menu(&viewer)));
    let values: Vec<&str> = options.iter().map(|(value, _)| value.as_str()).collect();
    let sizes: Vec<&str> = options.iter().map(|(_, text)| text.split(' ').next().unwrap_or_default()).collect();
    assert_eq!((values, sizes), (vec!["", "/1", "/0"], vec!["Auto", "360p", "180p"]));
    viewer.choose("watch-quality", "/0");
    wait_for_height(&viewer, 180.0);
    viewer.wait_for_frames("watch", PATIENCE, 30.0);
    assert_eq!(browser.console_errors(), [""; 0]);
}

/// Keeps every EventSource that the page opens in `sources`.
const RECORD: &str = "window.sources = []; window.EventSource = class extends EventSource {
    constructor(url) { super(url); window.sources.push(this); }
};";

#[test]
fn the_page_listens_to_events_while_it_is_looked_at() {
    let _turn = turn();
    let server = Server::start(&[]);
    let browser = Browser::start();
    publish(&browser, &server);
    let viewer = browser.open(&format!("{}/?stream=live#watch", server.url));
    viewer.run(RECORD, vec![]);
    viewer.click("watch-start");
    let expect = |states: &[u8]| {
        let now = || viewer.run("return window.sources.map(s => s.readyState)", vec![]);
        wait_until(PATIENCE, || (now() == json!(states)).then_some(()), || format!("{}, not {states:?}", now()));
    };
    expect(&[OPEN]);
    let turn = "Object.defineProperty(document, 'hidden', { value: arguments[0], configurable: true });
        document.dispatchEvent(new Event('visibilitychange'));";
    viewer.run(turn, vec![json!(true)]);
    expect(&[CLOSED]);
    viewer.run(turn, vec![json!(false)]);
    expect(&[CLOSED, OPEN]);
    wait_until(PATIENCE, || viewer.is_shown("watch-quality").then_some(()), || "no menu".into());
    viewer.click("watch-stop");
    expect(&[CLOSED, CLOSED]);
    assert!(!viewer.is_shown("watch-quality"));
    assert_eq!(browser.console_errors(), [""; 0]);
}

/// EventSource.readyState (HTML §9.2.2).
const OPEN: u8 = 1;
const CLOSED: u8 = 2;
