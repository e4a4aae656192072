//! One client's peer connection: str0m for SDP, ICE and DTLS, configured as a browser is.

use std::net::SocketAddr;
use std::time::Duration;

use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::format::Codec;
use str0m::media::{Direction, MediaKind, Mid, Pt};
use str0m::net::{Protocol, Receive};
use str0m::{Candidate, Event, IceConnectionState, Input, Output, Rtc, RtcConfig};

use super::media::VideoCodec;
use crate::srtp::dtls::{self, CapturedKeys, KeySlot};
use crate::units::{Epoch, Instant};

/// Between two checks of a path that works: Chromium's `STRONG_AND_STABLE_WRITABLE_CONNECTION_PING_INTERVAL`. Firefox
/// keeps to the 5 s of RFC 7675 §5.1; str0m's own default is 3 s.
const CHECK_INTERVAL: Duration = Duration::from_millis(2500);

/// Datagrams to send, with where to.
pub(super) type Outgoing = Vec<(SocketAddr, Vec<u8>)>;

/// A client that has made its offer.
pub(super) struct Offered {
    connection: Connection,
    pending: SdpPendingOffer,
    pub offer: String,
}

/// A client that has its answer.
pub(super) struct Connection {
    rtc: Box<Rtc>,
    epoch: Epoch,
    local: SocketAddr,
    /// Where a viewer's keys appear, and str0m has none; a publisher leaves its media to str0m.
    keys: Option<KeySlot>,
    /// str0m has said that DTLS is up.
    connected: bool,
    pub video: Option<Mid>,
    pub audio: Option<Mid>,
    deadline: Instant,
    ice_connected: bool,
    closed: bool,
    keyframe_wanted: bool,
}

/// A publisher of one video codec, audio, or both.
pub(super) fn publisher(
    now: Instant,
    epoch: Epoch,
    local: SocketAddr,
    video: Option<VideoCodec>,
    audio: bool,
) -> Result<Offered, String> {
    let config = Rtc::builder().clear_codecs().enable_opus(audio, false);
    let config = match video {
        Some(VideoCodec::Vp8) => config.enable_vp8(true),
        Some(VideoCodec::H264) => config.enable_h264(true),
        None => config,
    };
    let config = config.set_crypto_provider(dtls::crypto_provider()).set_rtp_mode(true);
    let rtc = config.build(epoch.to_std(now));
    offer(now, epoch, local, rtc, None, (Direction::SendOnly, video.is_some(), audio))
}

/// A viewer that takes all codecs, as browsers do.
pub(super) fn viewer(now: Instant, epoch: Epoch, local: SocketAddr, video: bool) -> Result<Offered, String> {
    let mut config = RtcConfig::new().set_crypto_provider(dtls::crypto_provider()).set_rtp_mode(true);
    config.set_max_stun_rto(CHECK_INTERVAL);
    let (rtc, _, keys) = dtls::divert(|| config.build(epoch.to_std(now)));
    offer(now, epoch, local, rtc, Some(keys), (Direction::RecvOnly, video, true))
}

fn offer(
    now: Instant,
    epoch: Epoch,
    local: SocketAddr,
    mut rtc: Rtc,
    keys: Option<KeySlot>,
    (direction, video, audio): (Direction, bool, bool),
) -> Result<Offered, String> {
    rtc.add_local_candidate(Candidate::host(local, "udp").map_err(|e| e.to_string())?);
    // Starts str0m's clock.
    rtc.handle_input(Input::Timeout(epoch.to_std(now))).map_err(|e| e.to_string())?;
    let mut api = rtc.sdp_api();
    let video = video.then(|| api.add_media(MediaKind::Video, direction, None, None, None));
    let audio = audio.then(|| api.add_media(MediaKind::Audio, direction, None, None, None));
    let (offer, pending) = api.apply().ok_or("nothing to offer")?;
    let connection = Connection {
        rtc: Box::new(rtc),
        epoch,
        local,
        keys,
        connected: false,
        video,
        audio,
        deadline: Instant::ZERO,
        ice_connected: false,
        closed: false,
        keyframe_wanted: false,
    };
    Ok(Offered { connection, pending, offer: offer.to_sdp_string() })
}

impl Offered {
    /// # Errors
    /// What str0m has against the answer.
    pub fn accept(mut self, answer: &str) -> Result<Connection, String> {
        let answer = SdpAnswer::from_sdp_string(answer).map_err(|e| e.to_string())?;
        self.connection.rtc.sdp_api().accept_answer(self.pending, answer).map_err(|e| e.to_string())?;
        Ok(self.connection)
    }
}

impl Connection {
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, data: &[u8], out: &mut Outgoing) {
        let Ok(receive) = Receive::new(Protocol::Udp, from, self.local, data) else { return };
        self.closed |= self.rtc.handle_input(Input::Receive(self.epoch.to_std(now), receive)).is_err();
        self.drain(out);
    }

    pub fn handle_timeout(&mut self, now: Instant, out: &mut Outgoing) {
        self.closed |= self.rtc.handle_input(Input::Timeout(self.epoch.to_std(now))).is_err();
        self.drain(out);
    }

    /// Says goodbye (DTLS close_notify).
    pub fn close(&mut self, now: Instant, out: &mut Outgoing) {
        // An error means that it is closed already.
        let _ = self.rtc.close();
        self.handle_timeout(now, out);
        self.closed = true;
    }

    /// Media to send, which the next [`Connection::handle_timeout`] encrypts.
    pub fn rtc(&mut self) -> &mut Rtc {
        &mut self.rtc
    }

    /// `now` as str0m has it.
    pub fn at(&self, now: Instant) -> std::time::Instant {
        self.epoch.to_std(now)
    }

    /// What a viewer decrypts with, once it is connected. Once.
    pub fn take_keys(&mut self) -> Option<CapturedKeys> {
        if self.is_connected() { self.keys.as_ref()?.take_keys() } else { None }
    }

    /// Whether the server has asked for a keyframe since the last call.
    pub fn take_keyframe_wanted(&mut self) -> bool {
        std::mem::take(&mut self.keyframe_wanted)
    }

    pub fn next_timeout(&self) -> Instant {
        if self.closed { Instant::FAR_FUTURE } else { self.deadline }
    }

    pub fn is_connected(&self) -> bool {
        match self.keys {
            // Without keys str0m never calls itself connected.
            Some(_) => self.connected && self.rtc.is_alive(),
            None => self.rtc.is_connected(),
        }
    }

    pub fn is_ice_connected(&self) -> bool {
        self.ice_connected
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The payload type that the answer left for a codec. For H264 one with packetization mode 1, if there is.
    pub fn payload_type(&self, mid: Mid, codec: Codec) -> Option<Pt> {
        let remote = self.rtc.media(mid)?.remote_pts();
        let params = self.rtc.codec_config().params().iter();
        let usable = params.filter(|p| p.spec().codec == codec && remote.contains(&p.pt()));
        usable.max_by_key(|p| p.spec().format.packetization_mode).map(|p| p.pt())
    }

    /// What each payload type carries: kind of media, or RTX.
    pub fn payload_kinds(&self) -> PayloadKinds {
        let mut kinds = [PayloadKind::Unknown; 128];
        for params in self.rtc.codec_config().params() {
            let kind = if params.spec().codec.is_audio() { MediaKind::Audio } else { MediaKind::Video };
            kinds[usize::from(*params.pt() & 127)] = PayloadKind::Media(kind);
            if let Some(rtx) = params.resend() {
                kinds[usize::from(*rtx & 127)] = PayloadKind::Rtx;
            }
        }
        kinds
    }

    fn drain(&mut self, out: &mut Outgoing) {
        loop {
            match self.rtc.poll_output() {
                Ok(Output::Timeout(at)) => {
                    self.deadline = self.epoch.from_std(at);
                    return;
                }
                Ok(Output::Transmit(t)) => out.push((t.destination, t.contents.to_vec())),
                Ok(Output::Event(event)) => self.handle_event(&event),
                Err(_) => {
                    self.closed = true;
                    return;
                }
            }
        }
    }

    fn handle_event(&mut self, event: &Event) {
        match event {
            Event::IceConnectionStateChange(state) => {
                self.ice_connected |= matches!(state, IceConnectionState::Connected | IceConnectionState::Completed);
            }
            Event::Connected => self.connected = true,
            Event::KeyframeRequest(_) => self.keyframe_wanted = true,
            Event::Closed => self.closed = true,
            _ => {}
        }
    }
}

/// By payload type.
pub(super) type PayloadKinds = [PayloadKind; 128];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PayloadKind {
    Unknown,
    Media(MediaKind),
    Rtx,
}

/// What a client is, for the thread that drives it, and what is said of it when it does not connect.
pub(super) struct Joined {
    /// Its place among its kind, and its socket.
    pub index: usize,
    pub connection: Connection,
    pub url: String,
    /// Before the offer was made.
    pub asked_at: Instant,
    pub answered_at: Instant,
    /// Of the server, as the answer has them.
    pub candidates: String,
}

impl Joined {
    /// One line for a client that has waited too long.
    pub fn silence(&self, local: SocketAddr, seconds: u64) -> String {
        let url = &self.url;
        match self.connection.is_ice_connected() {
            true => format!("{url}: ICE connects, but DTLS does not finish within {seconds} s"),
            false => format!(
                "{url}: answered, but nothing came by UDP within {seconds} s (from {local} to {}); is that address and \
                 port reachable from here?",
                self.candidates
            ),
        }
    }
}

/// Addresses in an answer, for a message.
pub(super) fn candidates(answer: &str) -> String {
    let lines = answer.lines().filter_map(|l| l.trim_end().strip_prefix("a=candidate:"));
    let mut found: Vec<String> = lines
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(4);
            Some(format!("{}:{}", fields.next()?, fields.next()?))
        })
        .collect();
    found.sort();
    found.dedup();
    if found.is_empty() { "no address at all".to_owned() } else { found.join(", ") }
}
