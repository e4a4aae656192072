//! A WebRTC client of the simulator's and the tests' own: str0m in a browser-like configuration, sans-IO.
//!
//! A publisher sends synthetic VP8 or H264 and Opus whose payload says which packet it is; a viewer writes down what it gets.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use str0m::change::{SdpAnswer, SdpPendingOffer};
use str0m::config::CryptoProvider;
use str0m::format::{Codec, PayloadParams};
use str0m::media::{Direction, KeyframeRequestKind, MediaKind, Mid, Pt, Rid, Simulcast, SimulcastLayer};
use str0m::net::{Protocol, Receive};
use str0m::rtp::rtcp::{Nack, Rtcp};
use str0m::rtp::{RawPacket, RtpPacket, RtpWrite};
use str0m::{Candidate, Event, Input, Output, Rtc, bwe};

use crate::units::{Bitrate, Epoch, Instant};
use crate::wire::classify::{Kind, classify};
use crate::wire::{vp8, vp9};

/// What a synthetic publisher sends.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Written into each payload; tells publishers apart.
    pub id: u32,
    /// VP8, or H264 with three packets a frame or more.
    pub codec: Codec,
    pub frames_per_second: u32,
    pub packets_per_frame: u32,
    /// Payload of each video packet.
    pub bytes_per_packet: usize,
    /// Frames between keyframes when nobody asks; 0: only the first one and those asked for.
    pub keyframe_interval: u32,
    /// Whether PLI is answered (OBS and ffmpeg do not).
    pub answers_pli: bool,
    /// Simulcast layers.
    pub layers: u8,
    /// Their names, the lowest first.
    pub rids: [&'static str; 3],
    /// How many times the packets of the first layer each has.
    pub packets_by_layer: [u32; 3],
    pub audio: bool,
    /// NACKs are answered by the same packet again, as by who has no RTX (RFC 4588).
    pub resends_in_band: bool,
    /// Its encoder starts anew with a clock of its own, though with no keyframe, and numbers go on: at this frame of the video,
    /// timestamps are so many ticks further.
    pub clock_jump: Option<(u32, u32)>,
    /// Its congestion control probes the path for [`PROBING_TIME`] before there is anything to send, by RTX padding.
    pub probes_first: bool,
}

impl Default for Source {
    fn default() -> Self {
        Source {
            id: 1,
            codec: Codec::Vp8,
            frames_per_second: 30,
            packets_per_frame: 4,
            bytes_per_packet: 1100,
            keyframe_interval: 0,
            answers_pli: true,
            layers: 1,
            rids: RIDS,
            packets_by_layer: [1, 2, 4],
            audio: true,
            resends_in_band: false,
            clock_jump: None,
            probes_first: false,
        }
    }
}

/// How an emulated client differs from str0m.
#[derive(Clone, Copy)]
pub struct Habits {
    /// Makes its offer of str0m's.
    pub offer: fn(&str) -> String,
    /// Makes a datagram of str0m's its own; `None`: it sends none.
    pub datagram: fn(&Client, Vec<u8>) -> Option<Vec<u8>>,
}

impl Habits {
    pub const NONE: Habits = Habits { offer: str::to_owned, datagram: |_, data| Some(data) };
}

/// One packet that a viewer got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Got {
    pub at: Instant,
    pub kind: MediaKind,
    pub ssrc: u32,
    /// As the viewer's SRTP extended it.
    pub seq: u64,
    pub timestamp: u32,
    pub marker: bool,
    pub picture_id: Option<u16>,
    pub tl0_pic_idx: Option<u8>,
    /// When it is to be shown, by the newest sender report: seconds since 1970, on the server's clock.
    pub shown_at: Option<f64>,
    /// What the publisher wrote into the payload.
    pub stamp: Stamp,
}

/// A payload's own account of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub source: u32,
    pub layer: u8,
    pub packet: u32,
    pub frame: u32,
    pub keyframe: bool,
    pub first_of_frame: bool,
}

impl Stamp {
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.source.to_be_bytes());
        out.extend_from_slice(&self.packet.to_be_bytes());
        out.extend_from_slice(&self.frame.to_be_bytes());
        out.push(u8::from(self.keyframe));
        out.push(u8::from(self.first_of_frame));
        out.push(self.layer);
    }

    fn read(payload: &[u8]) -> Option<Stamp> {
        let word = |at: usize| Some(u32::from_be_bytes(payload.get(at..at + 4)?.try_into().ok()?));
        Some(Stamp {
            source: word(0)?,
            packet: word(4)?,
            frame: word(8)?,
            keyframe: *payload.get(12)? == 1,
            first_of_frame: *payload.get(13)? == 1,
            layer: *payload.get(14)?,
        })
    }
}

/// Names of layers, the lowest first, as browsers have them.
pub(super) const RIDS: [&str; 3] = ["l", "m", "h"];

/// VP8 descriptor of six bytes (X, I with 15 bits, L, T) and one of payload header.
const VP8_HEADER_BYTES: usize = 7;
/// VP9 descriptor (I with 15 bits, L, not flexible).
const VP9_HEADER_BYTES: usize = 5;
/// H264: NAL unit header and one byte more, which of a fragmentation unit is its header (RFC 6184 §5.8).
const H264_HEADER_BYTES: usize = 2;

/// Datagrams that are kept to be sent again.
const RESENDS_MAX: usize = 512;

pub const PROBING_TIME: Duration = Duration::from_millis(500);

/// Longer than any run.
const NEVER: Duration = Duration::from_secs(86_400);

/// Of str0m, at one time.
const CALLS_MAX: usize = 16;

/// One peer connection from the client's side.
pub struct Client {
    rtc: Rtc,
    epoch: Epoch,
    addr: SocketAddr,
    pending: Option<SdpPendingOffer>,
    /// The node's, to be replayed when ICE restarts.
    answer: String,
    deadline: Instant,
    outgoing: VecDeque<(SocketAddr, Vec<u8>)>,
    plane: Plane,
    pub connected_at: Option<Instant>,
    pub closed: bool,
}

enum Plane {
    Publisher(Box<Publishing>),
    Viewer(Vec<Got>),
}

struct Publishing {
    source: Source,
    video: Mid,
    audio: Option<Mid>,
    started: Option<Instant>,
    frame: u32,
    layers: Vec<LayerTx>,
    audio_packet: u32,
    /// Random bases (RFC 3550 §5.1).
    audio_seq: u64,
    audio_timestamp: u32,
    pub keyframe_requests: u32,
    /// Layers of the frame at hand that were sent.
    layers_sent: usize,
    /// Where it resends in-band: what it has sent, the newest last.
    sent: VecDeque<(SocketAddr, Vec<u8>)>,
}

/// One layer of the video, or all of it.
struct LayerTx {
    rid: Option<Rid>,
    packet: u32,
    keyframe_wanted: bool,
    /// Random bases (RFC 3550 §5.1), and of the picture numbers.
    seq: u64,
    timestamp: u32,
    picture_id: u16,
    tl0_pic_idx: u8,
    /// Sequence number and timestamp of the packet that began its last keyframe.
    keyframe: Option<(u16, u32)>,
}

impl LayerTx {
    fn new(rid: Option<Rid>, rng: &mut StdRng) -> LayerTx {
        LayerTx {
            rid,
            packet: 0,
            keyframe_wanted: true,
            seq: u64::from(rng.random::<u16>()),
            timestamp: rng.random(),
            picture_id: rng.random::<u16>() & 0x7fff,
            tl0_pic_idx: rng.random(),
            keyframe: None,
        }
    }

    fn vp8_header(&self, keyframe: bool, first: bool) -> [u8; VP8_HEADER_BYTES] {
        let id = self.picture_id.to_be_bytes();
        let not_key = u8::from(!(first && keyframe));
        [0x80 | u8::from(first) << 4, 0xe0, 0x80 | id[0], id[1], self.tl0_pic_idx, 0x20, not_key]
    }
}

impl Client {
    /// A publisher and its offer.
    pub fn publisher(
        now: Instant,
        epoch: Epoch,
        addr: SocketAddr,
        crypto: Arc<CryptoProvider>,
        source: Source,
        seed: u64,
    ) -> (Client, String) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut rtc = rtc(now, epoch, addr, crypto, Some(&source));
        let mut api = rtc.sdp_api();
        let rids: Vec<Rid> = source.rids.into_iter().take(source.layers.into()).map(Rid::from).collect();
        let simulcast = (source.layers > 1).then(|| {
            let mut simulcast = Simulcast::new();
            rids.iter().for_each(|rid| simulcast.add_send_layer(SimulcastLayer::new(rid)));
            simulcast
        });
        let rid_of = |rid: &Rid| (source.layers > 1).then_some(*rid);
        let layers = rids.iter().map(|rid| LayerTx::new(rid_of(rid), &mut rng)).collect();
        let video = api.add_media(MediaKind::Video, Direction::SendOnly, None, None, simulcast);
        let audio = source.audio.then(|| api.add_media(MediaKind::Audio, Direction::SendOnly, None, None, None));
        let plane = Plane::Publisher(Box::new(Publishing {
            source,
            video,
            audio,
            started: None,
            frame: 0,
            layers,
            audio_packet: 0,
            audio_seq: u64::from(rng.random::<u16>()),
            audio_timestamp: rng.random(),
            keyframe_requests: 0,
            layers_sent: 0,
            sent: VecDeque::new(),
        }));
        let (offer, pending) = api.apply().expect("media was added");
        (Client::new(rtc, epoch, addr, pending, plane), offer.to_sdp_string())
    }

    /// A viewer of video and audio, and its offer.
    pub fn viewer(now: Instant, epoch: Epoch, addr: SocketAddr, crypto: Arc<CryptoProvider>) -> (Client, String) {
        let mut rtc = rtc(now, epoch, addr, crypto, None);
        let mut api = rtc.sdp_api();
        api.add_media(MediaKind::Video, Direction::RecvOnly, None, None, None);
        api.add_media(MediaKind::Audio, Direction::RecvOnly, None, None, None);
        let (offer, pending) = api.apply().expect("media was added");
        (Client::new(rtc, epoch, addr, pending, Plane::Viewer(Vec::new())), offer.to_sdp_string())
    }

    fn new(rtc: Rtc, epoch: Epoch, addr: SocketAddr, pending: SdpPendingOffer, plane: Plane) -> Client {
        Client {
            rtc,
            epoch,
            addr,
            pending: Some(pending),
            answer: String::new(),
            deadline: Instant::ZERO,
            outgoing: VecDeque::new(),
            plane,
            connected_at: None,
            closed: false,
        }
    }

    /// # Errors
    /// What str0m has against the answer.
    pub fn accept_answer(&mut self, now: Instant, sdp: &str) -> Result<(), String> {
        let answer = SdpAnswer::from_sdp_string(sdp).map_err(|e| e.to_string())?;
        let pending = self.pending.take().ok_or("answered twice")?;
        self.rtc.sdp_api().accept_answer(pending, answer).map_err(|e| e.to_string())?;
        self.answer = sdp.to_owned();
        self.step(now);
        Ok(())
    }

    /// Begins an ICE restart: what to PATCH (RFC 9725 §4.3.3). The reply goes to [`Self::accept_restart`].
    pub fn restart_ice(&mut self) -> String {
        let mut api = self.rtc.sdp_api();
        let creds = api.ice_restart(true);
        self.pending = api.apply().map(|(_, pending)| pending);
        format!("a=ice-ufrag:{}\r\na=ice-pwd:{}\r\n", creds.ufrag, creds.pass)
    }

    /// `fragment` has the node's new credentials.
    ///
    /// # Errors
    /// What str0m has against them.
    pub fn accept_restart(&mut self, now: Instant, fragment: &str) -> Result<(), String> {
        let is_credential = |l: &&str| l.starts_with("a=ice-ufrag:") || l.starts_with("a=ice-pwd:");
        let new = |name: &str| fragment.lines().filter(is_credential).find(|l| l.starts_with(name));
        let answer: String = self
            .answer
            .lines()
            .map(|l| if is_credential(&l) { new(&l[..l.find(':').unwrap_or_default()]).unwrap_or(l) } else { l })
            .flat_map(|l| [l, "\r\n"])
            .collect();
        self.accept_answer(now, &answer)
    }

    /// The node's, empty before it came.
    pub fn answer(&self) -> &str {
        &self.answer
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, data: &[u8]) {
        self.handle_datagrams(now, from, [data]);
    }

    /// Datagrams that arrive together.
    pub fn handle_datagrams<'a>(
        &mut self,
        now: Instant,
        from: SocketAddr,
        datagrams: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let at = self.epoch.to_std(now);
        for data in datagrams {
            let Ok(receive) = Receive::new(Protocol::Udp, from, self.addr, data) else { continue };
            if self.rtc.handle_input(Input::Receive(at, receive)).is_err() {
                self.closed = true;
            }
            // str0m holds one packet at most, and gives events before datagrams: what else it has to say can wait for the last one.
            self.drain_to(now, |output| matches!(output, Output::Event(Event::RtpPacket(_))));
        }
        self.drain(now);
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if self.connected_at.is_some()
            && let Plane::Publisher(publishing) = &mut self.plane
        {
            publishing.send_due(now, self.epoch, &mut self.rtc);
        }
        self.step(now);
    }

    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outgoing.pop_front()
    }

    pub fn next_timeout(&self) -> Instant {
        if self.closed || self.pending.is_some() {
            return Instant::FAR_FUTURE;
        }
        let media = match &self.plane {
            Plane::Publisher(p) if self.connected_at.is_some() => p.next_due(),
            _ => Instant::FAR_FUTURE,
        };
        self.deadline.min(media)
    }

    /// Says goodbye (DTLS close_notify); send what [`Self::poll_transmit`] gives.
    pub fn close(&mut self, now: Instant) {
        // An error means that it is closed already.
        let _ = self.rtc.close();
        self.step(now);
        self.closed = true;
    }

    /// What a viewer got, in order of arrival.
    pub fn got(&self) -> &[Got] {
        match &self.plane {
            Plane::Viewer(got) => got,
            Plane::Publisher(_) => &[],
        }
    }

    /// Video packets that a publisher has sent.
    pub fn video_packets_sent(&self) -> u32 {
        match &self.plane {
            Plane::Publisher(p) => p.layers.iter().map(|l| l.packet).sum(),
            Plane::Viewer(_) => 0,
        }
    }

    /// Whether a publisher's datagram begins a keyframe, sent for the first time.
    pub fn begins_keyframe(&self, datagram: &[u8]) -> bool {
        let Plane::Publisher(p) = &self.plane else { return false };
        if classify(datagram) != Some(Kind::Rtp) || datagram.len() < 12 {
            return false;
        }
        let seq = u16::from_be_bytes([datagram[2], datagram[3]]);
        let timestamp = u32::from_be_bytes([datagram[4], datagram[5], datagram[6], datagram[7]]);
        p.layers.iter().any(|l| l.keyframe == Some((seq, timestamp)))
    }

    /// When a publisher sends the packet of that number, by its [`Stamp`].
    pub fn sent_at(&self, kind: MediaKind, layer: u8, packet: u32) -> Option<Instant> {
        let Plane::Publisher(p) = &self.plane else { return None };
        p.started?;
        Some(match kind {
            MediaKind::Audio => p.audio_at(packet),
            MediaKind::Video => p.video_at(packet / p.packets_per_frame(usize::from(layer)), usize::from(layer)),
        })
    }

    /// PLI and FIR that a publisher got.
    pub fn keyframe_requests(&self) -> u32 {
        match &self.plane {
            Plane::Publisher(p) => p.keyframe_requests,
            Plane::Viewer(_) => 0,
        }
    }

    /// Asks for a keyframe as a decoder that has lost too much does.
    pub fn request_keyframe(&mut self, now: Instant) {
        let Plane::Viewer(got) = &self.plane else { return };
        let Some(video) = got.iter().rev().find(|g| g.kind == MediaKind::Video) else { return };
        if let Some(stream) = self.rtc.direct_api().stream_rx(&video.ssrc.into()) {
            stream.request_keyframe(KeyframeRequestKind::Pli);
        }
        self.step(now);
    }

    /// Says what its path carries (REMB).
    pub fn request_remb(&mut self, now: Instant, bitrate: Bitrate) {
        let Plane::Viewer(got) = &self.plane else { return };
        let Some(video) = got.iter().rev().find(|g| g.kind == MediaKind::Video) else { return };
        if let Some(stream) = self.rtc.direct_api().stream_rx(&video.ssrc.into()) {
            stream.request_remb(bitrate.as_bps().into());
        }
        self.step(now);
    }

    fn step(&mut self, now: Instant) {
        if self.rtc.handle_input(Input::Timeout(self.epoch.to_std(now))).is_err() {
            self.closed = true;
        }
        self.drain(now);
    }

    fn drain(&mut self, now: Instant) {
        self.drain_to(now, |_| false);
    }

    /// Takes what str0m has, up to and with the first output that is `enough`.
    fn drain_to(&mut self, now: Instant, enough: fn(&Output) -> bool) {
        let sent = self.outgoing.len();
        let mut calls = 0;
        loop {
            let output = self.rtc.poll_output();
            let done = output.as_ref().is_ok_and(enough);
            match output {
                // How often it wants to be called at one time is up to the hash map, too.
                Ok(Output::Timeout(at)) if self.epoch.from_std(at) <= now && calls < CALLS_MAX => {
                    calls += 1;
                    if self.rtc.handle_input(Input::Timeout(self.epoch.to_std(now))).is_err() {
                        self.closed = true;
                    }
                }
                Ok(Output::Timeout(at)) => {
                    self.deadline = self.epoch.from_std(at);
                    break;
                }
                Ok(Output::Transmit(t)) => self.send(t.destination, t.contents.to_vec()),
                Ok(Output::Event(event)) => self.handle_event(now, event),
                Err(_) => {
                    self.closed = true;
                    self.deadline = Instant::FAR_FUTURE;
                    return;
                }
            }
            if done {
                break;
            }
        }
        // What leaves at one time has the order of a hash map, which is another one in each run: streams take turns
        // by their SSRCs instead.
        self.outgoing.make_contiguous()[sent..].sort_by_key(|(_, data)| ssrc(data));
    }

    fn send(&mut self, to: SocketAddr, data: Vec<u8>) {
        if let Plane::Publisher(p) = &mut self.plane
            && p.source.resends_in_band
            && ssrc(&data).is_some()
        {
            if p.sent.len() == RESENDS_MAX {
                p.sent.pop_front();
            }
            p.sent.push_back((to, data.clone()));
        }
        self.outgoing.push_back((to, data));
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Connected => {
                self.connected_at = Some(now);
                if let Plane::Publisher(p) = &mut self.plane {
                    p.started = Some(now);
                    if p.source.probes_first {
                        p.started = Some(now + PROBING_TIME);
                        self.rtc.bwe().set_bitrate(bwe::Bitrate::ZERO, bwe::Bitrate::mbps(3));
                    }
                }
            }
            Event::Closed => self.closed = true,
            Event::KeyframeRequest(request) => {
                if let Plane::Publisher(p) = &mut self.plane {
                    p.keyframe_requests += 1;
                    for layer in p.layers.iter_mut().filter(|l| l.rid == request.rid) {
                        layer.keyframe_wanted |= p.source.answers_pli;
                    }
                }
            }
            Event::RtpPacket(rtp) => {
                if let Plane::Viewer(got) = &mut self.plane
                    && let Some(packet) = read(now, &self.rtc, &rtp)
                {
                    got.push(packet);
                }
            }
            Event::RawPacket(raw) => {
                if let (Plane::Publisher(p), RawPacket::RtcpRx(Rtcp::Nack(nack))) = (&self.plane, *raw) {
                    self.outgoing.extend(p.asked_again(&nack));
                }
            }
            _ => {}
        }
    }
}

impl Publishing {
    fn asked_again(&self, nack: &Nack) -> impl Iterator<Item = (SocketAddr, Vec<u8>)> {
        let is_asked = |data: &[u8]| {
            let seq = u64::from(u16::from_be_bytes([data[2], data[3]]));
            let mut asked = nack.reports.iter().flat_map(|entry| entry.into_iter(seq.into()));
            ssrc(data) == Some(*nack.ssrc) && asked.any(|asked| *asked == seq)
        };
        self.sent.iter().filter(move |(_, data)| is_asked(data)).cloned()
    }

    /// When a layer of a frame is due. 1 ms apart, so that no two fall due together: str0m sends what is due at one time in
    /// the order of a hash map.
    fn video_at(&self, frame: u32, layer: usize) -> Instant {
        let started = self.started.unwrap_or(Instant::FAR_FUTURE);
        let frame = Duration::from_secs(1) * frame / self.source.frames_per_second;
        started + frame + Duration::from_millis(1) * layer as u32
    }

    fn next_video_at(&self) -> Instant {
        self.video_at(self.frame, self.layers_sent)
    }

    fn packets_per_frame(&self, layer: usize) -> u32 {
        self.source.packets_per_frame * self.source.packets_by_layer[layer]
    }

    fn audio_at(&self, packet: u32) -> Instant {
        // 7 ms off, so that audio and video never fall due together either.
        self.started.unwrap_or(Instant::FAR_FUTURE) + Duration::from_millis(7) + Duration::from_millis(20) * packet
    }

    fn next_due(&self) -> Instant {
        let audio = if self.audio.is_some() { self.audio_at(self.audio_packet) } else { Instant::FAR_FUTURE };
        self.next_video_at().min(audio)
    }

    fn send_due(&mut self, now: Instant, epoch: Epoch, rtc: &mut Rtc) {
        while self.next_video_at() <= now {
            self.send_layer(epoch.to_std(now), rtc);
        }
        while self.audio.is_some() && self.audio_at(self.audio_packet) <= now {
            self.send_audio(epoch.to_std(now), rtc);
        }
    }

    fn send_layer(&mut self, now: std::time::Instant, rtc: &mut Rtc) {
        let (source, index) = (self.source, self.layers_sent);
        let due = source.keyframe_interval > 0 && self.frame.is_multiple_of(source.keyframe_interval);
        let elapsed = (u64::from(self.frame) * 90_000 / u64::from(source.frames_per_second)) as u32;
        let jump = source.clock_jump.filter(|(frame, _)| self.frame >= *frame).map_or(0, |(_, ticks)| ticks);
        let pt = payload_type(rtc, self.video, source.codec);
        let packets = self.packets_per_frame(index);
        let mut direct = rtc.direct_api();
        let layer = &mut self.layers[index];
        if let (Some(stream), Some(pt)) = (direct.stream_tx_by_mid(self.video, layer.rid), pt) {
            let keyframe = std::mem::take(&mut layer.keyframe_wanted) || due;
            let timestamp = layer.timestamp.wrapping_add(elapsed).wrapping_add(jump);
            if keyframe {
                layer.keyframe = Some((layer.seq as u16, timestamp));
            }
            for i in 0..packets {
                let (first, last) = (i == 0, i + 1 == packets);
                let mut payload = Vec::with_capacity(source.bytes_per_packet);
                match source.codec {
                    Codec::H264 => payload.extend(h264_header(keyframe, i, last)),
                    _ => payload.extend(layer.vp8_header(keyframe, first)),
                }
                let stamp = Stamp {
                    source: source.id,
                    layer: index as u8,
                    packet: layer.packet,
                    frame: self.frame,
                    keyframe,
                    first_of_frame: first,
                };
                stamp.write(&mut payload);
                payload.resize(source.bytes_per_packet.max(payload.len()), 0);
                let write = RtpWrite::new(pt, layer.seq.into(), timestamp, now, payload).marker(last).nackable(true);
                stream.write_rtp(write);
                layer.seq += 1;
                layer.packet += 1;
            }
            layer.picture_id = (layer.picture_id + 1) & 0x7fff;
            layer.tl0_pic_idx = layer.tl0_pic_idx.wrapping_add(1);
        }
        self.layers_sent += 1;
        if self.layers_sent == self.layers.len() {
            self.layers_sent = 0;
            self.frame += 1;
        }
    }

    fn send_audio(&mut self, now: std::time::Instant, rtc: &mut Rtc) {
        let Some(mid) = self.audio else { return };
        let Some(pt) = payload_type(rtc, mid, Codec::Opus) else { return };
        let mut direct = rtc.direct_api();
        let Some(stream) = direct.stream_tx_by_mid(mid, None) else { return };
        let mut payload = Vec::with_capacity(80);
        let packet = self.audio_packet;
        let stamp =
            Stamp { source: self.source.id, layer: 0, packet, frame: packet, keyframe: true, first_of_frame: true };
        stamp.write(&mut payload);
        payload.resize(80, 0);
        let timestamp = self.audio_timestamp.wrapping_add(packet * 960);
        stream.write_rtp(RtpWrite::new(pt, self.audio_seq.into(), timestamp, now, payload));
        self.audio_seq += 1;
        self.audio_packet += 1;
    }
}

/// The first that was agreed on.
fn payload_type(rtc: &Rtc, mid: Mid, codec: Codec) -> Option<Pt> {
    let agreed = rtc.media(mid)?.remote_pts();
    rtc.codec_config().find(|p| p.spec().codec == codec && agreed.contains(&p.pt())).map(PayloadParams::pt)
}

/// Of a packet of a frame, as OBS has them: parameter sets by themselves, and slices in fragmentation units (RFC 6184 §5.8).
fn h264_header(keyframe: bool, packet: u32, last: bool) -> [u8; H264_HEADER_BYTES] {
    match (keyframe, packet) {
        (true, 0) => [0x67, 0x42],
        (true, 1) => [0x68, 0xce],
        _ => {
            let (begins, slice) = if keyframe { (packet == 2, 5) } else { (packet == 0, 1) };
            [0x7c, u8::from(begins) << 7 | u8::from(last) << 6 | slice]
        }
    }
}

/// `None`: it is no RTP.
fn ssrc(datagram: &[u8]) -> Option<u32> {
    if classify(datagram) != Some(Kind::Rtp) {
        return None;
    }
    Some(u32::from_be_bytes(datagram.get(8..12)?.try_into().ok()?))
}

/// `source`: what a publisher sends.
fn rtc(now: Instant, epoch: Epoch, addr: SocketAddr, crypto: Arc<CryptoProvider>, source: Option<&Source>) -> Rtc {
    let start = epoch.to_std(now);
    // str0m looks when the first stream of a hash map falls silent, and that is another one in each run; what it does besides,
    // at such a time, would be another thing too. So none ever does.
    let rtc = Rtc::builder().set_crypto_provider(crypto).set_rtp_mode(true).set_pause_threshold(NEVER);
    // It hears of NACKs as events.
    let rtc = rtc.enable_raw_packets(source.is_some_and(|s| s.resends_in_band));
    let probes = source.is_some_and(|s| s.probes_first).then(|| bwe::Bitrate::kbps(300));
    let mut rtc = rtc.enable_bwe(probes).build(start);
    rtc.add_local_candidate(Candidate::host(addr, "udp").expect("a unicast address"));
    // Starts str0m's clock.
    let _ = rtc.handle_input(Input::Timeout(start));
    rtc
}

/// RFC 3550 §6.4.1: a sender report ties the stream's clock to NTP time.
fn shown_at(rtp: &RtpPacket) -> Option<f64> {
    let report = rtp.last_sender_info?;
    let since_1970 = report.ntp_time.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64();
    let ticks = rtp.header.timestamp.wrapping_sub(report.rtp_time.numer() as u32).cast_signed();
    Some(since_1970 + f64::from(ticks) / report.rtp_time.denom() as f64)
}

fn read(now: Instant, rtc: &Rtc, rtp: &RtpPacket) -> Option<Got> {
    let pt = rtp.header.payload_type;
    let codec = rtc.codec_config().find(|p| p.pt() == pt)?.spec().codec;
    let (parsed, body) = match codec {
        Codec::Vp8 => (vp8::parse(&rtp.payload, rtp.header.marker), rtp.payload.get(VP8_HEADER_BYTES..)?),
        Codec::Vp9 => (vp9::parse(&rtp.payload), rtp.payload.get(VP9_HEADER_BYTES..)?),
        Codec::H264 => (None, rtp.payload.get(H264_HEADER_BYTES..)?),
        _ => (None, &rtp.payload[..]),
    };
    let numbers = parsed.map(|d| d.numbers);
    Some(Got {
        at: now,
        kind: if codec == Codec::Opus { MediaKind::Audio } else { MediaKind::Video },
        ssrc: *rtp.header.ssrc,
        seq: *rtp.seq_no,
        timestamp: rtp.header.timestamp,
        marker: rtp.header.marker,
        picture_id: numbers.and_then(|n| n.picture_id).map(|p| p.value),
        tl0_pic_idx: numbers.and_then(|n| n.tl0_pic_idx),
        shown_at: shown_at(rtp),
        stamp: Stamp::read(body)?,
    })
}
