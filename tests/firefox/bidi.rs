//! A headless Firefox with a profile of its own, driven by WebDriver BiDi: JSON commands over a WebSocket.

use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use tungstenite::{Message, WebSocket};

use crate::browser::{DemoPage, PATIENCE, program};

/// Nothing is fetched from outside: all but loopback goes to a proxy that does not exist. With a port for remote
/// debugging, Firefox by itself leaves out updates, first-run pages and the like.
const PREFERENCES: &[(&str, &str)] = &[
    ("network.proxy.type", "1"),
    ("network.proxy.http", r#""127.0.0.1""#),
    ("network.proxy.http_port", "9"),
    ("network.proxy.ssl", r#""127.0.0.1""#),
    ("network.proxy.ssl_port", "9"),
    ("media.gmp-manager.updateEnabled", "false"),
    ("media.navigator.streams.fake", "true"),
    ("media.navigator.permission.disabled", "true"),
    ("media.autoplay.default", "0"),
];

/// Ended when dropped, with all its processes.
pub struct Firefox {
    child: Child,
    profile: PathBuf,
    socket: RefCell<WebSocket<TcpStream>>,
    commands: Cell<u64>,
    /// The window that came with it, until it is used.
    spare: Cell<Option<String>>,
}

impl Firefox {
    pub fn start() -> Firefox {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manycast-firefox-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let profile = std::env::temp_dir().join(name);
        let preferences: String = PREFERENCES.iter().map(|(n, v)| format!("user_pref({n:?}, {v});\n")).collect();
        std::fs::create_dir(&profile).expect("a profile of its own");
        std::fs::write(profile.join("user.js"), preferences).expect("its preferences");
        let mut child = Command::new(program("firefox-esr"))
            .args(["--headless", "--no-remote", "--remote-debugging-port", "0", "--profile"])
            .arg(&profile)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("Firefox starts");
        let mut said = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        let address = said.find_map(|l| l.strip_prefix("WebDriver BiDi listening on ws://").map(str::to_owned));
        std::thread::spawn(move || said.for_each(drop));
        let address = address.expect("Firefox tells its port");

        let stream = TcpStream::connect(&address).expect("Firefox listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let (socket, _) = tungstenite::client(format!("ws://{address}/session"), stream).expect("a WebSocket");
        let (socket, commands) = (RefCell::new(socket), Cell::new(0));
        let firefox = Firefox { child, profile, socket, commands, spare: Cell::new(None) };
        firefox.command("session.new", json!({ "capabilities": {} }));
        let tree = firefox.command("browsingContext.getTree", json!({}));
        firefox.spare.set(tree["contexts"][0]["context"].as_str().map(str::to_owned));
        firefox
    }

    /// Opens `url` in a window of its own.
    pub fn open(&self, url: &str) -> Window<'_> {
        let context = self.spare.take().unwrap_or_else(|| {
            let created = self.command("browsingContext.create", json!({ "type": "window" }));
            created["context"].as_str().expect("a context").to_owned()
        });
        self.command("browsingContext.navigate", json!({ "context": context, "url": url, "wait": "complete" }));
        Window { firefox: self, context }
    }

    /// Sends a command and waits for its result.
    fn command(&self, method: &str, params: Value) -> Value {
        let id = self.commands.replace(self.commands.get() + 1);
        let command = json!({ "id": id, "method": method, "params": params }).to_string();
        let mut socket = self.socket.borrow_mut();
        socket.send(Message::text(command)).unwrap_or_else(|e| panic!("{method}: {e}"));
        loop {
            let message = socket.read().unwrap_or_else(|e| panic!("{method}: {e}"));
            let Message::Text(text) = message else { continue };
            let mut answer: Value = serde_json::from_str(&text).expect("JSON");
            if answer["id"] == id {
                assert_eq!(answer["type"], "success", "{method} {params}: {answer:#}");
                return answer["result"].take();
            }
        }
    }
}

impl Drop for Firefox {
    fn drop(&mut self) {
        // It leads a group of its own: a negative number means all of them.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-9", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

/// One window.
pub struct Window<'a> {
    firefox: &'a Firefox,
    context: String,
}

impl DemoPage for Window<'_> {
    fn run(&self, script: &str, args: Vec<Value>) -> Value {
        // As JSON both ways: BiDi's own form of values names each one's type.
        let function = format!(
            "async (args) => JSON.stringify((await (function () {{ {script} }}).apply(null, JSON.parse(args))) ?? null)"
        );
        let params = json!({
            "functionDeclaration": function,
            "arguments": [{ "type": "string", "value": Value::Array(args).to_string() }],
            "target": { "context": self.context },
            "awaitPromise": true,
            "userActivation": true,
        });
        let called = self.firefox.command("script.callFunction", params);
        let json = called["result"]["value"].as_str().unwrap_or_else(|| panic!("{script}: {called:#}"));
        serde_json::from_str(json).expect("JSON")
    }

    fn click(&self, id: &str) {
        self.run("document.getElementById(arguments[0]).click()", vec![json!(id)]);
    }
}
