//! Status codes and headers, endpoint by endpoint.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use manycast::shard::message::Command;

use crate::server::Server;
use crate::{PUBLISH, VIEW, has_cors, offer};

const SDP: (&str, &str) = ("Content-Type", "application/sdp");
const FRAGMENT: (&str, &str) = ("Content-Type", "application/trickle-ice-sdpfrag");
const TRICKLE: &str = "m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\na=candidate:1 1 udp 7 127.0.0.1 9 typ host\r\n";

/// Asks, and compares status and headers; `""` means that the header is only there.
fn check(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
    expected: (u16, &[(&str, &str)]),
) {
    let reply = server.ask(method, path, headers, body);
    assert_eq!(reply.status, expected.0, "{method} {path} {headers:?}: {reply:?}");
    for (name, value) in expected.1 {
        let found = reply.header(name).unwrap_or_else(|| panic!("{method} {path}: no {name}: {reply:?}"));
        assert!(value.is_empty() || found == *value, "{method} {path} {name}: {found:?} is not {value:?}");
    }
    has_cors(&reply);
}

#[test]
fn whip_answers_as_rfc_9725_wants() {
    let server = Server::start("stun-server = \"stun.example.net:3478\"");
    let created = server.ask("POST", "/whip/cam", &[("content-type", "Application/SDP; charset=utf-8")], PUBLISH);
    assert_eq!(created.status, 201, "{created:?}");
    has_cors(&created);
    for (name, value) in [
        ("Content-Type", "application/sdp"),
        ("Cache-Control", "no-store"),
        ("Link", "<stun:stun.example.net:3478>; rel=\"ice-server\""),
        ("Content-Length", &created.body.len().to_string()),
    ] {
        assert_eq!(created.header(name), Some(value), "{name}");
    }
    // OBS and FFmpeg look for these very letters; neither reads a chunked answer.
    assert!(created.headers.iter().any(|(name, _)| name == "Location"), "{created:?}");
    assert_eq!(created.header("transfer-encoding"), None);
    let etag = created.header("etag").expect("an ETag").to_owned();
    let session = created.location();
    assert!(session.starts_with("/whip/cam/") && session.len() == "/whip/cam/".len() + 22, "{session}");

    let preflight: &[(&str, &str)] = &[
        ("Access-Control-Allow-Methods", "OPTIONS, GET, HEAD, POST, PATCH, DELETE"),
        ("Access-Control-Allow-Headers", "Authorization, Content-Type, If-Match, Accept, Last-Event-ID"),
        ("Access-Control-Max-Age", "86400"),
        ("Accept-Post", "application/sdp"),
        ("Allow", ""),
    ];
    check(&server, "OPTIONS", "/whip/cam", &[("Origin", "https://page.example")], "", (200, preflight));
    check(&server, "OPTIONS", &session, &[], "", (200, &[("Accept-Patch", "application/trickle-ice-sdpfrag")]));
    assert_eq!(server.ask("OPTIONS", "/whip/cam", &[], "").header("link"), None);
    check(&server, "GET", "/whip/cam", &[], "", (204, &[]));
    check(&server, "HEAD", "/whip/cam", &[], "", (204, &[]));
    check(&server, "PUT", "/whip/cam", &[], "", (405, &[("Allow", "OPTIONS, POST, GET, HEAD")]));
    check(&server, "DELETE", "/whip/cam", &[], "", (405, &[("Allow", "")]));
    check(&server, "POST", "/whip/a%20b", &[SDP], PUBLISH, (404, &[("Content-Type", "application/problem+json")]));
    check(&server, "POST", "/whip/cam", &[], PUBLISH, (415, &[("Accept-Post", "application/sdp")]));
    check(&server, "POST", "/whip/cam", &[("Content-Type", "text/plain")], PUBLISH, (415, &[("Accept-Post", "")]));
    check(&server, "POST", "/whip/cam", &[SDP], "nonsense", (400, &[("Content-Type", "application/problem+json")]));
    check(&server, "POST", "/whip/cam", &[SDP], VIEW, (422, &[("Content-Type", "application/problem+json")]));

    check(&server, "GET", &session, &[], "", (204, &[]));
    check(&server, "HEAD", &session, &[], "", (204, &[]));
    check(&server, "POST", &session, &[SDP], PUBLISH, (405, &[("Allow", "OPTIONS, PATCH, DELETE, GET, HEAD")]));
    check(&server, "PATCH", &session, &[FRAGMENT, ("If-Match", &etag)], TRICKLE, (204, &[]));
    check(&server, "PATCH", &session, &[FRAGMENT, ("If-Match", "\"old\"")], TRICKLE, (412, &[("ETag", &etag)]));
    check(&server, "PATCH", &session, &[SDP], TRICKLE, (415, &[("Accept-Patch", "application/trickle-ice-sdpfrag")]));
    check(&server, "PATCH", &session, &[FRAGMENT], "?", (400, &[]));
    check(&server, "PATCH", "/whip/other/0123456789012345678901", &[FRAGMENT], TRICKLE, (404, &[]));
    check(&server, "PATCH", &session.replace("whip", "whep"), &[FRAGMENT], TRICKLE, (404, &[]));
    let restart = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n";
    let restarted: &[(&str, &str)] = &[("Content-Type", "application/trickle-ice-sdpfrag"), ("ETag", "")];
    check(&server, "PATCH", &session, &[FRAGMENT, ("If-Match", &etag)], restart, (200, restarted));
    check(&server, "DELETE", &session, &[], "", (200, &[("Content-Length", "0")]));
    check(&server, "DELETE", &session, &[], "", (200, &[]));
    check(&server, "PATCH", &session, &[FRAGMENT], TRICKLE, (404, &[]));
    check(&server, "DELETE", "/whip/cam/0123456789012345678901", &[], "", (404, &[]));
}

#[test]
fn whep_answers_as_the_draft_wants() {
    let server = Server::start("");
    let discovered: &[(&str, &str)] = &[("Content-Type", "application/sdp"), ("Content-Length", "0")];
    check(&server, "GET", "/whep/cam", &[], "", (200, discovered));
    check(&server, "HEAD", "/whep/cam", &[], "", (200, discovered));
    check(&server, "OPTIONS", "/whep/cam", &[], "", (200, &[("Accept-Post", "application/sdp")]));
    check(&server, "POST", "/whep/cam", &[SDP], VIEW, (409, &[("Retry-After", "2")]));
    let publisher = server.live("cam");
    let created = server.post("/whep/cam", VIEW);
    assert_eq!(created.status, 201, "{created:?}");
    assert!(created.body.contains("a=sendonly\r\n") && created.location().starts_with("/whep/cam/"));
    check(&server, "POST", "/whep/cam", &[SDP], PUBLISH, (422, &[]));
    check(&server, "POST", "/whep/cam", &[SDP], &VIEW.replace("a=recvonly", "a=inactive"), (422, &[]));
    let both = offer(&VIEW.replace("a=recvonly", "a=sendrecv"), 1);
    check(&server, "POST", "/whep/cam", &[SDP], &both, (201, &[("Location", "")]));
    check(&server, "PATCH", &created.location(), &[FRAGMENT], TRICKLE, (204, &[]));
    check(&server, "DELETE", &created.location(), &[], "", (200, &[]));
    server.end(&publisher);
    check(&server, "POST", "/whep/cam", &[SDP], &offer(VIEW, 2), (409, &[]));
}

#[test]
fn the_exchange_of_2019_works_with_curl_and_from_pages() {
    let server = Server::start("");
    let json = |sdp: &str| serde_json::json!({ "type": "offer", "sdp": sdp }).to_string();
    // What curl -d sends.
    let form = ("Content-Type", "application/x-www-form-urlencoded");
    let answered = server.ask("POST", "/sdp", &[form], &STANDARD.encode(json(PUBLISH)));
    assert_eq!(answered.status, 200, "{answered:?}");
    has_cors(&answered);
    assert_eq!(answered.header("content-type"), Some("text/plain; charset=utf-8"));
    assert!(answered.location().starts_with("/whip/default/"));
    assert_eq!(answered.header("x-session").map(str::len), Some(22));
    let text = answered.body.strip_suffix('\n').expect("a line");
    let decoded = STANDARD.decode(text).expect("base64");
    let answer: serde_json::Value = serde_json::from_slice(&decoded).expect("json");
    assert_eq!(answer["type"].as_str(), Some("answer"));
    assert!(answer["sdp"].as_str().expect("sdp").starts_with("v=0\r\n"));

    let answered = server.ask("POST", "/", &[("Accept", "application/json")], &json(VIEW));
    assert_eq!((answered.status, answered.header("content-type")), (200, Some("application/json")));
    assert!(answered.location().starts_with("/whep/default/"));
    assert_eq!(server.ask("DELETE", &answered.location(), &[], "").status, 200);
    assert_eq!(server.ask("GET", "/sdp", &[], "").status, 405);
    assert_eq!(server.ask("POST", "/sdp?stream=a/b", &[], VIEW).status, 404);
    assert_eq!(server.ask("POST", "/sdp?role=admin", &[], VIEW).status, 400);
}

#[test]
fn bad_bodies_are_refused_everywhere_and_the_next_good_one_is_served() {
    let server = Server::start("");
    let publisher = server.live("cam");
    let session = server.post("/whip/cam", &offer(PUBLISH, 1)).location();
    let huge = "v=0\r\n".repeat(50_000);
    let cut = &PUBLISH[..PUBLISH.len() / 2];
    let rejected: &[&str] = &["", "\0", "{}", "null", "v=0", "hello", "a=b", cut, "\u{202e}\u{1f9e8}", &huge];
    for (n, body) in rejected.iter().enumerate() {
        for (method, path, headers) in [
            ("POST", "/whip/cam", &[SDP][..]),
            ("POST", "/whep/cam", &[SDP][..]),
            ("POST", "/sdp?stream=cam", &[][..]),
            ("POST", "/?stream=cam", &[][..]),
            ("PATCH", session.as_str(), &[FRAGMENT][..]),
        ] {
            let reply = server.ask(method, path, headers, body);
            // What an offer says of ICE is a fragment as well.
            let harmless = method == "PATCH" && matches!(reply.status, 200 | 204);
            assert!(matches!(reply.status, 400 | 413 | 422) || harmless, "{method} {path} {n}: {reply:?}");
            has_cors(&reply);
            assert!(harmless || !reply.body.contains("ice-pwd"), "{reply:?}");
        }
        let healthy = server.post("/whep/cam", &offer(VIEW, n as u64));
        assert_eq!(healthy.status, 201, "after {n}: {healthy:?}");
        assert_eq!(server.ask("DELETE", &healthy.location(), &[], "").status, 200);
    }
    assert!(publisher.owner().is_some());
    // Nothing but what the healthy ones needed has reached the shard: nobody was closed.
    while let Some(command) = server.try_command() {
        assert!(!matches!(command, Command::Close { .. }), "{command:?}");
    }
}

#[test]
fn every_unusable_offer_has_a_reason() {
    let server = Server::start("");
    let kind = |offer: &str| {
        let reply = server.post("/whip/cam", offer);
        assert_eq!(reply.header("content-type"), Some("application/problem+json"), "{reply:?}");
        let problem: serde_json::Value = serde_json::from_str(&reply.body).expect("json");
        assert_eq!(problem["status"].as_u64(), Some(reply.status.into()));
        assert!(problem["detail"].as_str().is_some_and(|d| !d.is_empty() && !d.contains('\n')));
        (reply.status, problem["type"].as_str().expect("a type").to_owned())
    };
    for (from, to, expected) in [
        ("a=fingerprint:sha-256", "a=fingerprint:sha-1", "weak-fingerprint"),
        ("a=rtcp-mux\r\n", "", "no-rtcp-mux"),
        ("VP8/90000", "H263/90000", "no-common-codec"),
        ("a=sendonly", "a=recvonly", "wrong-direction"),
        ("a=mid:1", "a=mid:1\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x", "sdes-crypto"),
        ("m=video 36930 UDP/TLS/RTP/SAVPF 96 97", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "data-channel"),
    ] {
        let text = PUBLISH.replace("\r\n", "\n").replace('\n', "\r\n");
        assert!(text.contains(from), "{from}");
        assert_eq!(kind(&text.replace(from, to)), (422, format!("/problems/{expected}")));
    }
}

#[test]
fn the_page_and_the_nodes_own_resources() {
    let server = Server::start("");
    for (path, media_type) in [("/", "text/html"), ("/app.js", "text/javascript"), ("/style.css", "text/css")] {
        let reply = server.ask("GET", path, &[], "");
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.header("content-type").is_some_and(|t| t.starts_with(media_type)), "{reply:?}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert!(reply.header("content-security-policy").is_some_and(|p| p.contains("default-src 'none'")));
        assert!(!reply.body.is_empty());
        assert_eq!(server.ask("HEAD", path, &[], "").body, "");
    }
    server.live("cam");
    let health = server.ask("GET", "/healthz", &[], "");
    assert_eq!((health.status, health.body.as_str()), (200, "ok\n"));
    let streams = server.ask("GET", "/api/streams", &[], "");
    let json: serde_json::Value = serde_json::from_str(&streams.body).expect("json");
    assert_eq!(json["streams"][0]["name"].as_str(), Some("cam"));
    assert!(server.ask("GET", "/metrics", &[], "").body.contains("# TYPE"));
    // A page of another origin in a browser on this machine is not its user.
    for headers in [&[("Origin", "https://page.example")][..], &[("X-Forwarded-For", "203.0.113.1")][..]] {
        for path in ["/api/streams", "/metrics"] {
            let reply = server.ask("GET", path, headers, "");
            assert_eq!((reply.status, reply.header("www-authenticate").is_some()), (401, true));
            has_cors(&reply);
        }
    }
    let missing = server.ask("GET", "/etc/passwd", &[], "");
    assert_eq!(missing.status, 404);
    has_cors(&missing);
}

#[test]
fn the_urls_that_a_proxy_shows_are_told() {
    let server = Server::start("trusted-proxy = \"127.0.0.1\"");
    let headers =
        [SDP, ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "sfu.example"), ("X-Forwarded-For", "203.0.113.9")];
    let created = server.ask("POST", "/whip/cam", &headers, PUBLISH);
    assert!(created.header("location").is_some_and(|l| l.starts_with("https://sfu.example/whip/cam/")), "{created:?}");
    let server = Server::start("public-url = \"https://sfu.example:8443/\"");
    let created = server.ask("POST", "/whip/cam", &headers, PUBLISH);
    assert!(created.header("location").is_some_and(|l| l.starts_with("https://sfu.example:8443/whip/")), "{created:?}");
}

#[test]
fn only_named_origins_are_let_in_when_there_are_any() {
    let server = Server::start("cors-origin = [\"https://a.example\", \"https://b.example\"]");
    let allowed = |origin: &str| {
        let reply = server.ask("POST", "/whip/cam", &[("Origin", origin)], "");
        assert_eq!(reply.header("vary"), Some("Origin"));
        reply.header("access-control-allow-origin").map(str::to_owned)
    };
    assert_eq!(allowed("https://b.example").as_deref(), Some("https://b.example"));
    assert_eq!(allowed("https://c.example"), None);
}
