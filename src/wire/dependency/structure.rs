//! The structure that a keyframe's dependency descriptor brings: its templates, decode targets and sizes.

use std::sync::Arc;

use crate::wire::bits::Bits;
use crate::wire::descriptor::{SPATIAL_LAYERS_MAX, Sizes};

/// Their ids have 6 bits.
const TEMPLATES_MAX: usize = 64;
/// Their ids have 3 bits.
const TEMPORAL_LAYERS_MAX: u8 = 8;

#[derive(Debug)]
pub(super) struct Structure {
    first_template_id: u8,
    templates: Vec<Template>,
    pub targets: Arc<[Target]>,
    pub sizes: Option<Sizes>,
    /// Targets that are sent, as packet `since` (by extended sequence number) has said last.
    pub active: u32,
    pub since: u64,
}

#[derive(Debug)]
pub(super) struct Template {
    pub spatial: u8,
    pub temporal: u8,
}

/// What a decode target holds, at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Target {
    pub spatial: u8,
    pub temporal: u8,
}

impl Structure {
    pub fn read(bits: &mut Bits, seq: u64) -> Option<Structure> {
        let first_template_id = bits.take(6)? as u8;
        let mut targets = vec![Target::default(); bits.take(5)? as usize + 1];
        let templates = read_layers(bits)?;
        for template in &templates {
            for target in &mut targets {
                // Its Decode Target Indication (table A.2); 0: it is not present.
                if bits.take(2)? != 0 {
                    target.spatial = target.spatial.max(template.spatial);
                    target.temporal = target.temporal.max(template.temporal);
                }
            }
        }
        skip_differences(bits, templates.len())?;
        skip_chains(bits, targets.len(), templates.len())?;
        let sizes = if bits.flag()? { Some(read_sizes(bits, templates.last()?.spatial)?) } else { None };
        let active = u32::MAX >> (u32::BITS as usize - targets.len());
        Some(Structure { first_template_id, templates, targets: targets.into(), sizes, active, since: seq })
    }

    pub fn template(&self, id: u8) -> Option<&Template> {
        let index = (usize::from(id) + TEMPLATES_MAX - usize::from(self.first_template_id)) % TEMPLATES_MAX;
        self.templates.get(index)
    }
}

/// `template_layers`: where each template stands, by the step from the one before (table A.2).
fn read_layers(bits: &mut Bits) -> Option<Vec<Template>> {
    let mut templates = Vec::new();
    let (mut spatial, mut temporal) = (0, 0);
    while templates.len() < TEMPLATES_MAX && usize::from(spatial) < SPATIAL_LAYERS_MAX && temporal < TEMPORAL_LAYERS_MAX
    {
        templates.push(Template { spatial, temporal });
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

/// `render_resolutions`, of each spatial layer.
fn read_sizes(bits: &mut Bits, highest_spatial: u8) -> Option<Sizes> {
    let plus_one = |less: u64| (less as u16).saturating_add(1);
    let mut sizes = Sizes::default();
    for size in sizes.iter_mut().take(usize::from(highest_spatial) + 1) {
        *size = (plus_one(bits.take(16)?), plus_one(bits.take(16)?));
    }
    Some(sizes)
}
