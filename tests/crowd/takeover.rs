//! A publisher that another one elsewhere has replaced, before it knows.

use std::time::Duration;

use crate::room::Room;
use manycast::forward::select::Layer;
use manycast::id::{Generation, ShardId};
use manycast::sim::client::Source;

#[test]
fn a_replaced_publisher_does_not_show_its_layers_as_those_of_its_successor() {
    let mut room = Room::new(|| 0);
    room.publish(Source { audio: false, ..Source::default() });
    room.run_until(|room| room.stream.layers()[0].bitrate > 0);
    assert!(room.shard.next_timeout() <= room.now + Duration::from_millis(100), "it is measured");

    assert!(room.stream.activate(Generation(2), ShardId(1)));
    let successors = Layer { active: true, bitrate: 1_700_000, width: 1280, height: 720, ..Layer::default() };
    room.stream.set_layer(0, successors);
    room.stream.set_deaf(true);
    for _ in 0..10 {
        room.now += Duration::from_millis(100);
        room.shard.handle_timeout(room.now, &mut room.out);
        assert_eq!((room.stream.layers()[0], room.stream.is_deaf()), (successors, true));
    }
}
