//! A real etcd, in a folder and on ports of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use etcd_client::Client;
use tempfile::TempDir;

pub struct Etcd {
    child: Option<Child>,
    dir: TempDir,
    client: u16,
    peer: u16,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Etcd {
    /// `None`, and a line that says so, where there is no etcd to run.
    pub async fn start() -> Option<Etcd> {
        if Command::new("etcd")
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            eprintln!("skipped: there is no etcd here; tests/setup test installs it");
            return None;
        }
        // Another process may take a port before etcd does.
        for _ in 0..5 {
            let [client, peer] = free_ports();
            let mut etcd = Etcd {
                child: None,
                dir: tempfile::tempdir().unwrap(),
                client,
                peer,
            };
            if etcd.restart().await {
                return Some(etcd);
            }
        }
        panic!("etcd does not start");
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.client)
    }

    /// SIGKILL: nothing is said, nothing is flushed.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// With all that was written before. Whether it answers.
    pub async fn restart(&mut self) -> bool {
        self.kill();
        let (url, peer) = (self.url(), format!("http://127.0.0.1:{}", self.peer));
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.dir.path().join("data"))
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args(["--listen-peer-urls", &peer])
            .args(["--initial-advertise-peer-urls", &peer])
            .arg(format!("--initial-cluster=default={peer}"))
            .args(["--logger", "zap", "--log-level", "error"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let child = self.child.insert(child);
        while child.try_wait().unwrap().is_none() {
            // A call to an etcd that ends meanwhile is never answered.
            let answers = async {
                let mut client = Client::connect([&url], None).await?;
                client.get("up", None).await
            };
            let patience = Duration::from_millis(500);
            if let Ok(Ok(_)) = tokio::time::timeout(patience, answers).await {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    /// As an etcd whose disk was replaced.
    pub async fn wipe(&mut self) -> bool {
        self.kill();
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        self.restart().await
    }

    pub async fn client(&self) -> Client {
        Client::connect([self.url()], None).await.unwrap()
    }
}

fn free_ports() -> [u16; 2] {
    let taken = [0, 0].map(|any: u16| TcpListener::bind(("127.0.0.1", any)).unwrap());
    taken.map(|listener| listener.local_addr().unwrap().port())
}
