// The panel that publishes.

import { $, BAD_NAME, STREAM_NAME, Status, copy, followAspect, isLoopback, sleep, watchLink } from "./dom.js";
import { openSource } from "./source.js";
import { Meter } from "./stats.js";
import { countViewers } from "./streams.js";
import { Publisher, sendableCodecs } from "./whip.js";

const SOURCE_HINTS = {
  camera: "The browser will ask before it opens the camera.",
  screen: "The browser will ask which screen, window or tab.",
  synthetic: "A moving picture with a clock, and a beep that only viewers hear.",
};

/** After a lost connection. A server that ended the session is not argued with: another publisher has taken over. */
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 8000, 8000];

export class PublishPanel {
  /** `onlive` hears the stream's name. */
  constructor({ onlive }) {
    this.onlive = onlive;
    this.status = new Status("publish", {
      idle: "Off air",
      connecting: "Connecting",
      live: "On air",
      stopped: "Off air",
      failed: "Off air",
    });
    this.meter = new Meter($("publish-figures"), "publish", "send");
    this.video = $("publish-video");
    followAspect(this.video, $("publish-stage"));

    $("publish-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    $("publish-stop").addEventListener("click", () => this.stop());
    $("publish-stream").addEventListener("input", () => this.showAddresses());
    $("publish-link-copy").addEventListener("click", () => copy($("publish-link").href, "watch link"));
    $("publish-whip-copy").addEventListener("click", () => copy($("publish-whip-url").textContent, "WHIP address"));
    for (const radio of this.radios()) radio.addEventListener("change", () => this.showSource());

    this.offerWhatWorks();
    this.showSource();
    this.showAddresses();
  }

  radios() {
    return document.querySelectorAll("#publish-form input[name=source]");
  }

  get source() {
    return document.querySelector("#publish-form input[name=source]:checked").value;
  }

  set source(kind) {
    const radio = $(`publish-source-${kind}`);
    if (!radio || radio.disabled) return;
    radio.checked = true;
    this.showSource();
  }

  get stream() {
    return $("publish-stream").value.trim();
  }

  get active() {
    return Boolean(this.attempt);
  }

  /** Greys out what this browser, or this address, cannot do. */
  offerWhatWorks() {
    $("publish-source-camera").disabled = !navigator.mediaDevices?.getUserMedia;
    $("publish-source-screen").disabled = !navigator.mediaDevices?.getDisplayMedia;
    if ($("publish-source-camera").disabled) this.source = "synthetic";
    const can = sendableCodecs();
    for (const option of $("publish-codec").options) {
      option.disabled = option.value !== "auto" && can.size > 0 && !can.has(option.value);
    }
    $("publish-link-hint").hidden = !isLoopback();
  }

  showSource() {
    $("publish-source-hint").textContent = SOURCE_HINTS[this.source];
  }

  showAddresses() {
    const name = STREAM_NAME.test(this.stream) ? this.stream : "default";
    const link = $("publish-link");
    link.href = watchLink(name);
    link.textContent = link.href.replace(/^https?:\/\//, "");
    $("publish-whip-url").textContent = `${location.origin}/whip/${name}`;
  }

  /** How many look at what this page publishes; not in the status line, which would be read out each time. */
  showViewers(streams) {
    const own = streams.find(({ name }) => name === this.stream);
    if (this.status.state === "live" && own)
      this.status.badge.textContent = `On air, ${countViewers(own.viewers ?? 0)}`;
  }

  async start() {
    if (this.attempt) return;
    if (!STREAM_NAME.test(this.stream)) {
      this.status.set("failed", BAD_NAME);
      return $("publish-stream").focus();
    }
    const attempt = (this.attempt = new AbortController());
    this.showRunning(true);
    try {
      await this.openAndSend(attempt.signal);
    } catch (error) {
      // An aborted attempt was tidied up by whoever aborted it, and another may be running by now.
      if (!attempt.signal.aborted) this.fail(error);
    }
  }

  async openAndSend(signal) {
    const stream = this.stream;
    const token = $("publish-token").value.trim();
    const [width, height] = $("publish-size").value.split("x").map(Number);
    const size = { width, height };

    this.status.set("connecting", OPENING[this.source]);
    const source = await openSource(this.source, { size, audio: $("publish-audio").checked });
    if (signal.aborted) return source.stop();
    this.opened = source;
    this.video.srcObject = source.media;
    // "Stop sharing" in the browser's own bar, or a camera that was unplugged.
    source.media.getVideoTracks()[0].addEventListener("ended", () => {
      if (this.opened === source) this.stop("The source has ended.");
    });

    for (let retry = 0; ; retry += 1) {
      const { reason, wasLive } = await this.session(source, { stream, token, size, signal });
      if (wasLive) retry = 0;
      const worthTrying = reason.kind === "lost" || (this.hasBeenLive && ["network", "busy"].includes(reason.kind));
      if (!worthTrying || retry >= RETRY_MS.length) throw reason;
      this.status.set("connecting", `${reason.message} Publishing again…`, { hint: reason.hint });
      await sleep(reason.retryAfterMs || RETRY_MS[retry], signal);
    }
  }

  /** One WHIP session, from offer to end. */
  async session(source, { stream, token, size, signal }) {
    const publisher = (this.publisher = new Publisher(source.media, {
      codec: $("publish-codec").value,
      simulcast: $("publish-simulcast").checked,
      size,
    }));
    let wasLive = false;
    this.status.set("connecting", `Connecting to publish “${stream}”…`);
    this.meter.start(publisher.pc);
    try {
      const reason = await publisher.run(stream, {
        token,
        signal,
        onstate: (state) => {
          if (state === "interrupted")
            return this.status.set("connecting", "The connection is interrupted. Waiting for it to come back…");
          wasLive = this.hasBeenLive = true;
          this.status.set("live", `“${stream}” is live.`, {
            hint: "Open the watch link in another tab, or on another device.",
          });
          this.onlive(stream);
        },
      });
      return { reason, wasLive };
    } catch (reason) {
      signal.throwIfAborted();
      return { reason, wasLive };
    } finally {
      publisher.close();
    }
  }

  stop(text = "Stopped. Viewers no longer get this stream.") {
    if (!this.attempt) return;
    this.release();
    this.status.set("stopped", text);
  }

  fail(error) {
    const source = this.source;
    this.release();
    let text = error.message;
    let { hint = "" } = error;
    let remedy = null;
    if (error.kind === "token") {
      $("publish-token-box").open = true;
      $("publish-token").focus();
    } else if (error.kind === "ended") {
      hint = "Another publisher has taken this stream over, or the server is shutting down.";
      remedy = { label: "Take it back", run: () => this.start() };
    } else if (error.kind === "conflict") {
      text = `Someone else is publishing “${this.stream}” already.`;
      hint ||= "Choose another name, or wait until they stop.";
    } else if (error.suggest && error.suggest !== source && !$(`publish-source-${error.suggest}`).disabled) {
      const kind = error.suggest;
      remedy = {
        label: kind === "synthetic" ? "Use the test card" : "Use the camera",
        run: () => {
          this.source = kind;
          this.start();
        },
      };
    }
    this.status.set("failed", text, { hint, remedy });
    if (!error.kind && !("suggest" in error)) console.error(error);
  }

  /** Lets go of everything: session, source, timers. */
  release() {
    this.attempt?.abort();
    this.attempt = null;
    this.hasBeenLive = false;
    this.publisher?.close();
    this.opened?.stop();
    this.opened = null;
    this.video.srcObject = null;
    this.meter.stop();
    this.showRunning(false);
  }

  showRunning(running) {
    const focused = document.activeElement;
    $("publish-start").hidden = running;
    $("publish-stop").hidden = !running;
    // The keyboard's place must not get lost with the button that hides.
    if (running && focused === $("publish-start")) $("publish-stop").focus();
    if (!running && focused === $("publish-stop")) $("publish-start").focus();
    $("publish-form").classList.toggle("running", running);
    if (running) this.lock();
    else this.unlock();
  }

  /** What cannot change while live is locked, so that the form shows what is on air. */
  lock() {
    this.locked = [...$("publish-form").elements].filter(
      (field) => /^(INPUT|SELECT)$/.test(field.tagName) && !field.disabled,
    );
    for (const field of this.locked) field.disabled = true;
  }

  unlock() {
    for (const field of this.locked ?? []) field.disabled = false;
    this.locked = [];
  }
}

const OPENING = {
  camera: "Waiting for the camera. The browser may be asking you.",
  screen: "Waiting for a screen. The browser is asking which.",
  synthetic: "Starting the test card…",
};
