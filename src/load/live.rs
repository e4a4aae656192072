//! The line on standard error that tells how a run is going.

use std::io::{IsTerminal, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::crowd::Progress;
use crate::units::Instant;

/// What was shown last, and when the next is due.
pub(super) struct Live {
    terminal: bool,
    next: Instant,
    shown_at: Instant,
    packets: u64,
    bytes: u64,
    start: Instant,
}

impl Live {
    pub fn new(now: Instant) -> Live {
        let terminal = std::io::stderr().is_terminal();
        Live { terminal, next: now + Duration::from_secs(1), shown_at: now, packets: 0, bytes: 0, start: now }
    }

    pub fn show(&mut self, now: Instant, progress: &Progress, viewers: usize) {
        if now < self.next {
            return;
        }
        // A log gets fewer lines than eyes.
        self.next = now + Duration::from_secs(if self.terminal { 1 } else { 5 });
        let (packets, bytes) = (progress.packets.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed));
        let seconds = now.since(self.shown_at).as_secs_f64();
        let expected = progress.expected.load(Ordering::Relaxed);
        let lost = expected.saturating_sub(progress.received.load(Ordering::Relaxed));
        let line = format!(
            "{:.0} s: {} of {viewers} viewers, {:.0} packets/s, {:.1} Mbit/s, {:.3} % missing",
            now.since(self.start).as_secs_f64(),
            progress.connected.load(Ordering::Relaxed),
            (packets - self.packets) as f64 / seconds,
            (bytes - self.bytes) as f64 * 8e-6 / seconds,
            lost as f64 * 100.0 / expected.max(1) as f64,
        );
        (self.packets, self.bytes, self.shown_at) = (packets, bytes, now);
        let mut stderr = std::io::stderr().lock();
        // Nobody reads it: then nobody misses it.
        let _ = if self.terminal { write!(stderr, "\r\x1b[K{line}") } else { writeln!(stderr, "{line}") };
    }

    pub fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
