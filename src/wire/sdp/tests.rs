//! Recorded offers of real clients, repairs, refusals, answers.

use proptest::prelude::*;
use str0m::change::{SdpAnswer, SdpOffer};
use str0m::media::{Direction, MediaKind};

use super::*;
use crate::wire::codec::Codec;

const CHROMIUM: &str = include_str!("../../../tests/data/offers/chromium-publish-vp8.sdp");
const CHROMIUM_SIMULCAST: &str = include_str!("../../../tests/data/offers/chromium-publish-simulcast.sdp");
const CHROMIUM_VIEW: &str = include_str!("../../../tests/data/offers/chromium-view.sdp");
const AIORTC: &str = include_str!("../../../tests/data/offers/aiortc-publish.sdp");
const AIORTC_VIEW: &str = include_str!("../../../tests/data/offers/aiortc-view.sdp");
const FFMPEG: &str = include_str!("../../../tests/data/offers/ffmpeg-publish-h264.sdp");
const FIREFOX_VIEW: &str = include_str!("../../../tests/data/offers/firefox153-view.sdp");
const GST: &str = include_str!("../../../tests/data/offers/gst-publish-vp8.sdp");
const GST_VIEW: &str = include_str!("../../../tests/data/offers/gst-view-vp8.sdp");

const ALL: [&str; 8] = [CHROMIUM, CHROMIUM_SIMULCAST, CHROMIUM_VIEW, AIORTC, AIORTC_VIEW, FFMPEG, GST, GST_VIEW];

/// `"audio 0 sendonly 111:opus; video 1 sendonly 96:VP8/97"`.
fn facts(offer: &Offer) -> String {
    let format = |f: &OfferedFormat| match f.rtx {
        Some(rtx) => format!("{}:{}/{rtx}", f.payload_type, f.format),
        None => format!("{}:{}", f.payload_type, f.format),
    };
    let media = |m: &OfferedMedia| {
        let kind = if m.kind == MediaKind::Audio { "audio" } else { "video" };
        let direction = match m.direction {
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::SendRecv => "sendrecv",
            Direction::Inactive => "inactive",
        };
        let formats: Vec<String> = m.formats.iter().map(format).collect();
        format!("{kind} {} {direction} {}", m.mid, formats.join(" "))
    };
    offer.media.iter().map(media).collect::<Vec<_>>().join("; ")
}

fn unusable(text: &str) -> Unusable {
    match Offer::parse(text) {
        Err(OfferError::Unusable(unusable)) => unusable,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_recorded_offer_is_understood() {
    let check = |text: &str, ufrag: &str, expected: &str| {
        let offer = Offer::parse(text).expect(expected);
        assert_eq!(facts(&offer), expected);
        assert_eq!(offer.ice_ufrag, ufrag);
        assert!(offer.fingerprint.starts_with("sha-256 "), "{}", offer.fingerprint);
        SdpOffer::from_sdp_string(&offer.sdp()).expect("str0m reads what we wrote");
    };
    check(CHROMIUM, "CgqI", "audio 0 sendonly 111:opus; video 1 sendonly 96:VP8/97");
    check(CHROMIUM_SIMULCAST, "Ak74", "audio 0 sendonly 111:opus; video 1 sendonly 96:VP8/97");
    check(
        CHROMIUM_VIEW,
        "ixno",
        "audio 0 recvonly 111:opus; video 1 recvonly 96:VP8/97 98:VP9 profile 0/99 100:VP9 profile 2/101 \
         35:VP9 profile 1/36 37:VP9 profile 3/38 102:H264 42001f mode 1/103 104:H264 42001f mode 0/107 \
         108:H264 42e01f mode 1/109 114:H264 42e01f mode 0/115 116:H264 4d001f mode 1/117 39:H264 4d001f mode 0/40 \
         41:H264 f4001f mode 1/42 43:H264 f4001f mode 0/44 45:AV1 profile 0/46 47:AV1 profile 1/48",
    );
    check(AIORTC, "kFyg", "video 0 sendonly 97:VP8; audio 1 sendonly 96:opus");
    check(
        AIORTC_VIEW,
        "2dwC",
        "video 0 recvonly 97:VP8/98 99:H264 42001f mode 1/100 101:H264 42e01f mode 1/102; audio 1 recvonly 96:opus",
    );
    check(FFMPEG, "93b84e07", "audio 0 sendonly 111:opus; video 1 sendonly 106:H264 42000c mode 1/105");
    check(GST, "E1eEeFrBRKbyiBGnFUGMMtFSRAy2l1uU", "video video0 sendonly 96:VP8; audio audio1 sendonly 97:opus");
    check(GST_VIEW, "Ks7wLHZj0P8ooged6DDfjVuProHh/o29", "video video0 recvonly 96:VP8; audio audio1 recvonly 97:opus");
}

#[test]
fn feedback_and_parameters_are_those_of_the_payload_type() {
    let offer = Offer::parse(CHROMIUM).expect("recorded");
    let opus = &offer.media[0].formats[0];
    assert_eq!((opus.fmtp.as_str(), opus.clock_rate, opus.channels), ("minptime=10;useinbandfec=1", 48_000, Some(2)));
    assert!(opus.transport_cc && !opus.nack);
    let vp8 = &offer.media[1].formats[0];
    assert!(vp8.nack && vp8.pli && vp8.fir && vp8.transport_cc && vp8.remb);
    let ffmpeg = Offer::parse(FFMPEG).expect("recorded");
    let h264 = &ffmpeg.media[1].formats[0];
    assert!(h264.nack && !h264.pli && !h264.fir);
}

#[test]
fn a_wildcard_feedback_line_counts_for_every_format() {
    let text = FFMPEG.replace("a=rtcp-fb:106 nack", "a=rtcp-fb:* nack\r\na=rtcp-fb:* nack pli");
    let offer = Offer::parse(&text).expect("usable");
    assert!(offer.media[1].formats[0].pli);
    assert!(offer.sdp().contains("a=rtcp-fb:106 nack pli\r\n"));
}

#[test]
fn harmless_faults_are_repaired() {
    let check = |text: &str, expected: &str| {
        let offer = Offer::parse(text).expect(expected);
        assert!(offer.sdp().contains(expected), "{expected} not in\n{}", offer.sdp());
        SdpOffer::from_sdp_string(&offer.sdp()).expect("str0m reads what we wrote");
    };
    let audio_only = &FFMPEG[..FFMPEG.find("m=video").expect("video")];
    check(audio_only, "a=group:BUNDLE 0\r\n");
    check(&audio_only.replace("a=group:BUNDLE 0 1", "a=x"), "a=group:BUNDLE 0\r\n");
    check(&FFMPEG.replace("BUNDLE 0 1", "BUNDLE 1 0"), "a=group:BUNDLE 0 1\r\n");
    check(
        &FFMPEG.replace("profile-level-id=42000c", "profile-level-id=422001f"),
        "a=fmtp:106 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f\r\n",
    );
    check(GST, "a=candidate:1 1 udp 2015363327 127.0.0.1 46175 typ host\r\n");
    check(GST, "m=audio 9 UDP/TLS/RTP/SAVPF 97\r\n");
    check(&CHROMIUM.replace("\r\n", "\n"), "v=0\r\no=-");
    check(&CHROMIUM.replace("a=sendonly\r\n", "").replace("a=sendonly\n", ""), "a=sendrecv\r\n");
    check(&GST.replace("a=setup:actpass", "a=x"), "a=setup:actpass\r\n");
}

#[test]
fn simulcast_layers_are_read_in_their_order() {
    let offer = Offer::parse(CHROMIUM_SIMULCAST).expect("recorded");
    assert_eq!(offer.media(MediaKind::Video).expect("video").rids, ["l", "m", "h"]);
    for kept in ["a=rid:m send\r\n", "a=simulcast:send l;m;h\r\n", "sdes:rtp-stream-id", "sdes:repaired-rtp-stream-id"]
    {
        assert!(offer.sdp().contains(kept), "{kept} is not in\n{}", offer.sdp());
    }
    for gone in [" tcp ", "red/", "telephone"] {
        assert!(!offer.sdp().contains(gone), "{gone} is in\n{}", offer.sdp());
    }
    let edit = |to: &str| Offer::parse(&CHROMIUM_SIMULCAST.replace("a=simulcast:send l;m;h", to));
    let rids = |to: &str| edit(to).expect("usable").media(MediaKind::Video).expect("video").rids.clone();
    assert_eq!(rids("a=simulcast:send 0,x;~1;2"), ["0", "1", "2"], "OBS, alternatives, a paused layer");
    assert_eq!(rids("a=simulcast:recv a send l;m"), ["l", "m"]);
    for none in ["a=simulcast:send l", "a=simulcast:recv l;m", "a=x"] {
        assert!(rids(none).is_empty(), "{none}");
        assert!(!edit(none).expect("usable").sdp().contains("rtp-stream-id"), "{none}");
    }
    for refused in ["l;m;l", "a;b;c;d;e", "l;;h", "l;123456789", "l;m\u{e9}", "l;a-b"] {
        assert_eq!(
            edit(&format!("a=simulcast:send {refused}")).unwrap_err(),
            OfferError::Unusable(Unusable::Simulcast)
        );
    }
    let hidden = CHROMIUM_SIMULCAST.replace("sdes:rtp-stream-id", "sdes:other");
    assert_eq!(Offer::parse(&hidden).unwrap_err(), OfferError::Unusable(Unusable::Simulcast));
}

#[test]
fn of_several_announced_ssrcs_the_first_is_kept_with_its_rtx() {
    let offer = Offer::parse(CHROMIUM).expect("recorded");
    assert!(offer.sdp().contains("a=ssrc-group:FID 1200575082 3086418745\r\n"));
    let munged = CHROMIUM.to_owned()
        + "a=ssrc-group:SIM 1200575082 5 7\na=ssrc:5 cname:x\na=ssrc-group:FID 5 6\na=ssrc:6 cname:x\na=ssrc:7 cname:x\n";
    assert_eq!(Offer::parse(&munged).expect("usable").sdp(), offer.sdp());
    let with_rids = munged + "a=rid:a send\na=rid:b send\n";
    assert!(!Offer::parse(&with_rids).expect("usable").sdp().contains("a=ssrc:1200575082"));
}

#[test]
fn what_cannot_be_answered_whole_is_refused_with_a_reason() {
    let check = |text: &str, kind: &str| assert_eq!(unusable(text).kind(), kind, "{:?}", unusable(text));
    let edit = |from: &str, to: &str| {
        assert!(CHROMIUM.contains(from), "{from}");
        CHROMIUM.replace(from, to)
    };
    check("v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n", "unsupported-media");
    check(&(CHROMIUM.to_owned() + "m=application 9 UDP/DTLS/SCTP webrtc-datachannel\na=mid:2\n"), "data-channel");
    check(&(CHROMIUM.to_owned() + "m=text 9 UDP/TLS/RTP/SAVPF 100\na=mid:2\n"), "unsupported-media");
    let video = &GST_VIEW[GST_VIEW.find("m=video").expect("video")..GST_VIEW.find("m=audio").expect("audio")];
    check(
        &(GST_VIEW.to_owned()
            + &video.replace("video0", "more").replace("SAVPF 96", "SAVPF 98").replace("map:96", "map:98")),
        "too-many-media",
    );
    check(&edit("a=group:BUNDLE 0 1", "a=group:LS 0 1"), "not-bundled");
    check(&CHROMIUM.replacen("a=ice-ufrag:CgqI", "a=ice-ufrag:Other", 1), "not-bundled");
    check(&CHROMIUM.replacen("a=fingerprint:sha-256 1A", "a=fingerprint:sha-256 1B", 1), "not-bundled");
    check(&edit("a=mid:1", "a=mid:0"), "bad-mid");
    check(&edit("a=mid:1", "a=x"), "bad-mid");
    check(&edit("a=mid:1", "a=mid:longer-than-sixteen"), "bad-mid");
    check(&edit("a=rtcp-mux", "a=x"), "no-rtcp-mux");
    check(&edit("a=ice-ufrag:", "a=x:"), "bad-ice-credentials");
    check(&edit("a=ice-pwd:X3hlAeTc+VC1MrU+KdMw464D", "a=ice-pwd:short"), "bad-ice-credentials");
    check(&edit("a=ice-ufrag:CgqI", "a=ice-ufrag:a b c d"), "bad-ice-credentials");
    check(&edit("t=0 0", "t=0 0\na=ice-lite"), "ice-lite");
    check(&edit("a=fingerprint:", "a=x:"), "no-fingerprint");
    check(&edit("a=fingerprint:sha-256 1A:C8", "a=fingerprint:sha-256 1A"), "no-fingerprint");
    check(&edit("a=fingerprint:sha-256", "a=fingerprint:sha-1"), "weak-fingerprint");
    check(&edit("a=fingerprint:sha-256", "a=fingerprint:md5"), "weak-fingerprint");
    check(&edit("a=setup:actpass", "a=setup:holdconn"), "bad-setup");
    check(&edit("a=mid:0", "a=mid:0\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x"), "sdes-crypto");
    check(&edit("m=video 36930", "m=video 0").replace("BUNDLE 0 1", "BUNDLE 0"), "unsupported-media");
    check(&edit("UDP/TLS/RTP/SAVPF", "RTP/AVP"), "unsupported-transport");
    check(&edit("VP8/90000", "H263/90000"), "no-common-codec");
    check(&edit("opus/48000/2", "PCMA/8000"), "no-common-codec");
    check(&edit("a=rtpmap:96 VP8/90000", "a=rtpmap:96 VP8/90000\na=rtpmap:96 VP9/90000"), "duplicate-payload-type");
    check(&edit("SAVPF 96 97", "SAVPF 111 97").replace("a=rtpmap:96", "a=rtpmap:111"), "duplicate-payload-type");
    check(&edit("SAVPF 96 97", "SAVPF 96 96 97"), "duplicate-payload-type");
}

#[test]
fn what_is_no_sdp_is_a_syntax_error() {
    let check = |text: &str| {
        assert!(matches!(Offer::parse(text), Err(OfferError::Syntax { .. })), "{text:?}");
    };
    check("");
    check("hello");
    check("{\"type\":\"offer\"}");
    check("v=1\r\n");
    check("m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n");
    check(&CHROMIUM.replace("a=mid:0", "mid"));
    check(&CHROMIUM.replace("a=mid:0", "a=mid:\u{7}"));
    check(&CHROMIUM.replace("SAVPF 96 97", "SAVPF 96 x"));
    check(&CHROMIUM.replace("SAVPF 96 97", "SAVPF 96 256"));
    check(&"v=0\n".repeat(3000));
    check(&("v=0\ns=".to_owned() + &"x".repeat(70_000)));
}

#[test]
fn payload_types_that_look_like_rtcp_are_left_out() {
    let moved = CHROMIUM_VIEW.replace("98 99 100", "72 99 100").replace(":98 ", ":72 ").replace("apt=98", "apt=72");
    let offer = Offer::parse(&moved).expect("usable");
    assert!(offer.media[1].formats.iter().all(|f| f.payload_type != 72 && f.rtx != Some(99)));
    let beyond = CHROMIUM.replace("SAVPF 96 97", "SAVPF 200 97").replace(":96 ", ":200 ");
    assert_eq!(unusable(&beyond).kind(), "no-common-codec");
}

#[test]
fn candidates_are_capped() {
    let many: String = (1..100).map(|i| format!("a=candidate:{i} 1 udp {i} 127.0.0.1 {i} typ host\n")).collect();
    let offer = Offer::parse(&(CHROMIUM.to_owned() + &many)).expect("usable");
    assert_eq!(offer.sdp().matches("a=candidate:").count(), 32);
}

#[test]
fn an_ice_restart_changes_the_transport_only() {
    let offer = Offer::parse(CHROMIUM).expect("recorded");
    let pwd = "0123456789012345678901";
    let candidate = "candidate:9 1 udp 1 127.0.0.1 7 typ host".to_owned();
    let restarted = with_ice(&offer.sdp(), "NewU", pwd, std::slice::from_ref(&candidate));
    let again = Offer::parse(&restarted).expect("still an offer");
    assert_eq!((again.ice_ufrag.as_str(), again.ice_pwd.as_str()), ("NewU", pwd));
    assert_eq!(again.sdp(), restarted);
    assert_eq!(again.media, offer.media);
    assert_eq!(restarted.matches("a=candidate:").count(), 1);
    assert!(restarted.contains(&candidate));
    assert!(!restarted.contains("CgqI"));
}

#[test]
fn a_restart_can_be_answered_again_from_its_own_answer() {
    let first = restart_fragment(ANSWER, "", "");
    assert!(first.len() * 3 < ANSWER.len() * 2, "{first}");
    let expected = restart_fragment(ANSWER, "ufrag", "pwd");
    assert!(expected.contains("a=ice-pwd:pwd\r\n") && expected.contains("a=mid:0\r\n"), "{expected}");
    assert_eq!(restart_fragment(&first, "ufrag", "pwd"), expected);
}

/// In the shape of str0m 0.25's answers.
const ANSWER: &str = "v=0\r\no=str0m-0.25.0 7 2 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0 1\r\n\
    a=extmap-allow-mixed\r\na=msid-semantic:WMS s1 s2\r\na=ice-lite\r\n\
    m=audio 9 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP4 0.0.0.0\r\n\
    a=candidate:1 1 udp 5 ::1 8080 typ host\r\na=candidate:2 1 udp 4 127.0.0.1 8080 typ host ufrag abcd\r\n\
    a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\na=ice-options:trickle\r\na=setup:passive\r\na=mid:0\r\n\
    a=DIRECTION\r\na=rtcp-mux\r\na=rtpmap:111 opus/48000/2\r\na=fmtp:111 minptime=10;useinbandfec=1\r\n\
    a=msid:s1 t1\r\na=ssrc:1 cname:c1\r\na=ssrc:1 msid:s1 t1\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 96 97\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=DIRECTION\r\na=rtcp-mux\r\n\
    a=rtpmap:96 VP8/90000\r\na=rtpmap:97 rtx/90000\r\na=fmtp:97 apt=96\r\n\
    a=msid:s2 t2\r\na=ssrc:2 cname:c2\r\na=ssrc:2 msid:s2 t2\r\n";

#[test]
fn a_viewers_answer_has_one_stream_and_one_cname() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let answer = finish_answer(&ANSWER.replace("DIRECTION", "sendonly"), &offer).expect("whole");
    for line in [
        "a=msid-semantic: WMS s1\r\n",
        "a=msid:s1 t1\r\n",
        "a=msid:s1 t2\r\n",
        "a=ssrc:2 cname:c1\r\n",
        "a=ssrc:2 msid:s1 t2\r\n",
        "127.0.0.1 8080 typ host\r\na=candidate:1 1 udp 5 ::1 8080 typ host\r\na=end-of-candidates\r\n",
        "a=rtcp-mux\r\na=rtcp-rsize\r\n",
        "a=fmtp:111 minptime=10;useinbandfec=1\r\n",
        "a=extmap-allow-mixed\r\n",
    ] {
        assert!(answer.contains(line), "{line:?} not in\n{answer}");
    }
    assert_eq!(finish_answer(&answer, &offer).as_deref(), Ok(answer.as_str()), "finishing twice changes nothing");
}

#[test]
fn tcp_candidates_come_last() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let tcp = "a=candidate:9 1 tcp 3 10.0.0.1 8080 typ host tcptype passive\r\n";
    let text = ANSWER.replacen("a=candidate:", &format!("{tcp}a=candidate:"), 1);
    let answer = finish_answer(&text.replace("DIRECTION", "sendonly"), &offer).expect("whole");
    let end = format!("::1 8080 typ host\r\n{tcp}a=end-of-candidates\r\n");
    assert!(answer.contains(&end), "{end:?} not in\n{answer}");
}

#[test]
fn a_publishers_answer_asks_for_stereo_and_repeats_only_what_was_offered() {
    let answer = |opus_fmtp: &str, offer: &str| {
        let text =
            ANSWER.replace("DIRECTION", "recvonly").replace("a=fmtp:111 minptime=10;useinbandfec=1\r\n", opus_fmtp);
        finish_answer(&text, &Offer::parse(offer).expect("recorded")).expect("whole")
    };
    let with = answer("a=fmtp:111 minptime=10;stereo=0\r\n", CHROMIUM);
    assert!(with.contains("a=fmtp:111 minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1\r\n"), "{with}");
    let without = answer("", FFMPEG);
    assert!(without.contains("opus/48000/2\r\na=fmtp:111 useinbandfec=1;stereo=1;sprop-stereo=1\r\n"), "{without}");
    // FFmpeg offers reduced-size RTCP for video only.
    assert_eq!(without.matches("a=rtcp-rsize").count(), 1);
    assert!(!answer("", AIORTC).contains("extmap-allow-mixed"));
}

#[test]
fn an_answer_that_is_not_whole_is_refused() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let check = |text: &str, error| assert_eq!(finish_answer(text, &offer), Err(error));
    check(&ANSWER.replace("m=video 9", "m=video 0"), AnswerError::Rejected("video"));
    check(&ANSWER[..ANSWER.find("m=video").expect("video")], AnswerError::Mismatch);
    check("v=0\r\n", AnswerError::Mismatch);
    check(&(ANSWER.to_owned() + &"a=x:0123456789\r\n".repeat(600)), AnswerError::TooLong);
}

#[test]
fn a_fragment_may_carry_its_credentials_at_either_level() {
    let pwd = "0123456789012345678901";
    let candidate = "a=candidate:1 1 udp 7 127.0.0.1 9 typ host ufrag abcd\r\n";
    let session = format!("a=ice-ufrag:abcd\r\na=ice-pwd:{pwd}\r\nm=audio 9 RTP/AVP 0\r\na=mid:0\r\n{candidate}");
    let media =
        format!("m=audio 9 RTP/AVP 0\na=mid:0\na=ice-ufrag:abcd\na=ice-pwd:{pwd}\n{candidate}a=end-of-candidates");
    for (text, end_of_candidates) in [(&session, false), (&media, true)] {
        let expected = SdpFrag {
            ufrag: Some("abcd".into()),
            pwd: Some(pwd.into()),
            candidates: vec!["candidate:1 1 udp 7 127.0.0.1 9 typ host".into()],
            end_of_candidates,
        };
        assert_eq!(SdpFrag::parse(text), Ok(expected));
    }
    assert_eq!(SdpFrag::parse(&session.replace("ufrag abcd", "ufrag other")).expect("read").candidates, [""; 0]);
    assert_eq!(SdpFrag::parse("a=ice-ufrag:abcd\r\n"), Err(FragmentError::IceCredentials));
    for text in ["", "m=audio 9 RTP/AVP 0\r\n", "{}", "a=\u{0}"] {
        assert!(matches!(SdpFrag::parse(text), Err(FragmentError::Syntax { .. })), "{text:?}");
    }
}

#[test]
fn a_restart_is_answered_with_the_transport_of_the_first_m_line() {
    let offer = Offer::parse(CHROMIUM_VIEW).expect("recorded");
    let answer = finish_answer(&ANSWER.replace("DIRECTION", "sendonly"), &offer).expect("whole");
    let fragment = restart_fragment(&answer, "NewU", "newpassword-is-not-checked");
    assert_eq!(
        fragment,
        "a=group:BUNDLE 0 1\r\na=ice-lite\r\nm=audio 9 UDP/TLS/RTP/SAVPF 111\r\n\
         a=candidate:2 1 udp 4 127.0.0.1 8080 typ host\r\na=candidate:1 1 udp 5 ::1 8080 typ host\r\n\
         a=end-of-candidates\r\na=ice-ufrag:NewU\r\na=ice-pwd:newpassword-is-not-checked\r\n\
         a=ice-options:trickle\r\na=mid:0\r\n"
    );
}

/// What str0m answers to some of the recorded offers.
const FINISHED: [(&str, &str); 5] = [
    (CHROMIUM_SIMULCAST, include_str!("../../../tests/data/answers/chromium-publish-simulcast.sdp")),
    (CHROMIUM_VIEW, include_str!("../../../tests/data/answers/chromium-view.sdp")),
    (FFMPEG, include_str!("../../../tests/data/answers/ffmpeg-publish-h264.sdp")),
    (FIREFOX_VIEW, include_str!("../../../tests/data/answers/firefox153-view.sdp")),
    (GST_VIEW, include_str!("../../../tests/data/answers/gst-view-vp8.sdp")),
];

#[test]
fn what_str0m_answers_to_real_clients_is_finished() {
    for (offer, answer) in FINISHED {
        let offer = Offer::parse(offer).expect("recorded");
        let finished = finish_answer(answer, &offer).expect(answer);
        SdpAnswer::from_sdp_string(&finished).expect(&finished);
        for name in ["a=msid:", " cname:"] {
            let said = finished.lines().filter_map(|l| l.split_once(name)?.1.split(' ').next());
            assert!(said.collect::<std::collections::BTreeSet<_>>().len() <= 1, "{name} in\n{finished}");
        }
        assert_eq!(finished.matches("a=end-of-candidates\r\n").count(), 1, "{finished}");
    }
}

/// Lines dropped, doubled, swapped and bytes changed.
type Edits = Vec<(usize, usize, char, usize)>;

fn edits() -> impl Strategy<Value = Edits> {
    proptest::collection::vec((0usize..400, 0usize..5, any::<char>(), 0usize..80), 0..6)
}

fn edited(text: &str, edits: Edits) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (at, what, letter, column) in edits {
        let at = at % lines.len();
        match what {
            0 if lines.len() > 1 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            2 => {
                let last = lines.len() - 1;
                lines.swap(at, last);
            }
            3 => lines[at].push(letter),
            _ => lines[at] = lines[at].chars().enumerate().map(|(i, c)| if i == column { letter } else { c }).collect(),
        }
    }
    lines.join("\r\n")
}

/// A recorded offer, edited.
fn mutated() -> impl Strategy<Value = String> {
    (0..ALL.len(), edits()).prop_map(|(which, edits)| edited(ALL[which], edits))
}

proptest! {
    #[test]
    fn nothing_that_is_read_panics(text in "\\PC{0,200}") {
        let _ = Offer::parse(&text);
        let _ = Offer::parse(&format!("v=0\r\n{text}"));
        let _ = SdpFrag::parse(&text);
        let _ = restart_fragment(&text, "a", "b");
        let _ = finish_answer(&text, &Offer::parse(CHROMIUM).expect("recorded"));
    }

    #[test]
    fn what_was_repaired_needs_no_repair(text in mutated()) {
        if let Ok(offer) = Offer::parse(&text) {
            let again = Offer::parse(&offer.sdp()).expect("our own text");
            prop_assert_eq!(&again.sdp(), &offer.sdp());
            prop_assert_eq!(&again.media, &offer.media);
            // str0m may still refuse; it must not panic while it reads.
            let _ = SdpOffer::from_sdp_string(&offer.sdp());
            prop_assert!(SdpOffer::from_sdp_string(&offer.transport()).is_ok(), "{}", offer.transport());
            let transport = Offer::parse(&offer.transport()).expect("our own text");
            prop_assert_eq!((&transport.ice_ufrag, &transport.ice_pwd), (&offer.ice_ufrag, &offer.ice_pwd));
            prop_assert_eq!((&transport.fingerprint, transport.setup), (&offer.fingerprint, offer.setup));
            prop_assert_eq!(&transport.candidates, &offer.candidates);
        }
        let _ = SdpFrag::parse(&text);
    }

    #[test]
    fn what_was_finished_needs_no_finishing(which in 0..FINISHED.len(), edits in edits()) {
        let (offer, answer) = FINISHED[which];
        let (offer, answer) = (Offer::parse(offer).expect("recorded"), edited(answer, edits));
        if let Ok(finished) = finish_answer(&answer, &offer) {
            prop_assert_eq!(finish_answer(&finished, &offer), Ok(finished.clone()), "of\n{}", answer);
            let _ = SdpAnswer::from_sdp_string(&finished);
        }
    }

    #[test]
    fn a_viewers_answer_can_be_read_and_is_whole(text in mutated()) {
        let Ok(offer) = Offer::parse(&text) else { return Ok(()) };
        let track = |ssrc| SendingTrack { name: "t".into(), ssrc, rtx_ssrc: Some(ssrc + 1) };
        let ours = Sending {
            id: 1,
            ufrag: "abcd",
            pwd: "0123456789012345678901",
            fingerprint: &offer.fingerprint["sha-256 ".len()..],
            candidates: &["candidate:1 1 udp 5 ::1 8080 typ host".to_owned()],
            stream: "s",
            cname: "c",
            estimate: true,
            tracks: &[track(1), track(3)],
        };
        let answer = viewer_answer(&offer, &ours).expect("short enough");
        let read = SdpAnswer::from_sdp_string(&answer);
        prop_assert!(read.is_ok(), "{:?} in\n{answer}", read);
        prop_assert_eq!(finish_answer(&answer, &offer), Ok(answer.clone()), "nothing is left to finish");
        prop_assert_eq!(answer.matches("\r\nm=").count(), offer.media.len());
    }
}

#[test]
fn opus_keeps_its_name_in_any_spelling() {
    assert_eq!(Offer::parse(GST).expect("recorded").media[1].formats[0].format.codec, Codec::Opus);
}
