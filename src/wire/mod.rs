//! Pure codecs for what goes over the wire. No state, no clock, no sockets.

pub mod av1;
mod bits;
pub mod classify;
pub mod codec;
pub mod dependency;
pub mod descriptor;
pub mod h264;
pub mod keyframe;
pub mod packet;
pub mod rtcp;
pub mod rtp;
pub mod sdp;
pub mod stun;
pub mod transport_cc;
pub mod vp8;
pub mod vp9;
