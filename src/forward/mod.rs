//! Who gets which packet, rewritten how.

pub mod bucket;
pub mod burst;
pub mod canonical;
pub mod early;
pub mod fanout;
pub mod gop;
pub mod keyframes;
pub mod pacer;
pub mod select;
pub mod store;
pub mod table;
pub mod track;
