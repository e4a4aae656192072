//! manycast: a WebRTC SFU and edge relay. One stream in, every core out.
//!
//! The modules stand in the order of their layers; each uses only those above its own line. See ARCHITECTURE.md.

#![deny(unsafe_code)]

// L0: words that everything else is written in.
pub mod config;
pub mod datagram;
pub mod id;
pub mod limits;
pub mod units;

// L1: packet I/O, queues between shards, counters. They know no RTP.
pub mod io;
pub mod metrics;
pub mod sync;

// L2: pure codecs.
pub mod wire;

// L3: keys and ciphers.
pub mod srtp;

// L4: one peer connection; who gets which packet.
pub mod forward;
pub mod session;

// L5: one core's world.
pub mod shard;

// L6: signalling over HTTP.
pub mod control;

// L7: the only threads; the same shards under virtual time; many clients of any server.
pub mod load;
pub mod node;
pub mod sim;
