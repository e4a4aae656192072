// Publishing by WHIP: one video and one audio track, sent only.

import { follow, negotiate } from "./signal.js";

/** What 640 x 360 wants; less than a DSL line's uplink. */
const START_KBPS = 1000;

export class Publisher {
  /**
   * `media` is the MediaStream to send; `codec` is `auto` or a name such as `VP8`; `simulcast` sends several sizes;
   * `size` is what the source was asked for.
   */
  constructor(media, { codec = "auto", simulcast = false, size }) {
    this.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    this.resource = null;
    for (const track of media.getTracks()) {
      const sendEncodings = simulcast && track.kind === "video" ? layers({ ...size, ...track.getSettings() }, codec) : [];
      const transceiver = this.pc.addTransceiver(track, { direction: "sendonly", streams: [media], sendEncodings });
      if (track.kind === "video") preferCodec(transceiver, codec);
    }
  }

  /** Negotiates, then follows the connection. Resolves to the reason of its end (see `follow`). */
  async run(stream, { token, signal, onstate }) {
    const url = `/whip/${encodeURIComponent(stream)}`;
    this.resource = await negotiate(this.pc, url, { token, signal, mungeAnswer: startFast });
    return follow(this.pc, signal, onstate);
  }

  close() {
    this.resource?.delete();
    this.pc.close();
  }
}

/**
 * Chromium begins at 300 kbit/s, shrinks the picture to fit, and takes a quarter of a minute to grow it again however
 * good the network is. It lets the answer name another beginning; congestion control goes on from there as ever.
 */
export function startFast(sdp) {
  const [, ...media] = sdp.split(/^(?=m=)/m);
  const video = media.find((section) => section.startsWith("m=video"));
  if (!video) return sdp;
  const faster = video.replace(/^a=rtpmap:(\d+) (?:VP8|VP9|H264|H265|AV1)\/90000\r?\n/gim, (line, type) => {
    const parameters = new RegExp(`^a=fmtp:${type} `, "m").test(video);
    return parameters ? line : `${line}a=fmtp:${type} x-google-start-bitrate=${START_KBPS}\r\n`;
  });
  const all = faster.replace(/^(a=fmtp:\d+ (?!apt=)(?!.*x-google)[^\r\n]*)/gm, `$1;x-google-start-bitrate=${START_KBPS}`);
  return sdp.replace(video, () => all);
}

/** The codecs that this browser can send, as names. */
export function sendableCodecs() {
  const { codecs = [] } = RTCRtpSender.getCapabilities?.("video") ?? {};
  return new Set(codecs.map(codecName));
}

/** Puts one codec first and leaves the others behind it: a preference, not a demand. */
export function preferCodec(transceiver, name) {
  if (name === "auto" || !transceiver.setCodecPreferences) return;
  const { codecs } = RTCRtpSender.getCapabilities("video");
  const wanted = codecs.filter((codec) => codecName(codec) === name);
  if (wanted.length === 0) return;
  transceiver.setCodecPreferences([...wanted, ...codecs.filter((codec) => codecName(codec) !== name)]);
}

const codecName = ({ mimeType }) => mimeType.split("/")[1].toUpperCase();

/** One picture in several sizes, the smallest first. */
function layers({ width, height }, codec) {
  // Without a mode Chromium takes encodings of VP9 and AV1 for the spatial layers of one stream, and sends the first.
  const mode = ["VP9", "AV1"].includes(codec) ? { scalabilityMode: "L1T3" } : {};
  const all = [
    { rid: "l", scaleResolutionDownBy: 4, ...mode },
    { rid: "m", scaleResolutionDownBy: 2, ...mode },
    { rid: "h", scaleResolutionDownBy: 1, ...mode },
  ];
  // Of a small picture Chromium sends two, and leaves out the last: the picture itself.
  return width * height < 960 * 540 ? all.slice(1) : all;
}
