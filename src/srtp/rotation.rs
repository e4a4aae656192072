//! When the process makes itself a new DTLS certificate: daily, for sessions from then on.
//!
//! A stolen key then serves for the handshakes of one day. Sessions keep the certificate that their answer names.

use std::time::Duration;

use crate::units::Instant;

const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// The day of the certificate in use.
#[derive(Debug)]
pub struct Rotation {
    next: Instant,
}

impl Rotation {
    /// The first certificate was made now.
    pub fn new(now: Instant) -> Rotation {
        Rotation { next: now + LIFETIME }
    }

    /// Whether to make a new one; then the next one is a day away, however late this is asked.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + LIFETIME;
        }
        due
    }

    pub fn next_timeout(&self) -> Instant {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_once_a_day() {
        let hour = Duration::from_secs(3600);
        let mut now = Instant::ZERO + hour;
        let mut rotation = Rotation::new(now);
        let mut made = Vec::new();
        for hours in 1..=24 * 7 {
            now += hour;
            if rotation.is_due(now) {
                made.push(hours);
                assert!(!rotation.is_due(now));
                assert_eq!(rotation.next_timeout(), now + LIFETIME);
            }
        }
        assert_eq!(made, [24, 48, 72, 96, 120, 144, 168]);
        assert!(rotation.is_due(now + 10 * LIFETIME) && !rotation.is_due(now + 10 * LIFETIME), "days slept through");
    }
}
