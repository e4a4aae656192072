//! Keys and ciphers: the DTLS that yields SRTP keys, and SRTP and SRTCP of our own.
//!
//! ```text
//! dtls::capture ──> CapturedKeys ──> MasterKeys ─┬─ local ──> RtpSealer, RtcpSealer
//!                   (RFC 5764 §4.2)              └─ remote ─> RtpOpener, RtcpOpener
//! ```

mod cipher;
pub mod dtls;
pub mod keys;
pub mod open;
pub mod rotation;
pub mod seal;
mod window;

#[cfg(test)]
mod interop_tests;
