//! How often a client may ask: token buckets by address.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use rustc_hash::FxHashMap;

use crate::limits;
use crate::units::Instant;

/// Fills at a rate up to a depth; each request takes one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    level: f64,
    at: Instant,
}

impl Bucket {
    pub fn full(now: Instant, depth: f64) -> Bucket {
        Bucket { level: depth, at: now }
    }

    /// Takes one, or says how long to wait for it.
    pub fn take(&mut self, now: Instant, rate: f64, depth: f64) -> Result<(), Duration> {
        self.level = self.level_at(now, rate, depth);
        self.at = now;
        if self.level < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - self.level) / rate));
        }
        self.level -= 1.0;
        Ok(())
    }

    fn level_at(&self, now: Instant, rate: f64, depth: f64) -> f64 {
        (self.level + now.since(self.at).as_secs_f64() * rate).min(depth)
    }
}

/// One bucket per address.
pub(super) struct RateLimit {
    rate: f64,
    depth: f64,
    buckets: FxHashMap<IpAddr, Bucket>,
}

impl RateLimit {
    /// `rate` a second in the long run, `depth` at once.
    pub fn new(rate: f64, depth: f64) -> RateLimit {
        RateLimit { rate, depth, buckets: FxHashMap::default() }
    }

    /// Counts one request, or says how long the address has to wait.
    pub fn take(&mut self, now: Instant, client: IpAddr) -> Result<(), Duration> {
        let (rate, depth) = (self.rate, self.depth);
        if self.buckets.len() >= limits::RATE_LIMIT_ADDRESSES {
            self.buckets.retain(|_, b| b.level_at(now, rate, depth) < depth);
        }
        if self.buckets.len() >= limits::RATE_LIMIT_ADDRESSES && !self.buckets.contains_key(&client) {
            return Err(Duration::from_secs(1));
        }
        self.buckets.entry(client).or_insert(Bucket::full(now, depth)).take(now, rate, depth)
    }
}

/// What counts as one client: an IPv4 address, or an IPv6 /64 (a customer's network; its hosts change addresses).
pub fn client_key(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX))),
        ip => ip,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: f64) -> Instant {
        Instant::ZERO + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_burst_passes_then_the_rate_holds() {
        let mut limit = RateLimit::new(5.0, 20.0);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        for _ in 0..20 {
            assert_eq!(limit.take(at(0.0), a), Ok(()));
        }
        assert_eq!(limit.take(at(0.0), a), Err(Duration::from_millis(200)));
        assert_eq!(limit.take(at(0.0), b), Ok(()));
        assert_eq!(limit.take(at(0.2), a), Ok(()));
        assert!(limit.take(at(0.2), a).is_err());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut limit = RateLimit::new(1.0, 1.0);
        for n in 0..limits::RATE_LIMIT_ADDRESSES as u32 {
            assert_eq!(limit.take(at(0.0), IpAddr::from(n.to_be_bytes())), Ok(()));
        }
        let another = IpAddr::from([255, 0, 0, 1]);
        assert!(limit.take(at(0.0), another).is_err());
        assert_eq!(limit.take(at(2.0), another), Ok(()), "full buckets make room");
        assert_eq!(limit.buckets.len(), 1);
    }

    #[test]
    fn one_ipv6_network_is_one_client() {
        let key = |ip: &str| client_key(ip.parse().expect("address"));
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_eq!(key("::ffff:10.0.0.1"), IpAddr::from([10, 0, 0, 1]));
    }
}
