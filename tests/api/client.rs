//! An HTTP client that sends what it is told, right or wrong, and shows the answer as it came.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// Names as they were written.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The path of the `Location`.
    pub fn location(&self) -> String {
        let url = self.header("location").expect("a Location");
        let rest = url.strip_prefix("http://").expect("absolute");
        rest[rest.find('/').expect("a path")..].to_owned()
    }
}

pub fn connect(server: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(server).expect("the server listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    stream
}

/// One request on a connection of its own. `Host`, `Content-Length` and `Connection` are added.
pub fn request(server: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    raw(server, &bytes).expect("an answer")
}

/// Sends bytes and reads until the server closes; `None` when it says nothing.
pub fn raw(server: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let mut stream = connect(server);
    // A server that has heard enough may close before all is sent.
    let _ = stream.write_all(bytes);
    read(&mut stream)
}

/// As [`raw`], and says that nothing more will come.
pub fn raw_closed(server: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    let mut stream = connect(server);
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    read(&mut stream)
}

/// An answer that goes on: a stream of events.
pub struct Follow {
    pub head: Reply,
    body: BufReader<TcpStream>,
    /// What has come of the body and was not given out.
    text: String,
}

/// GETs what may not end; `None` when the server does not let us say so.
pub fn follow(server: SocketAddr, path: &str) -> Option<Follow> {
    let mut stream = connect(server);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\n\r\n").ok()?;
    let mut body = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        body.read_line(&mut head).ok().filter(|n| *n > 0)?;
    }
    Some(Follow { head: parse(head.as_bytes())?, body, text: String::new() })
}

impl Follow {
    /// The next event, without the empty line after it; `None` when the body has ended.
    ///
    /// # Errors
    /// The connection ended before the body did, or nothing comes.
    pub fn event(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let event = event.to_owned();
                self.text = rest.to_owned();
                return Ok(Some(event));
            }
            match self.chunk()? {
                text if text.is_empty() => return Ok(None),
                text => self.text.push_str(&text),
            }
        }
    }

    /// RFC 9112 §7.1.
    fn chunk(&mut self) -> io::Result<String> {
        let mut size = String::new();
        self.body.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim_end(), 16).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mut bytes = vec![0; size + 2];
        self.body.read_exact(&mut bytes)?;
        bytes.truncate(size);
        Ok(String::from_utf8(bytes).expect("text"))
    }
}

pub fn read(stream: &mut TcpStream) -> Option<Reply> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => break,
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
        }
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(bytes);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|l| l.split_once(": ")).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    Some(Reply { status, headers, body: body.to_owned() })
}
