//! Which of a publisher's simulcast layers a viewer is to see.

use crate::id::Rid;
use crate::limits::LAYERS_MAX;

/// One layer as the publisher's shard measures it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// It has sent something in the last second.
    pub active: bool,
    /// In the last second, bit/s.
    pub bitrate: u64,
    /// Of its last keyframe in pixels; 0 where the codec does not tell.
    pub width: u16,
    pub height: u16,
    /// Its name; empty without simulcast.
    pub rid: Rid,
    /// Highest ids of scalability layers seen.
    pub spatial: u8,
    pub temporal: u8,
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

/// Layers from the lowest to the highest, by index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ranking {
    order: [u8; LAYERS_MAX],
    count: usize,
}

impl Ranking {
    /// Of those that send or have sent: by measured size, never by name or order, for browsers name the lowest first and
    /// OBS the highest.
    pub fn of(layers: &Layers) -> Ranking {
        let mut ranking = Ranking::default();
        for (index, _) in layers.iter().enumerate().filter(|(_, l)| l.active || l.bitrate > 0 || l.width > 0) {
            ranking.order[ranking.count] = index as u8;
            ranking.count += 1;
        }
        let of = |index: u8| layers[usize::from(index)];
        let sized = ranking.indices().iter().all(|i| of(*i).width > 0);
        ranking.order[..ranking.count].sort_by_key(|i| {
            let layer = of(*i);
            let pixels = if sized { u64::from(layer.width) * u64::from(layer.height) } else { 0 };
            (pixels, layer.bitrate)
        });
        ranking
    }

    /// By rank.
    pub fn indices(&self) -> &[u8] {
        &self.order[..self.count]
    }

    /// The rank of the only layer that the wish allows, where it is sent.
    pub fn pinned(&self, layers: &Layers, wish: &Wish) -> Option<usize> {
        let is = |i: &u8| wish.rid == Some(layers[usize::from(*i)].rid) && layers[usize::from(*i)].active;
        self.indices().iter().position(is)
    }

    /// The highest rank that the wish allows by size, where it sets a bound; the lowest when none fits.
    pub fn highest_allowed(&self, layers: &Layers, wish: &Wish) -> Option<usize> {
        if wish.max_width.is_none() && wish.max_height.is_none() {
            return None;
        }
        let fits = |i: &u8| {
            let layer = layers[usize::from(*i)];
            wish.max_width.is_none_or(|max| layer.width <= max) && wish.max_height.is_none_or(|max| layer.height <= max)
        };
        Some(self.indices().iter().rposition(fits).unwrap_or(0))
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

    #[test]
    fn layers_are_ranked_by_size_and_not_by_order() {
        let browser = layers([(150_000, 320, 180), (500_000, 640, 360), (1_700_000, 1280, 720)]);
        assert_eq!(Ranking::of(&browser).indices(), [0, 1, 2]);
        let obs = layers([(6_000_000, 1920, 1080), (2_000_000, 960, 540), (900_000, 640, 360)]);
        assert_eq!(Ranking::of(&obs).indices(), [2, 1, 0]);
        // H264 tells no size here; a large still picture may need less than a small lively one.
        let unsized_ = layers([(900_000, 0, 0), (0, 0, 0), (800_000, 0, 0)]);
        assert_eq!(Ranking::of(&unsized_).indices(), [2, 0]);
        let still = layers([(300_000, 320, 180), (200_000, 640, 360), (0, 1280, 720)]);
        assert_eq!(Ranking::of(&still).indices(), [0, 1, 2], "a layer that rests keeps its rank");
        assert_eq!(Ranking::of(&Layers::default()).indices(), [0; 0]);
    }

    #[test]
    fn a_wish_pins_or_bounds() {
        let three = layers([(1_700_000, 1280, 720), (500_000, 640, 360), (0, 320, 180)]);
        let ranking = Ranking::of(&three);
        let wish = Wish::default();
        assert_eq!((ranking.pinned(&three, &wish), ranking.highest_allowed(&three, &wish)), (None, None));
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("0"), ..wish }), Some(2));
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("2"), ..wish }), None, "it is not sent");
        assert_eq!(ranking.pinned(&three, &Wish { rid: Rid::new("x"), ..wish }), None);
        assert_eq!(ranking.highest_allowed(&three, &Wish { max_height: Some(400), ..wish }), Some(1));
        assert_eq!(ranking.highest_allowed(&three, &Wish { max_width: Some(100), ..wish }), Some(0), "the lowest");
    }
}
