// The quality menu: which layers a stream has, as the server's events tell (WHEP's extensions), and which one is wanted.

import { $, toast } from "./dom.js";
import { post } from "./signal.js";
import { bitrate } from "./stats.js";

const EXTENSION = "urn:ietf:params:whep:ext:core";
const AUTO = { value: "", text: "Auto" };

export class QualityMenu {
  constructor() {
    this.select = $("watch-quality");
    this.wanted = AUTO.value;
    this.select.addEventListener("change", () => this.choose(this.select.value));
    // Who does not look needs no news, and browsers open six connections to a server, for all tabs together.
    document.addEventListener("visibilitychange", () => this.listen());
  }

  /** For one WHEP session; a server without these extensions has no menu. */
  async open(resource, token, signal) {
    const [events, layer] = ["server-sent-events", "layer"].map((name) => resource.link(`${EXTENSION}:${name}`));
    if (!events || !layer) return;
    this.ask = (wish) => post(layer, "application/json", JSON.stringify(wish), token, signal);
    this.told = false;
    try {
      const response = await post(events, "application/json", '["layers"]', token, signal);
      signal.throwIfAborted();
      this.url = new URL(response.headers.get("Location"), location.href).pathname;
      this.listen();
    } catch {
      // The picture plays on without a menu.
    }
  }

  close() {
    this.url = null;
    this.listen();
    this.show([]);
  }

  listen() {
    this.source?.close();
    this.source = null;
    if (!this.url || document.hidden) return;
    this.source = new EventSource(this.url);
    this.source.addEventListener("layers", ({ data }) => this.show(Object.values(JSON.parse(data)).flat()));
  }

  /** Best first, as the server says them. */
  show(layers) {
    const options = [AUTO, ...layers.map((layer) => ({ value: value(layer, layers), text: label(layer) }))];
    this.select.hidden = layers.length < 2;
    // In place: the list may be open.
    this.select.length = options.length;
    options.forEach(({ value, text }, i) => {
      const option = this.select.options[i];
      option.value = value;
      if (option.text !== text) option.text = text;
    });
    const known = options.some(({ value }) => value === this.wanted);
    this.select.value = known ? this.wanted : AUTO.value;
    // The session before this one was told; this one was not.
    if (known && this.wanted !== AUTO.value && !this.told) this.choose(this.wanted);
  }

  async choose(value) {
    const before = this.wanted;
    this.wanted = value;
    this.told = true;
    try {
      await this.ask(wish(value));
    } catch (error) {
      if (!error.kind) return;
      this.wanted = this.select.value = before;
      toast(error.message);
    }
  }
}

/** A layer's rid, and behind a slash which of its spatial layers, where it has several. */
function value({ rid = "", spatialLayerId }, layers) {
  const several = layers.filter((layer) => (layer.rid ?? "") === rid).length > 1;
  return several ? `${rid}/${spatialLayerId}` : rid;
}

function wish(value) {
  const [rid, spatial] = value.split("/");
  return { ...(rid && { rid }), ...(spatial && { maxSpatialLayerId: Number(spatial) }) };
}

function label({ rid, height, bitrate: bitsPerSecond }) {
  const name = height ? `${height}p` : rid;
  return bitsPerSecond ? `${name} (${bitrate(bitsPerSecond, 1)})` : name;
}
