//! `millrace fetch`: a checkpoint into a folder, before a worker starts.

use std::{io, path::PathBuf, time::Duration};

use clap::Args;
use millrace_fetch::{Checksum, Event, FetchConfig, RetryPolicy, SourceConfig};

use crate::{
    errors::{INTERRUPTED, Outcome},
    process,
};

/// Downloads a folder that has a file SHA256SUMS, and checks every byte of it.
///
/// What is cut off is gone on with by the next run. A folder that is whole is left alone, without a
/// request. S3's credentials come from the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
/// the identity that the cloud gives to the pod; without any, requests are not signed.
#[derive(Debug, Clone, Args)]
pub struct FetchArgs {
    /// The folder: http://, https:// or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    pub url: String,
    /// Of SHA256SUMS itself: sha256: and what `sha256sum SHA256SUMS` prints
    #[arg(long, value_name = "SHA256")]
    pub checksum: Checksum,
    /// The folder to fill
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// A file with a bearer token
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A file with PEM certificates of authorities to trust beside the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Where S3 is, if it is not Amazon's: http://HOST:PORT or https://HOST
    #[arg(long, value_name = "URL", env = "AWS_ENDPOINT_URL")]
    pub s3_endpoint: Option<String>,
    /// [default: us-east-1]
    #[arg(long, value_name = "REGION", env = "AWS_REGION")]
    pub s3_region: Option<String>,
    /// Files that are downloaded at once
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Read all files that are there, also those that look as they did when they were checked
    #[arg(long)]
    pub verify: bool,
    /// How long a connection may be silent before another is tried
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub stall_seconds: u64,
}

pub fn main(args: FetchArgs) -> anyhow::Result<Outcome> {
    let to = args.to.clone();
    let config = args.config();
    let runtime = process::runtime()?;
    let ended = runtime.block_on(async {
        let stopped = process::stopped()?;
        io::Result::Ok(tokio::select! {
            ended = millrace_fetch::fetch(&config, &tell) => Some(ended),
            () = stopped => None,
        })
    })?;
    // Who writes to a disk that hangs is not waited for.
    runtime.shutdown_background();
    let Some(ended) = ended else {
        eprintln!("stopped; what came is kept, and the next run goes on with it");
        return Ok(Outcome::Code(INTERRUPTED));
    };
    let summary = ended?;
    println!(
        "{} has all {} files ({} were there), {} downloaded",
        to.display(),
        summary.files,
        summary.kept,
        size(summary.bytes as f64)
    );
    Ok(Outcome::Done)
}

impl FetchArgs {
    fn config(self) -> FetchConfig {
        FetchConfig {
            source: SourceConfig {
                url: self.url,
                token_file: self.token_file,
                ca: self.ca,
                s3_endpoint: self.s3_endpoint.filter(|it| !it.is_empty()),
                s3_region: self.s3_region.filter(|it| !it.is_empty()),
                stall: Duration::from_secs(self.stall_seconds),
            },
            checksum: self.checksum,
            to: self.to,
            concurrency: self.concurrency.into(),
            verify: self.verify,
            retry: RetryPolicy::default(),
        }
    }
}

/// One line an event: these are read in `kubectl logs`.
fn tell(event: Event<'_>) {
    match event {
        Event::Waiting => eprintln!("waiting: another process fills this folder"),
        Event::Listed { files } => eprintln!("SHA256SUMS lists {files} files"),
        Event::Retrying { url, why, delay } => {
            eprintln!("{url}: {why}; again in {:.1} s", delay.as_secs_f64());
        }
        Event::Fetched { name, bytes } => eprintln!("{name}: {}", size(bytes as f64)),
        Event::Progress {
            done,
            files,
            bytes,
            rate,
        } => {
            eprintln!(
                "{done} of {files} files, {} downloaded, {}/s",
                size(bytes as f64),
                size(rate)
            );
        }
    }
}

/// In powers of 1000, as disks and networks are sold.
fn size(bytes: f64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || scaled >= 99.95 { 0 } else { 1 };
    format!("{scaled:.digits$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let sizes = [
            0.0,
            999.0,
            1000.0,
            26_214_400.0,
            999_960.0,
            4.3e9,
            6.41e11,
            5e15,
        ];
        let texts = [
            "0 B", "999 B", "1.0 kB", "26.2 MB", "1.0 MB", "4.3 GB", "641 GB", "5000 TB",
        ];
        assert_eq!(sizes.map(size), texts);
    }
}
