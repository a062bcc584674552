//! The process's own memory, file descriptors and CPU time, under Prometheus' usual names.

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
    cpu_seconds: Counter,
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
        desc.extend(self.cpu_seconds.desc());
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
        if let Some(seconds) = read("/proc/self/stat").and_then(|text| cpu_seconds(&text)) {
            // Two scrapes at once may see times out of order; a counter never goes back.
            self.cpu_seconds
                .inc_by((seconds - self.cpu_seconds.get()).max(0.0));
        }
        let mut families = self.resident_bytes.collect();
        families.extend(self.open_fds.collect());
        families.extend(self.cpu_seconds.collect());
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

/// Fields 14 and 15 of `/proc/self/stat`, counted after the command, which may hold spaces and `)`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
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
    }

    #[test]
    fn this_process_has_memory_and_open_files() {
        let collector = ProcessCollector::new().unwrap();
        collector.collect();
        assert!(collector.resident_bytes.get() > 0.0);
        assert!(collector.open_fds.get() >= 3.0);
    }
}
