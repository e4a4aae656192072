// The panel that works as Pion's "sfu" example page did in 2019: the browser's session description is carried to the
// server by hand, as base64 of `{"type":…,"sdp":…}`, and the server's is carried back.

import { $, BAD_NAME, STREAM_NAME, Status, copy, followAspect } from "./dom.js";
import { Resource, SignalError, follow, gathered, post } from "./signal.js";
import { openSource } from "./source.js";
import { Meter } from "./stats.js";
import { stereoOpus } from "./whep.js";

/** As WebRTC pages of that time got it. */
const PICTURE = { width: 640, height: 360 };

export class LegacyPanel {
  constructor() {
    this.status = new Status("legacy", {
      idle: "Not connected",
      connecting: "Connecting",
      waiting: "Your turn",
      live: "Live",
      stopped: "Not connected",
      failed: "Not connected",
    });
    this.meter = new Meter($("legacy-figures"), "legacy", "receive");
    this.video = $("legacy-video");
    followAspect(this.video, $("legacy-stage"));

    $("legacy-publish").addEventListener("click", () => this.begin("publish"));
    $("legacy-join").addEventListener("click", () => this.begin("join"));
    $("legacy-stop").addEventListener("click", () => this.stop());
    $("legacy-offer-copy").addEventListener("click", () => copy($("legacy-offer").value, "description"));
    $("legacy-curl-copy").addEventListener("click", () => copy($("legacy-curl").textContent, "curl line"));
    $("legacy-send").addEventListener("click", () => this.send());
    $("legacy-start").addEventListener("click", () => this.startSession());
    $("legacy-offer").addEventListener("focus", () => $("legacy-offer").select());
    $("legacy-answer").addEventListener("input", () => this.showButtons());
    $("legacy-stream").addEventListener("input", () => this.showCurl());
    $("legacy-token").addEventListener("input", () => this.showCurl());

    if (!navigator.mediaDevices?.getUserMedia) {
      $("legacy-source").value = "synthetic";
      $("legacy-source").options[0].disabled = true;
    }
    this.showCurl();
  }

  get stream() {
    return $("legacy-stream").value.trim();
  }

  set stream(name) {
    $("legacy-stream").value = name;
    this.showCurl();
  }

  get active() {
    return Boolean(this.attempt);
  }

  /** Step 1: an offer, complete with its candidates, into the first text area. */
  async begin(role) {
    this.release();
    const attempt = (this.attempt = new AbortController());
    this.role = role;
    this.meter.turn(role === "publish" ? "send" : "receive");
    this.showRunning(true);
    try {
      await this.makeOffer(role, attempt.signal);
      $("legacy-offer").value = encode(this.pc.localDescription);
      this.showCurl();
      this.status.set("waiting", "The offer is ready. Carry it to the server.", {
        hint: "Run the curl line and paste what it prints, or let the page send it.",
      });
    } catch (error) {
      if (!attempt.signal.aborted) this.fail(error);
    }
  }

  async makeOffer(role, signal) {
    const pc = (this.pc = new RTCPeerConnection());
    if (role === "publish") {
      this.status.set("connecting", "Opening the picture…");
      const source = await openSource($("legacy-source").value, { size: PICTURE, audio: false });
      if (signal.aborted) return source.stop();
      this.source = source;
      this.video.srcObject = source.media;
      pc.addTransceiver(source.media.getVideoTracks()[0], { direction: "sendonly", streams: [source.media] });
    } else {
      const media = new MediaStream();
      pc.addEventListener("track", ({ track }) => {
        media.addTrack(track);
        this.video.srcObject = media;
      });
      pc.addTransceiver("video", { direction: "recvonly" });
      pc.addTransceiver("audio", { direction: "recvonly" });
    }
    this.status.set("connecting", "Gathering addresses…");
    const offer = await pc.createOffer();
    await pc.setLocalDescription({ type: "offer", sdp: stereoOpus(offer.sdp) });
    await gathered(pc);
    signal.throwIfAborted();
  }

  /** Steps 2 and 3 at once: what curl would have done. */
  async send() {
    if (!this.attempt) return;
    if (!STREAM_NAME.test(this.stream)) return this.status.set(this.status.state, BAD_NAME);
    const { signal } = this.attempt;
    const token = $("legacy-token").value.trim();
    try {
      const response = await post(this.path(), "text/plain", $("legacy-offer").value, token, signal);
      this.resource = new Resource(response, token);
      $("legacy-answer").value = (await response.text()).trim();
      signal.throwIfAborted();
      await this.startSession();
    } catch (error) {
      if (!signal.aborted) this.refused(error);
    }
  }

  /** Step 3: the answer that was pasted. */
  async startSession() {
    const { attempt, pc } = this;
    if (!attempt || !$("legacy-answer").value.trim()) return;
    try {
      await pc.setRemoteDescription(decode($("legacy-answer").value));
    } catch (error) {
      return this.refused(
        error instanceof SignalError
          ? error
          : new SignalError("answer", "The browser cannot use this answer.", { hint: error.message }),
      );
    }
    this.showButtons();
    this.status.set("connecting", "Connecting…");
    try {
      throw await follow(pc, attempt.signal, (state) => this.showLink(state));
    } catch (error) {
      if (!attempt.signal.aborted) this.fail(error);
    }
  }

  showLink(state) {
    if (state === "interrupted")
      return this.status.set("connecting", "The connection is interrupted. Waiting for it to come back…");
    this.meter.start(this.pc);
    this.status.set(
      "live",
      this.role === "publish" ? `You broadcast “${this.stream}”.` : `You have joined “${this.stream}”.`,
    );
  }

  path() {
    return this.stream === "default" ? "/sdp" : `/sdp?stream=${encodeURIComponent(this.stream)}`;
  }

  /** The whole line is in the document; the style sheet cuts it at the edge of its box. */
  showCurl() {
    const offer = $("legacy-offer").value;
    const base = location.protocol === "http:" ? location.host : location.origin;
    const path = this.path();
    const url = path.includes("?") ? `"${base}${path}"` : `${base}${path}`;
    const token = $("legacy-token").value.trim();
    const header = token ? ` -H 'Authorization: Bearer ${token.replaceAll("'", "'\\''")}'` : "";
    $("legacy-curl").textContent = `curl ${url} -d "${offer || "…"}"${header}`;
    this.showButtons();
  }

  showButtons() {
    const ready = Boolean(this.attempt && $("legacy-offer").value);
    const answered = Boolean(this.pc?.remoteDescription);
    $("legacy-offer-copy").disabled = !ready;
    $("legacy-curl-copy").disabled = !ready;
    $("legacy-send").disabled = !ready || answered;
    $("legacy-start").disabled = !ready || answered || !$("legacy-answer").value.trim();
  }

  /** The offer is still good: another answer may be tried. */
  refused(error) {
    if (error.kind === "token") {
      $("legacy-token-box").open = true;
      $("legacy-token").focus();
    }
    this.status.set("waiting", error.message, { hint: error.hint });
  }

  stop() {
    if (!this.attempt) return;
    this.release();
    this.status.set("stopped", "Stopped.");
  }

  fail(error) {
    this.release();
    const remedy = error.suggest === "synthetic" && {
      label: "Use the test card",
      run: () => {
        $("legacy-source").value = "synthetic";
        this.begin("publish");
      },
    };
    this.status.set("failed", error.message, { hint: error.hint, remedy: remedy || null });
    if (!error.kind && !("suggest" in error)) console.error(error);
  }

  release() {
    this.attempt?.abort();
    this.attempt = null;
    this.resource?.delete();
    this.resource = null;
    this.pc?.close();
    this.source?.stop();
    this.source = null;
    this.video.srcObject = null;
    this.meter.stop();
    $("legacy-offer").value = "";
    $("legacy-answer").value = "";
    this.showRunning(false);
    this.showCurl();
  }

  showRunning(running) {
    $("legacy-publish").hidden = running;
    $("legacy-join").hidden = running;
    $("legacy-stop").hidden = !running;
    if (running) $("legacy-stop").focus();
  }
}

const encode = ({ type, sdp }) => btoa(JSON.stringify({ type, sdp }));

function decode(text) {
  try {
    const { type, sdp } = JSON.parse(atob(text.trim()));
    if (type === "answer" && typeof sdp === "string") return { type, sdp };
  } catch {
    // Said below, in words for the person who pasted it.
  }
  throw new SignalError("answer", "That is not a session description.", {
    hint: "Paste the whole line that curl printed: it starts with eyJ and is some thousand characters long.",
  });
}
