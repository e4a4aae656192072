//! What a run has measured: one set of figures, as a table for people and as JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use super::flags::Plan;

/// The figures. A unit ends each name; what was not measured is `null`.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Report {
    pub streams: u64,
    pub viewers_asked: u64,
    pub viewers_connected: u64,
    /// Connected, and without any packet at the end.
    pub viewers_silent: u64,
    /// Whose connection the server ended.
    pub viewers_closed: u64,
    /// Of the measurement: all below is of this time, the three `first` and `connect` ones apart.
    pub window_seconds: f64,
    pub packets_published_per_second: f64,
    /// RTP datagrams, RTX and duplicates too.
    pub packets_received: u64,
    pub packets_per_second: f64,
    /// UDP payload.
    pub bits_per_second: f64,
    pub bits_per_second_per_viewer: f64,
    pub packets_expected: u64,
    /// For good, of audio and video.
    pub packets_lost: u64,
    /// Of those, audio: it has no RTX.
    pub audio_packets_lost: u64,
    pub loss_percent: f64,
    pub rtx_packets: u64,
    pub rtx_repaired: u64,
    pub duplicates: u64,
    pub reordered: u64,
    pub unreadable: u64,
    /// From before the offer, HTTP included.
    pub connect_ms: Spread,
    pub first_packet_ms: Spread,
    pub first_keyframe_ms: Spread,
    /// From just before the publisher's encryption until it was read from the viewer's socket.
    pub latency_us: Latency,
    pub sampled_viewers: u64,
    pub server_cpu_us_per_packet: Option<f64>,
    pub server_cpu_percent: Option<f64>,
    /// Its threads were ready to run and had no processor: sums over threads.
    pub server_starved_percent: Option<f64>,
    pub server_rss_kb_per_viewer: Option<f64>,
    /// Of this process, in percent of one core.
    pub client_cpu_percent: f64,
    pub client_starved_percent: f64,
    /// Of the thread that receives for all viewers.
    pub viewer_thread_cpu_percent: f64,
    pub publisher_late_p99_ms: Option<f64>,
    pub publisher_late_max_ms: f64,
    /// PLI and FIR that publishers got, since the start.
    pub keyframe_requests: u64,
    pub emulated_losses: u64,
    /// Datagrams that found a full receive buffer on this machine, anybody's.
    pub kernel_receive_drops: Option<u64>,
    pub gro: bool,
    pub interrupted: bool,
    /// What a reader should know, in words.
    pub notes: Vec<String>,
}

/// Percentiles over viewers.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Spread {
    pub p50: Option<f64>,
    pub p95: Option<f64>,
    pub p99: Option<f64>,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Spread {
        times.sort_unstable();
        let at = |part: f64| {
            let rank = ((times.len() as f64 * part).ceil() as usize).max(1);
            times.get(rank - 1).map(|t| round(t.as_secs_f64() * 1000.0, 1))
        };
        Spread { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Latency {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
    pub samples: u64,
}

impl Report {
    /// Thresholds that were missed, in words.
    pub fn missed(&self, plan: &Plan) -> Vec<String> {
        let mut missed = Vec::new();
        if let Some(max) = plan.max_loss_percent {
            if self.loss_percent > max {
                missed.push(format!("{:.3} % lost, more than {max} %", self.loss_percent));
            }
            if self.viewers_silent + self.viewers_closed > 0 {
                let lost = self.viewers_silent + self.viewers_closed;
                missed.push(format!("{lost} viewers got nothing in the end"));
            }
            if self.packets_expected == 0 {
                missed.push("nothing was received, so no loss could be measured".to_owned());
            }
        }
        if let Some(max) = plan.max_p99 {
            match self.latency_us.p99 {
                Some(p99) if p99 <= max.as_secs_f64() * 1e6 => {}
                Some(p99) => missed.push(format!("p99 latency {:.2} ms, more than {max:?}", p99 / 1000.0)),
                None => missed.push("no latency could be measured".to_owned()),
            }
        }
        missed
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let mut row = |name, value: String| rows.push((name, value));
        let Report { viewers_connected: connected, viewers_asked: asked, streams, .. } = self;
        row(
            "viewers connected",
            format!("{connected} of {asked}, {streams} stream{}", if *streams == 1 { "" } else { "s" }),
        );
        row("measured for", format!("{:.1} s", self.window_seconds));
        row("time to connect", spread(&self.connect_ms));
        row("to first packet", spread(&self.first_packet_ms));
        row("to first keyframe", spread(&self.first_keyframe_ms));
        row("packets received", format!("{}, {:.0}/s", self.packets_received, self.packets_per_second));
        let mbit = |bits: f64| bits / 1e6;
        let per_viewer = mbit(self.bits_per_second_per_viewer);
        row("bitrate", format!("{:.1} Mbit/s, {per_viewer:.2} per viewer", mbit(self.bits_per_second)));
        let audio = match self.audio_packets_lost {
            0 => String::new(),
            audio => format!(", {audio} of them audio, which has no RTX"),
        };
        let (percent, lost, expected) = (self.loss_percent, self.packets_lost, self.packets_expected);
        row("lost", format!("{percent:.3} % ({lost} of {expected}{audio})"));
        row("repaired by RTX", format!("{} ({} RTX packets)", self.rtx_repaired, self.rtx_packets));
        row("duplicates, reordered", format!("{}, {}", self.duplicates, self.reordered));
        let latency = &self.latency_us;
        if let (Some(p50), Some(p99), Some(p999)) = (latency.p50, latency.p99, latency.p999) {
            let [p50, p99, p999] = [p50, p99, p999].map(|us| us / 1000.0);
            let samples = latency.samples;
            row("latency", format!("p50 {p50:.2} ms, p99 {p99:.2}, p99.9 {p999:.2} ({samples} samples)"));
        }
        if let (Some(us), Some(percent)) = (self.server_cpu_us_per_packet, self.server_cpu_percent) {
            row("server CPU", format!("{us:.2} µs per packet, {percent:.0} % of a core"));
        } else if let Some(percent) = self.server_cpu_percent {
            row("server CPU", format!("{percent:.1} % of a core"));
        }
        if let Some(kb) = self.server_rss_kb_per_viewer {
            row("server memory", format!("{kb:.1} kB per viewer"));
        }
        let (client, thread) = (self.client_cpu_percent, self.viewer_thread_cpu_percent);
        row("load tester CPU", format!("{client:.0} % of a core, its viewers' thread {thread:.0} %"));
        let mut text = String::new();
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<22} {value}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        text
    }
}

pub(super) fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

fn spread(spread: &Spread) -> String {
    match (spread.p50, spread.p95, spread.p99) {
        (Some(p50), Some(p95), Some(p99)) => format!("p50 {p50:.0} ms, p95 {p95:.0}, p99 {p99:.0}"),
        _ => "-".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_viewers() {
        let spread = Spread::of((1..=100).map(Duration::from_millis).collect());
        assert_eq!((spread.p50, spread.p95, spread.p99), (Some(50.0), Some(95.0), Some(99.0)));
        assert_eq!(Spread::of(Vec::new()).p50, None);
    }

    #[test]
    fn a_table_has_a_row_for_what_was_measured() {
        let mut report = Report { viewers_asked: 3, viewers_connected: 2, ..Report::default() };
        assert!(report.table().contains("viewers connected      2 of 3, 0 streams\n"));
        assert!(!report.table().contains("server CPU"));
        report.server_cpu_us_per_packet = Some(0.8);
        report.server_cpu_percent = Some(8.0);
        assert!(report.table().contains("server CPU             0.80 µs per packet, 8 % of a core\n"));
    }
}
