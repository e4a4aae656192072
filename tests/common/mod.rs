//! What the end-to-end tests share: a real server process, a swarm of str0m clients on real UDP sockets, a lossy relay.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod relay;
pub mod server;
pub mod swarm;

use std::sync::{Mutex, MutexGuard};

/// One test of a binary at a time, while it holds this: browsers and encoders that starve each other tell nothing about us.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(|failed| failed.into_inner())
}
