//! When a packet was captured, on our clock: from the publisher's sender reports (RFC 3550 §6.4.1).
//!
//! Audio and video of one publisher share one offset between its clock and ours, so what was captured together stays
//! together. The offset is the smallest `arrival - NTP` so far: that of the
//! packet which waited least on its way.

use std::time::Duration;

use crate::units::Instant;

/// How far timestamps may part from the time that has passed since a sender report: more is an RTP clock that has jumped, and
/// what the report says of it is over.
const JUMP: Duration = Duration::from_millis(500);
/// A publisher's packets may wait so long behind its reports.
const WAITS_MAX: Duration = Duration::from_secs(5);

/// One publisher's clock against ours.
#[derive(Debug, Default)]
pub(super) struct CaptureClock {
    /// Nanoseconds to add to the publisher's NTP time: the smallest `arrival - NTP` so far.
    offset: Option<i128>,
}

/// A track's last sender report, and when the first packet after it came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// NTP (32.32) and RTP time.
    times: (u64, u32),
    since: Instant,
}

impl CaptureClock {
    /// `times`: NTP (32.32) and RTP time of the track's last sender report, of which `report` takes note. Never later than
    /// `arrival`.
    pub fn captured(
        &mut self,
        report: &mut Option<Report>,
        arrival: Instant,
        timestamp: u32,
        clock_rate: u32,
        times: Option<(u64, u32)>,
    ) -> Instant {
        let Some(times) = times else { return arrival };
        let report = match report.filter(|r| r.times == times) {
            Some(known) => known,
            None => *report.insert(Report { times, since: arrival }),
        };
        let (ntp, rtp) = times;
        // Signed: a packet may be older than the report.
        let ticks = i128::from(timestamp.wrapping_sub(rtp).cast_signed());
        let later = ticks * 1_000_000_000 / i128::from(clock_rate);
        let latest = (arrival.since(report.since) + JUMP).as_nanos() as i128;
        if later < -(WAITS_MAX.as_nanos() as i128) || later > latest {
            return arrival;
        }
        let theirs = ntp_nanos(ntp) + later;
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
        assert_eq!(CaptureClock::default().captured(&mut None, at(5), 1, 90_000, None), at(5));
    }

    #[test]
    fn audio_and_video_stand_on_one_line() {
        let mut clock = CaptureClock::default();
        // The publisher's clock is 1000 s ahead; its video's RTP time was 0 then, its audio's 500.
        let (video, audio) = (Some((ntp(1_000_000), 0)), Some((ntp(1_000_000), 500)));
        let (of_video, of_audio) = (&mut None, &mut None);
        assert!(close(clock.captured(of_video, at(10), 0, 90_000, video), 10));
        // Video that was captured 33 ms later and waited 20 ms more; audio of the same moment that did not.
        assert!(close(clock.captured(of_video, at(63), 2970, 90_000, video), 43));
        assert!(close(clock.captured(of_audio, at(43), 500 + 1584, 48_000, audio), 43));
    }

    #[test]
    fn nothing_is_captured_in_the_future() {
        let mut clock = CaptureClock::default();
        let (report, times) = (&mut None, Some((ntp(1_000_000), 0)));
        assert!(close(clock.captured(report, at(50), 0, 90_000, times), 50));
        // This one came faster: the first had waited 30 ms, which is known from now on.
        assert!(close(clock.captured(report, at(53), 2970, 90_000, times), 53));
        assert!(close(clock.captured(report, at(99), 2970, 90_000, times), 53));
    }

    #[test]
    fn a_timestamp_that_jumps_says_nothing_until_the_next_report() {
        let mut clock = CaptureClock::default();
        let (report, times) = (&mut None, Some((ntp(1_000_000), 0)));
        assert!(close(clock.captured(report, at(50), 0, 90_000, times), 50));
        let audio = Some((ntp(1_000_000), 500));
        for jump in [14_000 * 90, -14_000 * 90] {
            assert_eq!(clock.captured(report, at(150), (jump + 9000) as u32, 90_000, times), at(150));
            assert!(close(clock.captured(&mut None, at(170), 500 + 4800, 48_000, audio), 150), "as before");
        }
        // Nothing was wrong with the publisher's other clock.
        let next = Some((ntp(1_000_200), 14_200 * 90));
        assert!(close(clock.captured(report, at(290), 14_200 * 90, 90_000, next), 250));
    }
}
