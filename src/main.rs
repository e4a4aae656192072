//! The command line.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use manycast::config::{Config, ConfigError, Flags};
use manycast::{load, node};
use tracing_subscriber::EnvFilter;

/// A WebRTC SFU: one stream in, every core out.
#[derive(Parser)]
#[command(name = "manycast", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Take streams in (WHIP, curl) and give them out (WHEP, curl).
    ///
    /// Every flag is also read from the variable MANYCAST_<FLAG> and from the TOML file that --config names.
    Serve(Box<Flags>),
    /// Publish and watch synthetic streams against any WHIP/WHEP server, and tell what arrived at what cost.
    ///
    /// Exit code: 0, or 1 when --max-loss or --max-p99 did not hold, or 2 when clients could not connect.
    Load(Box<load::Flags>),
}

/// What a shell expects of a program that was called wrongly.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let flags = match Cli::parse().command {
        Command::Serve(flags) => flags,
        Command::Load(flags) => return ExitCode::from(load::run(*flags)),
    };
    let served = configure(*flags)
        .map_err(anyhow::Error::from)
        .and_then(|config| Ok(node::serve(config, |line| println!("{line}"))?));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("manycast: {error}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

/// Reads the settings and starts logging.
fn configure(flags: Flags) -> Result<Config, ConfigError> {
    let error = |setting: &str, problem: String| ConfigError { setting: setting.to_owned(), problem };
    let file = match &flags.config {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|e| error("config", format!("cannot read {}: {e}", path.display())))?,
        ),
        None => None,
    };
    let config = Config::resolve(flags, file.as_deref())?;
    let filter = EnvFilter::try_new(&config.log).map_err(|e| error("log", format!("{:?}: {e}", config.log)))?;
    // Colours are for eyes, not for files; NO_COLOR is a convention (no-color.org).
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
    Ok(config)
}
