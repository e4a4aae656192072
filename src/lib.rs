//! manycast: a WebRTC SFU and edge relay. One stream in, every core out.

#![deny(unsafe_code)]

pub mod datagram;
pub mod id;
pub mod limits;
pub mod units;

pub mod io;
pub mod sync;

pub mod metrics;

pub mod wire;

pub mod session;

pub mod forward;

pub mod shard;
