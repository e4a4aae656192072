// Publishing by WHIP: one video and one audio track, sent only.

import { follow, negotiate } from "./signal.js";

export class Publisher {
  /** `media` is the MediaStream to send; `codec` is `auto` or a name such as `VP8`. */
  constructor(media, { codec = "auto" } = {}) {
    this.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    this.resource = null;
    for (const track of media.getTracks()) {
      const transceiver = this.pc.addTransceiver(track, { direction: "sendonly", streams: [media] });
      if (track.kind === "video") preferCodec(transceiver, codec);
    }
  }

  /** Negotiates, then follows the connection. Resolves to the reason of its end (see `follow`). */
  async run(stream, { token, signal, onstate }) {
    this.resource = await negotiate(this.pc, `/whip/${encodeURIComponent(stream)}`, { token, signal });
    return follow(this.pc, signal, onstate);
  }

  close() {
    this.resource?.delete();
    this.pc.close();
  }
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
