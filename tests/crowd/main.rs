//! One shard with a thousand viewers, under virtual time: what they cost and how they share.

mod allocations;
mod edges;
mod fairness;
mod layers;
mod pacing;
mod packets;
mod probes;
mod room;
mod spatial;
mod takeover;
