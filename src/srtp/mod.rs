//! Keys and ciphers: the DTLS that yields SRTP keys.

pub mod dtls;
