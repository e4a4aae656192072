//! When a packet was captured, on our clock: from the publisher's sender reports (RFC 3550 §6.4.1).
//!
//! Audio and video of one publisher share one offset between its clock and ours, so what was captured together stays
//! together. The offset is the smallest `arrival - NTP` so far: that of the
//! packet which waited least on its way.

use crate::units::Instant;

/// One publisher's clock against ours.
#[derive(Debug, Default)]
pub(super) struct CaptureClock {
    /// Nanoseconds to add to the publisher's NTP time: the smallest `arrival - NTP` so far.
    offset: Option<i128>,
}

impl CaptureClock {
    /// `report`: NTP (32.32) and RTP time of the track's last sender report. Never later than `arrival`.
    pub fn captured(
        &mut self,
        arrival: Instant,
        timestamp: u32,
        clock_rate: u32,
        report: Option<(u64, u32)>,
    ) -> Instant {
        let Some((ntp, rtp)) = report else { return arrival };
        // Signed: a packet may be older than the report.
        let ticks = i128::from(timestamp.wrapping_sub(rtp).cast_signed());
        let theirs = ntp_nanos(ntp) + ticks * 1_000_000_000 / i128::from(clock_rate);
        let ours = i128::from(arrival.as_nanos());
        let candidate = ours - theirs;
        // A smaller one shows that those before had waited on their way, or that the clocks drift apart: for all tracks
        // together it holds from now on, else a capture would lie in the future.
        let offset = self.offset.map_or(candidate, |known| known.min(candidate));
        self.offset = Some(offset);
        let captured = (theirs + offset).clamp(0, ours);
        Instant::from_nanos(u64::try_from(captured).unwrap_or(arrival.as_nanos()))
    }
}

fn ntp_nanos(ntp: u64) -> i128 {
    (i128::from(ntp) * 1_000_000_000) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    /// NTP of so many milliseconds.
    fn ntp(ms: u64) -> u64 {
        (ms << 32) / 1000
    }

    fn close(a: Instant, ms: u64) -> bool {
        a.as_nanos().abs_diff(ms * 1_000_000) < 2_000
    }

    #[test]
    fn without_a_report_a_packet_was_captured_when_it_came() {
        assert_eq!(CaptureClock::default().captured(at(5), 1, 90_000, None), at(5));
    }

    #[test]
    fn audio_and_video_stand_on_one_line() {
        let mut clock = CaptureClock::default();
        // The publisher's clock is 1000 s ahead; its video's RTP time was 0 then, its audio's 500.
        let (video, audio) = (Some((ntp(1_000_000), 0)), Some((ntp(1_000_000), 500)));
        assert!(close(clock.captured(at(10), 0, 90_000, video), 10));
        // Video that was captured 33 ms later and waited 20 ms more; audio of the same moment that did not.
        assert!(close(clock.captured(at(63), 2970, 90_000, video), 43));
        assert!(close(clock.captured(at(43), 500 + 1584, 48_000, audio), 43));
    }

    #[test]
    fn nothing_is_captured_in_the_future() {
        let mut clock = CaptureClock::default();
        let report = Some((ntp(1_000_000), 0));
        assert!(close(clock.captured(at(50), 0, 90_000, report), 50));
        // This one came faster: the first had waited 30 ms, which is known from now on.
        assert!(close(clock.captured(at(53), 2970, 90_000, report), 53));
        assert!(close(clock.captured(at(99), 2970, 90_000, report), 53));
    }
}
