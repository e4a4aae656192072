//! A real `manycast serve` in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Generous: a debug build on a busy machine.
const START: Duration = Duration::from_secs(30);

/// Ended when dropped.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    /// What it printed before it was ready.
    pub banner: Vec<String>,
    log: mpsc::Receiver<String>,
}

/// What a server leaves behind.
pub struct Ended {
    pub code: Option<i32>,
    pub log: Vec<String>,
}

impl Server {
    /// Starts it on free ports of loopback; `args` may say otherwise.
    pub fn start(args: &[&str]) -> Server {
        Server::start_by(Command::new(env!("CARGO_BIN_EXE_manycast")), args)
    }

    /// `program` runs the binary whatever follows, such as `taskset` would.
    pub fn start_by(mut program: Command, args: &[&str]) -> Server {
        let command = program.arg("serve");
        for (flag, value) in [("--http", "127.0.0.1:0"), ("--udp", "127.0.0.1:0"), ("--log", "manycast=debug")] {
            if !args.contains(&flag) {
                command.args([flag, value]);
            }
        }
        let mut child = command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let (lines, received) = mpsc::channel();
        let (logged, log) = mpsc::channel();
        pump(child.stdout.take().expect("piped"), lines);
        pump(child.stderr.take().expect("piped"), logged);
        let mut server = Server { child, url: String::new(), banner: Vec::new(), log };
        while !server.banner.last().is_some_and(|l| l.starts_with("ready")) {
            match received.recv_timeout(START) {
                Ok(line) => server.banner.push(line),
                Err(_) => panic!("the server is not ready: {:#?} {:#?}", server.banner, server.logs()),
            }
        }
        let open = server.banner.iter().find_map(|l| l.strip_prefix("open ")).expect("a URL to open").trim();
        server.url = open.trim_end_matches('/').replace("localhost", "127.0.0.1");
        server
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it takes media, as its banner says; it was started with one address.
    pub fn udp(&self) -> SocketAddr {
        let said = self.banner.iter().find_map(|l| l.strip_prefix("media ")?.trim().strip_prefix("UDP "));
        said.and_then(|addr| addr.parse().ok()).expect("one address")
    }

    /// What it has logged since the last call.
    pub fn logs(&self) -> Vec<String> {
        self.log.try_iter().collect()
    }

    /// Sends a signal and waits for the end.
    pub fn end_by(mut self, signal: i32) -> Ended {
        kill(self.child.id(), signal);
        let status = self.child.wait().expect("it ends");
        let mut log = self.logs();
        // What is still in the pipe.
        while let Ok(line) = self.log.recv_timeout(Duration::from_secs(5)) {
            log.push(line);
        }
        Ended { code: status.code(), log }
    }

    /// What `/metrics` says.
    pub fn metrics(&self) -> String {
        get(&format!("{}/metrics", self.url)).1
    }

    /// One metric, summed over its labels that contain `label`.
    pub fn metric(&self, name: &str, label: &str) -> f64 {
        self.metrics()
            .lines()
            .filter(|l| l.split(['{', ' ']).next() == Some(name) && l.contains(label))
            .filter_map(|l| l.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a metric is as wanted: reports come once a second.
    pub fn wait_for_metric(&self, name: &str, label: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        let mut value = 0.0;
        for _ in 0..200 {
            value = self.metric(name, label);
            if wanted(value) {
                return value;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{name} {label} is {value}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn kill(pid: u32, signal: i32) {
    let done = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status();
    assert!(done.is_ok_and(|s| s.success()), "kill -{signal} {pid}");
}

/// A client of HTTP that takes every status for an answer.
pub fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    config.into()
}

/// Status and body.
pub fn get(url: &str) -> (u16, String) {
    let mut response = agent().get(url).call().expect("an answer");
    (response.status().as_u16(), response.body_mut().read_to_string().unwrap_or_default())
}

fn pump(from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if std::env::var_os("MANYCAST_TEST_LOG").is_some() {
                eprintln!("server: {line}");
            }
            if to.send(line).is_err() {
                // Read on, or the server blocks on a full pipe.
                continue;
            }
        }
    });
}
