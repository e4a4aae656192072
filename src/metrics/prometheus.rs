//! Prometheus text, version 0.0.4. Names are an API: add and deprecate, do not rename.

use std::fmt::Write;

use super::{Counters, DropReason, Histogram, Scale, ShardFigures};

/// Figures that control knows and no shard does.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    pub streams: usize,
    /// Sessions whose client has not connected yet.
    pub sessions_waiting: usize,
}

/// All metrics of a node, from each shard's newest report.
pub fn render(gauges: &Gauges, shards: &[ShardFigures]) -> String {
    let mut text = Text(String::with_capacity(16 * 1024));
    text.head("manycast_stream_active", "gauge", "Streams that have a publisher or viewers.");
    text.line("manycast_stream_active", "", gauges.streams);
    text.head("manycast_session_waiting", "gauge", "Sessions whose client has not connected yet.");
    text.line("manycast_session_waiting", "", gauges.sessions_waiting);
    text.head("manycast_session_active", "gauge", "Sessions by role and shard.");
    for s in shards {
        text.line("manycast_session_active", &format!("role=\"publisher\",shard=\"{}\"", s.shard), s.publishers);
        text.line("manycast_session_active", &format!("role=\"viewer\",shard=\"{}\"", s.shard), s.viewers);
    }
    for (name, help, value) in COUNTERS {
        text.head(name, "counter", help);
        for s in shards {
            text.line(name, &format!("shard=\"{}\"", s.shard), value(&s.counters));
        }
    }
    text.head("manycast_packet_dropped_total", "counter", "Datagrams and copies that went no further, by reason.");
    for s in shards {
        for reason in DropReason::ALL {
            let labels = format!("reason=\"{}\",shard=\"{}\"", reason.name(), s.shard);
            text.line("manycast_packet_dropped_total", &labels, s.counters.drops.of(reason));
        }
    }
    text.head("manycast_backend_event_total", "counter", "Events of the packet I/O backend.");
    for s in shards {
        for (event, count) in &s.backend {
            text.line("manycast_backend_event_total", &format!("event=\"{event}\",shard=\"{}\"", s.shard), count);
        }
    }
    text.histograms(
        "manycast_forward_latency_seconds",
        "From a datagram's receipt to the end of the flush that sent its copies.",
        shards,
        |c| &c.latency,
    );
    text.histograms(
        "manycast_viewer_fraction_lost",
        "Video lost on the way to a viewer, by its receiver reports; before repair by RTX.",
        shards,
        |c| &c.fraction_lost,
    );
    text.histograms(
        "manycast_viewer_round_trip_seconds",
        "From a sender report to the viewer's report on it.",
        shards,
        |c| &c.round_trip,
    );
    text.0
}

type Value = fn(&Counters) -> u64;

const COUNTERS: &[(&str, &str, Value)] = &[
    ("manycast_datagram_received_total", "Datagrams received.", |c| c.datagrams_received),
    ("manycast_datagram_received_bytes_total", "Bytes received in datagrams.", |c| c.bytes_received),
    ("manycast_datagram_consumed_total", "STUN, DTLS and RTCP given to sessions.", |c| c.datagrams_consumed),
    ("manycast_stun_repaired_total", "Binding requests that lacked PRIORITY, as FFmpeg 8.0's do.", |c| c.stun_repaired),
    ("manycast_datagram_handed_over_total", "Datagrams given to the shard that owns their session.", |c| {
        c.datagrams_handed_over
    }),
    ("manycast_datagram_taken_over_total", "Datagrams taken from other shards.", |c| c.datagrams_taken_over),
    ("manycast_datagram_sent_total", "Datagrams sent.", |c| c.datagrams_sent),
    ("manycast_message_sent_total", "Messages sent, each of one datagram or of several segments.", |c| c.messages_sent),
    ("manycast_datagram_sent_bytes_total", "Bytes sent in datagrams.", |c| c.bytes_sent),
    ("manycast_send_would_block_total", "Datagrams dropped at a full socket buffer.", |c| c.send_would_block),
    ("manycast_send_error_total", "Datagrams that the kernel refused.", |c| c.send_errors),
    ("manycast_media_received_total", "Publishers' packets decrypted.", |c| c.media_received),
    ("manycast_media_received_bytes_total", "Payload bytes of publishers' packets.", |c| c.media_received_bytes),
    ("manycast_media_forwarded_total", "Copies given to viewers.", |c| c.media_forwarded),
    ("manycast_media_forwarded_bytes_total", "Payload bytes of copies given to viewers.", |c| c.media_forwarded_bytes),
    ("manycast_media_unsent_total", "Copies that a full socket did not take.", |c| c.media_unsent),
    ("manycast_nack_received_total", "Packets that viewers NACKed.", |c| c.nacks_received),
    ("manycast_packet_resent_total", "Packets that were sent again.", |c| c.packets_resent),
    ("manycast_session_media_suppressed_total", "Must stay 0: media that str0m wanted to send for a viewer.", |c| {
        c.str0m_media_suppressed
    }),
    ("manycast_keyframe_request_received_total", "Keyframe requests of viewers, joins included.", |c| {
        c.keyframe_requests_received
    }),
    ("manycast_keyframe_request_sent_total", "Keyframe requests sent to publishers.", |c| c.keyframe_requests_sent),
    ("manycast_keyframe_received_total", "Keyframes of publishers.", |c| c.keyframes_received),
    ("manycast_replay_started_total", "Viewers that were started from what came since the last keyframe.", |c| {
        c.replays_started
    }),
    ("manycast_layer_switched_total", "Viewers' switches from one simulcast layer to another.", |c| c.layer_switches),
];

struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{name} {value}"),
            labels => writeln!(self.0, "{name}{{{labels}}} {value}"),
        };
    }

    fn histograms<S: Scale>(
        &mut self,
        name: &str,
        help: &str,
        shards: &[ShardFigures],
        of: fn(&Counters) -> &Histogram<S>,
    ) {
        self.head(name, "histogram", help);
        for s in shards {
            let (labels, histogram) = (format!("shard=\"{}\"", s.shard), of(&s.counters));
            let mut below = 0;
            for (i, count) in histogram.buckets().iter().enumerate() {
                below += count;
                let bound = S::BOUNDS.get(i).map_or("+Inf".to_string(), |b| shown(*b as f64 * S::UNIT));
                self.line(&format!("{name}_bucket"), &format!("{labels},le=\"{bound}\""), below);
            }
            self.line(&format!("{name}_sum"), &labels, histogram.sum());
            self.line(&format!("{name}_count"), &labels, below);
        }
    }
}

/// Nine digits are enough for a bound, and hide what is not exact in binary.
fn shown(bound: f64) -> String {
    ((bound * 1e9).round() / 1e9).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::ShardId;

    #[test]
    fn a_report_renders_as_prometheus_text() {
        let mut counters = Counters { media_forwarded: 7, ..Counters::default() };
        counters.drops.count(DropReason::StunUnknownUfrag);
        counters.latency.observe_duration(Duration::from_micros(30), 1);
        counters.fraction_lost.observe(13, 1);
        let report =
            ShardFigures { shard: ShardId(1), counters, publishers: 1, viewers: 3, backend: vec![("rearmed", 2)] };
        let text = render(&Gauges { streams: 1, sessions_waiting: 2 }, &[report]);
        for line in [
            "manycast_stream_active 1",
            "manycast_session_active{role=\"viewer\",shard=\"1\"} 3",
            "manycast_media_forwarded_total{shard=\"1\"} 7",
            "manycast_packet_dropped_total{reason=\"stun_unknown_ufrag\",shard=\"1\"} 1",
            "manycast_backend_event_total{event=\"rearmed\",shard=\"1\"} 2",
            "manycast_forward_latency_seconds_bucket{shard=\"1\",le=\"0.00005\"} 1",
            "manycast_forward_latency_seconds_count{shard=\"1\"} 1",
            "manycast_viewer_fraction_lost_bucket{shard=\"1\",le=\"0.05078125\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in:\n{text}");
        }
        assert!(text.lines().all(|l| l.starts_with('#') || l.rsplit_once(' ').is_some()));
    }
}
