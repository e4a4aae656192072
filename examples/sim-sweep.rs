//! Plays scenarios of new seeds until the time is up or something is found. `scripts/sim-sweep` builds and runs it.

#![expect(
    clippy::disallowed_methods,
    reason = "a sweep lasts as long as it is told, and its seeds come from the clock"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use manycast::sim::client::Source;
use manycast::sim::scenario::Scenario;
use manycast::sim::{Finding, Outcome, Path, World, alike, parting, play};

/// Of so many seeds one is played twice.
const COMPARED: u64 = 2;

/// Of so many seeds one's calm scenario is played on one shard and on four.
const CALM: u64 = 8;

#[derive(Parser)]
struct Flags {
    /// How long to look for findings.
    #[arg(default_value_t = 60)]
    seconds: u64,
    /// Plays this seed only, and shows its scenario.
    #[arg(long)]
    seed: Option<u64>,
    /// The first of the seeds; by default from the clock.
    #[arg(long)]
    from: Option<u64>,
    /// Seeds played at once.
    #[arg(long, default_value_t = thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// Goes on after a finding.
    #[arg(long)]
    keep_going: bool,
    /// Measures how fast a crowd is simulated.
    #[arg(long)]
    speed: bool,
}

fn main() {
    let flags = Flags::parse();
    // A panic is a finding like others, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    let sound = match flags.seed {
        _ if flags.speed => measure_speed(),
        Some(seed) => play_one(seed),
        None => sweep(&flags),
    };
    if !sound {
        std::process::exit(1);
    }
}

fn play_one(seed: u64) -> bool {
    print!("{}", Scenario::from_seed(seed));
    match check(seed, true, true) {
        Ok(outcome) => println!("nothing found; {:.0} s watched", outcome.watched.as_secs_f64()),
        Err(ref finding) => {
            println!("found:\n{finding}");
            return false;
        }
    }
    true
}

fn sweep(flags: &Flags) -> bool {
    let from = flags.from.unwrap_or_else(|| {
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
        clock.as_secs() * 1_000
    });
    println!("seeds from {from} on");
    let until = Instant::now() + Duration::from_secs(flags.seconds);
    let (next, done) = (AtomicU64::new(from), AtomicU64::new(0));
    let (found, watched_ms) = (AtomicBool::new(false), AtomicU64::new(0));
    let told = Mutex::new(Instant::now());
    let work = || {
        while Instant::now() < until && (flags.keep_going || !found.load(Ordering::Relaxed)) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            match check(seed, seed.is_multiple_of(COMPARED), seed.is_multiple_of(CALM)) {
                Ok(outcome) => drop(watched_ms.fetch_add(outcome.watched.as_millis() as u64, Ordering::Relaxed)),
                Err(finding) => {
                    found.store(true, Ordering::Relaxed);
                    println!("{}found:\n{finding}replay: scripts/sim-sweep --seed {seed}\n", Scenario::from_seed(seed));
                }
            }
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            let mut told = told.lock().expect("nobody panics with it");
            if told.elapsed() >= Duration::from_secs(10) {
                *told = Instant::now();
                report(done, watched_ms.load(Ordering::Relaxed));
            }
        }
    };
    thread::scope(|scope| (0..flags.threads).for_each(|_| drop(scope.spawn(work))));
    report(done.into_inner(), watched_ms.into_inner());
    !found.into_inner()
}

fn report(seeds: u64, watched_ms: u64) {
    let hours = watched_ms as f64 / 3_600_000.0;
    println!("{seeds} seeds, {hours:.2} viewer-hours, {:.1} a CPU-minute", hours / cpu_minutes());
}

/// Plays a seed; `twice`: compares it with itself; `calm`: compares its calm scenario on one shard and on four.
fn check(seed: u64, twice: bool, calm: bool) -> Result<Outcome, Finding> {
    let outcome = play_safely(&Scenario::from_seed(seed))?;
    if twice && play_safely(&Scenario::from_seed(seed))? != outcome {
        return Err(Finding(vec![format!("the same seed is another run: {:?}", parting(&Scenario::from_seed(seed)))]));
    }
    if calm {
        compare_shards(seed)?;
    }
    Ok(outcome)
}

fn compare_shards(seed: u64) -> Result<(), Finding> {
    let one = Scenario::calm(seed);
    let four = Scenario { shards: 4, ..one.clone() };
    let tell = |f: Finding| Finding([vec![format!("calm {one}")], f.0].concat());
    let (a, b) = (play_safely(&one).map_err(tell)?, play_safely(&four).map_err(tell)?);
    alike(&a, &b).map_err(|e| tell(Finding(vec![e])))
}

fn play_safely(scenario: &Scenario) -> Result<Outcome, Finding> {
    catch_unwind(AssertUnwindSafe(|| play(scenario))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Err(Finding(vec![format!("panic: {}", text.unwrap_or_default())]))
    })
}

/// 40 viewers of 250 video and 50 audio packets a second, for half a minute, over clean paths.
fn measure_speed() -> bool {
    const VIEWERS: u32 = 40;
    const WATCHED: Duration = Duration::from_secs(30);
    let mut world = World::new(1, 2);
    let source = Source { frames_per_second: 25, packets_per_frame: 10, ..Source::default() };
    world.publish("a", source, Path::CLEAN);
    world.run_for(Duration::from_secs(1));
    let viewers: Vec<_> = (0..VIEWERS).map(|_| world.watch("a", Path::CLEAN)).collect();
    world.run_for(Duration::from_secs(1));
    let before = cpu_minutes();
    world.run_for(WATCHED);
    let minutes = cpu_minutes() - before;
    let packets: usize = viewers.iter().map(|v| world.client(*v).got().len()).sum();
    let hours = (VIEWERS * WATCHED).as_secs_f64() / 3600.0;
    println!(
        "{:.1} viewer-hours a CPU-minute: {VIEWERS} viewers for {WATCHED:?}, {packets} packets, {:.2} s of CPU",
        hours / minutes,
        minutes * 60.0
    );
    true
}

/// Spent by this process so far.
fn cpu_minutes() -> f64 {
    // utime and stime, the 14th and 15th fields of stat, in ticks of 10 ms; the name before them may hold spaces.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    ticks / 100.0 / 60.0
}
