//! The process's own memory, file descriptors, CPU time and age, under Prometheus' usual names.

use prometheus::{
    Counter, Gauge, Opts,
    core::{Collector, Desc},
    proto::MetricFamily,
};

/// `/proc/self/stat` counts in these (`USER_HZ`, 100 on every architecture Linux still runs on).
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads `/proc/self` at each scrape; where there is none, the metrics keep their last values.
pub struct ProcessCollector {
    resident_bytes: Gauge,
    open_fds: Gauge,
    max_fds: Gauge,
    cpu_seconds: Counter,
    start_seconds: Gauge,
}

impl ProcessCollector {
    pub fn new() -> Result<ProcessCollector, prometheus::Error> {
        Ok(ProcessCollector {
            resident_bytes: Gauge::with_opts(Opts::new(
                "process_resident_memory_bytes",
                "Memory in use, as /proc/self/status has it (VmRSS)",
            ))?,
            open_fds: Gauge::with_opts(Opts::new(
                "process_open_fds",
                "Open file descriptors, sockets included",
            ))?,
            max_fds: Gauge::with_opts(Opts::new(
                "process_max_fds",
                "File descriptors it may have open",
            ))?,
            start_seconds: Gauge::with_opts(Opts::new(
                "process_start_time_seconds",
                "When it was started, in seconds since 1970",
            ))?,
            cpu_seconds: Counter::with_opts(Opts::new(
                "process_cpu_seconds_total",
                "User and system CPU time of all threads",
            ))?,
        })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        let mut desc = self.resident_bytes.desc();
        desc.extend(self.open_fds.desc());
        desc.extend(self.max_fds.desc());
        desc.extend(self.cpu_seconds.desc());
        desc.extend(self.start_seconds.desc());
        desc
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(bytes) = read("/proc/self/status").and_then(|text| resident_bytes(&text)) {
            self.resident_bytes.set(bytes);
        }
        if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory being read.
            self.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
        if let Some(most) = read("/proc/self/limits").and_then(|text| max_fds(&text)) {
            self.max_fds.set(most);
        }
        let stat = read("/proc/self/stat");
        if let Some(after_boot) = stat.as_deref().and_then(started)
            && let Some(boot) = read("/proc/stat").and_then(|text| booted(&text))
        {
            self.start_seconds.set(boot + after_boot);
        }
        if let Some(seconds) = stat.as_deref().and_then(cpu_seconds) {
            // Two scrapes at once may see times out of order; a counter never goes back.
            self.cpu_seconds
                .inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        let mut families = self.resident_bytes.collect();
        families.extend(self.open_fds.collect());
        families.extend(self.max_fds.collect());
        families.extend(self.cpu_seconds.collect());
        families.extend(self.start_seconds.collect());
        families
    }
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// `VmRSS:   1234 kB`.
fn resident_bytes(status: &str) -> Option<f64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// The soft limit: `Max open files            1024                 4096                 files`.
fn max_fds(limits: &str) -> Option<f64> {
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Fields 14 and 15 of `/proc/self/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS_PER_SECOND)
}

/// Field 22 of it: seconds from the machine's start to the process's.
fn started(stat: &str) -> Option<f64> {
    Some(field(stat, 22)? / TICKS_PER_SECOND)
}

/// Counted from 1, and after the command, which is the second and may hold spaces and `)`.
fn field(stat: &str, number: usize) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(number - 3)?.parse().ok()
}

/// `btime 1700000000` of `/proc/stat`.
fn booted(stat: &str) -> Option<f64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_read_by_their_format() {
        assert_eq!(
            resident_bytes("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t3\n"),
            Some(2048.0 * 1024.0)
        );
        assert_eq!(resident_bytes("Name:\tx\n"), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_seconds(stat), Some(2.0));
        assert_eq!(cpu_seconds("no command"), None);
        assert_eq!(started(stat), Some(1.0));
        assert_eq!(booted("cpu 1 2\nbtime 1700000000\n"), Some(1.7e9));
        let limits =
            "Max processes  7 8 processes\nMax open files            1024     4096     files\n";
        assert_eq!(max_fds(limits), Some(1024.0));
    }

    #[test]
    fn this_process_has_memory_and_open_files() {
        let collector = ProcessCollector::new().unwrap();
        collector.collect();
        assert!(collector.resident_bytes.get() > 0.0);
        assert!(collector.open_fds.get() >= 3.0);
        assert!(collector.max_fds.get() >= collector.open_fds.get());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now = now.unwrap().as_secs_f64();
        let started = collector.start_seconds.get();
        assert!(started > 0.0 && started <= now + 1.0, "{started} at {now}");
    }
}
