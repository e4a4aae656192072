//! The two backends against each other, in pairs that are run one after the other: uring, mmsg, mmsg, uring.

use crate::run::{self, Row};

/// Fours of each number of viewers: two pairs each.
const FOURS: usize = 2;

/// Prints the table. Receivers are without GRO.
pub fn table() {
    println!("| viewers | packets/s in | CPU µs/packet uring | mmsg | uring / mmsg, median | range | pairs |");
    println!("|---|---|---|---|---|---|---|");
    for viewers in [10, 100, 1000] {
        let row = Row { viewers, rate: 80_000 / viewers, ..Row::default() };
        let pairs: Vec<(f64, f64)> = (0..FOURS).flat_map(|_| four(&row)).flatten().collect();
        if pairs.is_empty() {
            println!("| {viewers} | {} | gave up |", row.rate);
            continue;
        }
        let ratios = sorted(pairs.iter().map(|(uring, mmsg)| uring / mmsg));
        println!(
            "| {viewers} | {} | {:.2} | {:.2} | {:.2} | {:.2} to {:.2} | {} |",
            row.rate,
            median(&sorted(pairs.iter().map(|pair| pair.0))),
            median(&sorted(pairs.iter().map(|pair| pair.1))),
            median(&ratios),
            ratios[0],
            ratios[ratios.len() - 1],
            ratios.len(),
        );
    }
}

/// CPU of uring and mmsg in two pairs, the second one the other way round: a drift of the machine cancels out.
fn four(row: &Row) -> [Option<(f64, f64)>; 2] {
    let cpu_us = |io| run::measure(&Row { io, ..*row }).map(|got| got.cpu_us);
    let first = cpu_us("uring").zip(cpu_us("mmsg"));
    let second = cpu_us("mmsg").zip(cpu_us("uring")).map(|(mmsg, uring)| (uring, mmsg));
    [first, second]
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Of sorted values, at least one.
fn median(sorted: &[f64]) -> f64 {
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}
