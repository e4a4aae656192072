//! From the figures of two moments, and what threads left behind, to a report.

use std::time::Duration;

use super::crowd::CrowdReport;
use super::flags::Plan;
use super::histogram::Histogram;
use super::process::Usage;
use super::publishers::PublishersReport;
use super::report::{Latency, Report, Spread, round};
use super::viewer::Milestones;
use crate::units::Instant;

/// Threads that are ready and wait longer than this, of the time, are kept from it by something else.
const STARVED_PERCENT: f64 = 20.0;

/// What the threads left behind.
pub(super) struct Ended {
    pub crowd: CrowdReport,
    pub publishers: PublishersReport,
    pub not_deleted: Option<String>,
}

/// Figures of one moment.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    pub at: Instant,
    pub packets: u64,
    pub bytes: u64,
    pub published: u64,
    pub server: Option<Usage>,
    pub own: Usage,
    pub thread_cpu: Duration,
    pub kernel_drops: Option<u64>,
}

pub(super) struct Measured {
    pub begin: Mark,
    pub end: Mark,
    pub connected: u64,
    pub memory_before_kb: Option<u64>,
    pub memory_after_kb: Option<u64>,
    pub interrupted: bool,
    pub notes: Vec<String>,
}

/// Figures of the window, and what makes them doubtful.
pub(super) fn summarise(plan: &Plan, measured: Measured, ended: Ended) -> Report {
    let Measured { begin, end, connected, .. } = measured;
    let Ended { crowd, publishers, .. } = &ended;
    let window = end.at.since(begin.at).as_secs_f64();
    let (packets, bytes) = (end.packets - begin.packets, end.bytes - begin.bytes);
    let per_second = |count: u64| if window > 0.0 { count as f64 / window } else { 0.0 };
    let percent = |cpu: Duration| if window > 0.0 { round(cpu.as_secs_f64() * 100.0 / window, 1) } else { 0.0 };
    let server = begin.server.zip(end.server).map(|(begin, end)| end.since(begin));
    let own = end.own.since(begin.own);
    let memory = measured.memory_before_kb.zip(measured.memory_after_kb);
    // Apart: repairs of what was lost before the window must not make up for audio.
    let lost = crowd.video.lost() + crowd.audio.lost();
    let mut counts = crowd.video;
    counts.add(&crowd.audio);
    let since_asked = |reached: fn(&Milestones) -> Option<Instant>| {
        Spread::of(crowd.milestones.iter().filter_map(|m| Some(reached(m)?.since(m.asked))).collect())
    };
    // Stamps of another process are of another clock.
    let latency = Some(&crowd.latency).filter(|_| plan.publishes);
    let micros = |part| latency.and_then(|l| l.percentile(part)).map(|t| round(t.as_secs_f64() * 1e6, 1));
    let millis = |time: Duration| round(time.as_secs_f64() * 1000.0, 2);
    let mut report = Report {
        streams: plan.streams as u64,
        viewers_asked: plan.viewers() as u64,
        viewers_connected: connected,
        viewers_silent: crowd.silent,
        viewers_closed: crowd.closed,
        window_seconds: round(window, 3),
        packets_published_per_second: round(per_second(end.published - begin.published), 1),
        packets_received: packets,
        packets_per_second: round(per_second(packets), 1),
        bits_per_second: per_second(bytes * 8).round(),
        bits_per_second_per_viewer: (per_second(bytes * 8) / connected.max(1) as f64).round(),
        packets_expected: counts.expected,
        packets_lost: lost,
        audio_packets_lost: crowd.audio.lost(),
        loss_percent: lost as f64 * 100.0 / counts.expected.max(1) as f64,
        rtx_packets: crowd.rtx_packets,
        rtx_repaired: counts.repaired,
        duplicates: counts.duplicates,
        reordered: counts.reordered,
        unreadable: crowd.unreadable,
        connect_ms: since_asked(|m| m.connected),
        first_packet_ms: since_asked(|m| m.first_packet),
        first_keyframe_ms: since_asked(|m| m.first_keyframe),
        latency_us: Latency {
            p50: micros(0.5),
            p99: micros(0.99),
            p999: micros(0.999),
            samples: latency.map_or(0, Histogram::samples),
        },
        sampled_viewers: crowd.sampled,
        server_cpu_us_per_packet: server
            .filter(|_| packets > 0)
            .map(|server| round(server.cpu.as_secs_f64() * 1e6 / packets as f64, 4)),
        server_cpu_percent: server.map(|s| percent(s.cpu)),
        server_starved_percent: server.map(|s| percent(s.starved)),
        server_rss_kb_per_viewer: memory
            .filter(|_| connected > 0)
            .map(|(before, after)| round((after as f64 - before as f64) / connected as f64, 1)),
        client_cpu_percent: percent(own.cpu),
        client_starved_percent: percent(own.starved),
        viewer_thread_cpu_percent: percent(end.thread_cpu.saturating_sub(begin.thread_cpu)),
        publisher_late_p99_ms: publishers.late.percentile(0.99).map(millis),
        publisher_late_max_ms: millis(publishers.late.max()),
        keyframe_requests: publishers.keyframe_requests,
        emulated_losses: crowd.emulated_losses,
        kernel_receive_drops: begin.kernel_drops.zip(end.kernel_drops).map(|(begin, end)| end.saturating_sub(begin)),
        gro: plan.gro,
        interrupted: measured.interrupted,
        notes: measured.notes,
    };
    let doubts = doubts(plan, &report, &ended);
    report.notes.extend(doubts);
    report
}

/// What a reader must know to trust the figures.
fn doubts(plan: &Plan, report: &Report, ended: &Ended) -> Vec<String> {
    let mut notes = Vec::new();
    let Ended { crowd, publishers, not_deleted } = ended;
    if plan.viewers() as u64 > crowd.sampled {
        notes.push(format!(
            "{} of {} viewers decrypt everything; the others count headers, and decrypt until the first keyframe and RTX",
            crowd.sampled,
            plan.viewers(),
        ));
    }
    if report.interrupted {
        notes.push("interrupted: the figures are of the time until then".to_owned());
    }
    if report.viewer_thread_cpu_percent > 90.0 {
        let busy = report.viewer_thread_cpu_percent;
        notes.push(format!(
            "the viewers' thread was busy for {busy:.0} %: the load tester may have been the bottleneck"
        ));
    }
    let (client, server) = (report.client_starved_percent, report.server_starved_percent.unwrap_or(0.0));
    if client.max(server) > STARVED_PERCENT {
        notes.push(format!(
            "threads waited for a processor for {client:.0} % (load tester) and {server:.0} % (server) of the time: this \
             machine is busy, and latencies are its own"
        ));
    }
    if let Some(drops) = report.kernel_receive_drops.filter(|drops| *drops > 0) {
        notes
            .push(format!("{drops} datagrams found a full receive buffer on this machine, the server's or a viewer's"));
    }
    if let Some(p99) = report.publisher_late_p99_ms.filter(|p99| *p99 > 5.0) {
        let max = report.publisher_late_max_ms;
        notes.push(format!("publisher late by {p99} ms (p99), at most {max} ms: frames left in clumps"));
    }
    let expected = plan.published_per_second();
    if !report.interrupted && report.packets_published_per_second < expected * 0.98 {
        let published = report.packets_published_per_second;
        notes.push(format!("publishers sent {published:.0} packets/s instead of {expected:.0}"));
    }
    let mut count = |count: u64, what: &str| {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    };
    count(publishers.closed, "publishers were disconnected before the end");
    count(publishers.send_errors, "datagrams of publishers were not taken by their socket");
    count(report.viewers_silent, "viewers got nothing in the end");
    count(report.viewers_closed, "viewers were disconnected before the end");
    count(report.unreadable, "packets could not be decrypted, or have an unknown payload type");
    count(crowd.emulation_overflow, "datagrams were lost because the emulated path was full");
    count(crowd.truncated, "datagrams were too long to be received");
    if let Some(error) = not_deleted {
        notes.push(format!("not every session could be deleted: {error}"));
    }
    notes
}
