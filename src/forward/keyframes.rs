//! When to ask a publisher for a keyframe: viewers' requests come in by the hundred, few go up.

use std::time::Duration;

use crate::units::Instant;

/// Between two requests for one layer. An encoder that is asked more often only wastes bits.
const THROTTLE: Duration = Duration::from_secs(1);
/// A keyframe this young serves whoever asks: it is on its way to those who were there, and replayed to those who join.
const FRESH: Duration = Duration::from_millis(200);
/// Unanswered requests are repeated after these times, then at [`DEAF_RETRY`].
const RETRIES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// OBS and ffmpeg do not answer PLI at all; they send a keyframe every so often by themselves.
const DEAF_RETRY: Duration = Duration::from_secs(10);

/// How long an answer takes at most, from an encoder that listens.
pub const ANSWER_WAIT: Duration = Duration::from_millis(400);

/// Gathers the requests for one layer of a publisher's video.
#[derive(Debug)]
pub struct KeyframeRequests {
    /// Somebody waits for a keyframe.
    wanted: bool,
    last_request: Option<Instant>,
    last_keyframe: Option<Instant>,
    /// Requests since the last keyframe.
    unanswered: usize,
    deaf: bool,
}

impl KeyframeRequests {
    pub fn new() -> KeyframeRequests {
        KeyframeRequests { wanted: false, last_request: None, last_keyframe: None, unanswered: 0, deaf: false }
    }

    /// A viewer joined, or lost too much to go on.
    pub fn handle_request(&mut self, now: Instant) {
        if self.last_keyframe.is_some_and(|at| now.since(at) < FRESH) {
            return;
        }
        self.wanted = true;
    }

    /// The first packet of a keyframe came.
    pub fn handle_keyframe(&mut self, now: Instant) {
        if self.unanswered > 0 {
            self.deaf = self.is_overdue(now);
        }
        self.wanted = false;
        self.unanswered = 0;
        self.last_keyframe = Some(now);
    }

    /// The encoder does not answer: it is no use waiting for it.
    pub fn is_deaf(&self) -> bool {
        self.deaf
    }

    fn is_overdue(&self, now: Instant) -> bool {
        self.last_request.is_some_and(|at| now.since(at) >= ANSWER_WAIT)
    }

    /// Whether to send a request now. Call it when [`Self::next_timeout`] has come and after each input.
    pub fn poll(&mut self, now: Instant) -> bool {
        self.deaf |= self.wanted && self.unanswered > 0 && self.is_overdue(now);
        if !self.wanted || now < self.next_request() {
            return false;
        }
        self.last_request = Some(now);
        self.unanswered += 1;
        true
    }

    pub fn next_timeout(&self) -> Instant {
        let next = self.next_request();
        match self.last_request {
            Some(last) if self.wanted && self.unanswered > 0 && !self.deaf => next.min(last + ANSWER_WAIT),
            _ => next,
        }
    }

    fn next_request(&self) -> Instant {
        if !self.wanted {
            return Instant::FAR_FUTURE;
        }
        let Some(last) = self.last_request else { return Instant::ZERO };
        let wait = match self.unanswered {
            0 => THROTTLE,
            n => RETRIES.get(n - 1).copied().unwrap_or(DEAF_RETRY),
        };
        last + wait.max(THROTTLE)
    }
}

impl Default for KeyframeRequests {
    fn default() -> Self {
        KeyframeRequests::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn five_hundred_joins_in_a_second_are_two_requests_at_most() {
        let mut requests = KeyframeRequests::new();
        let mut sent = 0;
        for i in 0..500 {
            requests.handle_request(at(i * 2));
            sent += usize::from(requests.poll(at(i * 2)));
            if i == 30 {
                requests.handle_keyframe(at(i * 2));
            }
        }
        assert!((1..=2).contains(&sent), "{sent}");
    }

    #[test]
    fn an_unanswered_request_is_repeated_more_and_more_rarely() {
        let mut requests = KeyframeRequests::new();
        requests.handle_request(at(0));
        let mut sent = vec![];
        for ms in 0..30_000 {
            if requests.poll(at(ms)) {
                sent.push(ms);
            }
        }
        assert_eq!(sent, [0, 1000, 3000, 7000, 17_000, 27_000]);
    }

    #[test]
    fn an_encoder_is_deaf_while_it_leaves_requests_unanswered() {
        let mut requests = KeyframeRequests::new();
        requests.handle_request(at(0));
        assert!(requests.poll(at(0)) && !requests.is_deaf());
        assert_eq!(requests.next_timeout(), at(400));
        assert!(!requests.poll(at(400)) && requests.is_deaf());
        assert_eq!(requests.next_timeout(), at(1000));
        requests.handle_keyframe(at(900));
        assert!(requests.is_deaf(), "it came by itself");
        requests.handle_request(at(2000));
        assert!(requests.poll(at(2000)));
        requests.handle_keyframe(at(2399));
        assert!(!requests.is_deaf(), "it was asked for");
    }

    #[test]
    fn a_fresh_keyframe_answers_the_next_request() {
        let mut requests = KeyframeRequests::new();
        requests.handle_keyframe(at(1000));
        requests.handle_request(at(1100));
        assert!(!requests.poll(at(1100)));
        requests.handle_request(at(1300));
        assert!(requests.poll(at(1300)));
        requests.handle_keyframe(at(1350));
        assert_eq!(requests.next_timeout(), Instant::FAR_FUTURE);
    }
}
