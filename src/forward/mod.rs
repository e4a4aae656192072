//! Who gets which packet, rewritten how.

pub mod table;
