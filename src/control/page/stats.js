// Live figures: once a second from getStats, shown as a row of instruments with a curve of the bitrate.

const HISTORY_SAMPLES = 60;
const dash = "–";

/** What each figure is called, how it is written, and which panel has it. `key` is also the end of the element's id. */
const FIGURES = [
  { key: "bitrate", name: "Bitrate", write: (f) => bitrate(f.bitsPerSecond), spark: true },
  { key: "resolution", name: "Resolution", write: (f) => (f.width ? `${f.width} × ${f.height}` : dash) },
  { key: "fps", name: "Frames / s", write: (f) => number(f.framesPerSecond, 0) },
  { key: "codec", name: "Codec", write: (f) => f.codecs || dash },
  { key: "loss", name: "Packets lost", write: (f) => number(f.lossPercent, f.lossPercent ? 2 : 0, " %") },
  { key: "rtt", name: "Round trip", write: (f) => number(f.roundTripMs, f.roundTripMs < 10 ? 1 : 0, " ms") },
  { key: "jitter-buffer", name: "Jitter buffer", write: (f) => number(f.jitterBufferMs, 0, " ms"), only: "receive" },
  { key: "freezes", name: "Freezes", write: (f) => number(f.freezes, 0), only: "receive" },
  { key: "dropped", name: "Dropped", write: (f) => number(f.framesDropped, 0), only: "receive" },
  { key: "limit", name: "Held back by", write: (f) => LIMITS[f.limitedBy] ?? dash, only: "send" },
  { key: "resent", name: "Resent", write: (f) => number(f.packetsResent, 0), only: "send" },
  { key: "keyframes-asked", name: "Key requests", write: (f) => number(f.keyframesAsked, 0), only: "send" },
  { key: "srtp", name: "Media cipher (SRTP)", write: (f) => f.srtpCipher || dash, wide: true },
  { key: "dtls", name: "Handshake (DTLS)", write: (f) => handshake(f), wide: true },
];

const LIMITS = { none: "nothing", cpu: "processor", bandwidth: "network", other: "other" };
/** RFC 8446 and RFC 9147 number DTLS versions downwards from FEFF. */
const DTLS_VERSIONS = { FEFF: "DTLS 1.0", FEFD: "DTLS 1.2", FEFC: "DTLS 1.3" };

/** The instruments of one panel. `onfigures` hears each sample. */
export class Meter {
  /** `direction` is `send` or `receive`. */
  constructor(list, prefix, direction, onfigures = () => {}) {
    this.list = list;
    this.prefix = prefix;
    this.onfigures = onfigures;
    this.stop();
    this.turn(direction);
  }

  /** The copy-and-paste panel publishes at one time and watches at another. */
  turn(direction) {
    if (direction === this.direction) return;
    this.direction = direction;
    this.cells = new Map();
    this.list.replaceChildren(
      ...FIGURES.filter(({ only }) => !only || only === direction).map((figure) => this.cell(figure)),
    );
    this.clear();
  }

  cell(figure) {
    const box = document.createElement("div");
    box.className = ["figure", figure.wide && "wide", figure.spark && "spark"].filter(Boolean).join(" ");
    const name = document.createElement("dt");
    name.textContent = figure.name;
    const value = document.createElement("dd");
    value.id = `${this.prefix}-figure-${figure.key}`;
    box.append(name, value);
    if (figure.spark) {
      this.curve = document.createElement("canvas");
      this.curve.setAttribute("aria-hidden", "true");
      const holder = document.createElement("dd");
      holder.className = "curve";
      holder.append(this.curve);
      box.append(holder);
    }
    this.cells.set(figure, value);
    return box;
  }

  start(pc) {
    this.stop();
    const timer = setInterval(() => this.tick(pc), 1000);
    this.end = () => clearInterval(timer);
    this.previous = null;
    this.history = [];
    this.tick(pc);
  }

  stop() {
    this.end?.();
    this.end = null;
    this.latest = null;
    this.history = [];
    if (this.cells) this.clear();
  }

  clear() {
    this.list.classList.add("empty");
    for (const value of this.cells.values()) value.textContent = dash;
    drawCurve(this.curve, []);
  }

  async tick(pc) {
    const end = this.end;
    const report = await pc.getStats();
    if (end !== this.end || pc.signalingState === "closed") return;
    const figures = read(report, this.direction, this.previous);
    this.previous = figures;
    this.latest = figures;
    if (figures.bitsPerSecond !== null) this.history = [...this.history, figures.bitsPerSecond].slice(-HISTORY_SAMPLES);

    this.list.classList.remove("empty");
    for (const [figure, value] of this.cells) value.textContent = figure.write(figures);
    drawCurve(this.curve, this.history);
    this.onfigures(figures);
  }
}

/** Turns a stats report into plain figures; rates need the figures of the sample before. */
export function read(report, direction, previous) {
  const stats = [...report.values()];
  const streams = stats.filter(({ type }) => type === (direction === "send" ? "outbound-rtp" : "inbound-rtp"));
  // Video first, and of several layers the largest.
  streams.sort((a, b) => b.kind.localeCompare(a.kind) || (b.frameWidth ?? 0) - (a.frameWidth ?? 0));
  const video = streams.find(({ kind }) => kind === "video") ?? {};
  const remotes = stats.filter(({ type }) => type === "remote-inbound-rtp");
  const transport = stats.find(({ type }) => type === "transport") ?? {};
  const pair = report.get(transport.selectedCandidatePairId) ?? {};

  const now = {
    at: performance.now(),
    bytes: sum(streams, direction === "send" ? "bytesSent" : "bytesReceived"),
    packets: sum(streams, direction === "send" ? "packetsSent" : "packetsReceived"),
    // What a sender lost only the other end knows.
    lost: sum(direction === "send" ? remotes : streams, "packetsLost"),
    frames: video.framesDecoded ?? video.framesEncoded ?? 0,
    jitterBufferSeconds: video.jitterBufferDelay ?? 0,
    jitterBufferFrames: video.jitterBufferEmittedCount ?? 0,

    codecs: [...new Set(streams.map(({ codecId }) => report.get(codecId)?.mimeType.split("/")[1]))]
      .filter(Boolean)
      .map(codecLabel)
      .join(" + "),
    width: video.frameWidth ?? 0,
    height: video.frameHeight ?? 0,
    framesPerSecond: video.framesPerSecond ?? null,
    roundTripMs: milliseconds(pair.currentRoundTripTime ?? remotes.find((r) => r.roundTripTime)?.roundTripTime),
    freezes: video.freezeCount ?? null,
    limitedBy: video.qualityLimitationReason ?? null,
    framesDropped: video.framesDropped ?? null,
    packetsResent: direction === "send" ? sum(streams, "retransmittedPacketsSent") : null,
    keyframesAsked: video.pliCount === undefined ? null : video.pliCount + (video.firCount ?? 0),
    srtpCipher: transport.srtpCipher ?? null,
    dtlsCipher: transport.dtlsCipher ?? null,
    tlsVersion: transport.tlsVersion ?? null,
    bitsPerSecond: null,
    lossPercent: null,
    jitterBufferMs: null,
  };
  if (!previous) return now;

  const seconds = (now.at - previous.at) / 1000;
  now.bitsPerSecond = Math.max(0, ((now.bytes - previous.bytes) * 8) / seconds);
  const lost = Math.max(0, now.lost - previous.lost);
  const packets = Math.max(0, now.packets - previous.packets);
  const sent = direction === "send" ? packets : packets + lost;
  now.lossPercent = sent ? Math.min(100, (100 * lost) / sent) : 0;
  const emitted = now.jitterBufferFrames - previous.jitterBufferFrames;
  if (emitted > 0) now.jitterBufferMs = (1000 * (now.jitterBufferSeconds - previous.jitterBufferSeconds)) / emitted;
  return now;
}

export function bitrate(bitsPerSecond, digits = 2) {
  if (bitsPerSecond === null || bitsPerSecond === undefined) return dash;
  if (bitsPerSecond >= 1e6) return `${(bitsPerSecond / 1e6).toFixed(digits)} Mbit/s`;
  return `${Math.round(bitsPerSecond / 1e3)} kbit/s`;
}

/** A curve from zero to a little over its highest point, newest at the right edge. */
function drawCurve(canvas, history) {
  if (!canvas) return;
  const ratio = window.devicePixelRatio || 1;
  const width = (canvas.width = Math.round(canvas.clientWidth * ratio));
  const height = (canvas.height = Math.round(canvas.clientHeight * ratio));
  if (history.length < 2 || !width) return;

  const pen = canvas.getContext("2d");
  const colour = getComputedStyle(canvas).color;
  const top = Math.max(...history, 1) * 1.15;
  const step = width / (HISTORY_SAMPLES - 1);
  const x = (i) => width - (history.length - 1 - i) * step;
  const y = (value) => height - (value / top) * (height - ratio);

  pen.beginPath();
  history.forEach((value, i) => pen.lineTo(x(i), y(value)));
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5 * ratio;
  pen.lineJoin = "round";
  pen.stroke();
  pen.lineTo(width, height);
  pen.lineTo(x(0), height);
  pen.globalAlpha = 0.14;
  pen.fillStyle = colour;
  pen.fill();
}

const sum = (list, key) => list.reduce((total, item) => total + (item[key] ?? 0), 0);
const milliseconds = (seconds) => (seconds === undefined ? null : seconds * 1000);
const number = (value, digits, unit = "") =>
  value === null || value === undefined ? dash : `${value.toFixed(digits)}${unit}`;
export const codecLabel = (name) => (name.toLowerCase() === "opus" ? "Opus" : name);

function handshake({ tlsVersion, dtlsCipher }) {
  const version = DTLS_VERSIONS[tlsVersion] ?? tlsVersion;
  return [version, dtlsCipher].filter(Boolean).join(", ") || dash;
}
