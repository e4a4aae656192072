// The list of what is live, from GET /api/streams.

import { $ } from "./dom.js";
import { bitrate, codecLabel } from "./stats.js";

const REFRESH_MS = 2000;

export class StreamList {
  /**
   * `token` gives the bearer token to ask with; `onpick` hears the name of a stream that was clicked, `onlist` each
   * new list.
   */
  constructor({ token, onpick, onlist }) {
    this.token = token;
    this.onpick = onpick;
    this.onlist = onlist;
    this.rows = new Map();
    setInterval(() => this.refresh(), REFRESH_MS);
    document.addEventListener("visibilitychange", () => this.refresh());
    this.refresh();
  }

  async refresh() {
    if (document.hidden || this.asking) return;
    this.asking = true;
    try {
      this.show(await this.ask());
    } finally {
      this.asking = false;
    }
  }

  /** The streams, or null when this server tells them only to its own machine or to holders of a token. */
  async ask() {
    const token = this.token();
    // A refusal stays one until there is another token; asking on would only fill the server's counters.
    if (this.refusedToken === token) return null;
    try {
      const response = await fetch("/api/streams", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
      if ([401, 403, 404].includes(response.status)) this.refusedToken = token;
      return response.ok ? (await response.json()).streams : null;
    } catch {
      return null;
    }
  }

  show(streams) {
    $("streams").hidden = streams === null;
    if (!streams) return;
    $("streams-empty").hidden = streams.length > 0;
    this.onlist(streams);

    // Rows are kept, not made anew, so that a refresh takes neither focus nor a click in progress.
    for (const [name, row] of this.rows) {
      if (streams.some((stream) => stream.name === name)) continue;
      row.item.remove();
      this.rows.delete(name);
    }
    for (const stream of streams) {
      if (!this.rows.has(stream.name)) this.rows.set(stream.name, this.addRow(stream.name));
      this.fill(this.rows.get(stream.name), stream);
    }
  }

  addRow(name) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.stream = name;
    button.addEventListener("click", () => this.onpick(name));
    const [lamp, title, about, viewers] = ["lamp", "name", "about", "viewers"].map((className) => {
      const part = document.createElement("span");
      part.className = className;
      return part;
    });
    title.textContent = name;
    button.append(lamp, title, viewers, about);
    item.append(button);
    $("streams-list").append(item);
    return { item, button, about, viewers };
  }

  fill(row, { name, tracks = [], viewers = 0 }) {
    const total = tracks.reduce((sum, track) => sum + (track.bitrate_bps ?? 0), 0);
    const about = [
      [...tracks]
        .sort((a, b) => b.kind.localeCompare(a.kind))
        .map(({ codec }) => codecLabel(codec))
        .join(" + "),
      total ? bitrate(total) : "",
    ]
      .filter(Boolean)
      .join(", ");
    const count = countViewers(viewers);
    row.about.textContent = about;
    row.viewers.textContent = count;
    row.button.setAttribute("aria-label", `Watch ${name}: ${about}, ${count}`);
  }
}

export const countViewers = (viewers) => (viewers === 1 ? "1 viewer" : `${viewers} viewers`);
