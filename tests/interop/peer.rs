//! A program of another language, with the packages that `scripts/test` has installed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::Value;

/// Ended when dropped. It speaks JSON, one object a line.
pub struct Peer {
    child: Child,
    name: String,
    said: mpsc::Receiver<Value>,
}

/// `tests/interop/NAME.py`.
pub fn python(name: &str, args: &[&str]) -> Peer {
    let packages = installed("python");
    start(Command::new("python3").env("PYTHONPATH", packages).env("PYTHONUNBUFFERED", "1"), name, "py", args)
}

/// `tests/interop/NAME.js`.
pub fn node(name: &str, args: &[&str]) -> Peer {
    let packages = installed("node").join("node_modules");
    start(Command::new("node").env("NODE_PATH", packages), name, "js", args)
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn installed(what: &str) -> PathBuf {
    let folder = root().join("target/interop").join(what);
    assert!(folder.is_dir(), "{} is missing: run scripts/test interop", folder.display());
    folder
}

/// `tests/interop/NAME.EXTENSION` by `command`.
pub fn start(command: &mut Command, name: &str, extension: &str, args: &[&str]) -> Peer {
    let script = root().join("tests/interop").join(format!("{name}.{extension}"));
    let spawned = command.arg(script).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|e| panic!("{name}.{extension}: {e}: run scripts/test interop"));
    let out = BufReader::new(child.stdout.take().expect("piped"));
    let (say, said) = mpsc::channel();
    std::thread::spawn(move || {
        // Libraries print too.
        for value in out.lines().map_while(Result::ok).filter_map(|l| serde_json::from_str(&l).ok()) {
            if say.send(value).is_err() {
                break;
            }
        }
    });
    Peer { child, name: format!("{name}.{extension} {}", args.join(" ")), said }
}

impl Peer {
    pub fn tell(&mut self, line: &Value) {
        let stdin = self.child.stdin.as_mut().expect("piped");
        writeln!(stdin, "{line}").unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// What it says next.
    pub fn hear(&mut self, patience: Duration) -> Value {
        self.said.recv_timeout(patience).unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    /// Waits for a line that is as wanted.
    pub fn hear_until(&mut self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        // It says how it fares five times a second.
        for _ in 0..patience.as_millis() / 200 {
            last = self.hear(patience);
            if wanted(&last) {
                return last;
            }
        }
        panic!("{}: {last:#}", self.name);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
