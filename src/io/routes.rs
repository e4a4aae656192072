//! Where segmentation is refused: per socket and destination address, learnt from refusals, forgotten with the process.
//!
//! What refuses is a route: its device cannot checksum, a tunnel cannot segment, its MTU is smaller than a segment. We do
//! not know routes, but every destination has one.

use std::collections::VecDeque;
use std::net::IpAddr;

use rustc_hash::FxHashSet;

use crate::limits;

type Route = (usize, IpAddr);

/// The routes that take datagrams one by one.
#[derive(Default)]
pub(super) struct Routes {
    singles: FxHashSet<Route>,
    /// The same, oldest first.
    age: VecDeque<Route>,
    sockets: Vec<Refusals>,
}

/// What a socket has met.
#[derive(Clone, Copy, Default)]
struct Refusals {
    /// New destinations since a segmented message was last taken.
    in_a_row: u32,
    /// It has refused before.
    known: bool,
    /// Nothing is segmented on this socket any more.
    always: bool,
}

impl Routes {
    /// Whether segmentation need not be tried.
    #[inline]
    pub(super) fn takes_singles(&self, socket: usize, remote: IpAddr) -> bool {
        // Nothing has ever been refused on most hosts.
        !self.sockets.is_empty()
            && (self.sockets.get(socket).is_some_and(|s| s.always) || self.singles.contains(&(socket, remote)))
    }

    /// A segmented message was refused that passed as singles. True: the first one of this socket.
    pub(super) fn refused(&mut self, socket: usize, remote: IpAddr) -> bool {
        if self.sockets.len() <= socket {
            self.sockets.resize(socket + 1, Refusals::default());
        }
        let refusals = &mut self.sockets[socket];
        let first = !std::mem::replace(&mut refusals.known, true);
        if !self.singles.insert((socket, remote)) {
            return first;
        }
        refusals.in_a_row += 1;
        refusals.always |= refusals.in_a_row >= limits::SINGLES_ROUTES_IN_A_ROW_MAX;
        self.age.push_back((socket, remote));
        if self.age.len() > limits::SINGLES_ROUTES_MAX
            && let Some(oldest) = self.age.pop_front()
        {
            self.singles.remove(&oldest);
        }
        first
    }

    /// A segmented message was taken.
    #[inline]
    pub(super) fn accepted(&mut self, socket: usize) {
        if let Some(refusals) = self.sockets.get_mut(socket) {
            refusals.in_a_row = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(index: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(index).into()
    }

    #[test]
    fn the_first_refusal_of_a_socket_is_told() {
        let mut routes = Routes::default();
        assert!(routes.refused(1, ip(1)));
        assert!(!routes.refused(1, ip(2)));
        assert!(routes.refused(0, ip(1)));
        assert!(routes.takes_singles(1, ip(2)) && !routes.takes_singles(0, ip(2)));
    }

    #[test]
    fn a_socket_whose_routes_all_refuse_stops_trying() {
        let mut routes = Routes::default();
        for i in 1..limits::SINGLES_ROUTES_IN_A_ROW_MAX {
            routes.refused(0, ip(i));
        }
        assert!(!routes.takes_singles(0, ip(0)));
        routes.refused(0, ip(1000));
        assert!(routes.takes_singles(0, ip(0)));
        assert!(!routes.takes_singles(1, ip(0)));
    }

    #[test]
    fn beyond_the_limit_the_oldest_route_is_forgotten() {
        let mut routes = Routes::default();
        for i in 0..=limits::SINGLES_ROUTES_MAX as u32 {
            routes.refused(0, ip(i));
            routes.accepted(0);
        }
        assert!(!routes.takes_singles(0, ip(0)));
        assert!(routes.takes_singles(0, ip(1)) && routes.takes_singles(0, ip(limits::SINGLES_ROUTES_MAX as u32)));
        assert_eq!(routes.age.len(), routes.singles.len());
    }
}
