// Watching by WHEP (draft-ietf-wish-whep): one video and one audio track, received only.

import { follow, negotiate } from "./signal.js";

export class Viewer {
  /** `ontrack` is called with the MediaStream whenever a track joins it. */
  constructor(ontrack) {
    this.pc = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    this.resource = null;
    // Own stream: it does not matter then what the answer calls its streams.
    const media = new MediaStream();
    this.pc.addEventListener("track", ({ track }) => {
      media.addTrack(track);
      ontrack(media);
    });
    this.pc.addTransceiver("video", { direction: "recvonly" });
    this.pc.addTransceiver("audio", { direction: "recvonly" });
  }

  /** Negotiates, then follows the connection. Resolves to the reason of its end (see `follow`). */
  async run(stream, { token, signal, onsession, onstate }) {
    const url = `/whep/${encodeURIComponent(stream)}`;
    this.resource = await negotiate(this.pc, url, { token, signal, munge: stereoOpus });
    onsession(this.resource);
    return follow(this.pc, signal, onstate);
  }

  close() {
    this.resource?.delete();
    this.pc.close();
  }
}

/** Chromium plays Opus in mono unless the receiver itself asks for stereo (RFC 7587 §7.1). */
export function stereoOpus(sdp) {
  const types = [...sdp.matchAll(/^a=rtpmap:(\d+) opus\/48000\/2\r?$/gim)].map(([, type]) => type);
  return types.reduce(
    (text, type) => text.replace(new RegExp(`^(a=fmtp:${type} (?!.*\\bstereo=)[^\\r\\n]*)`, "m"), "$1;stereo=1"),
    sdp,
  );
}
