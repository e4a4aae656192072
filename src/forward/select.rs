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

/// The active layers from the lowest to the highest: by their measured size, never by name or order, for browsers name the
/// lowest first and OBS the highest.
pub fn ranked(layers: &Layers) -> impl DoubleEndedIterator<Item = u8> + use<> {
    let mut ranked = [0u8; LAYERS_MAX];
    let mut count = 0;
    for (i, _) in layers.iter().enumerate().filter(|(_, l)| l.active) {
        ranked[count] = i as u8;
        count += 1;
    }
    let of = |i: u8| layers[usize::from(i)];
    let sized = ranked[..count].iter().all(|i| of(*i).width > 0);
    ranked[..count].sort_by_key(|i| {
        let layer = of(*i);
        let pixels = if sized { u64::from(layer.width) * u64::from(layer.height) } else { 0 };
        (pixels, layer.bitrate)
    });
    ranked.into_iter().take(count)
}

/// The layers that the wish allows, from the lowest to the highest; the lowest of all where it allows none.
pub fn allowed(layers: &Layers, wish: &Wish) -> impl DoubleEndedIterator<Item = u8> + use<> {
    let fits = |i: u8| {
        let layer = layers[usize::from(i)];
        wish.rid.is_none_or(|rid| rid == layer.rid)
            && wish.max_width.is_none_or(|max| layer.width <= max)
            && wish.max_height.is_none_or(|max| layer.height <= max)
    };
    let mut chosen = [0u8; LAYERS_MAX];
    let mut count = 0;
    for i in ranked(layers).filter(|i| fits(*i)) {
        chosen[count] = i;
        count += 1;
    }
    if count == 0
        && let Some(lowest) = ranked(layers).next()
    {
        (chosen[0], count) = (lowest, 1);
    }
    chosen.into_iter().take(count)
}

/// The highest allowed layer that fits into `ceiling` (bit/s), else the lowest one. `None`: nothing is sent.
pub fn choose(layers: &Layers, wish: &Wish, ceiling: Option<u64>) -> Option<u8> {
    let fits = |i: &u8| ceiling.is_none_or(|ceiling| layers[usize::from(*i)].bitrate <= ceiling);
    allowed(layers, wish).rfind(fits).or_else(|| allowed(layers, wish).next())
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
        assert_eq!(ranked(&browser).collect::<Vec<_>>(), [0, 1, 2]);
        let obs = layers([(6_000_000, 1920, 1080), (2_000_000, 960, 540), (900_000, 640, 360)]);
        assert_eq!(ranked(&obs).collect::<Vec<_>>(), [2, 1, 0]);
        // H264 tells no size here; a large still picture may need less than a small lively one.
        let unsized_ = layers([(900_000, 0, 0), (0, 0, 0), (800_000, 0, 0)]);
        assert_eq!(ranked(&unsized_).collect::<Vec<_>>(), [2, 0]);
        let still = layers([(300_000, 320, 180), (200_000, 640, 360), (0, 0, 0)]);
        assert_eq!(ranked(&still).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn the_highest_that_fits_is_chosen() {
        let three = layers([(150_000, 320, 180), (500_000, 640, 360), (1_700_000, 1280, 720)]);
        let wish = Wish::default();
        for (ceiling, chosen) in
            [(None, 2), (Some(2_000_000), 2), (Some(1_000_000), 1), (Some(160_000), 0), (Some(1), 0)]
        {
            assert_eq!(choose(&three, &wish, ceiling), Some(chosen), "{ceiling:?}");
        }
        assert_eq!(choose(&three, &Wish { rid: Rid::new("0"), ..wish }, None), Some(0));
        assert_eq!(choose(&three, &Wish { rid: Rid::new("2"), ..wish }, Some(1)), Some(2), "a pin is not bounded");
        assert_eq!(choose(&three, &Wish { max_height: Some(400), ..wish }, None), Some(1));
        assert_eq!(choose(&three, &Wish { max_width: Some(100), ..wish }, None), Some(0), "the lowest where none fits");
        let two = layers([(150_000, 320, 180), (500_000, 640, 360), (0, 1280, 720)]);
        assert_eq!(choose(&two, &Wish { rid: Rid::new("2"), ..wish }, None), Some(0), "what is pinned is not sent");
        assert_eq!(choose(&two, &wish, None), Some(1));
        assert_eq!(choose(&Layers::default(), &wish, None), None);
    }
}
