//! What a process costs, by /proc: processor time in nanoseconds, resident memory, datagrams that the kernel dropped.

use std::fs;
use std::time::Duration;

/// What threads have had of processors, and what they waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usage {
    pub cpu: Duration,
    /// Ready to run, and none was free: the machine was busy with something else.
    pub starved: Duration,
}

impl Usage {
    pub fn since(self, earlier: Usage) -> Usage {
        Usage { cpu: self.cpu.saturating_sub(earlier.cpu), starved: self.starved.saturating_sub(earlier.starved) }
    }
}

/// Of all threads of a process; one that has ended takes its share along.
///
/// By schedstat and not by stat, which counts in ticks of 10 ms.
pub fn usage(pid: u32) -> Option<Usage> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let usages = tasks.filter_map(|task| parse(&fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?));
    Some(usages.fold(Usage::default(), |sum, one| Usage { cpu: sum.cpu + one.cpu, starved: sum.starved + one.starved }))
}

/// Processor time of the thread that asks.
pub(super) fn own_thread_cpu_time() -> Option<Duration> {
    parse(&fs::read_to_string("/proc/thread-self/schedstat").ok()?).map(|usage| usage.cpu)
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

/// Nanoseconds on a processor, nanoseconds in its queue, and how often.
fn parse(schedstat: &str) -> Option<Usage> {
    let mut fields = schedstat.split_whitespace().map(|field| field.parse().map(Duration::from_nanos));
    Some(Usage { cpu: fields.next()?.ok()?, starved: fields.next()?.ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let pid = std::process::id();
        assert!(resident_kb(pid).is_some_and(|kb| kb > 100));
        let (thread, process) = (own_thread_cpu_time(), usage(pid).map(|u| u.cpu));
        assert!(thread <= process && process.is_some(), "{thread:?} {process:?}");
    }

    #[test]
    fn a_process_that_is_not_there_costs_nothing() {
        assert_eq!((usage(u32::MAX), resident_kb(u32::MAX)), (None, None));
    }
}
