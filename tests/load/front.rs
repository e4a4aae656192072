//! A small HTTP proxy before the real server that has the manners of others: emulations, not those servers themselves.
//!
//! What they answer is from their documentation and sources as we remember them: MediaMTX answers 201 with a relative
//! `Location` and an `ETag`, at `/STREAM/whip` and `/STREAM/whep`; Broadcast Box takes the stream's key as bearer at
//! `/api/whip` and `/api/whep`, and answers 201 with that same path as `Location` and no `ETag`.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::common::server::agent;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    MediaMtx,
    BroadcastBox,
    /// Answers well, with a candidate that nobody listens at.
    Silent,
}

/// Lives until the test's process ends.
pub struct Front {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    manners: Manners,
    /// What was given out, and the sessions of the real server behind it.
    sessions: Mutex<HashMap<String, Vec<String>>>,
    count: AtomicUsize,
    deleted: AtomicUsize,
}

struct Request {
    method: String,
    path: String,
    bearer: String,
    body: Vec<u8>,
}

impl Front {
    pub fn start(upstream: &str, manners: Manners) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            manners,
            sessions: Mutex::default(),
            count: AtomicUsize::new(0),
            deleted: AtomicUsize::new(0),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = serving.clone();
                // A client that goes away is its own business.
                std::thread::spawn(move || drop(shared.serve(stream)));
            }
        });
        Front { address, shared }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sessions that were deleted and that there were.
    pub fn deleted(&self) -> usize {
        self.shared.deleted.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let request = read(&stream)?;
        let (status, headers, body) = match request.method.as_str() {
            "POST" => self.post(&request),
            "DELETE" => self.delete(&request),
            _ => (405, String::new(), String::new()),
        };
        let length = body.len();
        write!(stream, "HTTP/1.1 {status} X\r\nConnection: close\r\n{headers}Content-Length: {length}\r\n\r\n{body}")
    }

    fn post(&self, request: &Request) -> (u16, String, String) {
        let segments: Vec<&str> = request.path.trim_start_matches('/').split('/').collect();
        let (stream, kind) = match (self.manners, &segments[..]) {
            (Manners::MediaMtx, [stream, kind]) => (*stream, *kind),
            (Manners::BroadcastBox, ["api", kind]) if !request.bearer.is_empty() => (request.bearer.as_str(), *kind),
            (Manners::Silent, [kind, stream]) => (*stream, *kind),
            _ => return (404, String::new(), "404 page not found".to_owned()),
        };
        let url = format!("{}/{kind}/{stream}", self.upstream);
        let sent = agent().post(&url).header("Content-Type", "application/sdp").send(&request.body[..]);
        let mut response = sent.expect("the real server answers");
        let mut body = response.body_mut().read_to_string().unwrap_or_default();
        let status = response.status().as_u16();
        if status != 201 {
            return (status, String::new(), body);
        }
        let session = response.headers()["location"].to_str().expect("text").to_owned();
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        let (location, etag) = match self.manners {
            Manners::BroadcastBox => (request.path.clone(), ""),
            _ => (format!("{}/{number}", request.path), "ETag: \"*\"\r\n"),
        };
        if self.manners == Manners::Silent {
            body = body.lines().map(|line| deaf(line) + "\r\n").collect();
        }
        let key = location.clone() + &request.bearer;
        self.sessions.lock().expect("no panic").entry(key).or_default().push(session);
        (201, format!("Content-Type: application/sdp\r\nLocation: {location}\r\n{etag}"), body)
    }

    fn delete(&self, request: &Request) -> (u16, String, String) {
        let key = request.path.clone() + &request.bearer;
        let session = self.sessions.lock().expect("no panic").get_mut(&key).and_then(Vec::pop);
        let Some(session) = session else { return (404, String::new(), String::new()) };
        agent().delete(&session).call().expect("the real server answers");
        self.deleted.fetch_add(1, Ordering::SeqCst);
        (200, String::new(), String::new())
    }
}

/// A candidate's port becomes 9, "discard", where nothing listens.
fn deaf(line: &str) -> String {
    if !line.starts_with("a=candidate:") {
        return line.to_owned();
    }
    let mut fields: Vec<&str> = line.split(' ').collect();
    fields[5] = "9";
    fields.join(" ")
}

fn read(stream: &TcpStream) -> std::io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut bearer, mut length) = (String::new(), 0);
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "authorization" => bearer = value.trim().trim_start_matches("Bearer ").to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Request { method, path, bearer, body })
}
