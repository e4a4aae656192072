//! A headless Chromium with a chromedriver and a profile of its own, and the demo page in its windows.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use fantoccini::wd::{Capabilities, WindowHandle};
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

use crate::common::server::agent;

/// A bound on events, not a pace: two cores may have several browsers to run.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);
const SIGKILL: i32 = 9;
/// chromedriver looks for a port that is free, and now and then finds it taken a moment later.
const ATTEMPTS: u32 = 5;

/// Hidden windows must play on, nothing may be fetched from outside, and no multicast asks for names: so the real
/// addresses stand in the candidates.
const FLAGS: &[&str] = &[
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-breakpad",
    "--disable-features=WebRtcHideLocalIpsWithMdns,MediaRouter,OptimizationHints,Translate",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--password-store=basic",
    "--use-fake-device-for-media-stream=fps=30",
    "--use-fake-ui-for-media-stream",
    // Not muted: a muted element's audio energy is not counted.
    "--autoplay-policy=no-user-gesture-required",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--window-size=1280,900",
];

/// Without it Chromium has no candidate on 127.0.0.1, as in everyday use.
pub const LOOPBACK_CANDIDATES: &str = "--allow-loopback-in-peer-connection";

/// Ended when dropped, with all its processes.
pub struct Browser {
    runtime: tokio::runtime::Runtime,
    client: Client,
    driver: Driver,
    /// The window that came with the session, until it is used.
    spare: RefCell<Option<WindowHandle>>,
}

impl Browser {
    pub fn start() -> Browser {
        Browser::start_with(&[LOOPBACK_CANDIDATES])
    }

    /// `more` are flags besides the usual ones.
    pub fn start_with(more: &[&str]) -> Browser {
        let driver = Driver::start();
        let profile = format!("--user-data-dir={}", driver.profile.display());
        let flags: Vec<&str> = FLAGS.iter().chain(more).copied().chain([profile.as_str()]).collect();
        let mut capabilities = Capabilities::new();
        capabilities.insert("goog:chromeOptions".into(), json!({ "binary": program("chromium"), "args": flags }));
        capabilities.insert("goog:loggingPrefs".into(), json!({ "browser": "ALL" }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (client, window) = runtime.block_on(async {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            let client = builder.capabilities(capabilities).connect(&driver.url).await.expect("Chromium starts");
            let window = client.window().await.expect("a window");
            (client, window)
        });
        Browser { runtime, client, driver, spare: RefCell::new(Some(window)) }
    }

    /// Opens `url` in a window of its own.
    pub fn open(&self, url: &str) -> Page<'_> {
        let window = match self.spare.borrow_mut().take() {
            Some(window) => window,
            None => self.wait(self.client.new_window(false)).expect("a window").handle,
        };
        let page = Page { browser: self, window };
        page.goto(url);
        page
    }

    /// Ends every process of it at once, as a crash would.
    pub fn kill(self) {
        drop(self);
    }

    /// What the browser wrote to its console as an error, in any window, since the last call: refused requests, CORS, CSP, exceptions.
    pub fn console_errors(&self) -> Vec<String> {
        let session = self.wait(self.client.session_id()).expect("a session").expect("open");
        let url = format!("{}/session/{session}/se/log", self.driver.url);
        let body = json!({ "type": "browser" }).to_string();
        let mut answer = agent().post(&url).content_type("application/json").send(body.as_bytes()).expect("a log");
        let log: Value = serde_json::from_str(&answer.body_mut().read_to_string().expect("text")).expect("JSON");
        let entries = log["value"].as_array().unwrap_or_else(|| panic!("{log}")).iter();
        entries.filter(|e| e["level"] == "SEVERE").map(|e| e["message"].to_string()).collect()
    }

    fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

/// One window. Each call brings it to the front first.
pub struct Page<'a> {
    browser: &'a Browser,
    window: WindowHandle,
}

impl Page<'_> {
    fn front(&self) -> &Client {
        let client = &self.browser.client;
        self.browser.wait(client.switch_to_window(self.window.clone())).expect("the window is there");
        client
    }

    pub fn goto(&self, url: &str) {
        let client = self.front();
        self.browser.wait(client.goto(url)).unwrap_or_else(|e| panic!("{url}: {e}"));
    }

    /// Chooses in a `<select>`.
    pub fn choose(&self, id: &str, value: &str) {
        let client = self.front();
        let chosen = self.browser.wait(async { client.find(Locator::Id(id)).await?.select_by_value(value).await });
        chosen.unwrap_or_else(|e| panic!("choose {value} in {id}: {e}"));
    }

    /// What a `<select>` offers: values and texts.
    pub fn options(&self, id: &str) -> Vec<(String, String)> {
        let script = "return [...document.getElementById(arguments[0]).options].map(o => [o.value, o.text])";
        serde_json::from_value(self.run(script, vec![json!(id)])).expect("pairs of strings")
    }

    /// Types into a field that is empty.
    pub fn type_into(&self, id: &str, text: &str) {
        let client = self.front();
        let typed = self.browser.wait(async { client.find(Locator::Id(id)).await?.send_keys(text).await });
        typed.unwrap_or_else(|e| panic!("type into {id}: {e}"));
    }

    pub fn is_shown(&self, id: &str) -> bool {
        let client = self.front();
        let shown = self.browser.wait(async { client.find(Locator::Id(id)).await?.is_displayed().await });
        shown.unwrap_or_else(|e| panic!("{id}: {e}"))
    }

    /// Makes the page take the relay for the server.
    pub fn send_through(&self, relay: SocketAddr, server: SocketAddr) {
        let script = "const [server, relay] = arguments; \
            const { prototype } = RTCPeerConnection; \
            const set = prototype.setRemoteDescription; \
            prototype.setRemoteDescription = function ({ type, sdp }) { \
              return set.call(this, { type, sdp: sdp.replaceAll(` ${server} `, ` ${relay} `) }); \
            };";
        let as_in_sdp = |addr: SocketAddr| json!(format!("{} {}", addr.ip(), addr.port()));
        self.run(script, vec![as_in_sdp(server), as_in_sdp(relay)]);
    }

    /// Marks the panel's connection, to be recognised by [`Page::is_marked`].
    pub fn mark(&self, panel: &str) {
        self.run("window.manycast[arguments[0]].pc.isMarked = true", vec![json!(panel)]);
    }

    /// Still the same RTCPeerConnection, which the page negotiates once only.
    pub fn is_marked(&self, panel: &str) -> bool {
        self.run("return window.manycast[arguments[0]].pc?.isMarked === true", vec![json!(panel)]) == json!(true)
    }

    /// A screenshot of an element, as PNG.
    pub fn screenshot(&self, id: &str) -> Vec<u8> {
        let client = self.front();
        let taken = self.browser.wait(async { client.find(Locator::Id(id)).await?.screenshot().await });
        taken.unwrap_or_else(|e| panic!("screenshot of {id}: {e}"))
    }

    /// The share of an element's pixels that are not nearly black, as a screenshot shows it. The browser's own PNG
    /// decoder reads it back. The fake camera is dark green, which counts; the empty stage does not.
    pub fn lit_share(&self, id: &str) -> f64 {
        use base64::Engine;
        let png = base64::engine::general_purpose::STANDARD.encode(self.screenshot(id));
        let script = "const [encoded] = arguments; return (async () => { \
            const bytes = Uint8Array.from(atob(encoded), (c) => c.charCodeAt(0)); \
            const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' })); \
            const pen = new OffscreenCanvas(64, 36).getContext('2d'); \
            pen.drawImage(bitmap, 0, 0, 64, 36); \
            const { data } = pen.getImageData(0, 0, 64, 36); \
            let lit = 0; \
            for (let i = 0; i < data.length; i += 4) lit += data[i] + data[i + 1] + data[i + 2] > 56; \
            return lit / (64 * 36); })()";
        self.run(script, vec![json!(png)]).as_f64().expect("a number")
    }
}

impl DemoPage for Page<'_> {
    fn run(&self, script: &str, args: Vec<Value>) -> Value {
        let client = self.front();
        self.browser.wait(client.execute(script, args)).unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    fn click(&self, id: &str) {
        let client = self.front();
        let clicked = self.browser.wait(async { client.find(Locator::Id(id)).await?.click().await });
        clicked.unwrap_or_else(|e| panic!("click {id}: {e}"));
    }
}

/// The demo page in a window of whatever browser.
pub trait DemoPage {
    /// What the script's `return` gives; a promise is waited for.
    fn run(&self, script: &str, args: Vec<Value>) -> Value;

    fn click(&self, id: &str);

    /// Presses the button of "publish" or "watch", and waits until media flows.
    fn start(&self, side: &str) {
        self.click(&format!("{side}-start"));
        self.wait_for_state(side, "live");
    }

    fn text(&self, id: &str) -> String {
        self.string("return document.getElementById(arguments[0]).textContent", id)
    }

    fn value(&self, id: &str) -> String {
        self.string("return document.getElementById(arguments[0]).value", id)
    }

    fn string(&self, script: &str, id: &str) -> String {
        self.run(script, vec![json!(id)]).as_str().unwrap_or_default().to_owned()
    }

    /// `idle`, `connecting`, `waiting`, `live`, `stopped` or `failed`.
    fn state(&self, panel: &str) -> String {
        self.string("return window.manycast?.[arguments[0]].state", panel)
    }

    fn wait_for_state(&self, panel: &str, wanted: &str) {
        let (status, hint) = (format!("{panel}-status-text"), format!("{panel}-status-hint"));
        wait_until(
            PATIENCE,
            || (self.state(panel) == wanted).then_some(()),
            || format!("{panel} is {}, not {wanted}: {} {}", self.state(panel), self.text(&status), self.text(&hint)),
        );
    }

    /// All of `getStats()` of a panel's connection.
    fn stats(&self, panel: &str) -> Stats {
        let script = "return (async () => { const { pc } = window.manycast[arguments[0]]; \
            return pc ? [...(await pc.getStats()).values()] : []; })()";
        let script = script.replace("arguments[0]", &json!(panel).to_string());
        let Value::Array(records) = self.run(&script, vec![]) else { panic!("no statistics") };
        Stats(records)
    }

    /// Waits until a viewer has decoded so many frames more than it has now.
    fn wait_for_frames(&self, panel: &str, limit: Duration, frames: f64) {
        let before = self.stats(panel).video_in("framesDecoded");
        let enough = || (self.stats(panel).video_in("framesDecoded") >= before + frames).then_some(());
        wait_until(limit, enough, || {
            let decoded = self.stats(panel).video_in("framesDecoded");
            format!("decoded {decoded}, before {before}: {} ({})", self.text(&format!("{panel}-status-text")), {
                self.state(panel)
            })
        });
    }
}

/// A report of `getStats()`.
#[derive(Debug)]
pub struct Stats(pub Vec<Value>);

impl Stats {
    pub fn record(&self, kind: &str, media: &str) -> Option<&Value> {
        self.0.iter().find(|s| s["type"] == kind && s["kind"] == media)
    }

    /// Sizes and rates are not there before the first frames, nor always with the first that counts as decoded.
    fn number(&self, kind: &str, media: &str, key: &str) -> f64 {
        let Some(record) = self.record(kind, media) else { return 0.0 };
        let may_be_missing = ["frameWidth", "frameHeight", "framesPerSecond"].contains(&key);
        record[key].as_f64().or(may_be_missing.then_some(0.0)).unwrap_or_else(|| panic!("no {key} in {record:#}"))
    }

    /// 0 when nothing has come yet.
    pub fn video_in(&self, key: &str) -> f64 {
        self.number("inbound-rtp", "video", key)
    }

    pub fn audio_in(&self, key: &str) -> f64 {
        self.number("inbound-rtp", "audio", key)
    }

    pub fn video_out(&self, key: &str) -> f64 {
        self.number("outbound-rtp", "video", key)
    }

    /// Such as `video/VP8`.
    pub fn codec(&self, kind: &str, media: &str) -> Option<&str> {
        let id = &self.record(kind, media)?["codecId"];
        self.0.iter().find(|s| s["id"] == *id)?["mimeType"].as_str()
    }
}

/// Polls until `done` gives something.
pub fn wait_until<T>(limit: Duration, mut done: impl FnMut() -> Option<T>, said: impl Fn() -> String) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {}", said());
        std::thread::sleep(POLL);
    }
}

/// A chromedriver on a port of its own.
struct Driver {
    child: Child,
    url: String,
    profile: PathBuf,
}

impl Driver {
    fn start() -> Driver {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("manycast-chromium-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let profile = std::env::temp_dir().join(name);
        let mut said = Vec::new();
        for _ in 0..ATTEMPTS {
            let child = Command::new(program("chromedriver"))
                .arg("--port=0")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::inherit())
                .spawn()
                .expect("chromedriver starts");
            let mut driver = Driver { child, url: String::new(), profile: profile.clone() };
            let mut lines = BufReader::new(driver.child.stdout.take().expect("piped")).lines().map_while(Result::ok);
            let ready = lines.by_ref().inspect(|line| said.push(line.clone())).find_map(|line| {
                let (_, port) = line.split_once("started successfully on port ")?;
                Some(port.trim_end_matches('.').to_owned())
            });
            if let Some(port) = ready {
                driver.url = format!("http://127.0.0.1:{port}");
                std::thread::spawn(move || lines.for_each(drop));
                return driver;
            }
        }
        panic!("chromedriver tells no port, {ATTEMPTS} times:\n{}", said.join("\n"));
    }

    /// The driver, what it started, what those started, and helpers that left the tree.
    fn processes(&self) -> Vec<u32> {
        let all = processes();
        let mut own = vec![self.child.id()];
        let mut next = 0;
        while next < own.len() {
            let parent = own[next];
            own.extend(all.iter().filter(|p| p.parent == parent).map(|p| p.pid));
            next += 1;
        }
        let strays: Vec<u32> = self.bearers(&all).filter(|pid| !own.contains(pid)).collect();
        own.extend(strays);
        own
    }

    /// Processes that name our profile, which is ours alone.
    fn bearers<'a>(&'a self, all: &'a [Process]) -> impl Iterator<Item = u32> + 'a {
        let profile = self.profile.to_str().expect("plain names");
        all.iter().filter(move |p| p.command.contains(profile)).map(|p| p.pid)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The driver first, or it would see its browser die and clean up after it.
        self.processes().into_iter().for_each(end);
        let _ = self.child.wait();
        // What was being started meanwhile.
        self.bearers(&processes()).for_each(end);
        let _ = std::fs::remove_dir_all(&self.profile);
    }
}

fn end(pid: u32) {
    if Path::new("/proc").join(pid.to_string()).exists() {
        let _ = Command::new("kill").args([format!("-{SIGKILL}"), pid.to_string()]).stderr(Stdio::null()).status();
    }
}

struct Process {
    pid: u32,
    parent: u32,
    command: String,
}

fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").expect("Linux").filter_map(Result::ok);
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may hold anything: state, parent.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Process { pid, parent, command: String::from_utf8_lossy(&command).into_owned() })
    })
    .collect()
}

/// Where a program is, or one line that says how to get it.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!(
            "{name} is missing: run scripts/test as root, or apt-get install chromium chromium-driver curl firefox-esr"
        )
    })
}
