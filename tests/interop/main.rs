//! Other people's WebRTC against ours: libsrtp opens what we seal; aiortc and libwebrtc, as Node has it, publish and
//! watch. `scripts/test` brings what they need into `target/interop`.

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod libsrtp;
mod peer;
