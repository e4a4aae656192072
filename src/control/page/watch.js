// The panel that watches.

import { $, BAD_NAME, STREAM_NAME, Status, copy, followAspect, sleep, watchLink } from "./dom.js";
import { QualityMenu } from "./quality.js";
import { Meter } from "./stats.js";
import { Viewer } from "./whep.js";

const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 10000;
/** For a 409 without Retry-After. */
const WAIT_MS = 2000;
/** Seconds without a byte until the page says so. The server keeps viewers while a publisher is away. */
const SILENT_SAMPLES = 3;

/**
 * What is lost comes again after a round trip, or when that is lost too, 100 ms later: so long pictures wait on a path that
 * loses so many percent, and a while after. In steps, for a jump would be a freeze.
 */
const CUSHION_MS = 200;
const CUSHION_STEP_MS = 50;
const CUSHION_LOSS_PERCENT = 2;
const CUSHION_SAMPLES = 30;

/** These are for the user to solve; trying again by itself changes nothing. */
const FINAL = ["token", "unusable", "refused", "answer", "gone"];

export class WatchPanel {
  constructor() {
    this.status = new Status("watch", {
      idle: "Not watching",
      connecting: "Connecting",
      waiting: "Waiting",
      live: "Live",
      stopped: "Not watching",
      failed: "Not watching",
    });
    this.meter = new Meter($("watch-figures"), "watch", "receive", (figures) => this.notice(figures));
    this.quality = new QualityMenu();
    this.video = $("watch-video");
    followAspect(this.video, $("watch-stage"));

    $("watch-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    $("watch-stop").addEventListener("click", () => this.stop());
    $("watch-stream").addEventListener("input", () => this.showAddresses());
    $("watch-link-copy").addEventListener("click", () => copy($("watch-link").href, "watch link"));
    $("watch-whep-copy").addEventListener("click", () => copy($("watch-whep-url").textContent, "WHEP address"));
    $("watch-unmute").addEventListener("click", () => this.setMuted(false));
    $("watch-mute").addEventListener("click", () => this.setMuted(true));
    $("watch-fullscreen").addEventListener("click", () => this.toggleFullscreen());
    $("watch-stage").addEventListener("dblclick", () => this.toggleFullscreen());
    // Sound alone also plays; the first picture is what "live" promises. Without pictures, notice() finds out.
    for (const event of ["playing", "resize"])
      this.video.addEventListener(event, () => this.video.videoWidth > 0 && this.showLive());
    this.video.addEventListener("volumechange", () => this.showSound());
    this.showAddresses();
  }

  get stream() {
    return $("watch-stream").value.trim();
  }

  set stream(name) {
    $("watch-stream").value = name;
    this.showAddresses();
  }

  get active() {
    return Boolean(this.attempt);
  }

  showAddresses() {
    const name = STREAM_NAME.test(this.stream) ? this.stream : "default";
    const link = $("watch-link");
    link.href = watchLink(name);
    link.textContent = link.href.replace(/^https?:\/\//, "");
    $("watch-whep-url").textContent = `${location.origin}/whep/${name}`;
  }

  async start() {
    if (this.attempt) return;
    if (!STREAM_NAME.test(this.stream)) {
      this.status.set("failed", BAD_NAME);
      return $("watch-stream").focus();
    }
    const attempt = (this.attempt = new AbortController());
    this.showRunning(true);
    try {
      await this.keepWatching(this.stream, attempt.signal);
    } catch (error) {
      if (!attempt.signal.aborted) this.fail(error);
    }
  }

  /** Session after session, until the user stops or nothing more can be done. */
  async keepWatching(stream, signal) {
    let backoffMs = RETRY_MS_MIN;
    for (;;) {
      const { reason, wasLive } = await this.session(stream, signal);
      if (FINAL.includes(reason.kind) || !reason.kind) throw reason;
      if (wasLive) backoffMs = RETRY_MS_MIN;

      if (reason.kind === "conflict") {
        this.status.set("waiting", `Waiting for the stream “${stream}”.`, {
          hint: "Nobody publishes it yet. It starts here by itself.",
        });
        backoffMs = RETRY_MS_MIN;
        await sleep(reason.retryAfterMs || WAIT_MS, signal);
        continue;
      }
      const waitMs = reason.retryAfterMs || backoffMs;
      this.status.set("connecting", `${reason.message} Trying again…`, { hint: reason.hint });
      await sleep(waitMs, signal);
      backoffMs = Math.min(2 * backoffMs, RETRY_MS_MAX);
    }
  }

  /** One WHEP session, from offer to end. */
  async session(stream, signal) {
    const viewer = (this.viewer = new Viewer((media) => {
      if (this.video.srcObject !== media) this.video.srcObject = media;
      // Muted video may always play; a browser that saves power may refuse all the same, then a tap on it plays.
      this.video.play().catch(() => {});
    }));
    this.connected = false;
    this.wasLive = false;
    this.silentSamples = 0;
    this.samplesSinceLoss = Infinity;
    // While the next session is tried again and again, what the last one said stays on screen.
    if (!["waiting", "connecting"].includes(this.status.state))
      this.status.set("connecting", `Connecting to “${stream}”…`);
    const token = $("watch-token").value.trim();
    try {
      const reason = await viewer.run(stream, {
        token,
        signal,
        onsession: (resource) => this.quality.open(resource, token, signal),
        onstate: (state) => {
          if (state === "interrupted")
            return this.status.set("connecting", "The connection is interrupted. Waiting for it to come back…");
          this.connected = true;
          this.meter.start(viewer.pc);
          if (!this.wasLive) this.status.set("connecting", "Connected. Waiting for the first picture…");
        },
      });
      return { reason, wasLive: this.wasLive };
    } catch (reason) {
      signal.throwIfAborted();
      return { reason, wasLive: this.wasLive };
    } finally {
      this.quality.close();
      viewer.close();
      this.meter.stop();
      this.video.srcObject = null;
      this.showSound();
    }
  }

  /** Each second's figures tell whether media still comes: the connection stays up when a publisher leaves. */
  notice(figures) {
    if (figures.bitsPerSecond === null) return;
    this.cushion(figures.lossPercent);
    this.silentSamples = figures.bitsPerSecond > 0 ? 0 : this.silentSamples + 1;
    if (this.silentSamples === 0 && (figures.frames > 0 || !figures.width)) this.showLive(figures);
    if (this.silentSamples === SILENT_SAMPLES) {
      this.status.set("waiting", `“${this.stream}” has gone quiet.`, {
        hint: "The publisher is away or paused. It goes on here when they are back.",
      });
    }
  }

  /** Holds pictures and sound back a little where packets are lost; browsers that cannot do as they like. */
  cushion(lossPercent) {
    this.samplesSinceLoss = lossPercent >= CUSHION_LOSS_PERCENT ? 0 : this.samplesSinceLoss + 1;
    const step = this.samplesSinceLoss < CUSHION_SAMPLES ? CUSHION_STEP_MS : -CUSHION_STEP_MS;
    for (const receiver of this.viewer.pc.getReceivers()) {
      if (!("jitterBufferTarget" in receiver)) continue;
      const target = Math.min(CUSHION_MS, Math.max(0, (receiver.jitterBufferTarget ?? 0) + step));
      if (target !== (receiver.jitterBufferTarget ?? 0)) receiver.jitterBufferTarget = target || null;
    }
  }

  showLive(figures = this.meter.latest) {
    if (!this.connected || this.video.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
    this.wasLive = true;
    this.showSound();
    if (this.status.state === "live" || (figures && this.silentSamples > 0)) return;
    this.status.set("live", `Watching “${this.stream}”.`);
  }

  stop() {
    if (!this.attempt) return;
    this.release();
    this.status.set("stopped", "Stopped.");
  }

  fail(error) {
    this.release();
    if (error.kind === "token") {
      $("watch-token-box").open = true;
      $("watch-token").focus();
    }
    this.status.set("failed", error.message, { hint: error.hint });
    if (!error.kind) console.error(error);
  }

  release() {
    this.attempt?.abort();
    this.attempt = null;
    this.connected = false;
    this.quality.close();
    this.viewer?.close();
    this.meter.stop();
    this.video.srcObject = null;
    this.showRunning(false);
    this.showSound();
  }

  showRunning(running) {
    const focused = document.activeElement;
    $("watch-start").hidden = running;
    $("watch-stop").hidden = !running;
    if (running && focused === $("watch-start")) $("watch-stop").focus();
    if (!running && focused === $("watch-stop")) $("watch-start").focus();
    $("watch-form").classList.toggle("running", running);
    $("watch-stream").disabled = running;
    $("watch-token").disabled = running;
  }

  setMuted(muted) {
    this.video.muted = muted;
    this.video.play().catch(() => {});
  }

  showSound() {
    const playing = Boolean(this.video.srcObject) && this.active;
    const hasSound = playing && this.video.srcObject.getAudioTracks().length > 0;
    const { muted } = this.video;
    $("watch-tools").hidden = !playing;
    // Muted, the large button says it in words; the small one takes over from it.
    $("watch-unmute").hidden = !hasSound || !muted || !this.wasLive;
    $("watch-mute").hidden = !hasSound || muted;
  }

  toggleFullscreen() {
    if (!this.video.srcObject) return;
    if (document.fullscreenElement) return document.exitFullscreen();
    const stage = $("watch-stage");
    // iPhones have full screen for the video element alone.
    if (stage.requestFullscreen) stage.requestFullscreen().catch(() => {});
    else this.video.webkitEnterFullscreen?.();
  }
}
