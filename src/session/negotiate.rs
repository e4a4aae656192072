//! From a client's offer to a session and its answer.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use str0m::change::SdpOffer;
use str0m::format::{self, CodecConfig, CodecSpec, FormatParams, PayloadParams};
use str0m::media::{Frequency, MediaKind, Mid, Pt};
use str0m::net::TcpType;
use str0m::rtp::{Extension, ExtensionMap};
use str0m::{Candidate, IceCreds, Rtc};

use super::egress::{ExtensionIds, TrackSetup};
use super::peer::{Candidates, Peer, PeerError};
use super::publisher::Publisher;
use super::{Session, ViewerSetup};
use crate::id::{self, Generation, SessionId, StreamId};
use crate::srtp::dtls::{self, Certificate, KeySlot, Observed};
use crate::units::{Epoch, Instant};
use crate::wire::codec::{Codec, Format};
use crate::wire::sdp::{Offer, OfferedFormat};

/// 16 characters of ufrag carry 96 bits: it is what finds a session, so it must not be guessed (RFC 8839 §5.4).
const UFRAG_CHARS: usize = 16;
/// RFC 8839 §5.4 wants 22 at least (128 bits).
const PWD_CHARS: usize = 24;

/// What all sessions of a node have in common.
#[derive(Clone, Debug)]
pub struct PeerConfig {
    pub epoch: Epoch,
    /// Host candidates, in the order of the answer (IPv4 first). Index = `SocketId`.
    pub candidates: Arc<[SocketAddr]>,
    /// Where TCP connections are accepted (RFC 6544); after the others in the answer. Index as in `SocketId::stream`.
    pub tcp_candidates: Arc<[SocketAddr]>,
    /// str0m's ciphers with our DTLS; one for the process.
    pub crypto: Arc<str0m::config::CryptoProvider>,
    pub certificate: Certificate,
}

/// What a publisher's session is for.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    pub session: SessionId,
    pub stream: StreamId,
    pub generation: Generation,
    /// A PLI so often, whoever watches (the legacy endpoint: 3 s).
    pub pli_interval: Option<Duration>,
    /// Bind only these video codecs; empty means all that we pass through.
    pub video_codecs: Vec<Codec>,
}

/// What a viewer's session is for.
#[derive(Clone, Debug)]
pub struct WatchRequest {
    pub session: SessionId,
    pub stream: StreamId,
    /// What the publisher sends now, audio and video; empty while there is none. A viewer that can take none of it is
    /// refused; otherwise it accepts all of its formats that we pass through, so that a later publisher may use
    /// another codec.
    pub published: Vec<Format>,
}

/// A session that has not met its client yet.
pub struct Negotiated {
    pub session: Box<Session>,
    /// str0m's answer, not yet finished by [`crate::wire::sdp`].
    pub answer: String,
    pub local_ufrag: String,
    pub local_pwd: String,
}

/// One payload type that the answer accepted.
#[derive(Clone, Copy, Debug)]
pub struct BoundFormat {
    pub payload_type: Pt,
    pub format: Format,
    pub rtx: Option<Pt>,
    pub nack: bool,
    pub pli: bool,
    pub fir: bool,
}

/// The offer can be read, but no session can be made of it. Answered 422.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    #[error("no codec in common for {0}")]
    NoCommonCodec(String),
    #[error("the offer cannot be answered: {0}")]
    Unusable(String),
}

/// Builds a publisher's session (we receive).
///
/// # Errors
/// [`NegotiationError`]: answered 422 by control.
pub fn publish(
    now: Instant,
    config: &PeerConfig,
    offer: &Offer,
    request: PublishRequest,
    rng: &mut StdRng,
) -> Result<Negotiated, NegotiationError> {
    let usable = |f: &OfferedFormat| {
        f.format.codec.kind() == MediaKind::Audio
            || request.video_codecs.is_empty()
            || request.video_codecs.contains(&f.format.codec)
    };
    // Feedback for the sender's bandwidth estimation is worth it on the one leg that sends to us.
    let mut extensions = common_extensions();
    extensions.set(2, Extension::AbsoluteSendTime);
    extensions.set(3, Extension::TransportSequenceNumber);
    let built = build(now, config, offer, "sendonly", usable, extensions, true, rng)?;
    let formats = built.media.into_iter().flat_map(|(_, _, formats)| formats).collect();
    let publisher = Publisher::new(request.stream, request.generation, formats, request.pli_interval);
    let session = Session::publisher(now, request.session, request.stream, built.peer, publisher);
    Ok(Negotiated {
        session: Box::new(session.with(offer, built.observed)),
        answer: built.answer,
        local_ufrag: built.creds.ufrag,
        local_pwd: built.creds.pass,
    })
}

/// Builds a viewer's session (we send).
///
/// # Errors
/// [`NegotiationError`]: answered 422 by control.
pub fn watch(
    now: Instant,
    config: &PeerConfig,
    offer: &Offer,
    request: WatchRequest,
    rng: &mut StdRng,
) -> Result<Negotiated, NegotiationError> {
    // Without an estimator nobody reads transport-cc feedback, and each report costs 3 µs: not negotiated here.
    let built = build(now, config, offer, "recvonly", |_| true, common_extensions(), false, rng)?;
    for published in &request.published {
        let Some((_, _, formats)) = built.media.iter().find(|(kind, ..)| *kind == published.codec.kind()) else {
            // The client does not want this kind at all.
            continue;
        };
        let accepted: Vec<Format> = formats.iter().map(|f| f.format).collect();
        if Format::pick(&accepted, *published).is_none() {
            return Err(NegotiationError::NoCommonCodec(format!("the stream's {}", published.codec)));
        }
    }
    let cname = cname(&built.answer).to_owned();
    let viewer = ViewerSetup::new(built.tracks, built.keys, cname, rng.random());
    let session = Session::viewer(now, request.session, request.stream, built.peer, viewer);
    Ok(Negotiated {
        session: Box::new(session.with(offer, built.observed)),
        answer: built.answer,
        local_ufrag: built.creds.ufrag,
        local_pwd: built.creds.pass,
    })
}

struct Built {
    peer: Peer,
    answer: String,
    creds: IceCreds,
    media: Vec<(MediaKind, Mid, Vec<BoundFormat>)>,
    /// What a viewer's own media plane needs; empty for a publisher.
    tracks: Vec<TrackSetup>,
    /// Stays empty for a publisher, whose keys are str0m's.
    keys: KeySlot,
    observed: Observed,
}

#[expect(clippy::too_many_arguments, reason = "two callers side by side above; a struct would only rename them")]
fn build(
    now: Instant,
    config: &PeerConfig,
    offer: &Offer,
    direction: &str,
    usable: impl Fn(&OfferedFormat) -> bool,
    extensions: ExtensionMap,
    we_receive: bool,
    rng: &mut StdRng,
) -> Result<Built, NegotiationError> {
    let mut params = Vec::new();
    for media in &offer.media {
        let accepted = media.formats.iter().filter(|f| usable(f)).filter_map(|f| payload_params(f, we_receive));
        let before = params.len();
        params.extend(accepted);
        if params.len() == before {
            return Err(NegotiationError::NoCommonCodec(media.kind.to_string()));
        }
    }
    let creds = IceCreds { ufrag: id::ice_chars(rng, UFRAG_CHARS), pass: id::ice_chars(rng, PWD_CHARS) };
    let sdp = SdpOffer::from_sdp_string(&force_direction(&offer.sdp, direction))
        .map_err(|e| NegotiationError::Unusable(e.to_string()))?;

    // str0m asserts on some inconsistent offers; the sanitiser knows those we know of, this catches the rest.
    let negotiated = catch_unwind(AssertUnwindSafe(|| {
        let ((mut rtc, observed, keys), start) = {
            let start = config.epoch.to_std(now);
            let mut rtc_config = Rtc::builder()
                .set_crypto_provider(config.crypto.clone())
                .set_dtls_cert(config.certificate.to_str0m())
                .set_ice_lite(true)
                .set_rtp_mode(true)
                .set_local_ice_credentials(creds.clone())
                .set_extension_map(extensions);
            *rtc_config.codec_config() = CodecConfig::new_from_payload_params(params);
            let built = if we_receive {
                let (rtc, observed) = dtls::observe(|| rtc_config.build(start));
                (rtc, observed, KeySlot::default())
            } else {
                dtls::divert(|| rtc_config.build(start))
            };
            (built, start)
        };
        // Sets str0m's clock before anything else asks it.
        let _ = rtc.handle_input(str0m::Input::Timeout(start));
        for candidate in config.candidates.iter() {
            let host = Candidate::host(*candidate, "udp").map_err(|e| e.to_string())?;
            rtc.add_local_candidate(host);
        }
        for candidate in config.tcp_candidates.iter() {
            // str0m's type preference for TCP is 36 below UDP's, so UDP wins wherever it works (RFC 6544 §4.2).
            let host = Candidate::builder().tcp().host(*candidate).tcptype(TcpType::Passive).build();
            rtc.add_local_candidate(host.map_err(|e| e.to_string())?);
        }
        let answer = rtc.sdp_api().accept_offer(sdp).map_err(|e| e.to_string())?;
        Ok::<_, String>((rtc, observed, keys, answer.to_sdp_string()))
    }))
    .unwrap_or_else(|_| Err("inconsistent SDP".into()));
    let (mut rtc, observed, keys, answer) = negotiated.map_err(NegotiationError::Unusable)?;

    let mut media = Vec::new();
    let mut tracks = Vec::new();
    for offered in &offer.media {
        let mid = Mid::from(offered.mid.as_str());
        let bound = rtc.media(mid).filter(|m| !m.disabled()).map(|m| bound_formats(&rtc, m.remote_pts(), offered));
        let formats = bound.unwrap_or_default();
        if formats.is_empty() {
            return Err(NegotiationError::NoCommonCodec(offered.kind.to_string()));
        }
        if !we_receive {
            tracks.extend(take_track(&mut rtc, offered.kind, mid, &formats));
        }
        media.push((offered.kind, mid, formats));
    }
    let candidates = Candidates { udp: config.candidates.clone(), tcp: config.tcp_candidates.clone() };
    let peer = Peer::new(rtc, config.epoch, candidates, !we_receive);
    Ok(Built { peer, answer, creds, media, tracks, keys, observed })
}

/// Replays the offer with the client's new credentials; returns ours.
pub(super) fn restart(rtc: &mut Rtc, sdp: &str, we_receive: bool) -> Result<IceCreds, PeerError> {
    let direction = if we_receive { "sendonly" } else { "recvonly" };
    let offer = SdpOffer::from_sdp_string(&force_direction(sdp, direction))
        .map_err(|e| str0m::RtcError::RemoteSdp(e.to_string()))?;
    let mids: Vec<Mid> = offer_mids(sdp).collect();
    rtc.sdp_api().accept_offer(offer)?;
    if !we_receive {
        // It has made streams to send on again.
        for mid in mids {
            let _ = take_track(rtc, MediaKind::Video, mid, &[]);
        }
    }
    Ok(rtc.direct_api().local_ice_credentials())
}

fn offer_mids(sdp: &str) -> impl Iterator<Item = Mid> {
    sdp.lines().filter_map(|l| l.strip_prefix("a=mid:")).map(|m| Mid::from(m.trim_end()))
}

/// Takes a stream that we send on out of str0m's hands: its SSRCs and header extensions are in the answer, and from here
/// on nobody but us may seal anything under them.
pub(super) fn take_track(rtc: &mut Rtc, kind: MediaKind, mid: Mid, formats: &[BoundFormat]) -> Option<TrackSetup> {
    let map = rtc.media(mid)?.remote_extmap().clone();
    let id = |extension| map.id_of(extension).unwrap_or_default();
    let extensions = ExtensionIds {
        mid: id(Extension::RtpMid),
        audio_level: id(Extension::AudioLevel),
        video_orientation: id(Extension::VideoOrientation),
        abs_capture_time: id(Extension::AbsoluteCaptureTime),
    };
    let mut direct = rtc.direct_api();
    let stream = direct.stream_tx_by_mid(mid, None)?;
    let (ssrc, rtx_ssrc) = (stream.ssrc(), stream.rtx());
    direct.remove_stream_tx(ssrc);
    Some(TrackSetup {
        kind,
        mid: mid.to_string(),
        ssrc: *ssrc,
        rtx_ssrc: rtx_ssrc.map(|s| *s),
        formats: formats.to_vec(),
        extensions,
    })
}

/// The name that the answer gives us; the finished answer has the same for audio and video.
fn cname(answer: &str) -> &str {
    let attribute = answer.lines().find_map(|l| l.strip_prefix("a=ssrc:")?.split_once(" cname:"));
    attribute.map_or("manycast", |(_, cname)| cname.trim_end())
}

/// The payload types of one m-line as str0m settled them.
fn bound_formats(rtc: &Rtc, remote: &[Pt], offered: &crate::wire::sdp::OfferedMedia) -> Vec<BoundFormat> {
    let of = |pt: Pt| offered.formats.iter().find(|f| f.payload_type == *pt);
    let params = rtc.codec_config().params().iter().filter(|p| remote.contains(&p.pt()));
    params
        .filter_map(|p| {
            Some(BoundFormat {
                payload_type: p.pt(),
                format: of(p.pt())?.format,
                rtx: p.resend(),
                nack: p.fb_nack(),
                pli: p.fb_pli(),
                fir: p.fb_fir(),
            })
        })
        .collect()
}

/// Every format that the client offers is configured exactly as it offers it: payload types and profiles are then
/// its own, and nothing is refused only because str0m's built-in table spells a profile differently.
fn payload_params(offered: &OfferedFormat, transport_cc: bool) -> Option<PayloadParams> {
    let codec = match offered.format.codec {
        Codec::Opus => format::Codec::Opus,
        Codec::Vp8 => format::Codec::Vp8,
        Codec::Vp9 => format::Codec::Vp9,
        Codec::H264 => format::Codec::H264,
        Codec::H265 => format::Codec::H265,
        Codec::Av1 => format::Codec::Av1,
    };
    let spec = CodecSpec {
        codec,
        clock_rate: Frequency::new(offered.clock_rate)?,
        channels: offered.channels,
        format: FormatParams::parse_line(&offered.fmtp),
    };
    let pt = Pt::new_with_value(offered.payload_type);
    let mut params = PayloadParams::new(pt, offered.rtx.map(Pt::new_with_value), spec);
    params.set_fb_nack(offered.nack);
    params.set_fb_pli(offered.pli);
    params.set_fb_fir(offered.fir);
    params.set_fb_remb(offered.remb);
    params.set_fb_transport_cc(offered.transport_cc && transport_cc);
    Some(params)
}

/// What passes from end to end, and the mid that BUNDLE needs. The ids are only proposals: the offer's win.
fn common_extensions() -> ExtensionMap {
    let mut map = ExtensionMap::empty();
    map.set(1, Extension::AudioLevel);
    map.set(4, Extension::RtpMid);
    map.set(9, Extension::AbsoluteCaptureTime);
    map.set(13, Extension::VideoOrientation);
    map
}

/// A `sendrecv` offer becomes the one-way offer that it is used for; the sanitiser has written every direction out.
fn force_direction(sdp: &str, direction: &str) -> String {
    sdp.replace("a=sendrecv\r\n", &format!("a={direction}\r\n"))
}
