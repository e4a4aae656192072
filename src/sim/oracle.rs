//! What must hold of every run, whatever the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use str0m::media::MediaKind;

use super::client::Got;
use crate::metrics::Counters;
use crate::units::Instant;

/// A replay of the past is shown faster than it was captured: in so much of the time, at most.
const SQUEEZED: f64 = 0.9;

/// And so long it may go on at the pace of the present, when the path is slower than was thought.
const REPLAY_TAIL: Duration = Duration::from_secs(1);

/// What two packets are apart by their capture, and not by their arrival, when a viewer that is behind leaves something out.
const BEHIND: Duration = Duration::from_millis(10);

/// Of a video that has five frames a second: none here has fewer, and audio has its packets 960 ticks apart.
const FRAME_TICKS_MAX: f64 = 18_000.0;

/// From packet to packet of one source, a second more than it was: a jitter buffer would wait for ever.
const LEAP_TICKS: f64 = 90_000.0;

/// From publisher to publisher timestamps are as far apart as captures; arrivals may be so much nearer, behind a queue.
const SWITCH_LEAP: Duration = Duration::from_secs(10);

/// What one viewer saw of one kind, judged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judgement {
    pub packets: usize,
    /// Sequence numbers between the first and the last that never came.
    pub missing: u64,
    /// The packets around each run of them.
    pub gaps: Vec<(Got, Got)>,
    /// Packets that came more than once.
    pub duplicates: usize,
    /// The first packet is a keyframe's first: always so on a path without loss.
    pub starts_whole: bool,
    /// How much further timestamps went than time, at most, from one rendition to another.
    pub leap: Duration,
    /// Findings: each one is a bug.
    pub faults: Vec<String>,
}

/// Judges what a viewer got of one kind.
pub fn judge(got: &[Got], kind: MediaKind) -> Judgement {
    let mut packets: Vec<&Got> = got.iter().filter(|g| g.kind == kind).collect();
    let mut judgement = Judgement { packets: packets.len(), ..Judgement::default() };
    let Some(first) = packets.first() else { return judgement };
    let ssrc = first.ssrc;
    if packets.iter().any(|p| p.ssrc != ssrc) {
        judgement.faults.push("the viewer's SSRC changed".into());
    }
    packets.sort_by_key(|p| p.seq);
    let distinct: BTreeSet<u64> = packets.iter().map(|p| p.seq).collect();
    judgement.duplicates = packets.len() - distinct.len();
    let (low, high) = (packets[0].seq, packets[packets.len() - 1].seq);
    judgement.missing = high - low + 1 - distinct.len() as u64;
    // What is lost before the first packet that arrives, no receiver can know of: it is not a fault, see `starts_whole`.
    judgement.starts_whole = packets[0].stamp.first_of_frame && packets[0].stamp.keyframe;
    let captured = ticks_per_frame(&packets);
    // When a replay of the past was last seen.
    let mut replayed = packets[0].at;
    // Of the rendition at hand, what came with the least delay and was not overtaken, as repairs are; of the one before, where
    // there is no such.
    let mut prompt: Option<&Got> = None;
    let overtaken = overtaken(&packets);
    for (pair, overtaken) in packets.windows(2).zip(overtaken) {
        let [a, b] = pair else { continue };
        if b.seq > a.seq + 1 {
            judgement.gaps.push((**a, **b));
        }
        let is_later = |p: &Got| same_rendition(p, a) && a.at.since(p.at) > shown_between(p, a);
        if !overtaken && !prompt.is_some_and(is_later) {
            prompt = Some(a);
        }
        check_step(a, b, b.at.since(replayed) < REPLAY_TAIL, &mut judgement.faults);
        if !same_rendition(a, b)
            && let Some(prompt) = prompt.filter(|p| p.at <= b.at)
        {
            let leap = shown_between(prompt, b).saturating_sub(b.at.since(prompt.at));
            judgement.leap = judgement.leap.max(leap);
            if leap > SWITCH_LEAP {
                judgement.faults.push(format!("a switch's timestamp leaps by {leap:?}: {prompt:?}, {a:?} then {b:?}"));
            }
        }
        if step(a, b).is_none_or(|ticks| ticks > 0.0 && ticks < SQUEEZED * captured[&b.stamp.source]) {
            replayed = b.at;
        }
    }
    judgement.faults.truncate(10);
    judgement
}

/// Of each packet, whether a later one came before it. They are in the order of their numbers.
fn overtaken(packets: &[&Got]) -> Vec<bool> {
    let mut earliest = Instant::FAR_FUTURE;
    let is_overtaken = |p: &&Got| {
        let overtaken = earliest < p.at;
        earliest = earliest.min(p.at);
        overtaken
    };
    let mut overtaken: Vec<bool> = packets.iter().rev().map(is_overtaken).collect();
    overtaken.reverse();
    overtaken
}

/// Ticks from frame to frame; none within a frame. `None`: from one rendition to another.
fn step(a: &Got, b: &Got) -> Option<f64> {
    let frames = b.stamp.frame.wrapping_sub(a.stamp.frame);
    let ticks = f64::from(b.timestamp.wrapping_sub(a.timestamp).cast_signed());
    same_rendition(a, b).then(|| if frames == 0 { 0.0 } else { ticks / f64::from(frames) })
}

/// Of each source, at the pace of its capture: the longest there are, clocks that jump left out.
fn ticks_per_frame(packets: &[&Got]) -> BTreeMap<u32, f64> {
    let mut longest = BTreeMap::new();
    for pair in packets.windows(2) {
        let ticks: &mut f64 = longest.entry(pair[1].stamp.source).or_default();
        *ticks = step(pair[0], pair[1]).filter(|ticks| *ticks < FRAME_TICKS_MAX).unwrap_or_default().max(*ticks);
    }
    longest
}

fn same_rendition(a: &Got, b: &Got) -> bool {
    (a.stamp.source, a.stamp.layer) == (b.stamp.source, b.stamp.layer)
}

/// By timestamps.
fn shown_between(a: &Got, b: &Got) -> Duration {
    let clock_rate = if a.kind == MediaKind::Audio { 48_000 } else { 90_000 };
    Duration::from_secs(1) * b.timestamp.wrapping_sub(a.timestamp) / clock_rate
}

/// Two packets that follow each other in sequence numbers. `replaying`: a replay of the past may be under way.
fn check_step(a: &Got, b: &Got, replaying: bool, faults: &mut Vec<String>) {
    let mut fault = |what: &str| faults.push(format!("{what}: {a:?} then {b:?}"));
    let ahead = b.timestamp.wrapping_sub(a.timestamp);
    if ahead > u32::MAX / 2 {
        return fault("the timestamp goes back");
    }
    if step(a, b).is_some_and(|ticks| ticks > FRAME_TICKS_MAX && f64::from(ahead) > LEAP_TICKS) {
        return fault("the timestamp leaps");
    }
    let switched = !same_rendition(a, b);
    let startable = b.stamp.keyframe && b.stamp.first_of_frame;
    // What is lost at a switch may be the keyframe.
    if switched && b.kind == MediaKind::Video && b.seq == a.seq + 1 && !startable {
        fault("a new publisher or layer does not start with a keyframe");
    }
    let passed = shown_between(a, b);
    // A replay of the past ends early when a new keyframe comes, and so does the way of a viewer that has fallen behind; a layer
    // that falls silent is left, and come back to. What was not sent is closed up then. The keyframe may be lost.
    let catching_up = replaying || passed > b.at.since(a.at) + BEHIND;
    let begins = startable || catching_up && b.seq > a.seq + 1;
    let spliced = !switched && a.kind == MediaKind::Video && begins && b.stamp.packet > a.stamp.packet;
    if !switched
        && !spliced
        && b.seq != a.seq
        && b.seq - a.seq != u64::from(b.stamp.packet.wrapping_sub(a.stamp.packet))
    {
        fault("sequence numbers and the publisher's packets part");
    }
    if switched && ahead == 0 {
        fault("a new publisher's or layer's timestamp stands still");
    }
    let (Some(id_a), Some(id_b)) = (a.picture_id, b.picture_id) else { return };
    let new_frame = switched || spliced || a.stamp.frame != b.stamp.frame;
    let pictures = if switched || spliced { 1 } else { b.stamp.frame.wrapping_sub(a.stamp.frame) };
    // Across a splice with a loss before it nobody can say how many pictures there were.
    if (switched || spliced) && b.seq != a.seq + 1 {
        return;
    }
    let expected = if new_frame { (u32::from(id_a) + pictures) as u16 & 0x7fff } else { id_a };
    if id_b != expected {
        fault("the picture id jumps");
    }
    if let (Some(tl0_a), Some(tl0_b)) = (a.tl0_pic_idx, b.tl0_pic_idx)
        && tl0_b != if new_frame { tl0_a.wrapping_add(pictures as u8) } else { tl0_a }
    {
        fault("TL0PICIDX jumps");
    }
}

/// What one shard gave another, that one took. Nothing may be under way any more.
pub fn hand_overs(shards: &[Counters]) -> Result<(), String> {
    let (given, taken) =
        shards.iter().fold((0, 0), |(g, t), c| (g + c.datagrams_handed_over, t + c.datagrams_taken_over));
    if given != taken {
        return Err(format!("{given} datagrams were handed over, {taken} were taken over"));
    }
    Ok(())
}

/// Each datagram ends exactly once, and each RTP packet that left is counted once. `rtp_sent`: by all shards.
pub fn conservation(shards: &[Counters], rtp_sent: u64) -> Result<(), String> {
    use crate::metrics::DropReason as D;
    let counted: u64 = shards.iter().map(|c| c.media_forwarded + c.packets_resent + c.padding_sent).sum();
    if rtp_sent != counted {
        return Err(format!("{rtp_sent} RTP packets left, {counted} are accounted for"));
    }
    for (i, c) in shards.iter().enumerate() {
        let incoming = c.datagrams_received + c.datagrams_taken_over;
        // What happens to a packet after it was decrypted is counted per copy.
        let after: u64 = [
            D::PeerQueueFull,
            D::TrackQueueFull,
            D::Stale,
            D::AwaitingKeyframe,
            D::Padding,
            D::NoPayloadType,
            D::BeforeStart,
            D::ResendQueueFull,
        ]
        .into_iter()
        .map(|d| c.drops.of(d))
        .sum();
        let ended = c.datagrams_consumed + c.datagrams_handed_over + c.media_received + c.drops.total() - after;
        if incoming != ended {
            return Err(format!("shard {i}: {incoming} datagrams came, {ended} are accounted for: {c:?}"));
        }
    }
    Ok(())
}

/// The longest time without an arrival between `from` and `until`, and when it began. Arrivals are in order.
pub fn longest_silence(arrivals: impl Iterator<Item = Instant>, from: Instant, until: Instant) -> (Duration, Instant) {
    let within = arrivals.filter(|at| (from..until).contains(at));
    let mut longest = (Duration::ZERO, from);
    let mut last = from;
    for at in within.chain([until.max(from)]) {
        if at.since(last) > longest.0 {
            longest = (at.since(last), last);
        }
        last = at;
    }
    longest
}
