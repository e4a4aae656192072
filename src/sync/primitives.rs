//! One place to switch between what runs and what loom can model.

#[cfg(not(loom))]
pub(super) use crossbeam_queue::ArrayQueue as Queue;
#[cfg(not(loom))]
pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(loom)]
pub(super) use super::model::Queue;
#[cfg(loom)]
pub(super) use loom::sync::atomic::{AtomicBool, Ordering, fence};
