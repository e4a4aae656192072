//! Media of many shapes, so that none is tuned for alone: bursts, sizes, audio beside video, many streams.

use crate::reference;
use crate::run::{self, Row};

/// What a row's cost is compared with.
enum Beside {
    /// The reference, doing the same.
    Reference,
    /// The first row of the table: the reference has no such shape.
    First,
}

use Beside::{First, Reference};

/// About 80,000 packets/s go out in most rows. Those that are compared with the first row follow it: the machine drifts.
fn rows() -> Vec<(&'static str, Row, Beside)> {
    let row = Row::default();
    vec![
        ("bursts of 10, 1100 B", row, Reference),
        ("each 200 to 1100 B", Row { sizes: "random", ..row }, First),
        ("audio with video", Row { audio: true, ..row }, First),
        ("10 streams", Row { streams: 10, viewers: 10, ..row }, First),
        ("50 streams", Row { streams: 50, viewers: 2, rate: 200, ..row }, First),
        ("last of a burst 64 to 1100 B", Row { sizes: "tail", ..row }, Reference),
        ("bursts of 8", Row { burst: 8, ..row }, Reference),
        ("bursts of 3", Row { burst: 3, rate: 900, ..row }, Reference),
        ("packets one by one", Row { burst: 1, ..row }, Reference),
        ("1200 B", Row { payload_bytes: 1200, ..row }, Reference),
        ("700 B", Row { payload_bytes: 700, ..row }, Reference),
        ("200 B", Row { payload_bytes: 200, ..row }, Reference),
    ]
}

/// Prints the table.
pub fn table() {
    println!(
        "| shape | streams | viewers each | packets/s in each | CPU µs/packet | beside | its µs | ratio | loss % | \
         latency ms p50 / p99 | segments |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut first = f64::NAN;
    for (name, row, beside) in rows() {
        let before = reference_us(&row, &beside);
        let Some(got) = run::measure(&row) else {
            println!("| {name} | {} | {} | gave up |", row.streams, row.viewers);
            continue;
        };
        if first.is_nan() {
            first = got.cpu_us;
        }
        // On both sides of the row, as in the big table.
        let reference = before.zip(reference_us(&row, &beside)).map(|(before, after)| (before + after) / 2.0);
        let floor = reference.unwrap_or(first);
        println!(
            "| {name} | {} | {} | {} | {:.2} | {} | {floor:.2} | {:.2} | {:.3} | {:.2} / {:.2} | {:.1} |",
            row.streams,
            row.viewers,
            row.rate + if row.audio { 50 } else { 0 },
            got.cpu_us,
            if reference.is_some() { "reference" } else { "first row" },
            got.cpu_us / floor,
            got.loss_percent,
            got.latency_ms.0,
            got.latency_ms.1,
            got.segments,
        );
    }
}

fn reference_us(row: &Row, beside: &Beside) -> Option<f64> {
    match beside {
        Beside::Reference => Some(reference::cpu_us(&row.options())),
        Beside::First => None,
    }
}
