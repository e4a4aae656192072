//! One peer connection, sans-IO: a publisher or a viewer.

pub mod negotiate;
