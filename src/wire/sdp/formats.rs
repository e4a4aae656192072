//! The formats of one m-line: what its `rtpmap`, `fmtp` and `rtcp-fb` lines say together.

use str0m::media::MediaKind;

use super::OfferedFormat;
use super::lines::Section;
use super::offer::{Claimed, Unusable};
use crate::wire::codec::{Codec, Format, parameter};

/// What an m-line says of one payload type.
#[derive(Default)]
struct Said<'a> {
    rtpmap: Option<&'a str>,
    /// The parameters of all its `a=fmtp` lines as one list.
    fmtp: String,
    feedback: Feedback,
}

#[derive(Clone, Copy, Default)]
struct Feedback {
    nack: bool,
    pli: bool,
    fir: bool,
    transport_cc: bool,
    remb: bool,
}

impl Feedback {
    /// Takes the value of `a=rtcp-fb` without its payload type.
    fn add(&mut self, value: &str) {
        let all = [
            ("nack", &mut self.nack),
            ("nack pli", &mut self.pli),
            ("ccm fir", &mut self.fir),
            ("transport-cc", &mut self.transport_cc),
            ("goog-remb", &mut self.remb),
        ];
        if let Some((_, offered)) = all.into_iter().find(|(name, _)| value.eq_ignore_ascii_case(name)) {
            *offered = true;
        }
    }
}

/// The lines of an m-line by payload type; read once, since a browser's offer has 160 of them.
struct Table<'a> {
    by_payload_type: Vec<Said<'a>>,
    /// `*` means every format of the m-line (RFC 4585 §4.2); str0m knows numbers only.
    feedback_for_all: Vec<&'a str>,
}

impl<'a> Table<'a> {
    fn read(section: &Section<'a>) -> Result<Table<'a>, Unusable> {
        let by_payload_type = (0..=u8::MAX).map(|_| Said::default()).collect();
        let mut table = Table { by_payload_type, feedback_for_all: Vec::new() };
        for &(name, value) in section.attributes() {
            match name {
                "rtpmap" => {
                    let Some((pt, map)) = numbered(value) else { continue };
                    if table.entry(pt).rtpmap.replace(map).is_some() {
                        return Err(Unusable::DuplicatePayloadType(pt));
                    }
                }
                "fmtp" => {
                    let Some((pt, parameters)) = numbered(value) else { continue };
                    append(&mut table.entry(pt).fmtp, parameters);
                }
                "rtcp-fb" => match value.split_once(' ') {
                    Some(("*", feedback)) => table.feedback_for_all.push(feedback.trim()),
                    Some((pt, feedback)) => {
                        let Ok(pt) = pt.parse() else { continue };
                        table.entry(pt).feedback.add(feedback.trim());
                    }
                    None => {}
                },
                _ => {}
            }
        }
        Ok(table)
    }

    fn entry(&mut self, payload_type: u8) -> &mut Said<'a> {
        &mut self.by_payload_type[usize::from(payload_type)]
    }

    fn of(&self, payload_type: u8) -> &Said<'a> {
        &self.by_payload_type[usize::from(payload_type)]
    }

    fn feedback(&self, payload_type: u8) -> Feedback {
        let mut feedback = self.of(payload_type).feedback;
        self.feedback_for_all.iter().for_each(|value| feedback.add(value));
        feedback
    }

    /// The payload type that this one, if it is RTX, repairs.
    fn repaired(&self, payload_type: u8) -> Option<u8> {
        let said = self.of(payload_type);
        let encoding = said.rtpmap?.get(..4)?;
        let apt = || said.fmtp.split(';').find_map(|p| p.strip_prefix("apt=")?.trim().parse().ok());
        encoding.eq_ignore_ascii_case("rtx/").then(apt)?
    }
}

/// `"96 VP8/90000"` as number and rest.
fn numbered(value: &str) -> Option<(u8, &str)> {
    let (number, rest) = value.split_once(' ')?;
    Some((number.parse().ok()?, rest.trim()))
}

fn append(list: &mut String, parameters: &str) {
    for parameter in parameters.split(';').map(str::trim).filter(|p| !p.is_empty() && p.is_ascii()) {
        if !list.is_empty() {
            list.push(';');
        }
        list.push_str(parameter);
    }
}

/// The formats that we pass through, with their RTX. RED, FEC, comfort noise and telephone events are left out: an
/// answer may name fewer formats than the offer, and redundancy inside would confuse per-viewer rewriting.
pub(super) fn formats(
    section: &Section,
    kind: MediaKind,
    payload_types: &[u8],
    claimed: &mut Claimed,
) -> Result<Vec<OfferedFormat>, Unusable> {
    let table = Table::read(section)?;
    let mut formats: Vec<OfferedFormat> = Vec::new();
    for &pt in payload_types {
        let Some(format) = format(&table, kind, pt) else { continue };
        claimed.payload_type(pt)?;
        // Two payload types for one format are legal; str0m panics when it sends, since it takes both for the last one.
        if !formats.iter().any(|known| known.is_twin(&format)) {
            formats.push(format);
        }
    }
    for &pt in payload_types.iter().filter(|pt| is_usable(**pt)) {
        let Some(repaired) = table.repaired(pt) else { continue };
        if let Some(format) = formats.iter_mut().find(|f| f.payload_type == repaired && f.rtx.is_none()) {
            claimed.payload_type(pt)?;
            format.rtx = Some(pt);
        }
    }
    match (formats.is_empty(), kind) {
        (false, _) => Ok(formats),
        (true, MediaKind::Audio) => Err(Unusable::NoCommonCodec("audio", "opus")),
        (true, MediaKind::Video) => Err(Unusable::NoCommonCodec("video", "VP8, VP9, H264, H265, AV1")),
    }
}

/// One format, when it is one that we pass through.
fn format(table: &Table, kind: MediaKind, payload_type: u8) -> Option<OfferedFormat> {
    let said = table.of(payload_type);
    let mut parts = said.rtpmap?.split('/');
    let codec = Codec::from_name(parts.next()?.trim()).filter(|c| c.kind() == kind)?;
    let clock_rate: u32 = parts.next()?.trim().parse().ok()?;
    let channels: Option<u8> = match parts.next() {
        Some(channels) => Some(channels.trim().parse().ok()?),
        None => None,
    };
    // RFC 7587 §7: always opus/48000/2. All our video runs at 90 kHz.
    let expected = match kind {
        MediaKind::Audio => (48_000, Some(2)),
        MediaKind::Video => (90_000, None),
    };
    if (clock_rate, channels) != expected || !is_usable(payload_type) {
        return None;
    }
    let fmtp = repaired_fmtp(codec, &said.fmtp);
    let format = Format::parse(codec, &fmtp)?;
    let Feedback { nack, pli, fir, transport_cc, remb } = table.feedback(payload_type);
    let rtx = None;
    Some(OfferedFormat { payload_type, rtx, format, clock_rate, channels, fmtp, nack, pli, fir, transport_cc, remb })
}

/// With a marker bit, 64 to 95 look like RTCP packet types 192 to 223, so RFC 5761 §4 bars them from a port that
/// carries both.
fn is_usable(payload_type: u8) -> bool {
    payload_type < 64 || (96..128).contains(&payload_type)
}

/// FFmpeg 8.0 writes libavcodec's profile number, constrained flag (0x200) and all, in hex where two digits belong:
/// `422001f` for constrained baseline, level 3.1.
fn repaired_fmtp(codec: Codec, fmtp: &str) -> String {
    let value = parameter(fmtp, "profile-level-id").filter(|v| codec == Codec::H264 && v.len() == 7);
    let parts = value.and_then(|v| Some((v, v.get(..2)?, v.get(2..5)?, v.get(5..)?)));
    match parts {
        Some((value, profile, "200", level)) => fmtp.replace(value, &format!("{profile}e0{level}")),
        _ => fmtp.to_owned(),
    }
}
