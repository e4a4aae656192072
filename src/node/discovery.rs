//! The public address of a local one, as a STUN server sees it (RFC 8489): for hosts behind a 1:1 NAT.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::time::Duration;

use crate::wire::stun;

/// Requests are repeated after so long; a server that does not answer three is given up.
const TRIES: u32 = 3;
const PATIENCE: Duration = Duration::from_millis(700);

#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    #[error("{server} cannot be resolved: {source}")]
    Resolve { server: String, source: io::Error },
    #[error("{server} has no address of the family of {local}")]
    Family { server: String, local: SocketAddr },
    #[error("UDP {local}: {source}")]
    Socket { local: SocketAddr, source: io::Error },
    #[error("{server} does not answer")]
    Silent { server: String },
}

/// Asks `server` (`host:port`) from `local`, which must not be in use. Blocks for 2 s at most.
///
/// # Errors
/// No answer, or no way to ask.
pub fn mapped_address(server: &str, local: SocketAddr) -> Result<SocketAddr, DiscoveryError> {
    let resolve = |source| DiscoveryError::Resolve { server: server.into(), source };
    let remote = server.to_socket_addrs().map_err(resolve)?.find(|a| a.is_ipv4() == local.is_ipv4());
    let remote = remote.ok_or_else(|| DiscoveryError::Family { server: server.into(), local })?;
    let io = |source| DiscoveryError::Socket { local, source };
    let socket = UdpSocket::bind(local).map_err(io)?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(io)?;

    let mut transaction_id = [0u8; 12];
    getrandom::fill(&mut transaction_id).map_err(|e| io(io::Error::other(e)))?;
    let request = stun::write_plain_binding_request(transaction_id);
    let mut response = [0u8; 1500];
    for _ in 0..TRIES {
        socket.send_to(&request, remote).map_err(io)?;
        // Whatever else comes here is none of the answer and costs one try.
        if let Ok((len, from)) = socket.recv_from(&mut response)
            && from == remote
            && let Some(mapped) = stun::parse_mapped_address(&response[..len], transaction_id)
        {
            return Ok(mapped);
        }
    }
    Err(DiscoveryError::Silent { server: server.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_responder_tells_the_mapped_address() {
        let responder = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let server = responder.local_addr().expect("bound").to_string();
        let public: SocketAddr = "203.0.113.9:8080".parse().expect("an address");
        let thread = std::thread::spawn(move || {
            let mut request = [0u8; 100];
            // The first request is lost: it is asked again.
            responder.recv_from(&mut request).expect("a request");
            let (len, from) = responder.recv_from(&mut request).expect("a second one");
            assert_eq!(len, 20);
            let id = request[8..20].try_into().expect("12 bytes");
            responder.send_to(&stun::write_binding_success(id, public), from).expect("sent");
        });
        assert_eq!(mapped_address(&server, "127.0.0.1:0".parse().expect("any")).expect("mapped"), public);
        thread.join().expect("the responder");
    }

    #[test]
    fn a_silent_server_is_given_up() {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let server = silent.local_addr().expect("bound").to_string();
        let error = mapped_address(&server, "127.0.0.1:0".parse().expect("any")).expect_err("no answer");
        assert!(matches!(error, DiscoveryError::Silent { .. }), "{error}");
    }
}
