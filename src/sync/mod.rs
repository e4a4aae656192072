//! What threads share: a shard's inbox for its peers, with the protocol that wakes it when it sleeps.
//!
//! This directory uses nothing else of the crate, so that it is also the root of the small package `tests/loom`, in
//! which loom runs every interleaving of the protocol:
//! `RUSTFLAGS="--cfg loom" cargo test --release --manifest-path tests/loom/Cargo.toml`.

mod inbox;
#[cfg(loom)]
mod model;
mod primitives;

#[cfg(all(test, loom))]
mod loom_tests;

pub use inbox::{Inbox, MustRing};
