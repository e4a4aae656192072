//! `manycast load`: synthetic publishers and viewers against any WHIP, WHEP or `/sdp` server, and what they saw.
//!
//! ```text
//!  flags ─> Plan ─> run ─┬─ workers: an offer each, at the ramp's pace ── signalling ──> HTTP
//!                        │      │ Joined
//!                        │      ├──> publishers   one thread: str0m, frames on schedule
//!                        │      └──> crowd        one thread: a socket and a viewer each, io::many
//!                        └─ figures at the window's begin and end ── process ──> Report
//! ```
//!
//! Each viewer has a UDP port of its own: sessions of one 4-tuple could not be told apart.

mod connection;
mod crowd;
mod flags;
mod histogram;
mod live;
mod media;
mod path;
pub mod process;
mod publishers;
mod report;
mod run;
mod signalling;
mod summary;
mod tally;
mod target;
mod viewer;

pub use flags::Flags;
pub use run::run;
