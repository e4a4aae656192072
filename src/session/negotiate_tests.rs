//! Our answers to viewers, held against those that str0m writes when it negotiates the same media itself.

use std::net::SocketAddr;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::IceCreds;
use str0m::format::CodecConfig;
use str0m::media::MediaKind;
use str0m::rtp::{Extension, ExtensionMap};

use super::*;
use crate::srtp::dtls;
use crate::units::Epoch;
use crate::wire::codec::Codec;
use crate::wire::sdp::finish_answer;

const CHROMIUM: &str = include_str!("../../tests/data/offers/chromium-publish-vp8.sdp");
const CHROMIUM_SIMULCAST: &str = include_str!("../../tests/data/offers/chromium-publish-simulcast.sdp");
const CHROMIUM_VIEW: &str = include_str!("../../tests/data/offers/chromium-view.sdp");
const AIORTC_VIEW: &str = include_str!("../../tests/data/offers/aiortc-view.sdp");
const GST_VIEW: &str = include_str!("../../tests/data/offers/gst-view-vp8.sdp");

#[expect(clippy::disallowed_methods, reason = "any std instant will do")]
fn config() -> PeerConfig {
    let v6 = SocketAddr::from(([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1], 8080));
    PeerConfig {
        epoch: Epoch::new(std::time::Instant::now()),
        candidates: Arc::from([SocketAddr::from(([192, 0, 2, 1], 8080)), v6, SocketAddr::from(([192, 0, 2, 2], 8080))]),
        tcp_candidates: Arc::default(),
        crypto: dtls::crypto_provider(),
        certificate: Certificate::generate().expect("a certificate"),
    }
}

fn watch(offer: &Offer, published: &[Format]) -> Result<Negotiated, NegotiationError> {
    watch_with(&config(), offer, published)
}

fn watch_with(config: &PeerConfig, offer: &Offer, published: &[Format]) -> Result<Negotiated, NegotiationError> {
    let request =
        WatchRequest { session: SessionId(1), stream: StreamId(1), published: published.to_vec(), estimate: false };
    watch_for(config, offer, request)
}

fn watch_for(config: &PeerConfig, offer: &Offer, request: WatchRequest) -> Result<Negotiated, NegotiationError> {
    super::watch(Instant::ZERO, config, offer, request, &mut StdRng::seed_from_u64(1))
}

/// What str0m answers when it reads the whole offer and has each of its formats in its table.
fn str0ms_answer(config: &PeerConfig, offer: &Offer, ufrag: &str, pwd: &str) -> String {
    let mut extensions = ExtensionMap::empty();
    extensions.set(1, Extension::AudioLevel);
    extensions.set(4, Extension::RtpMid);
    extensions.set(9, Extension::AbsoluteCaptureTime);
    extensions.set(12, Extension::with_serializer(dependency::URI, dependency::Serializer));
    extensions.set(13, Extension::VideoOrientation);
    let mut params: Vec<_> = offer.media.iter().flat_map(|m| &m.formats).filter_map(payload_params).collect();
    params.iter_mut().for_each(|p| p.set_fb_transport_cc(false));
    let creds = IceCreds { ufrag: ufrag.into(), pass: pwd.into() };
    let mut rtc_config = rtc_config(config, &creds).set_extension_map(extensions);
    *rtc_config.codec_config() = CodecConfig::new_from_payload_params(params);
    let mut rtc = rtc_config.build(config.epoch.to_std(Instant::ZERO));
    start(&mut rtc, Instant::ZERO, config).expect("candidates");
    let sdp = SdpOffer::from_sdp_string(&offer.sdp().replace("a=sendrecv", "a=recvonly")).expect("read");
    let answer = rtc.sdp_api().accept_offer(sdp).expect("answered");
    finish_answer(&answer.to_sdp_string(), offer).expect("whole")
}

/// An answer with its random words numbered in the order in which they first appear, and header extensions sorted.
fn comparable(answer: &str) -> String {
    let mut known: Vec<&str> = Vec::new();
    let mut lines: Vec<String> = Vec::new();
    for line in answer.lines() {
        if line.starts_with("o=") {
            continue;
        }
        let is_identity = ["a=ssrc", "a=msid"].iter().any(|p| line.starts_with(p));
        let number = |word| {
            let at = known.iter().position(|k| *k == word).unwrap_or_else(|| {
                known.push(word);
                known.len() - 1
            });
            format!("#{at}")
        };
        match is_identity {
            true => lines.push(line.split([' ', ':']).map(number).collect::<Vec<_>>().join(" ")),
            false => lines.push(line.to_owned()),
        }
    }
    let is_extension = |l: &String| l.starts_with("a=extmap:");
    for run in lines.chunk_by_mut(|a, b| is_extension(a) && is_extension(b)) {
        run.sort();
    }
    lines.join("\n")
}

#[test]
fn a_viewer_is_answered_as_str0m_would_answer_it() {
    let check = |text: &str| {
        let offer = Offer::parse(text).expect(text);
        let config = config();
        let ours = watch_with(&config, &offer, &[]).expect(text);
        let theirs = str0ms_answer(&config, &offer, &ours.local_ufrag, &ours.local_pwd);
        assert_eq!(comparable(&ours.answer), comparable(&theirs));
    };
    check(CHROMIUM_VIEW);
    check(AIORTC_VIEW);
    check(GST_VIEW);
    check(&CHROMIUM.replace("a=sendonly", "a=sendrecv"));
    check(&CHROMIUM_VIEW.replace("a=setup:actpass", "a=setup:passive").replace("a=rtcp-rsize", "a=x"));
    check(&CHROMIUM_VIEW.replace("a=extmap-allow-mixed", "a=x").replace("UDP/TLS/RTP/SAVPF 96", "UDP/TLS/RTP/SAVPF"));
    check(&CHROMIUM_VIEW.replace("profile-id=2", "x-google-start-bitrate=9;profile-id=2;max-fr=30"));
    let capture_time = "a=extmap:12 http://www.webrtc.org/experiments/rtp-hdrext/abs-capture-time\na=rtcp-mux";
    check(&CHROMIUM_VIEW.replace("a=rtcp-mux", capture_time));
    check(&with_dependency(CHROMIUM_VIEW));
}

/// An offer whose video has the dependency descriptor, as `setHeaderExtensionsToNegotiate` makes it.
fn with_dependency(offer: &str) -> String {
    let orientation = "a=extmap:13 urn:3gpp:video-orientation";
    offer.replace(orientation, &format!("{orientation}\r\na=extmap:12 {}", dependency::URI))
}

#[test]
fn dependency_descriptors_are_for_viewers_that_read_both_forms() {
    let check = |text: &str, expected: u8| {
        let offer = Offer::parse(text).expect(text);
        let tracks = tracks(&offer, false, &mut StdRng::seed_from_u64(7));
        assert_eq!(tracks[1].extensions.dependency, expected);
        let answer = watch(&offer, &[]).expect(text).answer;
        assert_eq!(answer.contains(dependency::URI), expected != 0);
    };
    let offer = with_dependency(CHROMIUM_VIEW);
    check(&offer, 12);
    check(&offer.replace("a=extmap-allow-mixed", "a=x"), 0);
    check(CHROMIUM_VIEW, 0);
}

#[test]
fn arrivals_are_asked_for_where_there_is_a_choice_and_they_would_be_told() {
    const NUMBERS: &str = "transport-wide-cc-extensions-01";
    const FEEDBACK: &str = " transport-cc\r\n";
    let check = |text: &str, estimate: bool, expected: bool| {
        let offer = Offer::parse(text).expect(text);
        let ids =
            tracks(&offer, estimate, &mut StdRng::seed_from_u64(7)).into_iter().map(|t| t.extensions.transport_cc);
        assert_eq!(ids.collect::<Vec<_>>(), if expected { [3, 3] } else { [0, 0] });
        let request = WatchRequest { session: SessionId(1), stream: StreamId(1), published: Vec::new(), estimate };
        let answer = watch_for(&config(), &offer, request).expect(text).answer;
        assert_eq!((answer.contains(NUMBERS), answer.contains(FEEDBACK)), (expected, expected), "{answer}");
    };
    check(CHROMIUM_VIEW, false, false);
    check(CHROMIUM_VIEW, true, true);
    let untold: String =
        CHROMIUM_VIEW.split_inclusive('\n').filter(|l| !l.trim_end().ends_with(" transport-cc")).collect();
    assert!(untold.contains(NUMBERS));
    check(&untold, true, false);
    check(&CHROMIUM_VIEW.replace("transport-wide-cc-extensions-01", "unknown"), true, false);
}

#[test]
fn a_publisher_that_offers_dependency_descriptors_is_asked_for_them() {
    let offer = Offer::parse(CHROMIUM_SIMULCAST).expect("recorded");
    let request = PublishRequest {
        session: SessionId(1),
        stream: StreamId(1),
        generation: Generation(1),
        pli_interval: None,
        video_codecs: Vec::new(),
    };
    let negotiated = publish(Instant::ZERO, &config(), &offer, request, &mut StdRng::seed_from_u64(1));
    let answer = negotiated.expect("answered").answer;
    assert!(answer.contains(&format!("a=extmap:12 {}", dependency::URI)), "{answer}");
}

#[test]
fn what_a_viewer_was_answered_is_what_it_is_sent() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let mut rng = StdRng::seed_from_u64(7);
    let tracks = tracks(&offer, false, &mut rng);
    let kinds: Vec<_> = tracks.iter().map(|t| (t.kind, t.mid.as_str(), t.rtx_ssrc.is_some())).collect();
    assert_eq!(kinds, [(MediaKind::Audio, "0", false), (MediaKind::Video, "1", true)]);
    let ids = |t: &TrackSetup| {
        let e = t.extensions;
        [e.mid, e.audio_level, e.video_orientation, e.abs_capture_time]
    };
    assert_eq!([ids(&tracks[0]), ids(&tracks[1])], [[4, 1, 0, 0], [4, 0, 13, 0]]);
    let vp8 = &tracks[1].formats[0];
    assert_eq!((*vp8.payload_type, vp8.rtx.map(|p| *p), vp8.nack, vp8.pli, vp8.fir), (96, Some(97), true, true, true));
    let ssrcs = [Some(tracks[0].ssrc), Some(tracks[1].ssrc), tracks[1].rtx_ssrc];
    assert!(ssrcs[0] != ssrcs[1] && ssrcs[1] != ssrcs[2] && ssrcs[0] != ssrcs[2] && !ssrcs.contains(&Some(0)));
}

#[test]
fn a_viewer_that_cannot_take_what_is_published_is_refused() {
    let offer = Offer::parse(GST_VIEW).expect("recorded");
    let h264 = Format::parse(Codec::H264, "packetization-mode=1").expect("a format");
    assert!(watch(&offer, &[Format::OPUS, Format::VP8]).is_ok());
    let refused = watch(&offer, &[Format::OPUS, h264]).map(|n| n.answer);
    assert_eq!(refused, Err(NegotiationError::NoCommonCodec("the stream's H264".into())));
    // It wants no video at all: that is its own affair.
    let audio_only = GST_VIEW[..GST_VIEW.find("m=video").expect("video")].to_owned()
        + &GST_VIEW[GST_VIEW.find("m=audio").expect("audio")..];
    assert!(watch(&Offer::parse(&audio_only).expect("usable"), &[Format::OPUS, h264]).is_ok());
}

#[test]
fn a_viewers_offer_is_replayed_at_an_ice_restart() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let mut session = watch(&offer, &[]).expect("answered").session;
    let (old, pwd) = (offer.ice_ufrag.as_str(), "0123456789012345678901");
    let candidate = "candidate:9 1 udp 1 203.0.113.9 7 typ host".to_owned();
    let restarted = session.restart_ice("NewU", pwd, &[candidate]).expect("restarted");
    let again = session.restart_ice("Newer", pwd, &[]).expect("restarted again");
    assert!(restarted.ufrag != again.ufrag && again.ufrag != old);
    assert!(session.offered_candidate(SocketAddr::from(([127, 0, 0, 1], 41898))), "as offered at first");
}
