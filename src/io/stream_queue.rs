//! What waits to be written to one TCP connection, sans-IO: control first, then audio, then video, within a bound.
//!
//! ```text
//!  push ─┬─ room ────────────────────> queue of its class ──┐ control, audio, video
//!        └─ none: drops whole frames of video,              ├─> slices ─> socket ─> wrote(n)
//!           for control also audio, or else what is pushed  │
//!                      begun, and to be finished first ─────┘
//! ```
//!
//! A datagram that is begun is finished; so the stream never breaks. A frame of video that is begun is not taken back, and
//! one that lost a packet gets no more of them: what is sent of it would only be thrown away. So a frame is cut only when it
//! is larger than the bound itself, and its reader slow.

use std::collections::VecDeque;

use super::framing::{self, LENGTH_BYTES};
use crate::datagram::Class;
use crate::limits;

/// Classes in the order in which they are written.
const WRITTEN: [Class; 3] = [Class::Control, Class::Audio, Class::Video];

/// Frames that are remembered as begun or dropped: those of media and RTX that late packets may still belong to.
const FRAMES_REMEMBERED: usize = 16;

/// Packets of one frame share SSRC and timestamp (RFC 3550 §5.1), which SRTP leaves readable: all that is known here of
/// RTP.
type Frame = [u8; 8];

#[derive(Debug)]
pub(super) struct StreamQueue {
    /// By class.
    waiting: [VecDeque<Item>; Class::ALL.len()],
    /// Some bytes of it are written, so many.
    begun: Option<(Item, usize)>,
    /// Of all items, LENGTH included. Never above [`limits::STREAM_QUEUE_BYTES`].
    bytes: usize,
    /// Something of them is on the wire.
    frames_begun: Remembered,
    frames_dropped: Remembered,
    dropped: [u64; Class::ALL.len()],
}

/// A datagram with its LENGTH before it.
#[derive(Debug)]
struct Item {
    bytes: Box<[u8]>,
    /// Of video.
    frame: Option<Frame>,
}

/// The last few frames, oldest first.
#[derive(Debug, Default)]
struct Remembered(VecDeque<Frame>);

impl Remembered {
    fn add(&mut self, frame: Frame) {
        if self.has(frame) {
            return;
        }
        if self.0.len() >= FRAMES_REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(frame);
    }

    fn has(&self, frame: Frame) -> bool {
        self.0.contains(&frame)
    }
}

impl StreamQueue {
    pub fn new() -> StreamQueue {
        StreamQueue {
            waiting: Default::default(),
            begun: None,
            bytes: 0,
            frames_begun: Remembered::default(),
            frames_dropped: Remembered::default(),
            dropped: [0; Class::ALL.len()],
        }
    }

    /// Takes a datagram of less than 64 kB, or drops it: returns which.
    pub fn push(&mut self, class: Class, datagram: &[u8]) -> bool {
        let frame = if class == Class::Video { frame_of(datagram) } else { None };
        let bytes = LENGTH_BYTES + datagram.len();
        let accepted = match frame {
            Some(frame) if self.frames_dropped.has(frame) => false,
            frame => self.make_room(class, frame, bytes),
        };
        if !accepted {
            self.dropped[class as usize] += 1;
            return false;
        }
        let bytes = [&framing::length_of(datagram)[..], datagram].concat().into_boxed_slice();
        self.bytes += bytes.len();
        self.waiting[class as usize].push_back(Item { bytes, frame });
        true
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// What is to be written next, in order.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        let begun = self.begun.iter().map(|(item, written)| &item.bytes[*written..]);
        let waiting = WRITTEN.iter().flat_map(|class| &self.waiting[*class as usize]);
        begun.chain(waiting.map(|item| &*item.bytes))
    }

    /// The first `count` bytes of [`Self::slices`] are on the wire.
    pub fn wrote(&mut self, mut count: usize) {
        while count > 0 {
            let Some((item, written)) = self.begun.take().or_else(|| Some((self.pop()?, 0))) else {
                return debug_assert!(false, "{count} bytes more than there were");
            };
            if let Some(frame) = item.frame {
                self.frames_begun.add(frame);
            }
            let rest = item.bytes.len() - written;
            if count < rest {
                self.begun = Some((item, written + count));
                return;
            }
            count -= rest;
            self.bytes -= item.bytes.len();
        }
    }

    /// Datagrams dropped since the last call, by class.
    pub fn take_dropped(&mut self) -> [u64; Class::ALL.len()] {
        std::mem::take(&mut self.dropped)
    }

    fn pop(&mut self) -> Option<Item> {
        WRITTEN.iter().find_map(|class| self.waiting[*class as usize].pop_front())
    }

    /// Drops what is worth less until so many bytes fit: for a frame that is begun, frames that are not. False: there is
    /// nothing left of that kind.
    fn make_room(&mut self, class: Class, frame: Option<Frame>, bytes: usize) -> bool {
        while self.bytes + bytes > limits::STREAM_QUEUE_BYTES {
            let dropped = match class {
                Class::Video => frame.is_some_and(|f| self.frames_begun.has(f)) && self.drop_newest_frame(),
                Class::Audio => self.drop_newest_frame(),
                Class::Control => self.drop_newest_frame() || self.drop_newest_audio(),
            };
            if !dropped {
                frame.into_iter().for_each(|frame| self.drop_frame(frame));
                return false;
            }
        }
        true
    }

    /// The newest, so that what was sent before it can be decoded; not one that is begun.
    fn drop_newest_frame(&mut self) -> bool {
        let waiting = self.waiting[Class::Video as usize].iter().rev().filter_map(|item| item.frame);
        let newest = waiting.into_iter().find(|f| !self.frames_begun.has(*f));
        newest.into_iter().for_each(|frame| self.drop_frame(frame));
        newest.is_some()
    }

    /// What is waiting of a frame, and what will come of it.
    fn drop_frame(&mut self, frame: Frame) {
        self.frames_dropped.add(frame);
        let StreamQueue { waiting, bytes, dropped, .. } = self;
        waiting[Class::Video as usize].retain(|item| {
            let stays = item.frame != Some(frame);
            if !stays {
                *bytes -= item.bytes.len();
                dropped[Class::Video as usize] += 1;
            }
            stays
        });
    }

    fn drop_newest_audio(&mut self) -> bool {
        let Some(item) = self.waiting[Class::Audio as usize].pop_back() else { return false };
        self.bytes -= item.bytes.len();
        self.dropped[Class::Audio as usize] += 1;
        true
    }
}

/// Timestamp and SSRC of an RTP header.
fn frame_of(packet: &[u8]) -> Option<Frame> {
    packet.get(4..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::super::framing::Deframer;
    use super::*;

    const FRAME_BYTES_MAX: usize = 60_000;
    const PACKET_BYTES: usize = 1200;

    /// An RTP packet as far as the queue looks into it, with its number at the end.
    fn packet(ssrc: u32, timestamp: u32, number: u32, bytes: usize) -> Vec<u8> {
        let mut packet = vec![0x80; 4];
        packet.extend(timestamp.to_be_bytes());
        packet.extend(ssrc.to_be_bytes());
        packet.resize(bytes.max(16) - 4, 0);
        packet.extend(number.to_be_bytes());
        packet
    }

    fn number_of(packet: &[u8]) -> u32 {
        u32::from_be_bytes(*packet.last_chunk().expect("a packet of ours"))
    }

    fn bytes_waiting(queue: &StreamQueue) -> usize {
        let begun = queue.begun.iter().map(|(item, _)| item.bytes.len()).sum::<usize>();
        begun + queue.waiting.iter().flatten().map(|item| item.bytes.len()).sum::<usize>()
    }

    /// Writes up to `count` bytes, as a socket that takes so many would.
    fn write(queue: &mut StreamQueue, count: usize, wire: &mut Vec<u8>) {
        let bytes: Vec<u8> = queue.slices().flatten().copied().take(count).collect();
        queue.wrote(bytes.len());
        wire.extend(bytes);
    }

    fn read(wire: &[u8]) -> Vec<Vec<u8>> {
        let mut datagrams = Vec::new();
        Deframer::default().push(wire, |d| datagrams.push(d.to_vec())).expect("frames of ours");
        datagrams
    }

    #[derive(Clone, Debug)]
    enum Step {
        Frame { bytes: usize },
        Audio { bytes: usize },
        Control { bytes: usize },
        Write { bytes: usize },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (1..FRAME_BYTES_MAX).prop_map(|bytes| Step::Frame { bytes }),
            2 => (16..1400usize).prop_map(|bytes| Step::Audio { bytes }),
            1 => (16..1400usize).prop_map(|bytes| Step::Control { bytes }),
            2 => (0..40_000usize).prop_map(|bytes| Step::Write { bytes }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Frames arrive packet by packet, with a write of a few bytes after each: the hardest case for wholeness.
        #[test]
        fn a_bounded_queue_writes_whole_datagrams_and_whole_frames(steps in vec(step(), 1..120), trickle in 0..300usize) {
            let mut queue = StreamQueue::new();
            let (mut wire, mut pushed, mut frames) = (Vec::new(), BTreeMap::new(), Vec::<BTreeSet<u32>>::new());
            let mut next = 0u32;
            let mut push = |queue: &mut StreamQueue, class, timestamp, bytes| {
                next += 1;
                let packet = packet(1, timestamp, next, bytes);
                queue.push(class, &packet);
                pushed.insert(next, (class, packet));
                next
            };
            for step in steps {
                match step {
                    Step::Frame { bytes } => {
                        let timestamp = frames.len() as u32;
                        let packets = bytes.div_ceil(PACKET_BYTES);
                        frames.push((0..packets).map(|_| {
                            let number = push(&mut queue, Class::Video, timestamp, PACKET_BYTES);
                            write(&mut queue, trickle, &mut wire);
                            number
                        }).collect());
                    }
                    Step::Audio { bytes } => { push(&mut queue, Class::Audio, 0, bytes); }
                    Step::Control { bytes } => { push(&mut queue, Class::Control, 0, bytes); }
                    Step::Write { bytes } => write(&mut queue, bytes, &mut wire),
                }
                prop_assert!(queue.bytes <= limits::STREAM_QUEUE_BYTES);
                prop_assert_eq!(queue.bytes, bytes_waiting(&queue));
            }
            write(&mut queue, usize::MAX, &mut wire);
            prop_assert!(queue.is_empty());

            let written = read(&wire);
            let mut newest = [0; 3];
            for datagram in &written {
                let (class, packet) = &pushed[&number_of(datagram)];
                prop_assert_eq!(datagram, packet);
                prop_assert!(newest[*class as usize] < number_of(datagram), "{:?} out of order", class);
                newest[*class as usize] = number_of(datagram);
            }
            let written: BTreeSet<u32> = written.iter().map(|d| number_of(d)).collect();
            for frame in &frames {
                let there = frame.intersection(&written).count();
                prop_assert!(there == 0 || there == frame.len(), "{there} of {} packets of a frame", frame.len());
            }
            let dropped = queue.take_dropped();
            for class in Class::ALL {
                let lost = pushed.iter().filter(|(n, (c, _))| *c == class && !written.contains(n)).count() as u64;
                prop_assert_eq!(dropped[class as usize], lost, "{:?}", class);
            }
        }
    }

    /// Pushes until one is refused; returns how many were taken.
    fn fill(queue: &mut StreamQueue, class: Class, numbers: std::ops::Range<u32>) -> usize {
        let mut frame = 0;
        let taken = numbers.take_while(|number| {
            frame += 1;
            queue.push(class, &packet(1, frame / 4, *number, PACKET_BYTES))
        });
        taken.count()
    }

    #[test]
    fn audio_takes_the_place_of_video_and_control_that_of_both() {
        let mut queue = StreamQueue::new();
        let video = fill(&mut queue, Class::Video, 0..1000);
        assert!(video > 200, "{video}");
        let audio = fill(&mut queue, Class::Audio, 1000..2000);
        assert_eq!(audio, limits::STREAM_QUEUE_BYTES / (PACKET_BYTES + LENGTH_BYTES));
        assert!(queue.waiting[Class::Video as usize].is_empty());
        let control = fill(&mut queue, Class::Control, 2000..3000);
        assert_eq!((control, queue.waiting[Class::Audio as usize].len()), (audio, 0));
        assert!(!queue.push(Class::Audio, &packet(1, 0, 3000, 100 + PACKET_BYTES)), "control is not dropped for audio");
    }

    #[test]
    fn control_overtakes_audio_and_audio_video_but_not_what_is_begun() {
        let mut queue = StreamQueue::new();
        let classes = [Class::Video, Class::Video, Class::Audio, Class::Control];
        for (number, class) in classes.into_iter().enumerate() {
            assert!(queue.push(class, &packet(1, 7, number as u32, 100)));
            if number == 0 {
                queue.wrote(1);
            }
        }
        let rest: Vec<u8> = queue.slices().flatten().copied().collect();
        let wire = [&[0][..], &rest].concat();
        assert_eq!(read(&wire).iter().map(|d| number_of(d)).collect::<Vec<_>>(), [0, 3, 2, 1]);
    }

    #[test]
    fn a_frame_that_is_begun_is_not_taken_back() {
        let mut queue = StreamQueue::new();
        let of = |frame| move |number| packet(1, frame, number, PACKET_BYTES);
        let (first, next, after) = (of(1), of(2), of(3));
        let fits = (limits::STREAM_QUEUE_BYTES / (PACKET_BYTES + LENGTH_BYTES)) as u32;
        assert!(queue.push(Class::Video, &first(0)));
        queue.wrote(1);
        assert!((1..fits - 10).all(|n| queue.push(Class::Video, &first(n))));
        assert!((0..10).all(|n| queue.push(Class::Video, &next(n))));
        // It is full: what has not begun makes room for the rest of what has, and for audio; then there is nothing left.
        assert!(!queue.push(Class::Video, &after(0)));
        assert!((fits - 10..fits - 1).all(|n| queue.push(Class::Video, &first(n))));
        assert!(queue.push(Class::Audio, &packet(9, 0, 0, PACKET_BYTES)));
        assert!(!queue.push(Class::Audio, &packet(9, 0, 1, PACKET_BYTES)));
        assert_eq!(queue.take_dropped(), [11, 1, 0]);
        let waiting = &queue.waiting[Class::Video as usize];
        assert_eq!(waiting.len() as u32, fits - 2);
        assert!(waiting.iter().all(|item| item.frame == frame_of(&first(0))));
    }

    #[test]
    fn a_frame_that_lost_a_packet_gets_no_more_of_them() {
        let mut queue = StreamQueue::new();
        fill(&mut queue, Class::Control, 0..200);
        // The rest of the room is not enough for this frame.
        let frame: Vec<bool> = (0..40).map(|n| queue.push(Class::Video, &packet(2, 9, n, PACKET_BYTES))).collect();
        assert!(frame[0] && !frame[39], "{frame:?}");
        assert!(queue.waiting[Class::Video as usize].is_empty());
        queue.wrote(limits::STREAM_QUEUE_BYTES / 2);
        assert!(!queue.push(Class::Video, &packet(2, 9, 40, PACKET_BYTES)), "of the frame that was dropped");
        assert!(queue.push(Class::Video, &packet(2, 10, 41, PACKET_BYTES)), "the next frame");
        assert_eq!(queue.take_dropped(), [41, 0, 0]);
    }
}
