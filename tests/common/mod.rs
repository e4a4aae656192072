//! What the end-to-end tests share: a real server process, and a swarm of str0m clients on real UDP sockets.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod server;
pub mod swarm;
