//! Who gets which packet, rewritten how.

pub mod burst;
pub mod canonical;
pub mod fanout;
pub mod keyframes;
pub mod store;
pub mod table;
