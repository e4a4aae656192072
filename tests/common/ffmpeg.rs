//! FFmpeg with its WHIP muxer. `scripts/test` brings it into `target/interop`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Ended when dropped.
pub struct Ffmpeg(Child);

impl Ffmpeg {
    /// A moving test card as H264 without B-frames, 30 frames/s with a keyframe every so many, and 440 Hz as Opus: all
    /// that the muxer takes. `more`: options of the muxer.
    pub fn publish(url: &str, keyframe_interval: u32, more: &[&str]) -> Ffmpeg {
        let picture = ["-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=30"];
        let sound = ["-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000"];
        let h264 = "-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -pix_fmt yuv420p -bf 0 -g";
        let child = Command::new(program())
            .args(["-hide_banner", "-nostats", "-loglevel", "warning"])
            .args(picture)
            .args(sound)
            .args(h264.split(' '))
            .arg(keyframe_interval.to_string())
            .args(["-c:a", "libopus", "-ac", "2"])
            .args(more)
            .args(["-f", "whip", url])
            .stdin(Stdio::piped())
            .spawn();
        Ffmpeg(child.expect("FFmpeg starts"))
    }

    /// As a person ends it who presses q: it then deletes its session.
    pub fn quit(&mut self) {
        use std::io::Write;
        self.0.stdin.as_mut().expect("piped").write_all(b"q").expect("it runs");
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The one that the Python package `imageio-ffmpeg` carries: Debian's has no WHIP.
fn program() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("target/interop/python/imageio_ffmpeg/binaries");
    let files = std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
    let found =
        files.map(|f| f.path()).find(|f| f.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"ffmpeg-")));
    found.unwrap_or_else(|| panic!("no FFmpeg in {}: run scripts/test ffmpeg", folder.display()))
}
