//! The settings as they are written: on the command line, in variables, in a file. All text, nothing checked yet.

use super::ConfigError;

/// Declares every setting once: its flag, variable and key in the file, and how two sources are joined.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident: $outer:ident<$inner:ident> = $variable:literal $(, $option:ident = $value:expr)*;)*) => {
        /// Flags and variables of `manycast serve`.
        #[derive(Clone, Debug, Default, clap::Args)]
        pub struct Flags {
            $($(#[$doc])* #[arg(long, env = $variable, hide_env = true, $($option = $value),*)] pub $name: $outer<$inner>,)*
            /// Settings are also read from this TOML file, under the names of the flags
            #[arg(long, env = "MANYCAST_CONFIG", hide_env = true, value_name = "FILE")]
            pub config: Option<std::path::PathBuf>,
        }

        const FIELDS: &[(&str, &str)] = &[$((stringify!($name), $variable)),*];

        impl Flags {
            /// Takes from `file` what is not said here.
            pub(super) fn or(self, file: Flags) -> Flags {
                Flags { $($name: flags!(@or $outer, self.$name, file.$name),)* config: self.config }
            }

            fn set(&mut self, name: &str, value: toml::Value) -> Result<(), String> {
                match name {
                    $(stringify!($name) => self.$name = flags!(@read $outer $inner, value)?,)*
                    _ => return Err("no such setting".to_owned()),
                }
                Ok(())
            }
        }
    };
    (@or Vec, $here:expr, $there:expr) => { if $here.is_empty() { $there } else { $here } };
    (@or Option, $here:expr, $there:expr) => { $here.or($there) };
    (@read Option String, $value:expr) => { text($value).map(Some) };
    (@read Vec String, $value:expr) => { texts($value) };
    (@read Option bool, $value:expr) => {
        $value.as_bool().map(Some).ok_or_else(|| "expected true or false".to_owned())
    };
}

flags! {
    /// Where HTTP listens [default: 127.0.0.1:8080]
    http: Option<String> = "MANYCAST_HTTP", value_name = "IP:PORT";
    /// Where media is received; may be repeated [default: port 8080 of every interface]
    udp: Vec<String> = "MANYCAST_UDP", value_name = "IP:PORT", value_delimiter = ',';
    /// Where media is also taken over TCP (ICE-TCP), for clients whose network blocks UDP; may be repeated; best the UDP
    /// port's number, unless HTTP has it [default: nowhere]
    ice_tcp: Vec<String> = "MANYCAST_ICE_TCP", value_name = "IP:PORT", value_delimiter = ',';
    /// Bearer token that publishers must present
    publish_token: Option<String> = "MANYCAST_PUBLISH_TOKEN", value_name = "TOKEN", hide_env_values = true;
    /// Bearer token that viewers must present
    view_token: Option<String> = "MANYCAST_VIEW_TOKEN", value_name = "TOKEN", hide_env_values = true;
    /// Origins whose pages may use this server; may be repeated [default: *]
    cors_origin: Vec<String> = "MANYCAST_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ',';
    /// Origin of this server as its clients see it, for Location headers
    public_url: Option<String> = "MANYCAST_PUBLIC_URL", value_name = "ORIGIN";
    /// Address to advertise for media, in place of all local ones or of one; may be repeated
    public_ip: Vec<String> = "MANYCAST_PUBLIC_IP", value_name = "PUBLIC[=LOCAL]", value_delimiter = ',';
    /// STUN server that tells the public address at start (for 1:1 NAT)
    stun_server: Option<String> = "MANYCAST_STUN_SERVER", value_name = "HOST:PORT";
    /// Threads that move media: auto (one per usable CPU) or a number [default: auto]
    shards: Option<String> = "MANYCAST_SHARDS", value_name = "auto|N";
    /// Keep each shard on one CPU [default: true]
    pin: Option<bool> = "MANYCAST_PIN", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL";
    /// Let the kernel place the shards
    no_pin: Option<bool> = "MANYCAST_NO_PIN", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL", conflicts_with = "pin";
    /// Packet I/O: auto, uring or mmsg [default: auto]
    io: Option<String> = "MANYCAST_IO", value_name = "BACKEND";
    /// Packets of a track that may leave as segments of one message (UDP GSO), 1 to 64; 1: never [default: 16]
    gso_segments: Option<String> = "MANYCAST_GSO_SEGMENTS", value_name = "N";
    /// How much a packet may be padded (RTP) so that it can be a segment, in percent, 0 to 20; 0: never [default: 2]
    gso_padding: Option<String> = "MANYCAST_GSO_PADDING", value_name = "PERCENT";
    /// Microseconds that the beginning of a video frame may wait for the rest, 0 to 200; audio never waits [default: 200]
    video_hold: Option<String> = "MANYCAST_VIDEO_HOLD", value_name = "MICROSECONDS";
    /// What is logged, as in RUST_LOG [default: info,str0m=warn,is=warn,dimpl=warn]
    log: Option<String> = "MANYCAST_LOG", value_name = "FILTER";
    /// HTTP connections in all [default: 1024]
    max_connections: Option<String> = "MANYCAST_MAX_CONNECTIONS", value_name = "N", help_heading = "Limits";
    /// HTTP connections of one address [default: 64]
    max_connections_per_ip: Option<String> = "MANYCAST_MAX_CONNECTIONS_PER_IP", value_name = "N", help_heading = "Limits";
    /// Seconds to wait for the head of a request [default: 10]
    header_timeout: Option<String> = "MANYCAST_HEADER_TIMEOUT", value_name = "SECONDS", help_heading = "Limits";
    /// Seconds to wait for the body of a request [default: 5]
    body_timeout: Option<String> = "MANYCAST_BODY_TIMEOUT", value_name = "SECONDS", help_heading = "Limits";
    /// Offers a second from one address [default: 5]
    post_rate: Option<String> = "MANYCAST_POST_RATE", value_name = "PER_SECOND", help_heading = "Limits";
    /// Offers at once from one address [default: 20]
    post_burst: Option<String> = "MANYCAST_POST_BURST", value_name = "N", help_heading = "Limits";
    /// PATCH requests a second per session [default: 20]
    patch_rate: Option<String> = "MANYCAST_PATCH_RATE", value_name = "PER_SECOND", help_heading = "Limits";
    /// Requests a second for unknown sessions from one address [default: 10]
    probe_rate: Option<String> = "MANYCAST_PROBE_RATE", value_name = "PER_SECOND", help_heading = "Limits";
    /// Sessions of one address that are not connected yet [default: 8]
    max_unestablished_per_ip: Option<String> = "MANYCAST_MAX_UNESTABLISHED_PER_IP", value_name = "N", help_heading = "Limits";
    /// Sessions in all that are not connected yet [default: 2000]
    max_unestablished: Option<String> = "MANYCAST_MAX_UNESTABLISHED", value_name = "N", help_heading = "Limits";
    /// Address or prefix of a proxy whose forwarding headers are believed; may be repeated
    trusted_proxy: Vec<String> = "MANYCAST_TRUSTED_PROXY", value_name = "CIDR", value_delimiter = ',', help_heading = "Limits";
}

impl Flags {
    /// Reads a file's text.
    ///
    /// # Errors
    /// What is no TOML, a key that is no setting, a value of the wrong kind.
    pub fn from_toml(text: &str) -> Result<Flags, ConfigError> {
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            let message = e.message().replace('\n', " ");
            ConfigError { setting: String::new(), problem: format!("line {line} of the settings file: {message}") }
        })?;
        let mut flags = Flags::default();
        for (name, value) in table {
            let problem = match name.contains('_') {
                true => Err("no such setting".to_owned()),
                false => flags.set(&name.replace('-', "_"), value),
            };
            problem.map_err(|problem| ConfigError { setting: name, problem })?;
        }
        Ok(flags)
    }
}

/// Every setting's name as in the file.
pub(super) static NAMES: std::sync::LazyLock<Vec<String>> =
    std::sync::LazyLock::new(|| FIELDS.iter().map(|(name, _)| name.replace('_', "-")).collect());

/// The variable of a setting.
pub(super) fn variable(name: &str) -> String {
    format!("MANYCAST_{}", name.to_uppercase().replace('-', "_"))
}

fn text(value: toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Float(number) => Ok(number.to_string()),
        _ => Err("expected a text or a number".to_owned()),
    }
}

fn texts(value: toml::Value) -> Result<Vec<String>, String> {
    match value {
        toml::Value::Array(values) => values.into_iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variable_is_named_after_its_flag() {
        for (name, declared) in FIELDS {
            assert_eq!(variable(&name.replace('_', "-")), *declared);
        }
    }
}
