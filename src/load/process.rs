//! What a process costs, by /proc: processor time in nanoseconds, resident memory, datagrams that the kernel dropped.

use std::fs;
use std::time::Duration;

/// Processor time of all threads of a process; one that has ended takes its share along.
///
/// By schedstat and not by stat, which counts in ticks of 10 ms.
pub(super) fn cpu_time(pid: u32) -> Option<Duration> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let times = tasks.filter_map(|task| on_cpu(&fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?));
    Some(times.sum())
}

/// Processor time of the thread that asks.
pub(super) fn own_thread_cpu_time() -> Option<Duration> {
    on_cpu(&fs::read_to_string("/proc/thread-self/schedstat").ok()?)
}

/// Resident memory in kB.
pub(super) fn resident_kb(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()
}

/// Datagrams that found a socket's receive buffer full, in this network namespace: anybody's, so only differences of
/// a quiet machine mean something.
pub(super) fn receive_buffer_errors() -> Option<u64> {
    let text = fs::read_to_string("/proc/net/snmp").ok()?;
    let mut lines = text.lines().filter_map(|l| l.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let column = names.split_whitespace().position(|name| name == "RcvbufErrors")?;
    values.split_whitespace().nth(column)?.parse().ok()
}

/// The first field: nanoseconds on a processor.
fn on_cpu(schedstat: &str) -> Option<Duration> {
    schedstat.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let pid = std::process::id();
        assert!(resident_kb(pid).is_some_and(|kb| kb > 100));
        let (thread, process) = (own_thread_cpu_time(), cpu_time(pid));
        assert!(thread <= process && process.is_some(), "{thread:?} {process:?}");
    }

    #[test]
    fn a_process_that_is_not_there_costs_nothing() {
        assert_eq!((cpu_time(u32::MAX), resident_kb(u32::MAX)), (None, None));
    }
}
