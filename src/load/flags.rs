//! The command line of `manycast load`, and the plan that it amounts to.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::media::{self, Sizes, Source, Video, VideoCodec};
use super::target::{Target, TargetError};

/// Flags of `manycast load`.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Of a manycast server: http://HOST:PORT, meaning /whip/NAME and /whep/NAME there
    #[arg(value_name = "URL", required_unless_present_any = ["url", "whip_url"])]
    pub server: Option<String>,

    /// The same as URL
    #[arg(long = "url", value_name = "URL", conflicts_with = "server")]
    pub url: Option<String>,

    /// Where to publish on another server; {stream} stands for the stream's name, as in http://HOST:8889/{stream}/whip
    #[arg(long, value_name = "TEMPLATE", requires = "whep_url", conflicts_with_all = ["server", "url", "sdp"])]
    pub whip_url: Option<String>,

    /// Where to watch on another server
    #[arg(long, value_name = "TEMPLATE", requires = "whip_url")]
    pub whep_url: Option<String>,

    /// Use POST /sdp with base64 bodies, for publishers and viewers both
    #[arg(long)]
    pub sdp: bool,

    /// Bearer token; {stream} stands for the stream's name (Broadcast Box: --token '{stream}')
    #[arg(long)]
    pub token: Option<String>,

    /// Name of the stream; with several streams NAME-1, NAME-2 and so on
    #[arg(long, value_name = "NAME", default_value = "load")]
    pub name: String,

    /// Streams to publish
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub streams: u32,

    /// Viewers of each stream
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=50_000))]
    pub viewers: u32,

    /// What is published; opus means audio only
    #[arg(long, value_enum, default_value_t = CodecFlag::Vp8)]
    pub codec: CodecFlag,

    /// Of a stream, in bit/s, k and M understood; default 1M of video, 64k of audio alone
    #[arg(long, value_parser = bits_per_second)]
    pub bitrate: Option<u64>,

    /// Frames a second; the packets of a frame leave in one burst
    #[arg(long, default_value_t = 30.0, value_parser = frames_per_second)]
    pub fps: f64,

    /// RTP payload of each video packet
    #[arg(long, value_name = "BYTES", default_value_t = 1100, value_parser = clap::value_parser!(u32).range(64..=1400))]
    pub packet_bytes: u32,

    /// How long the packets of a frame are; --bitrate counts them all as full
    #[arg(long, value_enum, default_value_t = Sizes::Even)]
    pub packet_sizes: Sizes,

    /// An Opus track beside the video: 50 packets/s of 80 bytes
    #[arg(long)]
    pub audio: bool,

    /// Between keyframes that nobody has asked for
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub keyframe_interval: f64,

    /// Publishers stay connected and fall silent so long after all viewers play; then the measurement begins. For what
    /// viewers cost who only wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub media_for: Option<f64>,

    /// Only watch what another `manycast load` publishes: for viewers that come while others are measured. There are
    /// no latencies then, which need one clock at both ends
    #[arg(long, conflicts_with = "media_for")]
    pub no_publish: bool,

    /// Viewers that join each second
    #[arg(long, value_name = "VIEWERS/S", default_value_t = 50.0, value_parser = seconds)]
    pub ramp: f64,

    /// Of the measurement, which begins when all viewers play
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = seconds)]
    pub duration: f64,

    /// Datagrams to lose on the viewers' side, each way
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = percent)]
    pub loss: f64,

    /// Delay to add on the viewers' side, each way
    #[arg(long, value_name = "MS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=2000))]
    pub delay: u64,

    /// Of the emulated losses
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Receive with UDP_GRO. Off by default: browsers on other machines get single datagrams, and over loopback GRO
    /// makes the server's sends cheaper too
    #[arg(long, overrides_with = "no_gro")]
    pub gro: bool,

    /// Receive single datagrams (the default)
    #[arg(long)]
    pub no_gro: bool,

    /// Every Nth viewer decrypts all it gets, for latencies; the others count headers, and decrypt until their first
    /// keyframe and what RTX repairs
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,

    /// Process of the server, if it runs here: its processor time and memory are reported. Memory means something on a
    /// server that was just started: later runs use again what earlier ones have freed
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,

    /// Write the report as JSON too; - is standard output, which then has nothing else
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Exit with 1 when more packets were lost for good. Losses of video are repaired by RTX first, audio has none
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub max_loss: Option<f64>,

    /// Exit with 1 when the 99th percentile of latency is higher
    #[arg(long, value_name = "MS", value_parser = seconds)]
    pub max_p99: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CodecFlag {
    Vp8,
    H264,
    Opus,
}

/// What a run does, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub target: Target,
    pub streams: usize,
    pub viewers_per_stream: usize,
    pub source: Source,
    /// Not when the media is another process's.
    pub publishes: bool,
    /// After all viewers play.
    pub media_for: Option<Duration>,
    /// What had to be rounded, in words.
    pub notes: Vec<String>,
    /// Between two joins.
    pub join_interval: Duration,
    pub duration: Duration,
    /// 0 to 1.
    pub loss: f64,
    pub delay: Duration,
    pub seed: u64,
    pub gro: bool,
    pub sample: usize,
    pub server_pid: Option<u32>,
    pub json: Option<PathBuf>,
    pub max_loss_percent: Option<f64>,
    pub max_p99: Option<Duration>,
}

impl Plan {
    /// # Errors
    /// When a URL cannot be used.
    pub fn from_flags(flags: Flags) -> Result<Plan, TargetError> {
        let mut notes = Vec::new();
        let source = source(&flags, &mut notes);
        let streams = (1..=flags.streams).map(|n| match flags.streams {
            1 => flags.name.clone(),
            _ => format!("{}-{n}", flags.name),
        });
        let target = match (flags.server.or(flags.url), flags.whip_url, flags.whep_url) {
            (_, Some(whip), Some(whep)) => Target::templates(&whip, &whep, flags.token, streams.collect())?,
            (Some(server), ..) => Target::manycast(&server, flags.sdp, flags.token, streams.collect())?,
            _ => return Err(TargetError("an URL is needed: http://HOST:PORT".to_owned())),
        };
        Ok(Plan {
            target,
            streams: flags.streams as usize,
            viewers_per_stream: flags.viewers as usize,
            source,
            publishes: !flags.no_publish,
            media_for: flags.media_for.map(Duration::from_secs_f64),
            notes,
            join_interval: Duration::from_secs_f64(1.0 / flags.ramp),
            duration: Duration::from_secs_f64(flags.duration),
            loss: flags.loss / 100.0,
            delay: Duration::from_millis(flags.delay),
            seed: flags.seed,
            gro: flags.gro,
            sample: flags.sample as usize,
            server_pid: flags.server_pid,
            json: flags.json,
            max_loss_percent: flags.max_loss,
            max_p99: flags.max_p99.map(|ms| Duration::from_secs_f64(ms / 1000.0)),
        })
    }

    pub fn viewers(&self) -> usize {
        self.streams * self.viewers_per_stream
    }

    pub fn publishers(&self) -> usize {
        if self.publishes { self.streams } else { 0 }
    }

    /// Packets a second of all publishers while figures are taken.
    pub fn published_per_second(&self) -> f64 {
        if self.media_for.is_some() { 0.0 } else { self.source.packets_per_second() * self.publishers() as f64 }
    }
}

fn source(flags: &Flags, notes: &mut Vec<String>) -> Source {
    let codec = match flags.codec {
        CodecFlag::Vp8 => VideoCodec::Vp8,
        CodecFlag::H264 => VideoCodec::H264,
        CodecFlag::Opus => {
            let wanted = flags.bitrate.unwrap_or(64_000) / 8 / media::AUDIO_PACKETS_PER_SECOND;
            // Opus allows 1275 bytes a frame (RFC 6716 §3.4).
            let bytes = (wanted as usize).clamp(media::PAYLOAD_BYTES_MIN, 1275);
            if bytes as u64 != wanted {
                notes.push(format!("Opus packets have {bytes} bytes, not the {wanted} that the bitrate would need"));
            }
            return Source { video: None, audio_bytes: Some(bytes) };
        }
    };
    let bitrate = flags.bitrate.unwrap_or(1_000_000) as f64;
    let exact = bitrate / (8.0 * flags.fps * f64::from(flags.packet_bytes));
    let packets_per_frame = (exact.round() as u32).max(1);
    if (exact - f64::from(packets_per_frame)).abs() > 0.01 {
        let actual = f64::from(packets_per_frame) * 8.0 * flags.fps * f64::from(flags.packet_bytes);
        notes.push(format!(
            "{packets_per_frame} packets a frame instead of {exact:.2}: the video is {:.2} Mbit/s, not {:.2}",
            actual / 1e6,
            bitrate / 1e6,
        ));
    }
    let video = Video {
        codec,
        frames_per_second: flags.fps,
        packets_per_frame,
        packet_bytes: flags.packet_bytes as usize,
        sizes: flags.packet_sizes,
        keyframe_frames: ((flags.fps * flags.keyframe_interval).round() as u64).max(1),
    };
    Source { video: Some(video), audio_bytes: flags.audio.then_some(media::AUDIO_BYTES) }
}

fn bits_per_second(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.strip_suffix(['k', 'K']) {
        Some(number) => (number, 1e3),
        None => text.strip_suffix('M').map_or((text, 1.0), |number| (number, 1e6)),
    };
    let bits = number.parse::<f64>().map_err(|_| "expected bit/s, such as 2500k or 2.5M".to_owned())? * factor;
    if (1_000.0..=1e9).contains(&bits) { Ok(bits as u64) } else { Err("expected 1k to 1000M".to_owned()) }
}

fn frames_per_second(text: &str) -> Result<f64, String> {
    number(text, 0.1, 10_000.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    number(text, 0.01, 100_000.0)
}

fn percent(text: &str) -> Result<f64, String> {
    number(text, 0.0, 100.0)
}

fn number(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number".to_owned())?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(format!("expected {min} to {max}")) }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        flags: Flags,
    }

    fn plan(args: &str) -> Plan {
        let args = ["load"].into_iter().chain(args.split_whitespace());
        Plan::from_flags(Cli::try_parse_from(args).unwrap().flags).unwrap()
    }

    #[test]
    fn a_bitrate_becomes_packets_of_a_frame() {
        let exact = plan("http://h:1 --bitrate 8.8M --fps 100 --packet-bytes 1100");
        assert_eq!(exact.source.video.unwrap().packets_per_frame, 10);
        assert!(exact.notes.is_empty());
        let rounded = plan("http://h:1 --bitrate 50k");
        assert_eq!(rounded.source.video.unwrap().packets_per_frame, 1);
        assert_eq!(rounded.notes.len(), 1, "it says so");
    }

    #[test]
    fn audio_alone_has_the_bitrate() {
        let source = plan("http://h:1 --codec opus --bitrate 48k").source;
        assert_eq!(source, Source { video: None, audio_bytes: Some(120) });
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for args in ["", "http://h:1 --loss 101", "http://h:1 --bitrate fast", "--whip-url http://h/{stream}"] {
            let args = ["load"].into_iter().chain(args.split_whitespace());
            assert!(Cli::try_parse_from(args).is_err());
        }
    }
}
