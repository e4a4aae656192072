//! What the end-to-end tests share: a real server process, a swarm of str0m clients on real UDP sockets, a lossy relay.
#![allow(dead_code, reason = "each test binary uses its part")]

pub mod relay;
pub mod server;
pub mod swarm;
