// Small things about the document that every panel needs.

export const $ = (id) => document.getElementById(id);

/** Waits, or throws the signal's reason when the user has moved on meanwhile. */
export function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const onabort = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", onabort);
      resolve();
    }, ms);
    signal?.addEventListener("abort", onabort, { once: true });
  });
}

/**
 * The part of a panel that says how things stand: the `data-state` attribute (`idle`, `connecting`, `waiting`, `live`,
 * `stopped`, `failed`), the badge on the picture, one sentence, and perhaps a hint and a button that remedies.
 */
export class Status {
  constructor(prefix, badges) {
    this.panel = $(`panel-${prefix}`);
    this.tab = $(`tab-${prefix}`);
    this.badge = $(`${prefix}-badge`);
    this.text = $(`${prefix}-status-text`);
    this.hint = $(`${prefix}-status-hint`);
    this.remedy = $(`${prefix}-remedy`);
    this.badges = badges;
  }

  get state() {
    return this.panel.dataset.state;
  }

  /** `remedy` is `{ label, run }`. */
  set(state, text, { hint = "", remedy = null } = {}) {
    this.panel.dataset.state = state;
    this.tab.dataset.state = state;
    this.badge.textContent = this.badges[state];
    // Writing the same words again would make a screen reader say them again.
    if (this.text.textContent !== text) this.text.textContent = text;
    this.hint.textContent = hint;
    this.hint.hidden = !hint;
    this.remedy.hidden = !remedy;
    this.remedy.textContent = remedy?.label ?? "";
    this.remedy.onclick = remedy?.run ?? null;
  }
}

let toastTimer;
export function toast(text) {
  const box = $("toast");
  box.textContent = text;
  box.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => box.classList.remove("shown"), 2200);
}

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain HTTP pages have no navigator.clipboard; the old way still works there.
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "offscreen";
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    if (!done) return toast(`Copying was not allowed; select the ${what} by hand.`);
  }
  toast(`Copied the ${what}.`);
}

/** Lets a stage take the shape of its video, between portrait and wide; CSS limits its height. */
export function followAspect(video, stage) {
  const follow = () => {
    const { videoWidth: width, videoHeight: height } = video;
    if (!width || !height) return stage.style.removeProperty("--aspect");
    stage.style.setProperty("--aspect", Math.min(2.4, Math.max(0.75, width / height)).toFixed(4));
  };
  video.addEventListener("loadedmetadata", follow);
  video.addEventListener("resize", follow);
  video.addEventListener("emptied", follow);
}

/** The server's rule for stream names. */
export const STREAM_NAME = /^[A-Za-z0-9._~-]{1,128}$/;

export const BAD_NAME = "A stream name is made of letters, digits and . _ ~ - (up to 128).";

/** Where a viewer goes. `#play` starts at once, `#watch` only opens the panel. */
export const watchLink = (stream) => `${location.origin}/?stream=${encodeURIComponent(stream)}#play`;

export const isLoopback = () => /^(localhost|.*\.localhost|127\.[\d.]+|\[::1\])$/.test(location.hostname);
