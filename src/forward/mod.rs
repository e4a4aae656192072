//! Who gets which packet, rewritten how.

pub mod canonical;
pub mod fanout;
pub mod keyframes;
pub mod table;
