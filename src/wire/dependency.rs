//! The dependency descriptor: an RTP header extension that tells a frame's place among the layers, and can be read where the
//! payload cannot (RTP Payload Format For AV1, appendix A).

use std::sync::Arc;

use str0m::rtp::{ExtensionSerializer, ExtensionValues};

use super::descriptor::{Descriptor, LayerInfo, Numbers};

pub const URI: &str = "https://aomediacodec.github.io/av1-rtp-spec/#dependency-descriptor-rtp-header-extension";

/// The most that a header extension carries (RFC 8285 §4.3).
pub const BYTES_MAX: usize = 255;

/// Their ids have 6 bits.
const TEMPLATES_MAX: usize = 64;
/// AV1's spatial ids have 2 bits, its temporal ids 3.
const SPATIAL_LAYERS_MAX: u8 = 4;
const TEMPORAL_LAYERS_MAX: u8 = 8;

/// A Decode Target Indication (table A.1): the target is decodable from this frame on, if this frame is.
const SWITCH: u64 = 2;

/// The newest structure of a track: what a descriptor means depends on it, and only those of keyframes bring one.
#[derive(Debug, Default)]
pub struct Dependencies {
    structure: Option<Structure>,
    /// Extended sequence number of the packet that brought it.
    since: u64,
}

/// What a descriptor says of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first packet of a coded video sequence.
    pub starts_keyframe: bool,
    pub descriptor: Descriptor,
}

#[derive(Debug)]
struct Structure {
    first_template_id: u8,
    templates: Vec<Template>,
    targets: Vec<Target>,
    /// Of the highest spatial layer.
    size: Option<(u16, u16)>,
}

#[derive(Debug)]
struct Template {
    spatial: u8,
    temporal: u8,
    indications: Indications,
}

/// What a decode target holds, at most.
#[derive(Clone, Copy, Debug, Default)]
struct Target {
    spatial: u8,
    temporal: u8,
}

/// Two bits for each decode target, the first one's lowest.
#[derive(Clone, Copy, Debug)]
struct Indications(u64);

/// As they came: for str0m, which keeps what an extension says by the type of its value.
#[derive(Debug)]
pub struct Carried(pub Arc<[u8]>);

/// What str0m is told to do with the extension.
#[derive(Debug)]
pub struct Serializer;

impl Dependencies {
    /// Reads the descriptor of packet `seq` (extended). `None` when it is cut, contradicts itself, or belongs to a structure that is
    /// not known.
    ///
    /// ```text
    ///  0                   1                   2
    ///  0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3
    /// +-+-+-----------+-------------------------------+
    /// |S|E|template id|         frame number          |
    /// +-+-+-+-+-+-----+-------------------------------+
    /// |T|A|I|D|C|     |   if longer than 3 bytes: structure, mask of active targets,
    /// +-+-+-+-+-+-----+   the frame's own indications, differences and chains follow, as their flags say
    /// ```
    pub fn read(&mut self, seq: u64, bytes: &[u8]) -> Option<Frame> {
        let mut bits = Bits { bytes, at: 0 };
        let (starts_frame, ends_frame) = (bits.flag()?, bits.flag()?);
        let template_id = bits.take(6)? as u8;
        let frame_number = bits.take(16)? as u16;
        let flags = if bytes.len() > 3 { bits.take(5)? } else { 0 };
        let [has_structure, has_active_targets, has_indications] = [16, 8, 4].map(|flag| flags & flag != 0);
        let attached = if has_structure { Some(Structure::read(&mut bits)?) } else { None };
        let structure = attached.as_ref().or(self.structure.as_ref())?;
        if has_active_targets {
            bits.take(structure.targets.len())?;
        }
        let template = structure.template(template_id)?;
        let indications =
            if has_indications { bits.indications(structure.targets.len())? } else { template.indications };
        let layer = LayerInfo {
            spatial: template.spatial,
            temporal: template.temporal,
            up_switch: structure.can_switch_up(template, indications),
            ends_frame,
            size: attached.as_ref().and_then(|s| s.size),
        };
        // The repair of an earlier keyframe comes late: those of now do not belong to its structure.
        if has_structure && (self.structure.is_none() || seq >= self.since) {
            (self.structure, self.since) = (attached, seq);
        }
        let numbers = Numbers { frame_number: Some(frame_number), ..Numbers::default() };
        Some(Frame { starts_keyframe: starts_frame && has_structure, descriptor: Descriptor { numbers, layer } })
    }
}

impl Structure {
    fn read(bits: &mut Bits) -> Option<Structure> {
        let first_template_id = bits.take(6)? as u8;
        let mut targets = vec![Target::default(); bits.take(5)? as usize + 1];
        let mut templates = read_layers(bits)?;
        for template in &mut templates {
            template.indications = bits.indications(targets.len())?;
            for (index, target) in targets.iter_mut().enumerate() {
                if template.indications.of(index) != 0 {
                    target.spatial = target.spatial.max(template.spatial);
                    target.temporal = target.temporal.max(template.temporal);
                }
            }
        }
        skip_differences(bits, templates.len())?;
        skip_chains(bits, targets.len(), templates.len())?;
        let size = if bits.flag()? { Some(read_size(bits, templates.last()?.spatial)?) } else { None };
        Some(Structure { first_template_id, templates, targets, size })
    }

    fn template(&self, id: u8) -> Option<&Template> {
        let index = (usize::from(id) + TEMPLATES_MAX - usize::from(self.first_template_id)) % TEMPLATES_MAX;
        self.templates.get(index)
    }

    /// Whether a receiver of lower temporal layers may go up to the frame's: the base layer is all that it needs, or a target
    /// that holds the layer can be decoded from here on (§A.7).
    fn can_switch_up(&self, frame: &Template, indications: Indications) -> bool {
        let mut targets = self.targets.iter().enumerate();
        frame.temporal == 0
            || targets.any(|(index, target)| {
                let holds = target.spatial == frame.spatial && target.temporal >= frame.temporal;
                holds && indications.of(index) == SWITCH
            })
    }
}

/// `template_layers`: where each template stands, by the step from the one before (table A.2).
fn read_layers(bits: &mut Bits) -> Option<Vec<Template>> {
    let mut templates = Vec::new();
    let (mut spatial, mut temporal) = (0, 0);
    while templates.len() < TEMPLATES_MAX && spatial < SPATIAL_LAYERS_MAX && temporal < TEMPORAL_LAYERS_MAX {
        templates.push(Template { spatial, temporal, indications: Indications(0) });
        match bits.take(2)? {
            0 => {}
            1 => temporal += 1,
            2 => (spatial, temporal) = (spatial + 1, 0),
            _ => return Some(templates),
        }
    }
    None
}

/// `template_fdiffs`: which earlier frames each template refers to.
fn skip_differences(bits: &mut Bits, templates: usize) -> Option<()> {
    for _ in 0..templates {
        while bits.flag()? {
            bits.take(4)?;
        }
    }
    Some(())
}

/// `template_chains`: which frames a target cannot do without.
fn skip_chains(bits: &mut Bits, targets: usize, templates: usize) -> Option<()> {
    let chains = bits.non_symmetric(targets as u64 + 1)?;
    if chains == 0 {
        return Some(());
    }
    for _ in 0..targets {
        bits.non_symmetric(chains)?;
    }
    for _ in 0..templates as u64 * chains {
        bits.take(4)?;
    }
    Some(())
}

/// `render_resolutions`: those of the layers below come first.
fn read_size(bits: &mut Bits, highest_spatial: u8) -> Option<(u16, u16)> {
    for _ in 0..highest_spatial {
        bits.take(32)?;
    }
    let plus_one = |less: u64| (less as u16).saturating_add(1);
    Some((plus_one(bits.take(16)?), plus_one(bits.take(16)?)))
}

impl Indications {
    fn of(self, target: usize) -> u64 {
        self.0 >> (2 * target) & 3
    }
}

/// Reads from the highest bit of each byte down.
#[derive(Debug)]
struct Bits<'a> {
    bytes: &'a [u8],
    /// Bits read so far.
    at: usize,
}

impl Bits<'_> {
    /// `count`: 64 at most.
    fn take(&mut self, count: usize) -> Option<u64> {
        let mut value = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u64::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    fn flag(&mut self) -> Option<bool> {
        self.take(1).map(|bit| bit == 1)
    }

    /// `ns(values)`: a number below `values`, the lower ones in one bit less.
    fn non_symmetric(&mut self, values: u64) -> Option<u64> {
        let width = (u64::BITS - values.leading_zeros()) as usize;
        let short = (1 << width) - values;
        let value = self.take(width - 1)?;
        if value < short {
            return Some(value);
        }
        Some((value << 1) - short + self.take(1)?)
    }

    fn indications(&mut self, targets: usize) -> Option<Indications> {
        let mut all = 0;
        for index in 0..targets {
            all |= self.take(2)? << (2 * index);
        }
        Some(Indications(all))
    }
}

/// Writes `descriptor` to the front of `copy` with `by` added to its frame number, and returns that. Empty where there is none.
#[inline]
pub fn renumber<'a>(descriptor: &[u8], by: u16, copy: &'a mut [u8; BYTES_MAX]) -> &'a [u8] {
    let Some(copy) = copy.get_mut(..descriptor.len()) else { return &[] };
    copy.copy_from_slice(descriptor);
    if let Some([_, high, low]) = copy.first_chunk_mut() {
        [*high, *low] = u16::from_be_bytes([*high, *low]).wrapping_add(by).to_be_bytes();
    }
    copy
}

impl ExtensionSerializer for Serializer {
    fn write_to(&self, buf: &mut [u8], values: &ExtensionValues) -> usize {
        let Some(Carried(bytes)) = values.user_values.get() else { return 0 };
        let Some(buf) = buf.get_mut(..bytes.len()) else { return 0 };
        buf.copy_from_slice(bytes);
        bytes.len()
    }

    fn parse_value(&self, bytes: &[u8], values: &mut ExtensionValues) -> bool {
        values.user_values.set(Carried(Arc::from(bytes)));
        true
    }

    fn is_video(&self) -> bool {
        true
    }

    fn is_audio(&self) -> bool {
        false
    }

    fn requires_two_byte_form(&self, values: &ExtensionValues) -> bool {
        values.user_values.get().is_some_and(|Carried(bytes)| bytes.len() > 16)
    }
}
