//! Signalling over HTTP: who may publish and watch what, and the life of every session as clients see it.
//!
//! The [`Controller`] decides and knows no socket; [`http`] carries requests to it and its answers back.
//!
//! ```text
//! HTTP -> http -> Controller: route -> limits -> auth -> Offer::parse -> session::negotiate -> HTTP
//!                     |  commands                       ^ events
//!                     v                                 |
//!                   shards: announce, close, trickle, restart
//! ```

mod auth;
mod body;
mod controller;
mod cors;
mod event_streams;
mod events;
mod exchange;
pub mod http;
mod layer;
mod legacy;
mod life;
mod origin;
mod page;
mod problem;
mod rate;
mod resource;
mod route;
mod sessions;
mod streams;
mod timers;
mod whep;
mod whip;

pub use controller::{Controller, Output, Part};
pub use exchange::{Request, Response};
pub use rate::client_key;
