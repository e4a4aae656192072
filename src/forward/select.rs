//! Which of a publisher's layers a viewer is to see: simulcast layers, and the spatial layers within them.

use crate::id::Rid;
use crate::limits::LAYERS_MAX;
use crate::wire::descriptor::SPATIAL_LAYERS_MAX;
use crate::wire::packet::Rendition;

/// One simulcast layer as the publisher's shard measures it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// It has sent something of late, for its pace.
    pub active: bool,
    /// In the last second, bit/s.
    pub bitrate: u64,
    /// Of its last keyframe in pixels; 0 where nothing tells.
    pub width: u16,
    pub height: u16,
    /// Its name; empty without simulcast.
    pub rid: Rid,
    /// Highest ids of scalability layers seen.
    pub spatial: u8,
    pub temporal: u8,
    /// Only a viewer that reads dependency descriptors can do without some of its scalability layers.
    pub described: bool,
    /// Where there are several, up to `spatial`.
    pub spatials: [Spatial; SPATIAL_LAYERS_MAX],
}

/// A spatial layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spatial {
    /// It has sent something of late, for its pace.
    pub active: bool,
    /// Of it and those below, which it needs.
    pub bitrate: u64,
    pub width: u16,
    pub height: u16,
}

/// All of them, by index.
pub type Layers = [Layer; LAYERS_MAX];

/// What a viewer has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// This layer and no other, while it is sent.
    pub rid: Option<Rid>,
    pub max_width: Option<u16>,
    pub max_height: Option<u16>,
    /// Highest ids of scalability layers.
    pub max_spatial: Option<u8>,
    pub max_temporal: Option<u8>,
}

/// What a viewer may see: a simulcast layer, up to one of its spatial layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rung {
    pub layer: u8,
    pub spatial: u8,
    /// Nothing that is sent of the layer lies above.
    pub whole: bool,
    pub active: bool,
    pub bitrate: u64,
    pub width: u16,
    pub height: u16,
}

pub const RUNGS_MAX: usize = LAYERS_MAX * SPATIAL_LAYERS_MAX;

/// Rungs from the lowest to the highest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranking {
    rungs: [Rung; RUNGS_MAX],
    count: usize,
}

/// Whether a viewer may see more or less of it.
pub fn is_choice(layers: &Layers) -> bool {
    Ranking::of(layers, true).rungs().iter().filter(|rung| rung.active).count() > 1
}

impl Ranking {
    /// Of those that send or have sent: by measured size, never by name or order, for browsers name the lowest first and
    /// OBS the highest. `reads`: the viewer reads dependency descriptors.
    pub fn of(layers: &Layers, reads: bool) -> Ranking {
        let mut ranking = Ranking::default();
        for (index, layer) in layers.iter().enumerate().filter(|(_, l)| l.active || l.bitrate > 0 || l.width > 0) {
            ranking.add(index as u8, layer, reads || !layer.described);
        }
        let sized = ranking.rungs().iter().all(|rung| rung.width > 0);
        ranking.rungs[..ranking.count].sort_by_key(|rung| {
            let pixels = if sized { u64::from(rung.width) * u64::from(rung.height) } else { 0 };
            (pixels, rung.bitrate)
        });
        ranking
    }

    fn add(&mut self, index: u8, layer: &Layer, divisible: bool) {
        let Layer { active, bitrate, width, height, .. } = *layer;
        let spatials = layer.spatials.get(..=usize::from(layer.spatial)).filter(|s| divisible && s.len() > 1);
        let Some(spatials) = spatials else {
            return self.push(Rung { layer: index, spatial: 0, whole: true, active, bitrate, width, height });
        };
        let highest = spatials.iter().rposition(|s| s.active);
        for (spatial, of) in spatials.iter().enumerate() {
            self.push(Rung {
                layer: index,
                spatial: spatial as u8,
                whole: highest.is_none_or(|highest| spatial >= highest),
                active: active && of.active,
                bitrate: of.bitrate,
                width: of.width,
                height: of.height,
            });
        }
    }

    fn push(&mut self, rung: Rung) {
        self.rungs[self.count] = rung;
        self.count += 1;
    }

    /// By rank.
    pub fn rungs(&self) -> &[Rung] {
        &self.rungs[..self.count]
    }

    /// By rank.
    pub fn rungs_mut(&mut self) -> &mut [Rung] {
        &mut self.rungs[..self.count]
    }

    /// The best rank of the only layer that the wish allows, where it is sent.
    pub fn pinned(&self, layers: &Layers, wish: &Wish) -> Option<usize> {
        let is = |rung: &Rung| wish.rid == Some(layers[usize::from(rung.layer)].rid) && rung.active;
        self.rungs().iter().rposition(|rung| is(rung) && wish.allows_spatial(rung))
    }

    /// The highest rank that the wish allows by size, where it sets a bound; the lowest when none fits.
    pub fn highest_allowed(&self, wish: &Wish) -> Option<usize> {
        if wish.max_width.is_none() && wish.max_height.is_none() && wish.max_spatial.is_none() {
            return None;
        }
        let fits = |rung: &Rung| {
            wish.max_width.is_none_or(|max| rung.width <= max)
                && wish.max_height.is_none_or(|max| rung.height <= max)
                && wish.allows_spatial(rung)
        };
        Some(self.rungs().iter().rposition(fits).unwrap_or(0))
    }
}

impl Wish {
    fn allows_spatial(&self, rung: &Rung) -> bool {
        self.max_spatial.is_none_or(|max| rung.spatial <= max)
    }
}

impl Rung {
    /// Below [`RUNGS_MAX`], whatever its rank.
    pub fn index(&self) -> usize {
        usize::from(self.layer) * SPATIAL_LAYERS_MAX + usize::from(self.spatial)
    }

    /// A cap at what there is, or above it, is none: what viewers may ask for does not decide how many renditions there are.
    pub fn rendition(&self, layers: &Layers, wish: &Wish, reads: bool) -> Rendition {
        let layer = layers[usize::from(self.layer)];
        let divisible = reads || !layer.described;
        Rendition {
            layer: self.layer,
            spatial_max: if self.whole { u8::MAX } else { self.spatial },
            temporal_max: wish.max_temporal.filter(|max| divisible && *max < layer.temporal).unwrap_or(u8::MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(of: [(u64, u16, u16); 3]) -> Layers {
        let mut layers = Layers::default();
        for (i, (bitrate, width, height)) in of.into_iter().enumerate() {
            let rid = Rid::new(&i.to_string()).expect("short");
            layers[i] = Layer { active: bitrate > 0, bitrate, width, height, rid, ..Layer::default() };
        }
        layers
    }

    fn order(layers: &Layers) -> Vec<u8> {
        Ranking::of(layers, false).rungs().iter().map(|rung| rung.layer).collect()
    }

    #[test]
    fn layers_are_ranked_by_size_and_not_by_order() {
        let browser = layers([(150_000, 320, 180), (500_000, 640, 360), (1_700_000, 1280, 720)]);
        assert_eq!(order(&browser), [0, 1, 2]);
        let obs = layers([(6_000_000, 1920, 1080), (2_000_000, 960, 540), (900_000, 640, 360)]);
        assert_eq!(order(&obs), [2, 1, 0]);
        // H264 tells no size here; a large still picture may need less than a small lively one.
        let unsized_ = layers([(900_000, 0, 0), (0, 0, 0), (800_000, 0, 0)]);
        assert_eq!(order(&unsized_), [2, 0]);
        let still = layers([(300_000, 320, 180), (200_000, 640, 360), (0, 1280, 720)]);
        assert_eq!(order(&still), [0, 1, 2], "a layer that rests keeps its rank");
        assert_eq!(order(&Layers::default()), [0; 0]);
    }

    #[test]
    fn a_wish_pins_or_bounds() {
        let three = layers([(1_700_000, 1280, 720), (500_000, 640, 360), (0, 320, 180)]);
        let ranking = Ranking::of(&three, false);
        let wish = Wish::default();
        assert_eq!((ranking.pinned(&three, &wish), ranking.highest_allowed(&wish)), (None, None));
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("0"), ..wish }), Some(2));
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("2"), ..wish }), None, "it is not sent");
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("x"), ..wish }), None);
        assert_eq!(ranking.highest_allowed(&Wish { max_height: Some(400), ..wish }), Some(1));
        assert_eq!(ranking.highest_allowed(&Wish { max_width: Some(100), ..wish }), Some(0), "the lowest");
    }

    /// Three spatial layers, the highest 1280x720, of which so many are sent.
    fn spatial(sent: usize) -> Layers {
        let mut layers = Layers::default();
        let mut spatials = [Spatial::default(); SPATIAL_LAYERS_MAX];
        for (i, (bitrate, height)) in [(200_000, 180), (700_000, 360), (2_000_000, 720)].into_iter().enumerate() {
            spatials[i] = Spatial { active: i < sent, bitrate, width: height * 16 / 9, height };
        }
        layers[0] = Layer { active: true, spatial: 2, temporal: 2, spatials, ..Layer::default() };
        layers
    }

    #[test]
    fn spatial_layers_are_rungs_of_their_own() {
        let rungs = |layers: &Layers, reads| {
            let ranking = Ranking::of(layers, reads);
            let rendition = |rung: &Rung| rung.rendition(layers, &Wish::default(), reads).spatial_max;
            ranking.rungs().iter().map(|r| (r.spatial, r.active, rendition(r))).collect::<Vec<_>>()
        };
        assert_eq!(rungs(&spatial(3), false), [(0, true, 0), (1, true, 1), (2, true, 255)]);
        assert_eq!(rungs(&spatial(2), false), [(0, true, 0), (1, true, 255), (2, false, 255)]);
        assert_eq!(rungs(&spatial(1), false), [(0, true, 255), (1, false, 255), (2, false, 255)]);
        assert_eq!([1, 2, 3].map(|sent| is_choice(&spatial(sent))), [false, true, true]);
        let mut described = spatial(3);
        described[0].described = true;
        assert_eq!(rungs(&described, false), [(0, true, 255)], "who does not read descriptors gets it whole");
        assert_eq!(rungs(&described, true).len(), 3);
    }

    #[test]
    fn a_wish_bounds_spatial_layers_too() {
        let layers = spatial(3);
        let ranking = Ranking::of(&layers, false);
        let highest = |wish: Wish| ranking.highest_allowed(&wish);
        assert_eq!(highest(Wish { max_height: Some(400), ..Wish::default() }), Some(1));
        assert_eq!(highest(Wish { max_spatial: Some(0), ..Wish::default() }), Some(0));
        assert_eq!(highest(Wish { max_spatial: Some(7), max_width: Some(640), ..Wish::default() }), Some(1));
        let pinned = Wish { rid: Some(Rid::default()), ..Wish::default() };
        assert_eq!(ranking.pinned(&layers, &pinned), Some(2));
        assert_eq!(ranking.pinned(&layers, &Wish { max_spatial: Some(1), ..pinned }), Some(1));
    }

    #[test]
    fn temporal_layers_are_left_out_where_the_viewer_can_do_without() {
        let mut layers = spatial(3);
        let rendition = |layers: &Layers, max_temporal, reads| {
            let rung = Ranking::of(layers, reads).rungs()[0];
            rung.rendition(layers, &Wish { max_temporal, ..Wish::default() }, reads).temporal_max
        };
        assert_eq!([None, Some(0), Some(1), Some(2)].map(|max| rendition(&layers, max, false)), [255, 0, 1, 255]);
        layers[0].described = true;
        assert_eq!([false, true].map(|reads| rendition(&layers, Some(0), reads)), [255, 0]);
    }
}
