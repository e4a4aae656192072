//! What a forwarded packet costs the real server process, beside the floor of this machine, as one Markdown table.
//!
//! Each row starts `manycast serve` and `manycast load` (one synthetic publisher, viewers on UDP ports of their own) over
//! loopback, and next to it, in the same minute, the reference of `reference.rs` with the same bursts, viewers and SRTP
//! profile. With one shard the server has CPU 0 and the load tester CPU 1; with two shards all share both.
//!
//! - CPU: user and system time of the whole server process (its scheduler's nanoseconds) by the packets that viewers
//!   received, while all of them are connected. It holds the kernel's UDP stack down into the receivers' queues.
//! - ratio: that, by the reference's. The reference's thread alone is counted.
//! - latency: as viewers see it, from the publisher's stamp, through both kernels' queues and the load tester's own.
//! - inside: of the server's own histogram, from the receipt of a packet to the return of the send, each copy.
//!
//! Not measured: a network card. Absolute figures drift by half with the machine's mood; ratios within a row hold.
//!
//! `scripts/bench` builds and runs it, and tells which tables there are. `... one VIEWERS PACKETS/S BURST` runs one row,
//! `... reference VIEWERS PACKETS/S BURST` the reference alone.

#[path = "../../tests/common/mod.rs"]
mod common;
mod idle;
mod joins;
mod pairs;
mod reference;
mod run;
mod shapes;

use run::Row;

/// Joins within one second.
const JOINS: usize = 500;
const WAITING: usize = 1000;

fn main() {
    // cargo passes `--bench`.
    let words: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let number = |at: usize, default: usize| words.get(at).and_then(|w| w.parse().ok()).unwrap_or(default);
    let one = || Row { viewers: number(1, 100), rate: number(2, 800), burst: number(3, 10), ..Row::default() };
    println!("{}", machine());
    match words.first().map(String::as_str) {
        None => {
            table(&all());
            println!();
            joins::table(&["uring"], JOINS);
        }
        Some("quick") => table(&quick()),
        Some("idle") => idle::table(number(1, WAITING)),
        Some("join") => joins::table(&["uring", "mmsg", "mmsg", "uring"], number(1, JOINS)),
        Some("shapes") => shapes::table(),
        Some("pairs") => pairs::table(),
        Some("one") => table(&[one()]),
        Some("reference") => {
            println!("reference: {:.3} µs CPU per forwarded packet", reference::cpu_us(&one().options()));
        }
        Some(other) => {
            eprintln!("scripts/bench: no {other}: quick, idle, join, shapes or pairs");
            std::process::exit(2);
        }
    }
}

fn quick() -> Vec<Row> {
    let row = Row::default();
    vec![
        row,
        Row { viewers: 10, rate: 8000, ..row },
        Row { viewers: 1000, rate: 80, ..row },
        Row { burst: 1, ..row },
        Row { shards: 2, rate: 400, ..row },
    ]
}

/// 80,000 packets/s go out in all, 40,000 where the load tester has no CPU of its own.
fn all() -> Vec<Row> {
    let row = Row::default();
    let mut rows = Vec::new();
    for gro in [false, true] {
        for io in ["uring", "mmsg"] {
            for viewers in [10, 50, 100, 500, 1000] {
                rows.push(Row { io, viewers, rate: 80_000 / viewers, gro, ..row });
            }
        }
    }
    // The orientation row of the comparison with other servers.
    rows.push(Row { rate: 1000, ..row });
    rows.push(Row { burst: 1, ..row });
    rows.push(Row { burst: 3, rate: 900, ..row });
    rows.push(Row { burst: 8, ..row });
    // 30 frames/s of 10 packets.
    rows.push(Row { viewers: 250, rate: 300, ..row });
    rows.push(Row { payload_bytes: 200, ..row });
    for shards in [1, 2] {
        rows.push(Row { shards, rate: 400, ..row });
        rows.push(Row { shards, viewers: 1000, rate: 40, ..row });
    }
    rows
}

fn table(rows: &[Row]) {
    println!(
        "| backend | shards | viewers | packets/s in | burst | payload B | GRO | CPU µs/packet | reference | ratio | loss % | \
         latency ms p50 / p99 | inside ms p99 | segments | kB/viewer | busiest shard | load tester |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        let Row { io, shards, viewers, rate, burst, payload_bytes, gro, .. } = *row;
        let before = reference::cpu_us(&row.options());
        let Some(got) = run::measure(row) else {
            println!("| {io} | {shards} | {viewers} | {rate} | {burst} | {payload_bytes} | gave up |");
            continue;
        };
        // On both sides of the row: the machine drifts.
        let floor = (before + reference::cpu_us(&row.options())) / 2.0;
        println!(
            "| {io} | {shards} | {viewers} | {rate} | {burst} | {payload_bytes} | {} | {:.2} | {floor:.2} | {:.2} | {:.3} | \
             {:.2} / {:.2} | {:.2} | {:.1} | {:.0} | {:.0} % | {:.0} % |",
            if gro { "on" } else { "off" },
            got.cpu_us,
            got.cpu_us / floor,
            got.loss_percent,
            got.latency_ms.0,
            got.latency_ms.1,
            got.inside_ms,
            got.segments,
            got.memory_kb,
            got.busiest * 100.0,
            got.load_cpu_percent,
        );
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or("").trim_start_matches([' ', '\t', ':']);
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!("{cpus} CPUs of {model}, Linux {}, load average {}\n", kernel.trim(), load.split(' ').next().unwrap_or(""))
}
