//! From a client's offer to a session and its answer.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use str0m::change::SdpOffer;
use str0m::format::{self, CodecConfig, CodecSpec, FormatParams, PayloadParams};
use str0m::media::{Frequency, MediaKind, Mid, Pt, Rid};
use str0m::net::TcpType;
use str0m::rtp::{Extension, ExtensionMap};
use str0m::{Candidate, IceCreds, Rtc, RtcConfig};

use super::peer::{Candidates, Peer, PeerError};
use super::publisher::Publisher;
use super::track::{ExtensionIds, TrackSetup};
use super::{Session, ViewerSetup};
use crate::id::{self, Generation, SessionId, StreamId};
use crate::srtp::dtls::{self, Certificate};
use crate::units::{Epoch, Instant};
use crate::wire::codec::{Codec, Format};
use crate::wire::dependency;
use crate::wire::rtp::ExtensionForms;
use crate::wire::sdp::{
    AnswerError, Offer, OfferedFormat, OfferedMedia, Sending, SendingTrack, finish_answer, viewer_answer,
};

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
    /// The publisher sends several layers: what this viewer's path carries is worth estimating.
    pub estimate: bool,
}

/// A session that has not met its client yet.
pub struct Negotiated {
    pub session: Box<Session>,
    /// As it goes to the client.
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
    #[error(transparent)]
    Answer(#[from] AnswerError),
}

/// Builds a publisher's session (we receive). str0m negotiates and takes the media.
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
    let mut params = Vec::new();
    for media in &offer.media {
        let before = params.len();
        params.extend(media.formats.iter().filter(|f| usable(f)).filter_map(payload_params));
        if params.len() == before {
            return Err(NegotiationError::NoCommonCodec(media.kind.to_string()));
        }
    }
    let sdp = offer.sdp();
    let creds = credentials(rng);
    let (rtc, observed, answer) = fenced(|| {
        let mut rtc_config = rtc_config(config, &creds).set_extension_map(publisher_extensions());
        *rtc_config.codec_config() = CodecConfig::new_from_payload_params(params);
        let (mut rtc, observed) = dtls::observe(|| rtc_config.build(config.epoch.to_std(now)));
        start(&mut rtc, now, config)?;
        let answer = rtc.sdp_api().accept_offer(read_offer(&sdp)?).map_err(|e| e.to_string())?;
        Ok((rtc, observed, answer.to_sdp_string()))
    })?;
    let answer = finish_answer(&answer, offer)?;

    let mut formats = Vec::new();
    for offered in &offer.media {
        let settled = rtc.media(Mid::from(offered.mid.as_str())).filter(|m| !m.disabled());
        let bound = settled.map(|m| bound_formats(&rtc, m.remote_pts(), offered)).unwrap_or_default();
        if bound.is_empty() {
            return Err(NegotiationError::NoCommonCodec(offered.kind.to_string()));
        }
        formats.extend(bound);
    }
    let rids = offer.media(MediaKind::Video).map(|m| m.rids.iter().map(|rid| Rid::from(rid.as_str())).collect());
    let rids = rids.unwrap_or_default();
    let publisher = Publisher::new(request.stream, request.generation, formats, rids, request.pli_interval);
    let peer = Peer::new(
        rtc,
        config.epoch,
        Candidates { udp: config.candidates.clone(), tcp: config.tcp_candidates.clone() },
        false,
    );
    let session = Session::publisher(now, request.session, request.stream, peer, publisher);
    Ok(Negotiated {
        session: Box::new(session.with(sdp, observed)),
        answer,
        local_ufrag: creds.ufrag,
        local_pwd: creds.pass,
    })
}

/// Builds a viewer's session (we send). str0m learns of the transport only: media is ours, and so is the answer.
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
    for published in &request.published {
        // A client that does not want this kind at all has no m-line of it.
        let Some(media) = offer.media(published.codec.kind()) else { continue };
        let accepted: Vec<Format> = media.formats.iter().map(|f| f.format).collect();
        if Format::pick(&accepted, *published).is_none() {
            return Err(NegotiationError::NoCommonCodec(format!("the stream's {}", published.codec)));
        }
    }
    let transport = offer.transport();
    let creds = credentials(rng);
    let (rtc, observed, keys, candidates) = fenced(|| {
        let rtc_config = rtc_config(config, &creds).clear_codecs().enable_opus(true, false);
        let (mut rtc, observed, keys) = dtls::divert(|| rtc_config.build(config.epoch.to_std(now)));
        let candidates = start(&mut rtc, now, config)?;
        rtc.sdp_api().accept_offer(read_offer(&transport)?).map_err(|e| e.to_string())?;
        Ok((rtc, observed, keys, candidates))
    })?;

    let (stream, cname) = (id::session_token(rng), id::session_token(rng));
    let tracks = tracks(offer, request.estimate, rng);
    let named: Vec<SendingTrack> = tracks.iter().map(|t| sending(t, rng)).collect();
    let sending = Sending {
        id: rng.random::<u64>() >> 1,
        ufrag: &creds.ufrag,
        pwd: &creds.pass,
        fingerprint: &config.certificate.fingerprint(),
        candidates: &candidates,
        stream: &stream,
        cname: &cname,
        estimate: request.estimate,
        tracks: &named,
    };
    let answer = viewer_answer(offer, &sending)?;
    let viewer = ViewerSetup::new(tracks, keys, cname, rng.random());
    let peer = Peer::new(
        rtc,
        config.epoch,
        Candidates { udp: config.candidates.clone(), tcp: config.tcp_candidates.clone() },
        true,
    );
    let session = Session::viewer(now, request.session, request.stream, peer, viewer);
    Ok(Negotiated {
        session: Box::new(session.with(transport, observed)),
        answer,
        local_ufrag: creds.ufrag,
        local_pwd: creds.pass,
    })
}

fn credentials(rng: &mut StdRng) -> IceCreds {
    IceCreds { ufrag: id::ice_chars(rng, UFRAG_CHARS), pass: id::ice_chars(rng, PWD_CHARS) }
}

/// str0m asserts on some inconsistent offers; the sanitiser knows those we know of, this catches the rest.
fn fenced<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, NegotiationError> {
    let result = catch_unwind(AssertUnwindSafe(work));
    result.unwrap_or_else(|_| Err("inconsistent SDP".into())).map_err(NegotiationError::Unusable)
}

fn rtc_config(config: &PeerConfig, creds: &IceCreds) -> RtcConfig {
    Rtc::builder()
        .set_crypto_provider(config.crypto.clone())
        .set_dtls_cert(config.certificate.to_str0m())
        .set_ice_lite(true)
        .set_rtp_mode(true)
        .set_local_ice_credentials(creds.clone())
}

/// Sets str0m's clock, before anything else asks it, and our candidates; returns them as an answer writes them.
fn start(rtc: &mut Rtc, now: Instant, config: &PeerConfig) -> Result<Vec<String>, String> {
    let _ = rtc.handle_input(str0m::Input::Timeout(config.epoch.to_std(now)));
    let mut written = Vec::with_capacity(config.candidates.len());
    for candidate in config.candidates.iter() {
        let host = Candidate::host(*candidate, "udp").map_err(|e| e.to_string())?;
        written.extend(rtc.add_local_candidate(host).map(|known| known.to_sdp_string()));
    }
    for candidate in config.tcp_candidates.iter() {
        // str0m's type preference for TCP is 36 below UDP's, so UDP wins wherever it works (RFC 6544 §4.2).
        let host = Candidate::builder().tcp().host(*candidate).tcptype(TcpType::Passive).build();
        let host = host.map_err(|e| e.to_string())?;
        written.extend(rtc.add_local_candidate(host).map(|known| known.to_sdp_string()));
    }
    Ok(written)
}

fn read_offer(sdp: &str) -> Result<SdpOffer, String> {
    // A `sendrecv` offer becomes the one-way offer that it is used for; the sanitiser has written every direction out.
    SdpOffer::from_sdp_string(&sdp.replace("a=sendrecv\r\n", "a=sendonly\r\n")).map_err(|e| e.to_string())
}

/// Replays the offer with the client's new credentials; returns ours.
pub(super) fn restart(rtc: &mut Rtc, sdp: &str) -> Result<IceCreds, PeerError> {
    rtc.sdp_api().accept_offer(read_offer(sdp).map_err(str0m::RtcError::RemoteSdp)?)?;
    Ok(rtc.direct_api().local_ice_credentials())
}

/// What we send, one for each m-line.
fn tracks(offer: &Offer, estimate: bool, rng: &mut StdRng) -> Vec<TrackSetup> {
    let mut taken = vec![0];
    let mut ssrc = || {
        loop {
            let ssrc: u32 = rng.random();
            if !taken.contains(&ssrc) {
                taken.push(ssrc);
                return ssrc;
            }
        }
    };
    let track = |media: &OfferedMedia| TrackSetup {
        kind: media.kind,
        mid: media.mid.clone(),
        ssrc: ssrc(),
        rtx_ssrc: media.formats.iter().any(|f| f.rtx.is_some()).then(&mut ssrc),
        formats: media.formats.iter().map(bound_format).collect(),
        extensions: extension_ids(media, offer.mixed_extensions, estimate && media.tells_arrivals()),
    };
    offer.media.iter().map(track).collect()
}

fn sending(track: &TrackSetup, rng: &mut StdRng) -> SendingTrack {
    SendingTrack { name: id::session_token(rng), ssrc: track.ssrc, rtx_ssrc: track.rtx_ssrc }
}

fn extension_ids(media: &OfferedMedia, mixed: bool, estimate: bool) -> ExtensionIds {
    let id = |extension: Extension| media.extension(extension.as_uri()).unwrap_or_default();
    ExtensionIds {
        mid: id(Extension::RtpMid),
        audio_level: id(Extension::AudioLevel),
        video_orientation: id(Extension::VideoOrientation),
        abs_capture_time: id(Extension::AbsoluteCaptureTime),
        transport_cc: if estimate { id(Extension::TransportSequenceNumber) } else { 0 },
        dependency: if mixed { media.extension(dependency::URI).unwrap_or_default() } else { 0 },
        forms: if mixed { ExtensionForms::Mixed } else { ExtensionForms::OneByte },
    }
}

fn bound_format(offered: &OfferedFormat) -> BoundFormat {
    BoundFormat {
        payload_type: Pt::new_with_value(offered.payload_type),
        format: offered.format,
        rtx: offered.rtx.map(Pt::new_with_value),
        nack: offered.nack,
        pli: offered.pli,
        fir: offered.fir,
    }
}

/// The payload types of one m-line as str0m settled them.
fn bound_formats(rtc: &Rtc, remote: &[Pt], offered: &OfferedMedia) -> Vec<BoundFormat> {
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
fn payload_params(offered: &OfferedFormat) -> Option<PayloadParams> {
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
    params.set_fb_transport_cc(offered.transport_cc);
    Some(params)
}

/// What passes from end to end, the mid that BUNDLE needs, and, on the one leg that sends to us, feedback for the sender's
/// bandwidth estimation. The ids are only proposals: the offer's win.
fn publisher_extensions() -> ExtensionMap {
    let mut map = ExtensionMap::empty();
    map.set(1, Extension::AudioLevel);
    map.set(10, Extension::RtpStreamId);
    map.set(11, Extension::RepairedRtpStreamId);
    map.set(2, Extension::AbsoluteSendTime);
    map.set(3, Extension::TransportSequenceNumber);
    map.set(4, Extension::RtpMid);
    map.set(9, Extension::AbsoluteCaptureTime);
    map.set(12, Extension::with_serializer(dependency::URI, dependency::Serializer));
    map.set(13, Extension::VideoOrientation);
    map
}

#[cfg(test)]
#[path = "negotiate_tests.rs"]
mod tests;
