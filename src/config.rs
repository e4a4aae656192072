//! Every setting: what it is called, what it may be, what it is when nobody says.
//!
//! A flag goes before its `MANYCAST_*` variable, that before the file, that before the default. Reading files and
//! variables is the command line's work; this module only judges what it was given.

mod flags;
mod values;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

pub use flags::Flags;
pub use values::{CorsOrigins, IoBackend, Network, PublicIp, Secret, ShardCount};

/// The port of HTTP (TCP) and of media (UDP) when none is given.
pub const PORT_DEFAULT: u16 = 8080;

/// All settings of `manycast serve`, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where HTTP listens. Default 127.0.0.1:8080: nobody but this machine, until the operator says so.
    pub http: SocketAddr,
    /// Where media is received. An unspecified address stands for every interface of its family that is up. Default:
    /// all interfaces, IPv4 and IPv6, port 8080.
    pub udp: Vec<SocketAddr>,
    /// Where ICE over TCP is accepted (RFC 6544); unspecified addresses as in `udp`. Default: nowhere.
    pub ice_tcp: Vec<SocketAddr>,
    /// Who may publish; anyone without it.
    pub publish_token: Option<Secret>,
    /// Who may watch; anyone without it.
    pub view_token: Option<Secret>,
    /// The pages that browsers let use this server.
    pub cors_origins: CorsOrigins,
    /// The origin of absolute `Location` headers, without a slash at its end. Default: what the request was sent to.
    pub public_url: Option<String>,
    /// Addresses to advertise in place of local ones.
    pub public_ips: Vec<PublicIp>,
    /// `host:port` of a STUN server that tells our public address at start.
    pub stun_server: Option<String>,
    pub shards: ShardCount,
    /// Whether each shard's thread stays on one CPU. Default true.
    pub pin: bool,
    pub io: IoBackend,
    /// Packets of one track that leave as segments of one message at most, 1 to 64. Default 16: they leave back to back.
    pub gso_segments: usize,
    /// RTP padding of a packet at most so that it can be a segment, in percent of the largest one. Default 2.
    pub gso_padding_percent: usize,
    /// How long the beginning of a video frame waits for the rest where many watch, so that it leaves in fewer messages.
    /// At most 200 µs. Default 200; the end of a frame ends the wait.
    pub video_hold: Duration,
    /// Directives of `tracing_subscriber::EnvFilter`.
    pub log: String,
    pub limits: HttpLimits,
}

/// What one client, or all together, may ask of HTTP.
///
/// Limits per IP address (IPv6: per /64) do not hold for loopback peers unless a trusted proxy is configured.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Open connections in all. Default 1024; beyond that a connection is answered 503 and closed.
    pub connections_max: usize,
    /// Open connections of one address. Default 64; trusted proxies are exempt.
    pub connections_per_ip_max: usize,
    /// From a connection's readiness to the end of the request's head: idle and slow clients alike. Default 10 s.
    pub header_timeout: Duration,
    /// From the head to the end of the body. Default 5 s; then 408.
    pub body_timeout: Duration,
    /// Offers a second that one address may send in the long run. Default 5; then 429.
    pub post_rate: f64,
    /// Offers that one address may send at once. Default 20.
    pub post_burst: f64,
    /// PATCH requests a second per session. Default 20; then 429.
    pub patch_rate: f64,
    /// Requests a second for sessions that do not exist, per address. Default 10; then 429.
    pub probe_rate: f64,
    /// Sessions of one address that are answered but not connected. Default 8; then 429.
    pub unestablished_per_ip_max: usize,
    /// Sessions in all that are answered but not connected. Default 2000; then 503.
    pub unestablished_max: usize,
    /// Whose `Forwarded` and `X-Forwarded-*` headers are believed. Default none.
    pub trusted_proxies: Vec<Network>,
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// As in the file: `http`, `public-ip`. Empty when the file cannot be read at all.
    pub setting: String,
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.setting.as_str() {
            "" => write!(f, "{}", self.problem),
            name if flags::NAMES.iter().any(|n| n == name) => {
                write!(f, "{name} (--{name}, {}): {}", flags::variable(name), self.problem)
            }
            name => write!(f, "{name}: {}", self.problem),
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Every default.
    ///
    /// # Panics
    /// Never: a test resolves the defaults.
    pub fn defaults() -> Config {
        Config::resolve(Flags::default(), None).expect("the defaults are usable")
    }

    /// Joins flags (with variables already in) and a file's text, and checks all.
    ///
    /// # Errors
    /// The first setting that cannot be used.
    pub fn resolve(flags: Flags, file: Option<&str>) -> Result<Config, ConfigError> {
        let flags = match file {
            Some(text) => flags.or(Flags::from_toml(text)?),
            None => flags,
        };
        let seconds = |value: f64| Duration::from_secs_f64(value);
        let udp = flags.udp.iter().map(|v| values::udp(v)).collect::<Result<Vec<_>, _>>().map_err(of("udp"))?;
        let ice_tcp = flags.ice_tcp.iter().map(|v| values::udp(v)).collect::<Result<Vec<_>, _>>();
        let unspecified = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let everywhere = |port| unspecified.map(|ip: IpAddr| SocketAddr::new(ip, port));
        let udp = match udp.is_empty() {
            true => everywhere(PORT_DEFAULT).to_vec(),
            false => udp.into_iter().flatten().collect(),
        };
        let limits = HttpLimits {
            connections_max: count(&flags.max_connections, "max-connections", 1024)?,
            connections_per_ip_max: count(&flags.max_connections_per_ip, "max-connections-per-ip", 64)?,
            header_timeout: seconds(number(&flags.header_timeout, "header-timeout", 10.0)?),
            body_timeout: seconds(number(&flags.body_timeout, "body-timeout", 5.0)?),
            post_rate: number(&flags.post_rate, "post-rate", 5.0)?,
            post_burst: number(&flags.post_burst, "post-burst", 20.0)?.max(1.0),
            patch_rate: number(&flags.patch_rate, "patch-rate", 20.0)?,
            probe_rate: number(&flags.probe_rate, "probe-rate", 10.0)?,
            unestablished_per_ip_max: count(&flags.max_unestablished_per_ip, "max-unestablished-per-ip", 8)?,
            unestablished_max: count(&flags.max_unestablished, "max-unestablished", 2000)?,
            trusted_proxies: parse_all(&flags.trusted_proxy, "trusted-proxy")?,
        };
        Ok(Config {
            http: match &flags.http {
                None => SocketAddr::from((Ipv4Addr::LOCALHOST, PORT_DEFAULT)),
                Some(value) => values::http(value).map_err(of("http"))?,
            },
            udp,
            ice_tcp: ice_tcp.map_err(of("ice-tcp"))?.concat(),
            publish_token: parse(&flags.publish_token, "publish-token")?,
            view_token: parse(&flags.view_token, "view-token")?,
            cors_origins: values::cors_origins(&flags.cors_origin).map_err(of("cors-origin"))?,
            public_url: flags.public_url.as_deref().map(values::origin).transpose().map_err(of("public-url"))?,
            public_ips: parse_all(&flags.public_ip, "public-ip")?,
            stun_server: flags.stun_server.as_deref().map(values::host_port).transpose().map_err(of("stun-server"))?,
            shards: parse(&flags.shards, "shards")?.unwrap_or(ShardCount::Auto),
            pin: !flags.no_pin.unwrap_or(false) && flags.pin.unwrap_or(true),
            io: parse(&flags.io, "io")?.unwrap_or(IoBackend::Auto),
            gso_segments: within(&flags.gso_segments, "gso-segments", 1..=64, 16)?,
            gso_padding_percent: within(&flags.gso_padding, "gso-padding", 0..=20, 2)?,
            video_hold: Duration::from_micros(within(&flags.video_hold, "video-hold", 0..=200, 200)? as u64),
            log: flags.log.unwrap_or_else(|| "info,str0m=warn,is=warn,dimpl=warn".to_owned()),
            limits,
        })
    }
}

/// Says which setting a problem is about.
fn of(setting: &'static str) -> impl Fn(String) -> ConfigError {
    move |problem| ConfigError { setting: setting.to_owned(), problem }
}

fn parse<T: std::str::FromStr<Err = String>>(
    value: &Option<String>,
    setting: &'static str,
) -> Result<Option<T>, ConfigError> {
    value.as_deref().map(str::parse).transpose().map_err(of(setting))
}

fn parse_all<T: std::str::FromStr<Err = String>>(
    values: &[String],
    setting: &'static str,
) -> Result<Vec<T>, ConfigError> {
    values.iter().map(|v| v.parse()).collect::<Result<_, _>>().map_err(of(setting))
}

fn count(value: &Option<String>, setting: &'static str, default: usize) -> Result<usize, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    match value.parse::<usize>() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(of(setting)(format!("{value:?} is not a whole number above 0"))),
    }
}

fn within(
    value: &Option<String>,
    setting: &'static str,
    range: std::ops::RangeInclusive<usize>,
    default: usize,
) -> Result<usize, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    let (low, high) = (range.start(), range.end());
    value
        .parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| of(setting)(format!("{value:?} is not a whole number from {low} to {high}")))
}

/// Above 0 and within a day, whatever the unit.
fn number(value: &Option<String>, setting: &'static str, default: f64) -> Result<f64, ConfigError> {
    let Some(value) = value else { return Ok(default) };
    match value.parse::<f64>() {
        Ok(number) if number > 0.0 && number <= 86_400.0 => Ok(number),
        _ => Err(of(setting)(format!("{value:?} is not a number above 0 (and at most 86400)"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Result<Config, ConfigError> {
        Config::resolve(Flags::default(), Some(text))
    }

    #[test]
    fn nothing_needs_to_be_said() {
        let config = Config::defaults();
        assert_eq!(config.http.to_string(), "127.0.0.1:8080");
        assert_eq!(config.udp.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0:8080", "[::]:8080"]);
        assert!(config.pin && config.publish_token.is_none() && config.public_ips.is_empty());
        assert_eq!(config.cors_origins, CorsOrigins::Any);
        assert!(config.ice_tcp.is_empty());
        assert_eq!(config.limits.connections_max, 1024);
        assert_eq!((config.gso_segments, config.gso_padding_percent), (16, 2));
    }

    #[test]
    fn a_flag_goes_before_the_file() {
        let flags = Flags { http: Some("127.0.0.1:1".into()), ..Flags::default() };
        let text = "http = \"127.0.0.1:2\"\npin = false\nudp = [\"127.0.0.1:7\", 9000]\nshards = 3\npost-rate = 0.5";
        let config = Config::resolve(flags, Some(text)).expect("usable");
        assert_eq!(config.http.port(), 1);
        assert!(!config.pin);
        assert_eq!(config.udp.len(), 3, "one address, and both families on port 9000");
        assert_eq!(config.shards, ShardCount::Exactly(3));
        assert_eq!(config.limits.post_rate, 0.5);
    }

    #[test]
    fn an_error_names_its_setting_in_one_line() {
        let check = |text: &str, expected: &str| {
            let message = file(text).expect_err(text).to_string();
            assert!(message.contains(expected) && !message.contains('\n'), "{message}");
        };
        check("http = \"nonsense\"", "http (--http, MANYCAST_HTTP): \"nonsense\"");
        check("udp = \"1.2.3.4.5\"", "udp (--udp, MANYCAST_UDP)");
        check("ice-tcp = \"nowhere\"", "ice-tcp (--ice-tcp, MANYCAST_ICE_TCP)");
        check("colour = 1", "colour: no such setting");
        check("http = ", "line 1");
        check("http = 1979-05-27", "http (--http, MANYCAST_HTTP): expected");
        check("[http]\na = 1", "http (--http, MANYCAST_HTTP): expected");
        check("shards = 0", "shards");
        check("shards = 65", "at most 64");
        check("io = \"epoll\"", "io (--io, MANYCAST_IO): \"epoll\" is none of auto, uring, mmsg");
        check("public-ip = \"1.2.3.4=::1\"", "same family");
        check("public-ip = \"host\"", "public-ip");
        check("publish-token = \"\"", "publish-token");
        check("publish-token = \"a b\"", "publish-token");
        check("public-url = \"example.net\"", "public-url");
        check("public-url = \"https://example.net/sfu\"", "public-url");
        check("cors-origin = \"example.net\"", "cors-origin");
        check("stun-server = \"example.net\"", "stun-server");
        check("trusted-proxy = \"10.0.0.0/33\"", "trusted-proxy");
        check("max-connections = 0", "max-connections");
        check("body-timeout = -1", "body-timeout");
        check(
            "gso-segments = 65",
            "gso-segments (--gso-segments, MANYCAST_GSO_SEGMENTS): \"65\" is not a whole number",
        );
        check("gso-padding = -1", "from 0 to 20");
    }

    #[test]
    fn a_token_is_never_shown() {
        let config = file("publish-token = \"correct-horse\"").expect("usable");
        assert!(!format!("{config:?}").contains("horse"));
        assert_eq!(config.publish_token.expect("given").expose(), "correct-horse");
    }
}
