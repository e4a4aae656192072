//! What happened in a run, as one number: times, kinds and outcomes. Not bytes or lengths: str0m draws randomness of
//! its own.

use std::hash::Hasher;

use rustc_hash::FxHasher;

use crate::units::Instant;

/// A hash over everything that was recorded, in order.
#[derive(Default)]
pub struct Trace {
    hasher: FxHasher,
    lines: u64,
    /// Kept when asked for, to find where two runs part.
    log: Option<Vec<String>>,
}

impl Trace {
    pub fn keep_log(&mut self) {
        self.log = Some(Vec::new());
    }

    pub fn record(&mut self, at: Instant, what: &str, who: u64, whom: u64) {
        self.hasher.write_u64(at.as_nanos());
        self.hasher.write(what.as_bytes());
        self.hasher.write_u64(who);
        self.hasher.write_u64(whom);
        self.lines += 1;
        if let Some(log) = &mut self.log {
            log.push(format!("{} {what} {who} {whom}", at.as_nanos()));
        }
    }

    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub fn lines(&self) -> u64 {
        self.lines
    }

    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }
}
