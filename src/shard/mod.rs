//! One core's world, sans-IO: demux, sessions, timers, mailbox.

pub mod message;
pub mod placement;
